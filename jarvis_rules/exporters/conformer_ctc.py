"""Conformer CTC speech models, on characters and on subwords.

One graph from mel features and lengths to log-probabilities and lengths, for inputs of any length.
No frame sees what lies beyond its item, so that an item's result does not depend on its batch.
Semantics: NeMo 1.23 EncDecCTCModel, EncDecCTCModelBPE, ConformerEncoder, ConvASRDecoder.
"""

from __future__ import annotations

from jarvis_rules.exporters import _ctc_decoder, _ctc_model, _ctc_tokenizer
from jarvis_rules.exporters._conformer_builder import Builder
from jarvis_rules.exporters._conformer_config import KEYS as ENCODER_KEYS
from jarvis_rules.exporters._conformer_config import TARGETS, read_encoder
from jarvis_rules.exporters._conformer_layers import add_encoder
from jarvis_rules.exporters._ctc_decoder import take_decoder
from jarvis_rules.exporters._ctc_model import add_inputs, finish, read_model
from jarvis_rules.exporters._mel_features import KEYS as MEL_KEYS
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph


def export_conformer_ctc(source: SourceModel, *, batch_invariant: bool = True) -> ExportedModel:
    """Return the acoustic graph, the mel tables, tokenizer files and the facts of a Conformer.

    `audio_signal` float32 [batch, M, time] and `length` int64 [batch] give `logprobs` float32
    [batch, time_out, V + 1], blank last, and `encoded_length` int64 [batch].

    NeMo lets padding leak into the last frames of an item; the graph gives what NeMo gives for the
    item alone. `batch_invariant=False` reproduces NeMo's leak, for comparison with recorded
    batches.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config`, IntegrityError
    `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight` and what reading an
    artifact raises.
    """
    last = "`encoder.feat_out`, or `encoder.d_model`,"
    model, encoder = read_model(source, read_encoder, last)
    graph = Graph("conformer_ctc")
    audio, length = add_inputs(graph, encoder.features)
    builder = Builder(graph, source.weights, encoder, batch_invariant)
    encoded = add_encoder(builder, audio, length)
    weight, bias = take_decoder(source.weights, encoder.outputs, model.classes)
    scores = graph.linear(encoded.value, weight[:, :, 0], bias)
    return finish(model, graph, scores, encoded.lengths, encoded.stride)


EXPORTER = Exporter(
    family="conformer_ctc",
    classes=_ctc_model.CLASSES,
    unused=(UnusedWeight("*.num_batches_tracked", "counts training steps"),),
    export=export_conformer_ctc,
    encoders=TARGETS,
    sections={
        "": _ctc_model.KEYS,
        "preprocessor": MEL_KEYS,
        "encoder": ENCODER_KEYS,
        "decoder": _ctc_decoder.KEYS,
        "tokenizer": _ctc_tokenizer.KEYS,
    },
)
