"""What all CTC speech models share around encoder and decoder: top-level keys and facts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.onnx_graph.graph import Graph

KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "encoder", "decoder", "sample_rate"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim", "loss"),
    *ignored("augmentation, training only", "spec_augment"),
    *ignored("a loss between the layers, training only", "interctc"),
    *ignored("decoding belongs to the pipeline", "decoding"),
    *ignored("NeMo decodes with `decoder.vocabulary` and may leave this one behind", "labels"),
)
"""Other keys of the model are ignored unless they build a module, see `check_model_keys`."""


def require_features(
    model: Section, encoder_features: int, features: Mapping[str, Any], key: str = "features"
) -> None:
    """Refuse a `sample_rate` or an `encoder.feat_in` that the preprocessor does not have.

    `key` is what the preprocessor calls its number of features.
    """
    rate = model.values.get("sample_rate")
    if rate is not None and rate != features["sample_rate"]:
        other = "`preprocessor.sample_rate`"
        refuse_contradiction("sample_rate", rate, other, features["sample_rate"])
    if encoder_features != features["features"]:
        other = f"`preprocessor.{key}`"
        refuse_contradiction("encoder.feat_in", encoder_features, other, features["features"])


def describe_model(
    graph: Graph, labels: list[str], features: dict[str, Any], stride: int
) -> dict[str, Any]:
    """Return the facts of a CTC model; `stride` is in feature frames per output frame."""
    milliseconds = 1000 * features["n_window_stride"] * stride / features["sample_rate"]
    return {
        "task": "ctc",
        "labels": labels,
        "blank_id": len(labels),
        "sample_rate": features["sample_rate"],
        "stride": stride,
        "ms_per_timestep": milliseconds,
        "features": features,
        **describe_graph(graph),
    }
