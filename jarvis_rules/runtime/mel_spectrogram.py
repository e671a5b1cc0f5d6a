"""Log-mel features as NeMo's `AudioToMelSpectrogramPreprocessor` makes them (NeMo 1.23, eval mode).

NeMo computes a padded batch at once, so that the last frames of a shorter item depend on its
neighbours. Here every item is computed from its own samples, as NeMo does for that item alone: the
result is the same, bit by bit, alone and in any batch.

Pre-emphasis is done in float32 as in torch; window, Fourier transform, mel filters, logarithm and
statistics in float64 (numpy 1.x transforms in float64 only, numpy 2.x would follow its input), so
that every numpy gives the same features, and silence, whose deviation is zero, gives zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

REQUIRES = ("numpy",)

FRAMES_AT_ONCE = 128
"""Bounds memory for recordings of any length; what so many frames need fits the CPU cache."""

_STD_GUARD = 1e-5
"""NeMo's CONSTANT, added to the deviation before dividing by it."""


class MelSpectrogram:
    """From samples to features, after NeMo 1.23's `FilterbankFeatures`.

    Args:
        parameters: `sample_rate` (Hz), `n_window_size`, `n_window_stride`, `n_fft` (samples),
            `features` (mel bands M), `preemph` (number or None), `log` (bool),
            `log_zero_guard_type` ("add" or "clamp"), `log_zero_guard_value`, `mag_power`,
            `normalize` ("per_feature", "all_features" or None), `pad_to` (frames, 0 = no padding),
            `pad_value`, `exact_pad` (bool), `frame_splicing` (1).
        window: the checkpoint's `featurizer.window`, [n_window_size].
        fb: the checkpoint's `featurizer.fb`, [M, n_fft // 2 + 1] or [1, M, n_fft // 2 + 1].

    Raises:
        ValueError: a parameter is missing or can't be served, or a buffer doesn't fit to it.

    """

    def __init__(
        self, parameters: Mapping[str, object], window: NDArray[Any], fb: NDArray[Any]
    ) -> None:
        self.sample_rate = _integer(parameters, "sample_rate", 1)
        self.hop = _integer(parameters, "n_window_stride", 1)
        self.n_fft = _integer(parameters, "n_fft", 1)
        self.bands = _integer(parameters, "features", 1)
        self.pad_to = _integer(parameters, "pad_to", 0)
        self.pad_value = _number(parameters, "pad_value")
        preemph = _value(parameters, "preemph")
        self._preemph = None if preemph is None else np.float32(_number(parameters, "preemph"))
        self._log = _boolean(parameters, "log")
        self._guard_type = _choice(parameters, "log_zero_guard_type", ("add", "clamp"))
        self._guard = _number(parameters, "log_zero_guard_value", positive=True)
        self._mag_power = _number(parameters, "mag_power", positive=True)
        self._normalize = _choice(parameters, "normalize", ("per_feature", "all_features", None))
        self._exact_pad = _boolean(parameters, "exact_pad")
        _choice(parameters, "frame_splicing", (1,))
        if self._exact_pad and self.hop % 2:
            raise ValueError(f"exact_pad needs an even n_window_stride, got {self.hop}")
        self._pad = (self.n_fft - self.hop) // 2 if self._exact_pad else self.n_fft // 2
        if self._pad < 0:
            raise ValueError(f"n_fft {self.n_fft} is less than n_window_stride {self.hop}")
        self._window = _centred(window, _integer(parameters, "n_window_size", 1), self.n_fft)
        self._filters = _filters(fb, self.bands, self.n_fft // 2 + 1)

    @property
    def shortest(self) -> int:
        """The fewest samples that give features: the reflection at both ends needs so many."""
        return max(self._pad + 1, self.n_fft - 2 * self._pad)

    def __call__(self, audio: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the features of one utterance.

        Args:
            audio: [N] samples, float32, finite, in -1 to 1.

        Returns:
            [M, L] float32, L = (N + 2 pad - n_fft) // n_window_stride + 1, contiguous. No samples
            give no frames. A single frame, which has no deviation, is normalised to zeros (NeMo
            1.23 refuses it).

        Raises:
            ValueError: fewer than `shortest` samples, of which NeMo (torch's reflection) makes
                nothing either.

        """
        samples = np.ascontiguousarray(audio, dtype=np.float32)
        if samples.ndim != 1:
            raise ValueError(f"audio must have 1 dimension, got shape {list(samples.shape)}")
        if not samples.size:
            return np.empty((self.bands, 0), np.float32)
        if samples.size < self.shortest:
            raise ValueError(
                f"audio of {samples.size} samples is shorter than {self.shortest} samples "
                f"({1000 * self.shortest / self.sample_rate:.1f} ms), the least that has features"
            )
        frames = sliding_window_view(self._padded(samples), self.n_fft)[:: self.hop]
        features = np.empty((self.bands, len(frames)), np.float32)
        for block in _blocks(len(frames)):
            features[:, block] = self._mel(frames[block]).T
        if self._normalize:
            _normalise(features, axis=1 if self._normalize == "per_feature" else None)
        return features

    def batch(
        self, audio: NDArray[np.float32], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Compute the features of several utterances, each from its valid samples alone.

        Args:
            audio: [B, N] samples, float32; what lies past an item's count is not looked at.
            counts: [B] valid samples, integers.

        Returns:
            features [B, M, T] float32, T = the most frames, rounded up to a multiple of `pad_to`,
            filled with `pad_value` past an item's frames; lengths [B] int64, in frames.

        Raises:
            ValueError: shapes or counts are impossible, or an item is too short (see `__call__`).

        """
        if audio.ndim != 2 or counts.shape != audio.shape[:1]:
            raise ValueError(
                "audio must be [B, N] and counts [B], "
                f"got {list(audio.shape)} and {list(counts.shape)}"
            )
        wrong = (counts < 0) | (counts > audio.shape[1])
        if wrong.any():
            raise ValueError(
                f"sample count must be 0 to {audio.shape[1]}, got {int(counts[wrong][0])}"
            )
        items = []
        for row, count in zip(audio, counts.tolist(), strict=True):
            try:
                items.append(self(row[:count]))
            except ValueError as error:
                raise ValueError(f"item {len(items)}: {error}") from None
        lengths = np.array([item.shape[1] for item in items], np.int64)
        frames = int(lengths.max(initial=0))
        if self.pad_to:
            frames = -(-frames // self.pad_to) * self.pad_to
        features = np.full((len(items), self.bands, frames), self.pad_value, np.float32)
        for row, item in zip(features, items, strict=True):
            row[:, : item.shape[1]] = item
        return features, lengths

    def _padded(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        # With exact_pad NeMo reflects before pre-emphasis, without it after (inside torch.stft).
        if self._exact_pad:
            samples = np.pad(samples, self._pad, mode="reflect")
        if self._preemph is not None:
            emphasised = np.empty_like(samples)
            emphasised[0] = samples[0]
            np.multiply(samples[:-1], -self._preemph, out=emphasised[1:])
            emphasised[1:] += samples[1:]
            samples = emphasised
        if not self._exact_pad:
            samples = np.pad(samples, self._pad, mode="reflect")
        return samples

    def _mel(self, frames: NDArray[np.float32]) -> NDArray[np.float64]:
        spectrum = np.fft.rfft(frames * self._window, axis=1)
        power: NDArray[np.float64] = np.square(spectrum.real) + np.square(spectrum.imag)
        if self._mag_power != 2.0:
            power **= self._mag_power / 2.0
        mel: NDArray[np.float64] = power @ self._filters
        if not self._log:
            return mel
        if self._guard_type == "add":
            return np.log(mel + self._guard)
        return np.log(np.maximum(mel, self._guard))


def _normalise(features: NDArray[np.float32], axis: int | None) -> None:
    """Bring [M, L] to mean 0 and (unbiased) deviation 1, each band or (None) all as one."""
    mean = features.mean(axis=axis, dtype=np.float64, keepdims=True)
    squares = np.zeros_like(mean)
    for block in _blocks(features.shape[1]):
        squares += np.square(features[:, block] - mean).sum(axis=axis, keepdims=True)
    count = features.size // mean.size
    deviation = np.sqrt(squares / max(count - 1, 1)) + _STD_GUARD
    for block in _blocks(features.shape[1]):
        features[:, block] = (features[:, block] - mean) / deviation


def _blocks(frames: int) -> Iterator[slice]:
    return (slice(at, at + FRAMES_AT_ONCE) for at in range(0, frames, FRAMES_AT_ONCE))


def _centred(window: NDArray[Any], size: int, n_fft: int) -> NDArray[np.float64]:
    if window.shape != (size,) or size > n_fft:
        raise ValueError(
            f"window must be [n_window_size] = [{size}] and at most n_fft = {n_fft}, "
            f"got {list(window.shape)}"
        )
    centred = np.zeros(n_fft, np.float64)
    start = (n_fft - size) // 2
    centred[start : start + size] = window
    return centred


def _filters(fb: NDArray[Any], bands: int, bins: int) -> NDArray[np.float64]:
    if fb.shape not in {(bands, bins), (1, bands, bins)}:
        raise ValueError(
            f"fb must be [features, n_fft // 2 + 1] = [{bands}, {bins}], got {list(fb.shape)}"
        )
    return np.ascontiguousarray(fb.reshape(bands, bins).T, dtype=np.float64)


def _value(parameters: Mapping[str, object], key: str) -> object:
    if key not in parameters:
        raise ValueError(f"parameter `{key}` is missing")
    return parameters[key]


def _integer(parameters: Mapping[str, object], key: str, least: int) -> int:
    value = _value(parameters, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"parameter `{key}` must be a whole number from {least}, got `{value}`")
    return value


def _number(parameters: Mapping[str, object], key: str, *, positive: bool = False) -> float:
    value = _value(parameters, key)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"parameter `{key}` must be a number, got `{value}`")
    if positive and value <= 0:
        raise ValueError(f"parameter `{key}` must be more than 0, got `{value}`")
    return float(value)


def _boolean(parameters: Mapping[str, object], key: str) -> bool:
    value = _value(parameters, key)
    if not isinstance(value, bool):
        raise ValueError(f"parameter `{key}` must be a boolean, got `{value}`")
    return value


def _choice(parameters: Mapping[str, object], key: str, choices: tuple[object, ...]) -> object:
    value = _value(parameters, key)
    if value not in choices:
        allowed = ", ".join(f"`{choice}`" for choice in choices)
        raise ValueError(f"parameter `{key}` must be one of {allowed}, got `{value}`")
    return value
