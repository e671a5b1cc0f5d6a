"""Convolutional models that put one label on an utterance: MatchboxNet, MarbleNet.

One graph from features and lengths to a score per label. Scores are averages (or maxima) over the
valid frames, so that an item's result does not depend on its batch. Semantics: NeMo 1.23
EncDecClassificationModel, ConvASREncoder, ConvASRDecoderClassification.
"""

from __future__ import annotations

import numpy as np

from jarvis_rules.exporters import _mel_features, _mfcc_features
from jarvis_rules.exporters._config import (
    Key,
    Section,
    check_model_keys,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._ctc_model import require_features
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._jasper import Builder, Signal, add_encoder
from jarvis_rules.exporters._jasper_config import BLOCK_KEYS, ENCODER_KEYS, read_encoder
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph, Value

_DECODERS = (
    "nemo.collections.asr.modules.ConvASRDecoderClassification",
    "nemo.collections.asr.modules.conv_asr.ConvASRDecoderClassification",
)
_CROP_OR_PAD = (
    "nemo.collections.asr.modules.CropOrPadSpectrogramAugmentation",
    "nemo.collections.asr.modules.audio_preprocessing.CropOrPadSpectrogramAugmentation",
)
MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "encoder", "decoder", "labels", "sample_rate"),
    *used("crop_or_pad_augment"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim", "loss"),
    *ignored("augmentation, training only", "spec_augment"),
    *neutral("is_regression_task", False, reason="regression has a class of its own"),
)
"""Other keys of the model are ignored unless they build a module, see `check_model_keys`."""
DECODER_KEYS: tuple[Key, ...] = (
    *used("_target_", "feat_in", "num_classes", "return_logits", "pooling_type"),
    *ignored("initial weights, training only", "init_mode"),
)
CROP_OR_PAD_KEYS: tuple[Key, ...] = used("_target_", "audio_length")


def export_speech_classification(
    source: SourceModel, *, batch_invariant: bool = True
) -> ExportedModel:
    """Return the graph from features to scores, the tables of the features and the facts.

    `audio_signal` float32 [batch, M, time] and `length` int64 [batch] give `logits` float32
    [batch, labels], which are probabilities with `return_logits: false`, as in NeMo.

    NeMo pools over padding too; the graph gives what NeMo gives for the item alone and unpadded.
    `batch_invariant=False` reproduces NeMo's leak, for comparison with recorded batches.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`.
    """
    model = Section("", source.config)
    check_model_keys(model, MODEL_KEYS)
    preprocessor = model.section("preprocessor")
    is_mfcc = preprocessor.values.get("_target_") in _mfcc_features.TARGETS
    encoder = read_encoder(model.section("encoder"))
    # The tables come before the graph: they prove that the number of features is a real one.
    if is_mfcc:
        features = _mfcc_features.read_mfcc_features(preprocessor)
        assets = _mfcc_features.take_mfcc_tables(features, source.weights)
    else:
        features = _mel_features.read_mel_features(preprocessor)
        assets = _mel_features.take_mel_tables(features, source.weights)
    require_features(model, encoder.features, features, "n_mfcc" if is_mfcc else "features")
    labels = _read_labels(model)
    decoder = model.section("decoder")
    pooling, gives_logits = _read_decoder(decoder, encoder.outputs, len(labels))

    b = Builder(Graph("speech_classification"), source.weights, encoder, batch_invariant)
    audio = b.graph.input("audio_signal", "float32", ("batch", encoder.features, "time"))
    length = b.graph.input("length", "int64", ("batch",))
    encoded = add_encoder(b, Signal(audio, length, encoder.features))
    scores = _add_classifier(b, _pool(b, encoded, pooling), encoded.channels, len(labels))
    if not gives_logits:
        with b.graph.full_precision():
            scores = b.graph.softmax(scores)
    b.graph.output(scores, "logits")
    facts = {
        "task": "speech_classification",
        "labels": labels,
        "scores": "logits" if gives_logits else "probabilities",
        "sample_rate": features["sample_rate"],
        "stride": encoded.stride,
        "feature_kind": "mfcc" if is_mfcc else "mel",
        "features": features,
        "crop_or_pad_frames": _read_crop_or_pad(model),
        **describe_graph(b.graph),
    }
    return ExportedModel("speech_classification", {"model_graph.onnx": b.graph}, assets, facts)


