"""What all CTC speech models share around their encoder: keys, tokenizer, inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from jarvis_rules.exporters._config import (
    Key,
    Section,
    check_model_keys,
    ignored,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._ctc_decoder import read_labels
from jarvis_rules.exporters._ctc_tokenizer import Tokenizer, read_tokenizer
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._mel_features import read_mel_features, take_mel_tables
from jarvis_rules.exporters.exporter import ExportedModel, SourceModel
from jarvis_rules.onnx_graph.graph import Graph, Value

_SUBWORDS = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
CLASSES = ("nemo.collections.asr.models.ctc_models.EncDecCTCModel", _SUBWORDS)
KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "encoder", "decoder", "sample_rate"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim", "loss"),
    *ignored("augmentation, training only", "spec_augment"),
    *ignored("a loss between the layers, training only", "interctc"),
    *ignored("decoding belongs to the pipeline", "decoding"),
    *ignored("NeMo decodes with `decoder.vocabulary` and may leave this one behind", "labels"),
    *used("tokenizer"),
)
"""Other keys of the model are ignored unless they build a module, see `check_model_keys`."""


class EncoderSize(Protocol):
    """What is asked of an encoder's configuration: its channels before and behind."""

    @property
    def features(self) -> int:
        """The mel features that it takes."""

    @property
    def outputs(self) -> int:
        """The channels that it gives."""


_Encoder = TypeVar("_Encoder", bound=EncoderSize)


@dataclass(frozen=True, slots=True)
class CtcModel:
    """All of a CTC model but its network; `files` are for serving, by public name."""

    features: dict[str, Any]
    tokenizer: Tokenizer
    classes: int
    files: dict[str, bytes]


def read_model(
    source: SourceModel, read_encoder: Callable[[Section], _Encoder], outputs: str
) -> tuple[CtcModel, _Encoder]:
    """Return the model and its encoder's configuration; `outputs` says which key decides those.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config`, and what
    `take_mel_tables` and `source.artifact` raise.
    """
    config = Section("", source.config)
    check_model_keys(config, KEYS)
    features = read_mel_features(config.section("preprocessor"))
    encoder = read_encoder(config.section("encoder"))
    labels = read_labels(config.section("decoder"), encoder.outputs, outputs)
    require_features(config, encoder.features, features)
    tokenizer = Tokenizer(labels=labels)
    if source.target == _SUBWORDS:
        tokenizer = read_tokenizer(config.section("tokenizer"), labels, source.artifact)
    # Before any graph: they prove that the number of features is a real one.
    tables = take_mel_tables(features, source.weights)
    files = {**tables, **tokenizer.files}
    return CtcModel(features, tokenizer, len(labels) + 1, files), encoder


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


def add_inputs(graph: Graph, features: int) -> tuple[Value, Value]:
    """Declare `audio_signal` float32 [batch, features, time] and `length` int64 [batch]."""
    audio = graph.input("audio_signal", "float32", ("batch", features, "time"))
    return audio, graph.input("length", "int64", ("batch",))


def finish(
    model: CtcModel, graph: Graph, scores: Value, lengths: Value, stride: int
) -> ExportedModel:
    """Declare the outputs of `scores` [batch, time_out, V + 1] and return all of the model.

    `stride` is in feature frames per output frame. The family is the graph's name.
    """
    # A sum of exponentials, and its logarithm is the result of the model.
    with graph.full_precision():
        logprobs = graph.log_softmax(scores)
    graph.output(logprobs, "logprobs", ("batch", "time_out", model.classes))
    graph.output(lengths, "encoded_length")
    features, tokenizer = model.features, model.tokenizer
    facts = {
        "task": "ctc",
        "labels": list(tokenizer.labels),
        "blank_id": len(tokenizer.labels),
        "sample_rate": features["sample_rate"],
        "stride": stride,
        "ms_per_timestep": 1000 * features["n_window_stride"] * stride / features["sample_rate"],
        "features": features,
        **describe_graph(graph),
        "tokenization": tokenizer.kind,
        "tokenizer_files": sorted(tokenizer.files),
    }
    return ExportedModel(graph.name, {"model_graph.onnx": graph}, model.files, facts)
