"""The decoder of a CTC model: its labels, and the one layer from encoder frames to scores."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._weights import take_float32

TARGETS = (
    "nemo.collections.asr.modules.ConvASRDecoder",
    "nemo.collections.asr.modules.conv_asr.ConvASRDecoder",
)
KEYS: tuple[Key, ...] = (
    *used("_target_", "feat_in", "num_classes", "vocabulary"),
    *ignored("initial weights, training only", "init_mode"),
    *neutral("add_blank", True, reason="CTC needs its blank"),
)


def read_labels(decoder: Section, channels: int, encoder: str) -> list[str]:
    """Return the labels without the blank, whose number follows theirs.

    `channels` are what the encoder gives, `encoder` says which key decides that. Raises
    JarvisError `export.unsupported-config`, `export.contradicting-config`. Source: NeMo 1.23
    ConvASRDecoder.
    """
    decoder.choice("_target_", TARGETS)
    decoder.check(KEYS)
    labels = decoder.values.get("vocabulary")
    listed = isinstance(labels, list | tuple) and all(isinstance(v, str) for v in labels)
    if not listed or not labels:
        refuse(decoder.at("vocabulary"), labels, "a list of labels")
    count = decoder.integer("num_classes", -1)
    if count > 0 and count != len(labels):
        other = f"the length of `{decoder.at('vocabulary')}`"
        refuse_contradiction(decoder.at("num_classes"), count, other, len(labels))
    if decoder.values.get("feat_in") and decoder.integer("feat_in") != channels:
        refuse_contradiction(decoder.at("feat_in"), decoder.values["feat_in"], encoder, channels)
    return list(labels)


def take_decoder(
    weights: Mapping[str, np.ndarray], channels: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight [classes, channels, 1] and bias [classes] of the decoder's convolution.

    Raises what `take_weight` raises.
    """
    name = "decoder.decoder_layers.0"
    weight = take_float32(weights, f"{name}.weight", (classes, channels, 1))
    return weight, take_float32(weights, f"{name}.bias", (classes,))
