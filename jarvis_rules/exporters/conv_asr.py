"""Convolutional CTC speech models: QuartzNet, Jasper and Citrinet.

One graph from mel features and lengths to log-probabilities and lengths. Batch norms are folded,
every convolution sees zeros beyond its item's length, so that an item's result does not depend on
its batch. Semantics: NeMo 1.23 EncDecCTCModel, EncDecCTCModelBPE, ConvASREncoder, ConvASRDecoder.
"""

from __future__ import annotations

from jarvis_rules.exporters import _ctc_decoder, _ctc_model, _ctc_tokenizer
from jarvis_rules.exporters._config import Key, Section, check_model_keys, used
from jarvis_rules.exporters._ctc_decoder import read_labels, take_decoder
from jarvis_rules.exporters._ctc_model import describe_model, require_features
from jarvis_rules.exporters._ctc_tokenizer import Tokenizer, read_tokenizer
from jarvis_rules.exporters._jasper import Builder, Signal, add_encoder
from jarvis_rules.exporters._jasper_config import BLOCK_KEYS, ENCODER_KEYS, TARGETS, read_encoder
from jarvis_rules.exporters._mel_features import KEYS as MEL_KEYS
from jarvis_rules.exporters._mel_features import read_mel_features, take_mel_tables
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph

_CHARACTERS = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
_SUBWORDS = "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE"
MODEL_KEYS: tuple[Key, ...] = (*_ctc_model.KEYS, *used("tokenizer"))


def export_conv_asr(source: SourceModel, *, batch_invariant: bool = True) -> ExportedModel:
    """Return the acoustic graph, the tables and files of serving, and the facts.

    `audio_signal` float32 [batch, M, time] and `length` int64 [batch] give `logprobs` float32
    [batch, time_out, V + 1], blank last, and `encoded_length` int64 [batch].

    With `conv_mask: true` and batch norms that is NeMo's result in every batch. With
    `conv_mask: false` NeMo lets padding leak into the items and leaves the lengths in input frames;
    its other norms average over padding too. The graph gives what NeMo gives for the item alone,
    and lengths in output frames. `batch_invariant=False` reproduces NeMo's leak, for comparison
    with recorded batches.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config`, IntegrityError
    `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight` and what
    `source.artifact` raises.
    """
    model = Section("", source.config)
    check_model_keys(model, MODEL_KEYS)
    features = read_mel_features(model.section("preprocessor"))
    encoder = read_encoder(model.section("encoder"))
    last = "`filters` of the last block of the encoder"
    labels = read_labels(model.section("decoder"), encoder.blocks[-1].filters, last)
    require_features(model, encoder.features, features)
    tokenizer = Tokenizer(labels=labels)
    if source.target == _SUBWORDS:
        tokenizer = read_tokenizer(model.section("tokenizer"), labels, source.artifact)
    # Before the graph: they prove that the number of features is a real one.
    assets = take_mel_tables(features, source.weights)
    builder = Builder(Graph("conv_asr"), source.weights, encoder, batch_invariant)
    encoded = _build_graph(builder, len(labels) + 1)
    facts = {
        **describe_model(builder.graph, list(tokenizer.labels), features, encoded.stride),
        "tokenization": tokenizer.kind,
        "tokenizer_files": sorted(tokenizer.files),
    }
    files = {**assets, **tokenizer.files}
    return ExportedModel("conv_asr", {"model_graph.onnx": builder.graph}, files, facts)


def _build_graph(b: Builder, classes: int) -> Signal:
    """Write the whole graph and return the encoder's output."""
    features = b.encoder.features
    audio = b.graph.input("audio_signal", "float32", ("batch", features, "time"))
    length = b.graph.input("length", "int64", ("batch",))
    encoded = add_encoder(b, Signal(audio, length, features))
    weight, bias = take_decoder(b.weights, encoded.channels, classes)
    scores = b.graph.transpose(b.graph.conv(encoded.value, weight, bias), (0, 2, 1))
    # A sum of exponentials, and its logarithm is the result of the model.
    with b.graph.full_precision():
        logprobs = b.graph.log_softmax(scores)
    b.graph.output(logprobs, "logprobs", ("batch", "time_out", classes))
    b.graph.output(encoded.lengths, "encoded_length")
    return encoded


EXPORTER = Exporter(
    family="conv_asr",
    classes=(_CHARACTERS, _SUBWORDS),
    unused=(UnusedWeight("*.num_batches_tracked", "counts training steps"),),
    export=export_conv_asr,
    encoders=TARGETS,
    sections={
        "": MODEL_KEYS,
        "preprocessor": MEL_KEYS,
        "encoder": ENCODER_KEYS,
        "encoder.jasper[]": BLOCK_KEYS,
        "decoder": _ctc_decoder.KEYS,
        "tokenizer": _ctc_tokenizer.KEYS,
    },
)
