"""The mel front end of a speech model: its parameters and its two tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jarvis_rules.exporters._config import LARGEST, Key, Section, ignored, neutral, refuse, used
from jarvis_rules.exporters._weights import take_float32

TARGETS = (
    "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
    "nemo.collections.asr.modules.audio_preprocessing.AudioToMelSpectrogramPreprocessor",
)
KEYS: tuple[Key, ...] = (
    *used("_target_", "sample_rate", "window_size", "window_stride", "n_window_size"),
    *used("n_window_stride", "window", "n_fft", "features", "lowfreq", "highfreq", "preemph"),
    *used("log", "log_zero_guard_type", "log_zero_guard_value", "mag_power", "normalize"),
    *used("pad_to", "pad_value", "exact_pad"),
    *ignored("noise against overfitting, added in training only", "dither"),
    *ignored("augmentation, training only", "rng", "nb_augmentation_prob", "nb_max_freq"),
    *ignored("the filterbank itself travels with the model", "mel_norm"),
    *ignored("NeMo 1.23 accepts and ignores it", "stft_conv", "stft_exact_pad"),
    *neutral("frame_splicing", 1, reason="stacked frames are not served"),
    *neutral("use_torchaudio", False, reason="torchaudio computes other features"),
)
WINDOWS = ("hann", "hamming", "blackman", "bartlett")


def read_mel_features(section: Section) -> dict[str, Any]:
    """Return what evaluation-mode features depend on, with NeMo's defaults filled in.

    Windows and strides are in samples, frequencies in Hz. Raises JarvisError
    `export.unsupported-config`. Source: NeMo 1.23 AudioToMelSpectrogramPreprocessor and
    FilterbankFeatures.
    """
    section.choice("_target_", TARGETS)
    section.check(KEYS)
    rate = section.integer("sample_rate", 16000, 1)
    window = read_samples(section, "window_size", 0.02, rate)
    stride = read_samples(section, "window_stride", 0.01, rate)
    n_fft = section.values.get("n_fft") or 2 ** math.ceil(math.log2(window))
    if isinstance(n_fft, bool) or not isinstance(n_fft, int) or n_fft < window:
        refuse(section.at("n_fft"), n_fft, f"null or an integer of at least the window, {window}")
    exact_pad = section.boolean("exact_pad", False)
    if exact_pad and stride % 2:
        refuse(section.at("exact_pad"), True, f"`false` for an odd stride of {stride} samples")
    preemphasised = section.values.get("preemph", True) is not None
    normalized = section.values.get("normalize", True)
    kinds = ("per_feature", "all_features")
    return {
        "sample_rate": rate,
        "n_window_size": window,
        "n_window_stride": stride,
        "window": section.choice("window", WINDOWS, "hann"),
        "n_fft": n_fft,
        "features": section.integer("features", 64, 1),
        "lowfreq": section.number("lowfreq", 0.0),
        "highfreq": section.number("highfreq") if section.values.get("highfreq") else rate / 2,
        "preemph": section.number("preemph", 0.97) if preemphasised else None,
        "log": section.boolean("log", True),
        "log_zero_guard_type": section.choice("log_zero_guard_type", ("add", "clamp"), "add"),
        "log_zero_guard_value": _read_guard(section),
        "mag_power": section.number("mag_power", 2.0, above=0),
        "normalize": section.choice("normalize", kinds, kinds[0]) if normalized else None,
        "pad_to": section.integer("pad_to", 16, 0),
        "pad_value": section.number("pad_value", 0.0),
        "exact_pad": exact_pad,
        "frame_splicing": 1,
    }


def take_mel_tables(
    features: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """Return the window float32 [n_window_size] and the filterbank float32 [M, n_fft / 2 + 1].

    They are taken from the checkpoint, so that serving needs no librosa and computes with the very
    values of training. Raises what `take_weight` raises.
    """
    prefix = "preprocessor.featurizer"
    window = take_float32(weights, f"{prefix}.window", (features["n_window_size"],))
    size = (1, features["features"], features["n_fft"] // 2 + 1)
    bank = take_float32(weights, f"{prefix}.fb", size)
    return {"featurizer_window.npy": dump_npy(window), "featurizer_fb.npy": dump_npy(bank[0])}


def dump_npy(array: np.ndarray) -> bytes:
    """Return `array` as a .npy file of format version 1.0, little endian, C order.

    numpy's own writer pads the header differently from version to version.
    """
    array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    header = f"{{'descr': '{array.dtype.str}', 'fortran_order': False, 'shape': {array.shape!r}, }}"
    padding = -(len(header) + 11) % 64
    text = header.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + array.tobytes()


def read_samples(section: Section, key: str, default: float, rate: int) -> int:
    """Return a duration in samples, given in seconds (`key`) or in samples (`n_` + `key`)."""
    seconds, samples = section.values.get(key, default), section.values.get(f"n_{key}")
    if seconds and samples:
        refuse(section.at(f"n_{key}"), samples, f"`null` beside `{key}: {seconds!r}`")
    if not seconds:
        return section.integer(f"n_{key}", minimum=1)
    # NeMo truncates this very product; rounding would move 0.0125 s at 22050 Hz.
    count = section.number(key, default, above=0) * rate
    if not 1 <= count <= LARGEST:
        refuse(section.at(key), seconds, f"seconds that are 1 to {LARGEST} samples at {rate} Hz")
    return int(count)


def _read_guard(section: Section) -> float:
    value = section.values.get("log_zero_guard_value", 2**-24)
    if value in ("tiny", "eps"):
        info = np.finfo(np.float32)
        return float(info.tiny if value == "tiny" else info.eps)
    return section.number("log_zero_guard_value", 2**-24, above=0)
