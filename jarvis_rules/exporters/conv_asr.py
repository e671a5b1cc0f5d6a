"""Convolutional CTC speech models: QuartzNet and Jasper.

One graph from mel features and lengths to log-probabilities and lengths. Batch norms are folded,
every convolution sees zeros beyond its item's length, so that an item's result does not depend on
its batch. Semantics: NeMo 1.23 EncDecCTCModel, ConvASREncoder, ConvASRDecoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._jasper import (
    BLOCK_KEYS,
    ENCODER_KEYS,
    TARGETS,
    Builder,
    Signal,
    add_encoder,
    read_encoder,
)
from jarvis_rules.exporters._mel_features import KEYS as MEL_KEYS
from jarvis_rules.exporters._mel_features import read_mel_features, take_mel_tables
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph, Value

_DECODERS = (
    "nemo.collections.asr.modules.ConvASRDecoder",
    "nemo.collections.asr.modules.conv_asr.ConvASRDecoder",
)
DECODER_KEYS: tuple[Key, ...] = (
    *used("_target_", "feat_in", "num_classes", "vocabulary"),
    *ignored("initial weights, training only", "init_mode"),
    *neutral("add_blank", True, reason="CTC needs its blank"),
)
MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "encoder", "decoder", "sample_rate"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim", "loss"),
    *ignored("augmentation, training only", "spec_augment"),
    *ignored("a loss between the layers, training only", "interctc"),
    *ignored("decoding belongs to the pipeline", "decoding"),
    *ignored("NeMo decodes with `decoder.vocabulary` and may leave this one behind", "labels"),
)
"""Other keys of the model are ignored unless they build a module, see `_check_model_keys`."""


def export_conv_asr(source: SourceModel, *, batch_invariant: bool = True) -> ExportedModel:
    """Return the acoustic graph, the mel tables and the facts of a convolutional CTC model.

    `audio_signal` float32 [batch, M, time] and `length` int64 [batch] give `logprobs` float32
    [batch, time_out, V + 1], blank last, and `encoded_length` int64 [batch].

    With `conv_mask: true` that is NeMo's result in every batch. With `conv_mask: false` NeMo lets
    padding leak into the items and leaves the lengths in input frames; the graph gives what NeMo
    gives for the item alone, and lengths in output frames. `batch_invariant=False` reproduces
    NeMo's leak, for comparison with recorded batches.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`.
    """
    model = Section("", source.config)
    _check_model_keys(model)
    features = read_mel_features(model.section("preprocessor"))
    encoder = read_encoder(model.section("encoder"))
    labels = _read_labels(model.section("decoder"), encoder.blocks[-1].filters)
    _require_equal("sample_rate", model.values.get("sample_rate"), features, "sample_rate")
    _require_equal("encoder.feat_in", encoder.features, features, "features")

    masked = encoder.conv_mask or batch_invariant
    builder = Builder(Graph("conv_asr"), source.weights, encoder, masked)
    encoded = _build_graph(builder, len(labels) + 1)
    assets = take_mel_tables(features, source.weights)
    milliseconds = 1000 * features["n_window_stride"] * encoded.stride / features["sample_rate"]
    facts = {
        "task": "ctc",
        "tokenization": "character",
        "labels": labels,
        "blank_id": len(labels),
        "sample_rate": features["sample_rate"],
        "stride": encoded.stride,
        "ms_per_timestep": milliseconds,
        "features": features,
        "inputs": _describe(builder.graph.inputs),
        "outputs": _describe(builder.graph.outputs),
    }
    return ExportedModel("conv_asr", {"model_graph.onnx": builder.graph}, assets, facts)


def _build_graph(b: Builder, classes: int) -> Signal:
    """Write the whole graph and return the encoder's output."""
    features = b.encoder.features
    audio = b.graph.input("audio_signal", "float32", ("batch", features, "time"))
    length = b.graph.input("length", "int64", ("batch",))
    encoded = add_encoder(b, Signal(audio, length, features))
    name = "decoder.decoder_layers.0"
    weight = take_float32(b.weights, f"{name}.weight", (classes, encoded.channels, 1))
    bias = take_float32(b.weights, f"{name}.bias", (classes,))
    scores = b.graph.transpose(b.graph.conv(encoded.value, weight, bias), (0, 2, 1))
    b.graph.output(b.graph.log_softmax(scores), "logprobs", ("batch", "time_out", classes))
    b.graph.output(encoded.lengths, "encoded_length")
    return encoded


def _check_model_keys(model: Section) -> None:
    """Refuse an unknown key that builds a module; NeMo builds them from `_target_` only.

    Everything else at this level is a variable for the keys below (`repeat`, `separable`,
    `model_defaults` …) or a setting of the trainer, and projects add their own.
    """
    known = {key.name for key in MODEL_KEYS}
    for name, value in model.values.items():
        if name not in known and _builds_module(value):
            refuse(str(name), value, "no further module")


def _builds_module(value: object) -> bool:
    # Iterative, and each object once: YAML aliases make deep values that are cheap to write.
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            if "_target_" in value:
                return True
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return False


def _read_labels(decoder: Section, channels: int) -> list[str]:
    decoder.choice("_target_", _DECODERS)
    decoder.check(DECODER_KEYS)
    labels = decoder.values.get("vocabulary")
    listed = isinstance(labels, list | tuple) and all(isinstance(v, str) for v in labels)
    if not listed or not labels:
        refuse(decoder.at("vocabulary"), labels, "a list of labels")
    count = decoder.integer("num_classes", -1)
    if count > 0 and count != len(labels):
        other = f"the length of `{decoder.at('vocabulary')}`"
        refuse_contradiction(decoder.at("num_classes"), count, other, len(labels))
    if decoder.values.get("feat_in") and decoder.integer("feat_in") != channels:
        other = "`filters` of the last block of the encoder"
        refuse_contradiction(decoder.at("feat_in"), decoder.values["feat_in"], other, channels)
    return list(labels)


def _require_equal(key: str, value: object, features: Mapping[str, Any], name: str) -> None:
    if value is not None and value != features[name]:
        refuse_contradiction(key, value, f"`preprocessor.{name}`", features[name])


def _describe(values: tuple[Value, ...]) -> list[dict[str, Any]]:
    return [{"name": v.name, "dtype": v.dtype, "shape": list(v.shape)} for v in values]


EXPORTER = Exporter(
    family="conv_asr",
    classes=("nemo.collections.asr.models.ctc_models.EncDecCTCModel",),
    unused=(UnusedWeight("*.num_batches_tracked", "counts training steps"),),
    export=export_conv_asr,
    encoders=TARGETS,
    sections={
        "": MODEL_KEYS,
        "preprocessor": MEL_KEYS,
        "encoder": ENCODER_KEYS,
        "encoder.jasper[]": BLOCK_KEYS,
        "decoder": DECODER_KEYS,
    },
)
