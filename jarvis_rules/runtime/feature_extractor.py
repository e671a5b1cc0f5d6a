"""Triton module: audio to log-mel features.

Inputs: `AUDIO_SIGNAL` FP32 [batch, samples], `SAMPLE_COUNT` INT64 [batch, 1].
Outputs: `AUDIO_FEATURES` FP32 [batch, M, T], `AUDIO_FEATURES_LENGTH` INT64 [batch, 1] (frames).
Parameters: those of `MelSpectrogram`, each by its name (nothing = `None`), `window_file` and
`fb_file` (.npy in the version folder).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .mel_spectrogram import MelSpectrogram
from .parameters import Parameters
from .serving import Answer, answer_each, check_tensors, input_array, input_column

REQUIRES = ("numpy",)


class TritonPythonModel:
    """What Triton's python backend runs."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the parameters and buffers; an exception here fails the load with its text."""
        check_tensors()
        self._spectrogram = load(Parameters(args))

    def execute(self, requests: list[object]) -> list[object]:
        """Answer every request by itself."""
        return answer_each(requests, self._features, "feature_extractor")

    def finalize(self) -> None:
        """Nothing is held that needs an end."""

    def _features(self, request: object) -> Answer:
        audio = input_array(request, "AUDIO_SIGNAL", np.float32, 2)
        counts = input_column(request, "SAMPLE_COUNT", len(audio))
        check_audio(audio, counts)
        features, lengths = self._spectrogram.batch(audio, counts)
        return {"AUDIO_FEATURES": features, "AUDIO_FEATURES_LENGTH": lengths[:, None]}


def load(parameters: Parameters) -> MelSpectrogram:
    """Make the feature computation that a model's parameters and files describe."""
    values: dict[str, Any] = {
        "sample_rate": parameters.integer("sample_rate"),
        "n_window_size": parameters.integer("n_window_size"),
        "n_window_stride": parameters.integer("n_window_stride"),
        "n_fft": parameters.integer("n_fft"),
        "features": parameters.integer("features"),
        "preemph": parameters.optional_number("preemph"),
        "log": parameters.boolean("log"),
        "log_zero_guard_type": parameters.text("log_zero_guard_type"),
        "log_zero_guard_value": parameters.number("log_zero_guard_value"),
        "mag_power": parameters.number("mag_power"),
        "normalize": parameters.optional_text("normalize"),
        "pad_to": parameters.integer("pad_to"),
        "pad_value": parameters.number("pad_value"),
        "exact_pad": parameters.boolean("exact_pad"),
        "frame_splicing": parameters.integer("frame_splicing"),
    }
    window = np.load(parameters.file("window_file"), allow_pickle=False)
    fb = np.load(parameters.file("fb_file"), allow_pickle=False)
    return MelSpectrogram(values, window, fb)


def check_audio(audio: NDArray[np.float32], counts: NDArray[np.int64]) -> None:
    """Raise `ValueError`, naming the item, for audio [B, N] with counts [B] that can't be used."""
    for item, (row, count) in enumerate(zip(audio, counts.tolist(), strict=True)):
        if not 0 < count <= len(row):
            expected = f"1 to {len(row)}" if len(row) else "at least 1, but there is no audio"
            raise ValueError(f"item {item}: `SAMPLE_COUNT` must be {expected}, got {count}")
        finite = np.isfinite(row[:count])
        if not finite.all():
            place = int(finite.argmin())
            raise ValueError(f"item {item}: `AUDIO_SIGNAL` is {row[place]} at sample {place}")