def _read_labels(model: Section) -> list[str]:
    labels = model.values.get("labels")
    listed = isinstance(labels, list | tuple) and all(isinstance(v, str) for v in labels)
    if not listed or not labels:
        refuse(model.at("labels"), labels, "a list of labels")
    return list(labels)


def _read_decoder(decoder: Section, channels: int, classes: int) -> tuple[str, bool]:
    """Return the kind of pooling and whether the scores are logits."""
    decoder.choice("_target_", _DECODERS)
    decoder.check(DECODER_KEYS)
    # NeMo writes the number of labels into `num_classes`, whatever was there.
    for key, expected, other in (
        ("num_classes", classes, "the length of `labels`"),
        ("feat_in", channels, "`filters` of the last block of the encoder"),
    ):
        value = decoder.integer(key, expected)
        if value != expected:
            refuse_contradiction(decoder.at(key), value, other, expected)
    pooling = decoder.choice("pooling_type", ("avg", "max"), "avg")
    return pooling, decoder.boolean("return_logits", True)


def _read_crop_or_pad(model: Section) -> int | None:
    """Return the frames that NeMo cuts or pads the features to before the encoder, if it does.

    It is a part of NeMo's `forward`, at inference too, but not of its export: it pads with zeros
    on both sides, and cuts at a random place.
    """
    if model.values.get("crop_or_pad_augment") is None:
        return None
    section = model.section("crop_or_pad_augment")
    section.choice("_target_", _CROP_OR_PAD)
    section.check(CROP_OR_PAD_KEYS)
    return section.integer("audio_length", minimum=1)


def _pool(b: Builder, x: Signal, pooling: str) -> Value:
    """Return one frame [batch, channels, 1] of `x`: the average or the maximum of its frames."""
    graph, value = b.graph, x.value
    # A sum over thousands of frames, and the lowest number of float32.
    with graph.full_precision():
        if not b.batch_invariant:
            if pooling == "max":
                return graph.reduce_max(value, 2)
            every = graph.cast(graph.size_of(value, 2), "float32")
            return graph.div(graph.reduce_sum(value, 2), every)
        # An empty item has one frame, as it has behind a stride.
        lengths = graph.maximum(x.lengths, graph.number(1, "int64"))
        valid = graph.unsqueeze(graph.valid(lengths, value, 2), 1)
        if pooling == "max":
            lowest = graph.number(float(np.finfo(np.float32).min))
            return graph.reduce_max(graph.where(valid, value, lowest), 2)
        total = graph.reduce_sum(graph.where(valid, value, graph.number(0.0)), 2)
        return graph.div(total, graph.reduce_sum(graph.cast(valid, "float32"), 2))


def _add_classifier(b: Builder, pooled: Value, channels: int, classes: int) -> Value:
    """Return the scores [batch, classes] of the pooled frame."""
    name = "decoder.decoder_layers.0"
    weight = take_float32(b.weights, f"{name}.weight", (classes, channels))
    bias = take_float32(b.weights, f"{name}.bias", (classes,))
    # A convolution, since TensorRT has no float32 matrix product for Turing.
    return b.graph.squeeze(b.graph.conv(pooled, weight[:, :, None], bias), 2)


EXPORTER = Exporter(
    family="speech_classification",
    classes=("nemo.collections.asr.models.classification_models.EncDecClassificationModel",),
    unused=(UnusedWeight("*.num_batches_tracked", "counts training steps"),),
    export=export_speech_classification,
    sections={
        "": MODEL_KEYS,
        "preprocessor (mel)": _mel_features.KEYS,
        "preprocessor (mfcc)": _mfcc_features.KEYS,
        "crop_or_pad_augment": CROP_OR_PAD_KEYS,
        "encoder": ENCODER_KEYS,
        "encoder.jasper[]": BLOCK_KEYS,
        "decoder": DECODER_KEYS,
    },
)
