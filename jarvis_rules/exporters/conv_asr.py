"""Convolutional CTC speech models: QuartzNet, Jasper and Citrinet.

One graph from mel features and lengths to log-probabilities and lengths. Batch norms are folded,
every convolution sees zeros beyond its item's length, so that an item's result does not depend on
its batch. Semantics: NeMo 1.23 EncDecCTCModel, EncDecCTCModelBPE, ConvASREncoder, ConvASRDecoder.
"""

from __future__ import annotations

from jarvis_rules.exporters import _ctc_decoder, _ctc_model, _ctc_tokenizer
from jarvis_rules.exporters._ctc_decoder import take_decoder
from jarvis_rules.exporters._ctc_model import add_inputs, finish, read_model
from jarvis_rules.exporters._jasper import Builder, Signal, add_encoder
from jarvis_rules.exporters._jasper_config import BLOCK_KEYS, ENCODER_KEYS, TARGETS, read_encoder
from jarvis_rules.exporters._mel_features import KEYS as MEL_KEYS
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph


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
    last = "`filters` of the last block of the encoder"
    model, encoder = read_model(source, read_encoder, last)
    graph = Graph("conv_asr")
    audio, length = add_inputs(graph, encoder.features)
    builder = Builder(graph, source.weights, encoder, batch_invariant)
    encoded = add_encoder(builder, Signal(audio, length, encoder.features))
    weight, bias = take_decoder(source.weights, encoded.channels, model.classes)
    scores = graph.transpose(graph.conv(encoded.value, weight, bias), (0, 2, 1))
    return finish(model, graph, scores, encoded.lengths, encoded.stride)


EXPORTER = Exporter(
    family="conv_asr",
    classes=_ctc_model.CLASSES,
    unused=(UnusedWeight("*.num_batches_tracked", "counts training steps"),),
    export=export_conv_asr,
    encoders=TARGETS,
    sections={
        "": _ctc_model.KEYS,
        "preprocessor": MEL_KEYS,
        "encoder": ENCODER_KEYS,
        "encoder.jasper[]": BLOCK_KEYS,
        "decoder": _ctc_decoder.KEYS,
        "tokenizer": _ctc_tokenizer.KEYS,
    },
)
