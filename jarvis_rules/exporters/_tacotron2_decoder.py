"""One decoder step of Tacotron 2: its configuration and its graph.

Semantics: NeMo 1.23 nemo.collections.tts.modules.tacotron2.Decoder, Prenet, Attention.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._config import Key, Section, ignored, refuse, used
from jarvis_rules.exporters._tacotron2_encoder import EMBEDDING, read_odd
from jarvis_rules.exporters._weights import require_finite, take_float32
from jarvis_rules.onnx_graph.graph import Graph, Value

_TARGETS = (
    "nemo.collections.tts.modules.tacotron2.Decoder",
    "nemo.collections.tts.modules.Taco2Decoder",
)
KEYS: tuple[Key, ...] = (
    *used("_target_", "n_mel_channels", "n_frames_per_step", "encoder_embedding_dim"),
    *used("attention_dim", "attention_location_n_filters", "attention_location_kernel_size"),
    *used("attention_rnn_dim", "decoder_rnn_dim", "prenet_dim", "prenet_p_dropout"),
    *used("max_decoder_steps", "gate_threshold", "early_stopping"),
    *ignored("training only", "p_attention_dropout", "p_decoder_dropout"),
)
# Its exponential is 0 in single and half precision; an infinity would make NaN of an empty text.
_HIDDEN_ENERGY = -10000.0


@dataclass(frozen=True, slots=True)
class Decoder:
    """The understood configuration of a Decoder."""

    mels: int
    frames_per_step: int
    attention: int
    location_filters: int
    location_kernel: int
    attention_rnn: int
    decoder_rnn: int
    prenet: int
    prenet_dropout: float
    max_steps: int
    gate_threshold: float
    early_stopping: bool


def read_decoder(section: Section) -> Decoder:
    """Return the configuration of the decoder; JarvisError `export.unsupported-config`."""
    section.choice("_target_", _TARGETS)
    section.check(KEYS)
    dropout = section.number("prenet_p_dropout", 0.5)
    if not 0 <= dropout < 1:
        refuse(section.at("prenet_p_dropout"), dropout, "a probability below 1")
    return Decoder(
        mels=section.integer("n_mel_channels", minimum=1),
        frames_per_step=section.integer("n_frames_per_step", minimum=1),
        attention=section.integer("attention_dim", minimum=1),
        location_filters=section.integer("attention_location_n_filters", minimum=1),
        location_kernel=read_odd(section, "attention_location_kernel_size"),
        attention_rnn=section.integer("attention_rnn_dim", minimum=1),
        decoder_rnn=section.integer("decoder_rnn_dim", minimum=1),
        prenet=section.integer("prenet_dim", minimum=1),
        prenet_dropout=dropout,
        max_steps=section.integer("max_decoder_steps", minimum=1),
        gate_threshold=section.number("gate_threshold"),
        early_stopping=section.boolean("early_stopping"),
    )


def state_sizes(decoder: Decoder) -> dict[str, int | str]:
    """Return the recurrent states by input name, in order, each with the axis behind the batch.

    All start as zeros; the output `<name>_next` is the input of the next step.
    """
    return {
        "attention_hidden": decoder.attention_rnn,
        "attention_cell": decoder.attention_rnn,
        "decoder_hidden": decoder.decoder_rnn,
        "decoder_cell": decoder.decoder_rnn,
        "attention_weights": "tokens",
        "attention_weights_cum": "tokens",
        "attention_context": EMBEDDING,
    }


def build_decoder_step(decoder: Decoder, weights: Mapping[str, np.ndarray]) -> Graph:
    """Return the graph of one step.

    Inputs, float32 unless said: `decoder_input` [batch, mels], the `mel` of the step before, zeros
    at first; `prenet_dropout` [2, prenet_dim], for each layer of the prenet 0 or 1 / (1 - p), or
    ones to switch it off; the states of `state_sizes`; `memory` [batch, tokens, 512] (the encoder's
    `encoder_embedding`), `processed_memory` [batch, tokens, attention], `mask` bool [batch, tokens]
    as the encoder gives them.
    Outputs: `mel` [batch, mels], frame by frame if a step makes several; `gate` [batch, 1], a
    logit; each state as `<name>_next`. Raises what `take_weight` raises.
    """
    b = _Builder(Graph("tacotron2_decoder_step"), decoder, weights)
    graph, size = b.graph, decoder.mels * decoder.frames_per_step
    frame = graph.input("decoder_input", "float32", ("batch", size))
    dropout = graph.input("prenet_dropout", "float32", (2, decoder.prenet))
    s = {
        name: graph.input(name, "float32", ("batch", axis))
        for name, axis in state_sizes(decoder).items()
    }
    memory = graph.input("memory", "float32", ("batch", "tokens", EMBEDDING))
    processed = graph.input("processed_memory", "float32", ("batch", "tokens", decoder.attention))
    mask = graph.input("mask", "bool", ("batch", "tokens"))

    x = _add_prenet(b, frame, dropout)
    x = graph.concat((x, s["attention_context"]), 1)
    s["attention_hidden"], s["attention_cell"] = _add_lstm_cell(
        b, "attention_rnn", x, s["attention_hidden"], s["attention_cell"], decoder.prenet
    )
    energies = _add_energies(b, s, processed)
    # Weights are summed up over all steps and decide where the next one looks.
    with graph.full_precision():
        energies = graph.where(mask, graph.number(_HIDDEN_ENERGY), energies)
        s["attention_weights"] = graph.softmax(energies)
        total = graph.add(s["attention_weights_cum"], s["attention_weights"])
        s["attention_weights_cum"] = total
    context = graph.matmul(graph.unsqueeze(s["attention_weights"], 1), memory)
    s["attention_context"] = graph.squeeze(context, 1)

    x = graph.concat((s["attention_hidden"], s["attention_context"]), 1)
    s["decoder_hidden"], s["decoder_cell"] = _add_lstm_cell(
        b, "decoder_rnn", x, s["decoder_hidden"], s["decoder_cell"], decoder.attention_rnn
    )
    x = graph.concat((s["decoder_hidden"], s["attention_context"]), 1)
    mel, gate = _add_projections(b, x)
    graph.output(mel, "mel")
    graph.output(gate, "gate")
    for name, value in s.items():
        graph.output(value, f"{name}_next")
    return graph


@dataclass(frozen=True, slots=True)
class _Builder:
    graph: Graph
    decoder: Decoder
    weights: Mapping[str, np.ndarray]

    def take(self, name: str, *shape: int) -> np.ndarray:
        return take_float32(self.weights, f"decoder.{name}", shape)


def _add_prenet(b: _Builder, frame: Value, dropout: Value) -> Value:
    d = b.decoder
    x, inputs = frame, d.mels * d.frames_per_step
    for i, factors in enumerate(b.graph.split(dropout, (1, 1), 0)):
        x = b.graph.linear(x, b.take(f"prenet.layers.{i}.linear_layer.weight", d.prenet, inputs))
        x, inputs = b.graph.mul(b.graph.activate(x, "relu"), factors), d.prenet
    return x


def _add_lstm_cell(
    b: _Builder, name: str, x: Value, hidden: Value, cell: Value, beside_context: int
) -> tuple[Value, Value]:
    """Return the next hidden and cell state of a torch LSTMCell.

    `x` [batch, beside_context + 512] ends with the context.
    """
    graph, d = b.graph, b.decoder
    units = {"attention_rnn": d.attention_rnn, "decoder_rnn": d.decoder_rnn}[name]
    inner = b.take(f"{name}.weight_ih", 4 * units, beside_context + EMBEDDING)
    recurrent = b.take(f"{name}.weight_hh", 4 * units, units)
    # torch adds two biases; their sum is rounded once.
    bias, other = (
        b.take(f"{name}.bias_{side}", 4 * units).astype(np.float64) for side in ("ih", "hh")
    )
    with np.errstate(over="ignore"):
        bias = (bias + other).astype(np.float32)
    require_finite(f"`decoder.{name}.bias_ih` plus `decoder.{name}.bias_hh`", bias)
    table = np.concatenate([inner, recurrent], axis=1)
    scores = graph.linear(graph.concat((x, hidden), 1), table, bias)
    # The cell is a sum over all steps.
    with graph.full_precision():
        enter, forget, new, leave = graph.split(scores, (units,) * 4, 1)
        enter, forget, leave = (graph.apply("Sigmoid", v) for v in (enter, forget, leave))
        new = graph.mul(enter, graph.apply("Tanh", new))
        cell = graph.add(graph.mul(forget, cell), new)
        return graph.mul(leave, graph.apply("Tanh", cell)), cell


def _add_energies(b: _Builder, states: Mapping[str, Value], processed: Value) -> Value:
    """Return the energy [batch, tokens] of each token, before the mask."""
    graph, d, name = b.graph, b.decoder, "attention_layer"
    weight = b.take(f"{name}.query_layer.linear_layer.weight", d.attention, d.attention_rnn)
    query = graph.unsqueeze(graph.linear(states["attention_hidden"], weight), 1)
    before = [
        graph.unsqueeze(states[key], 1) for key in ("attention_weights", "attention_weights_cum")
    ]
    layer, kernel = f"{name}.location_layer", d.location_kernel
    weight = b.take(f"{layer}.location_conv.conv.weight", d.location_filters, 2, kernel)
    location = graph.conv(graph.concat(before, 1), weight, pads=(kernel // 2, kernel // 2))
    weight = b.take(f"{layer}.location_dense.linear_layer.weight", d.attention, d.location_filters)
    location = graph.linear(graph.transpose(location, (0, 2, 1)), weight)
    total = graph.apply("Tanh", graph.add(graph.add(query, location), processed))
    energies = graph.linear(total, b.take(f"{name}.v.linear_layer.weight", 1, d.attention))
    return graph.squeeze(energies, 2)


def _add_projections(b: _Builder, x: Value) -> tuple[Value, Value]:
    """Return frames and gate: two linear layers of the same input, computed as one."""
    inputs, frames = b.decoder.decoder_rnn + EMBEDDING, b.decoder.mels * b.decoder.frames_per_step
    layers = (("linear_projection.linear_layer", frames), ("gate_layer.linear_layer", 1))
    weight = np.concatenate([b.take(f"{name}.weight", rows, inputs) for name, rows in layers])
    bias = np.concatenate([b.take(f"{name}.bias", rows) for name, rows in layers])
    mel, gate = b.graph.split(b.graph.linear(x, weight, bias), (frames, 1), 1)
    return mel, gate
