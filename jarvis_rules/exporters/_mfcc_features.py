"""The MFCC front end of a speech model: its parameters and its three tables.

Windowed power spectrum (centred, reflected at the ends), mel filterbank, logarithm, cosine
transform. No noise, pre-emphasis, normalisation or padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jarvis_rules.exporters._config import Key, Section, ignored, neutral, refuse, used
from jarvis_rules.exporters._mel_features import WINDOWS, dump_npy, read_samples
from jarvis_rules.exporters._weights import take_float32

TARGETS = (
    "nemo.collections.asr.modules.AudioToMFCCPreprocessor",
    "nemo.collections.asr.modules.audio_preprocessing.AudioToMFCCPreprocessor",
)
KEYS: tuple[Key, ...] = (
    *used("_target_", "sample_rate", "window_size", "window_stride", "n_window_size"),
    *used("n_window_stride", "window", "n_fft", "lowfreq", "highfreq", "n_mels", "n_mfcc"),
    *ignored("the cosine transform itself travels with the model", "norm"),
    *neutral("dct_type", 2, reason="torchaudio knows no other"),
    *neutral("log", True, reason="decibels are cut relative to the loudest item of the batch"),
)
_LOG_OFFSET = 1e-6  # of torchaudio


def read_mfcc_features(section: Section) -> dict[str, Any]:
    """Return what the features depend on, with NeMo's defaults filled in.

    Windows and strides are in samples, frequencies in Hz; `features` is the number of
    coefficients. An item has `samples / n_window_stride` frames, rounded up. Raises JarvisError
    `export.unsupported-config`. Source: NeMo 1.23 AudioToMFCCPreprocessor, torchaudio MFCC.
    """
    section.choice("_target_", TARGETS)
    section.check(KEYS)
    rate = section.integer("sample_rate", 16000, 1)
    window = read_samples(section, "window_size", 0.02, rate)
    n_fft = section.values.get("n_fft") or 2 ** math.ceil(math.log2(window))
    if isinstance(n_fft, bool) or not isinstance(n_fft, int) or n_fft < window:
        refuse(section.at("n_fft"), n_fft, f"null or an integer of at least the window, {window}")
    mels = section.integer("n_mels", 64, 1)
    coefficients = section.integer("n_mfcc", 64, 1)
    if coefficients > mels:
        refuse(section.at("n_mfcc"), coefficients, f"at most `n_mels: {mels}`")
    shape = section.values.get("window", "hann")
    return {
        "sample_rate": rate,
        "n_window_size": window,
        "n_window_stride": read_samples(section, "window_stride", 0.01, rate),
        "window": "ones" if shape is None else section.choice("window", (*WINDOWS, "ones"), "hann"),
        "n_fft": n_fft,
        "n_mels": mels,
        "features": coefficients,
        "lowfreq": section.number("lowfreq", 0.0),
        "highfreq": section.number("highfreq") if section.values.get("highfreq") else rate / 2,
        "mag_power": 2.0,
        "log_offset": _LOG_OFFSET,
    }


def take_mfcc_tables(
    features: Mapping[str, Any], weights: Mapping[str, np.ndarray]
) -> dict[str, bytes]:
    """Return window [n_window_size], filterbank [n_mels, n_fft / 2 + 1], cosines [n_mfcc, n_mels].

    All float32 and of the checkpoint. Raises what `take_weight` raises.
    """
    prefix = "preprocessor.featurizer"
    mel = f"{prefix}.MelSpectrogram"
    sizes = (features["n_fft"] // 2 + 1, features["n_mels"])
    window = take_float32(weights, f"{mel}.spectrogram.window", (features["n_window_size"],))
    bank = take_float32(weights, f"{mel}.mel_scale.fb", sizes)
    cosines = take_float32(weights, f"{prefix}.dct_mat", (sizes[1], features["features"]))
    return {
        "featurizer_window.npy": dump_npy(window),
        "featurizer_fb.npy": dump_npy(bank.T),
        "featurizer_dct.npy": dump_npy(cosines.T),
    }
