"""FastPitch: from text to a mel spectrogram, without recurrence.

Two graphs. `encoder.onnx` has the inputs of NeMo's own export and gives all of its outputs but
`spect`: durations, frame counts, pitch. `decoder.onnx` gives `spect`. NeMo's single graph makes a
frame axis as long as the durations in it say, which a TensorRT profile cannot bound, so that the
attention over all frames has no largest size, and neither static shapes nor CUDA graphs are
possible. Cut there, every axis is known from the inputs: the caller reads `num_frames` and asks
for that many frames, or for more. ONNX Runtime runs both forms equally well. No weight is in both
graphs, and each may have its precision and its batching.

Semantics: NeMo 1.23 FastPitchModel.forward_for_export, FastPitchModule.infer.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jarvis_rules.exporters._config import Section, check_model_keys, refuse_contradiction
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._fastpitch_config import MODEL_KEYS, Model, read_model
from jarvis_rules.exporters._fastpitch_predictor import KEYS as PREDICTOR_KEYS
from jarvis_rules.exporters._fastpitch_predictor import (
    add_durations,
    add_predictor,
    count_token_frames,
    repeat_tokens,
)
from jarvis_rules.exporters._fastpitch_text import VOCAB_KEYS, Text, read_text
from jarvis_rules.exporters._fastpitch_transformer import (
    DECODER_KEYS,
    ENCODER_KEYS,
    Axis,
    Builder,
    add_transformer,
)
from jarvis_rules.exporters._mel_features import KEYS as MEL_KEYS
from jarvis_rules.exporters._mel_features import read_mel_features
from jarvis_rules.exporters._tts_tokenizer import G2P_KEYS, PHONEMES_KEYS
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph, Value

_SAME_IN_PREPROCESSOR = {
    "sample_rate": "sample_rate",
    "n_mel_channels": "features",
    "n_window_size": "n_window_size",
    "n_window_stride": "n_window_stride",
    "n_fft": "n_fft",
}


def export_fastpitch(source: SourceModel, *, batch_invariant: bool = True) -> ExportedModel:
    """Return the two graphs, the dictionaries and the facts of a FastPitch model.

    `encoder.onnx`: `text` int64 [batch, tokens] padded with the padding id, `pitch` float32 (added
    to the predicted, normalised pitch) and `pace` float32 (above 0; 2 is twice as fast), both
    [batch, tokens], and for several speakers `speaker` int64 [batch], give NeMo's `num_frames`
    int64 [batch], `durs_predicted`, `log_durs_predicted`, `pitch_predicted` float32
    [batch, tokens]; and for the decoder `encoded` float32 [batch, tokens, dim], `token_frames`
    int64 [batch, tokens] and, if it hears the speaker, `speaker_embedding` float32 [batch, dim].

    `decoder.onnx`: these and `frame_index` int64 [frames], the numbers from 0 up, at least one and
    at least as many as the largest of `num_frames`, give `spect` float32 [batch, n_mel, frames];
    frames from `num_frames` on mean nothing.

    In NeMo the padding of a batch leaks into shorter texts; here an item gets what NeMo gives for
    its text alone and without padding, in any batch and for any number of frames.
    `batch_invariant=False` reproduces NeMo's leak, for comparison with recorded batches: the
    frames must be exactly the largest of `num_frames` then.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`.
    """
    config = Section("", source.config)
    check_model_keys(config, MODEL_KEYS)
    features = read_mel_features(config.section("preprocessor"))
    text = read_text(config, source.artifact)
    model = read_model(config)
    pitch = _read_pitch(config)
    for key, name in _SAME_IN_PREPROCESSOR.items():
        value = config.values.get(key)
        if value is not None and value != features[name]:
            refuse_contradiction(key, value, f"`preprocessor.{name}`", features[name])

    graphs = {
        "encoder.onnx": _build_encoder(model, text, source.weights, batch_invariant),
        "decoder.onnx": _build_decoder(model, source.weights, batch_invariant),
    }
    facts = {
        "task": "text_to_spectrogram",
        "sample_rate": features["sample_rate"],
        "hop_length": features["n_window_stride"],
        "speakers": max(model.speakers, 1),
        "pitch": pitch,
        "min_token_duration": model.shortest,
        "max_token_duration": model.longest,
        "tokenizer": text.facts,
        "features": features,
        "graphs": {name: describe_graph(graph) for name, graph in graphs.items()},
    }
    return ExportedModel("fastpitch", graphs, text.assets, facts)


def _read_pitch(config: Section) -> dict[str, float | None]:
    """Return the statistics by which pitch was normalised in Hz, where the file tells them."""
    mean = "pitch_mean" if config.values.get("pitch_mean") is not None else "pitch_avg"
    keys = {"mean": mean, "std": "pitch_std", "fmin": "pitch_fmin", "fmax": "pitch_fmax"}
    return {
        name: None if config.values.get(key) is None else config.number(key)
        for name, key in keys.items()
    }


def _build_encoder(
    m: Model, front: Text, weights: Mapping[str, np.ndarray], batch_invariant: bool
) -> Graph:
    graph = Graph("fastpitch_encoder")
    tokens = ("batch", "tokens")
    text = graph.input("text", "int64", tokens)
    pitch = graph.input("pitch", "float32", tokens)
    pace = graph.input("pace", "float32", tokens)
    embedding = speaker = None
    # A number of frames that is rounded the other way moves all that follows, and in half precision
    # what the durations are computed from is as bad as they themselves.
    with graph.full_precision():
        if m.speakers:
            table = take_float32(weights, "fastpitch.speaker_emb.weight", (m.speakers, m.dim))
            speakers = graph.input("speaker", "int64", ("batch",))
            embedding = graph.gather(graph.constant(table), speakers)
            speaker = graph.unsqueeze(embedding, 1)
        b = Builder(graph, weights, speaker)
        axis = _find_tokens(graph, text, front.pad_id, batch_invariant)
        table = take_float32(weights, "fastpitch.encoder.word_emb.weight", (front.rows, m.dim))
        x = graph.gather(graph.constant(table), text)
        x = add_transformer(b, "fastpitch.encoder", m.encoder, x, axis)
        logarithms = add_predictor(b, "fastpitch.duration_predictor", m.duration, x, axis)
        durations = add_durations(graph, logarithms, axis, m.shortest, m.longest)
        token_frames = count_token_frames(graph, durations, pace, axis)
        num_frames = graph.squeeze(graph.reduce_sum(token_frames, 1), 1)
    pitch = graph.add(add_predictor(b, "fastpitch.pitch_predictor", m.pitch, x, axis), pitch)
    if axis.inner is not None:
        pitch = graph.where(axis.inner, pitch, graph.number(0.0))
    column = graph.unsqueeze(pitch, 1)
    encoded = graph.add(x, _embed(b, "fastpitch.pitch_emb", m.dim, m.pitch_kernel, column))
    if m.energy is not None:
        energy = add_predictor(b, "fastpitch.energy_predictor", m.energy, encoded, axis)
        column = graph.unsqueeze(energy, 1)
        of_energy = _embed(b, "fastpitch.energy_emb", m.dim, m.energy_kernel, column)
        encoded = graph.add(encoded, of_energy)

    graph.output(num_frames, "num_frames")
    graph.output(durations, "durs_predicted")
    graph.output(logarithms, "log_durs_predicted")
    graph.output(pitch, "pitch_predicted")
    graph.output(encoded, "encoded")
    graph.output(token_frames, "token_frames")
    if embedding is not None and m.decoder.conditions:
        graph.output(embedding, "speaker_embedding")
    return graph


def _build_decoder(m: Model, weights: Mapping[str, np.ndarray], batch_invariant: bool) -> Graph:
    graph = Graph("fastpitch_decoder")
    encoded = graph.input("encoded", "float32", ("batch", "tokens", m.dim))
    token_frames = graph.input("token_frames", "int64", ("batch", "tokens"))
    frame_index = graph.input("frame_index", "int64", ("frames",))
    speaker = None
    if m.decoder.conditions:
        embedding = graph.input("speaker_embedding", "float32", ("batch", m.dim))
        speaker = graph.unsqueeze(embedding, 1)
    with graph.full_precision():
        num_frames = graph.reduce_sum(token_frames, 1)
        valid = graph.less(frame_index, num_frames)
    axis = Axis(frame_index, valid, valid if batch_invariant else None)
    x = repeat_tokens(graph, encoded, token_frames, frame_index)
    b = Builder(graph, weights, speaker)
    x = add_transformer(b, "fastpitch.decoder", m.decoder, x, axis)
    weight = take_float32(weights, "fastpitch.proj.weight", (m.mels, m.dim))
    bias = take_float32(weights, "fastpitch.proj.bias", (m.mels,))
    spect = graph.transpose(graph.linear(x, weight, bias), (0, 2, 1))
    graph.output(spect, "spect", ("batch", m.mels, "frames"))
    return graph


def _find_tokens(graph: Graph, text: Value, pad_id: int, batch_invariant: bool) -> Axis:
    """Return which of `text` counts: all but the padding id; and all up to the last of these.

    They differ where the padding id is that of a space: NeMo hides such a space from attention,
    but its convolutions go over it.
    """
    positions = graph.arange(graph.size_of(text, 1), "tokens")
    padding = graph.apply("Equal", text, graph.number(pad_id, "int64"), dtype="bool")
    valid = graph.apply("Not", padding)
    if not batch_invariant:
        return Axis(positions, valid, None)
    ends = graph.add(positions, graph.number(1, "int64"))
    length = graph.reduce_max(graph.where(valid, ends, graph.number(0, "int64")), 1)
    return Axis(positions, valid, graph.less(positions, length))


def _embed(b: Builder, name: str, dim: int, kernel: int, x: Value) -> Value:
    """Return the embedding [batch, tokens, dim] of the numbers `x` [batch, 1, tokens]."""
    weight = take_float32(b.weights, f"{name}.weight", (dim, 1, kernel))
    bias = take_float32(b.weights, f"{name}.bias", (dim,))
    half = kernel // 2
    return b.graph.transpose(b.graph.conv(x, weight, bias, pads=(half, half)), (0, 2, 1))


EXPORTER = Exporter(
    family="fastpitch",
    classes=("nemo.collections.tts.models.fastpitch.FastPitchModel",),
    unused=(
        UnusedWeight("aligner.*", "aligns text and speech, training only"),
        UnusedWeight("fastpitch.aligner.*", "aligns text and speech, training only"),
        UnusedWeight("preprocessor.*", "spectrograms are computed in training only"),
        UnusedWeight("fastpitch.pitch_mean", "the configuration says it; often left at 0 here"),
        UnusedWeight("fastpitch.pitch_std", "the configuration says it; often left at 0 here"),
    ),
    export=export_fastpitch,
    sections={
        "": MODEL_KEYS,
        "preprocessor": MEL_KEYS,
        "input_fft": ENCODER_KEYS,
        "output_fft": DECODER_KEYS,
        "duration_predictor": PREDICTOR_KEYS,
        "pitch_predictor": PREDICTOR_KEYS,
        "energy_predictor": PREDICTOR_KEYS,
        "text_tokenizer": PHONEMES_KEYS,
        "text_tokenizer.g2p": G2P_KEYS,
        "train_ds.dataset.text_tokenizer": PHONEMES_KEYS,
        "train_ds.dataset.text_tokenizer.g2p": G2P_KEYS,
        "train_ds.dataset.vocab": VOCAB_KEYS,
    },
)
