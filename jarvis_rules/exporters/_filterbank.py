"""The mel spectrogram of a speech synthesis model: the parameters of FilterbankFeatures.

Nothing is computed from them here: the model predicts such a spectrogram or hears from one. They
say what its numbers mean, and whether two models fit together.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from jarvis_rules.exporters._config import Key, Section, ignored, neutral, used
from jarvis_rules.exporters._mel_features import WINDOWS

TARGETS = (
    "nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
    "nemo.collections.asr.parts.features.FilterbankFeatures",  # before NeMo 1.0
)
KEYS: tuple[Key, ...] = (
    *used("_target_", "sample_rate", "n_window_size", "n_window_stride", "window", "n_fft"),
    *used("nfilt", "lowfreq", "highfreq", "preemph", "log", "log_zero_guard_type"),
    *used("log_zero_guard_value", "mag_power", "mel_norm", "normalize", "pad_to", "pad_value"),
    *used("exact_pad"),
    *ignored("training only", "dither", "rng", "nb_augmentation_prob", "nb_max_freq", "use_grads"),
    *ignored("the length of padding with `pad_to: max`, in training", "max_duration"),
    *ignored("NeMo 1.23 accepts and ignores it", "stft_conv", "stft_exact_pad"),
    *neutral("frame_splicing", 1, reason="stacked frames are not served"),
)


def read_filterbank(section: Section) -> dict[str, Any]:
    """Return what the spectrogram depends on, with NeMo's defaults filled in.

    Names are those of `read_mel_features`, and `mel_norm`. Windows and strides are in samples,
    frequencies in Hz. Raises JarvisError `export.unsupported-config`. Source: NeMo 1.23
    FilterbankFeatures.
    """
    section.choice("_target_", TARGETS)
    section.check(KEYS)
    rate = section.integer("sample_rate", 16000, 1)
    window = section.integer("n_window_size", 320, 1)
    given = section.values.get("n_fft")
    preemphasised = section.values.get("preemph", True) is not None
    normalized = section.values.get("normalize", True)
    kinds = ("per_feature", "all_features")
    pad_to = section.values.get("pad_to", 16)
    return {
        "sample_rate": rate,
        "n_window_size": window,
        "n_window_stride": section.integer("n_window_stride", 160, 1),
        "window": section.choice("window", WINDOWS, "hann"),
        "n_fft": section.integer("n_fft", minimum=window) if given else _power_of_two(window),
        "features": section.integer("nfilt", 64, 1),
        "lowfreq": section.number("lowfreq", 0.0),
        "highfreq": section.number("highfreq") if section.values.get("highfreq") else rate / 2,
        "preemph": section.number("preemph", 0.97) if preemphasised else None,
        "log": section.boolean("log", True),
        "log_zero_guard_type": section.choice("log_zero_guard_type", ("add", "clamp"), "add"),
        "log_zero_guard_value": _read_guard(section),
        "mag_power": section.number("mag_power", 2.0, above=0),
        "mel_norm": _read_mel_norm(section),
        "normalize": section.choice("normalize", kinds, kinds[0]) if normalized else None,
        "pad_to": pad_to if pad_to == "max" else section.integer("pad_to", 16, 0),
        "pad_value": section.number("pad_value", 0.0),
        "exact_pad": section.boolean("exact_pad", False),
        "frame_splicing": 1,
    }


def _power_of_two(window: int) -> int:
    return int(2 ** math.ceil(math.log2(window)))


def _read_guard(section: Section) -> float:
    value = section.values.get("log_zero_guard_value", 2**-24)
    if value in ("tiny", "eps"):
        info = np.finfo(np.float32)
        return float(info.tiny if value == "tiny" else info.eps)
    return section.number("log_zero_guard_value", 2**-24, above=0)


def _read_mel_norm(section: Section) -> str | float | None:
    # librosa takes the name of a norm, or the order of a vector norm.
    value = section.values.get("mel_norm", "slaney")
    return value if value in ("slaney", None) else section.number("mel_norm", above=0)
