"""The two transformers of FastPitch: their configuration, and their part of the graph.

Semantics: NeMo 1.23 FFTransformerEncoder, FFTransformerDecoder, TransformerLayer, MultiHeadAttn,
PositionwiseConvFF, ConditionalInput, ConditionalLayerNorm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._config import Key, Section, ignored, neutral, refuse, used
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.onnx_graph.graph import Graph, Value

DECODER_KEYS: tuple[Key, ...] = (
    *used("_target_", "n_layer", "n_head", "d_model", "d_head", "d_inner", "kernel_size"),
    *used("condition_types"),
    *ignored("training only", "dropout", "dropatt", "dropemb"),
    *neutral("pre_lnorm", False, None, reason="NeMo normalises the wrong axis then, and fails"),
)
ENCODER_KEYS: tuple[Key, ...] = (
    *DECODER_KEYS,
    *used("n_embed", "d_embed", "padding_idx"),
)
_MODULE = "nemo.collections.tts.modules.transformer"
_CONDITIONS = ("add", "concat", "layernorm")
_HIDDEN = -10000.0  # as a score: its exponential is 0, and an item without any key stays finite
_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Transformer:
    """The understood configuration of an FFTransformer; `conditions`: how it hears the speaker."""

    layers: int
    heads: int
    dim: int
    head_dim: int
    inner: int
    kernel: int
    conditions: frozenset[str]


@dataclass(frozen=True, slots=True)
class Builder:
    """A graph in the making; `speaker`: the embedding [batch, 1, dim] of a model of several."""

    graph: Graph
    weights: Mapping[str, np.ndarray]
    speaker: Value | None = None


@dataclass(frozen=True, slots=True)
class Axis:
    """The tokens or the frames of a batch, and which of them count.

    `positions` is int64 [time], `valid` bool [batch, time]. `inner`, of the same kind, is what
    convolutions may read from one another; without it they read what others left in the padding,
    as NeMo's do.
    """

    positions: Value
    valid: Value
    inner: Value | None

    def columns(self, graph: Graph) -> Value:
        """Return `valid` as float32 [batch, time, 1]."""
        return graph.cast(graph.unsqueeze(self.valid, 2), "float32")

    def rows(self, graph: Graph) -> Value:
        """Return `valid` as float32 [batch, 1, time]."""
        return graph.cast(graph.unsqueeze(self.valid, 1), "float32")

    def seal(self, graph: Graph, x: Value) -> Value:
        """Return `x` [batch, channels, time] without what is not `inner`."""
        if self.inner is None:
            return x
        return graph.mul(x, graph.cast(graph.unsqueeze(self.inner, 1), "float32"))


def read_transformer(section: Section, kind: str, conditions: frozenset[str]) -> Transformer:
    """Return the configuration of an FFTransformer of `kind` Encoder or Decoder.

    Raises JarvisError `export.unsupported-config`.
    """
    section.choice("_target_", (f"{_MODULE}.FFTransformer{kind}",))
    section.check(ENCODER_KEYS if kind == "Encoder" else DECODER_KEYS)
    dim = section.integer("d_model", minimum=2)
    if dim % 2:
        refuse(section.at("d_model"), dim, "an even number, half sines and half cosines")
    return Transformer(
        layers=section.integer("n_layer", minimum=1),
        heads=section.integer("n_head", minimum=1),
        dim=dim,
        head_dim=section.integer("d_head", minimum=1),
        inner=section.integer("d_inner", minimum=1),
        kernel=read_kernel(section, "kernel_size"),
        conditions=conditions | read_conditions(section),
    )


def read_kernel(section: Section, key: str) -> int:
    """Return the size of a convolution that keeps the length; NeMo fails at an even one."""
    kernel = section.integer(key, minimum=1)
    if not kernel % 2:
        refuse(section.at(key), kernel, "an odd number")
    return kernel


def read_conditions(section: Section) -> frozenset[str]:
    """Return the ways in which a module is conditioned on the speaker."""
    types = section.values.get("condition_types") or []
    if not isinstance(types, list | tuple) or not all(t in _CONDITIONS for t in types):
        names = ", ".join(f"`{name}`" for name in _CONDITIONS)
        refuse(section.at("condition_types"), types, f"a list of {names}")
    return frozenset(types)


def add_transformer(b: Builder, name: str, t: Transformer, x: Value, axis: Axis) -> Value:
    """Add the transformer `name` behind its embedding `x` [batch, time, dim]."""
    graph, mask = b.graph, axis.columns(b.graph)
    table = _add_positions(b, f"{name}.pos_emb.inv_freq", t.dim, axis.positions)
    x = graph.add(x, graph.mul(table, mask))
    x = add_condition(b, f"{name}.cond_input", x, t.conditions)
    by_speaker = "layernorm" in t.conditions
    for i in range(t.layers):
        layer = f"{name}.layers.{i}"
        attended = graph.add(x, _add_attention(b, f"{layer}.dec_attn", t, x, axis))
        x = add_norm(b, f"{layer}.dec_attn.layer_norm", attended, by_speaker, t.dim)
        x = graph.mul(x, mask)
        filtered = graph.add(x, _add_convolutions(b, f"{layer}.pos_ff.CoreNet", t, x, axis))
        x = add_norm(b, f"{layer}.pos_ff.layer_norm", filtered, by_speaker, t.dim)
        x = graph.mul(x, mask)
    return x


def add_condition(b: Builder, name: str, x: Value, conditions: frozenset[str]) -> Value:
    """Add the speaker to `x` [batch, time, dim] in the ways `add` and `concat`."""
    if b.speaker is None:
        return x
    if "add" in conditions:
        x = b.graph.add(x, b.speaker)
    if "concat" in conditions:
        dim = int(x.shape[-1])
        weight = take_float32(b.weights, f"{name}.concat_proj.weight", (dim, 2 * dim))
        bias = take_float32(b.weights, f"{name}.concat_proj.bias", (dim,))
        # The product of what is joined is the sum of the products: no frame needs a copy.
        of_speaker = b.graph.linear(b.speaker, weight[:, dim:], bias)
        x = b.graph.add(b.graph.linear(x, weight[:, :dim]), of_speaker)
    return x


def add_norm(b: Builder, name: str, x: Value, by_speaker: bool, dim: int) -> Value:
    """Add the layer norm `name` of `x` [batch, time, channels]; the speaker may set its gain."""
    size = int(x.shape[-1])
    if not by_speaker or b.speaker is None:
        gain = take_float32(b.weights, f"{name}.weight", (size,))
        shift = take_float32(b.weights, f"{name}.bias", (size,))
        return b.graph.layer_norm(x, gain, shift, _EPS)
    x = b.graph.layer_norm(x, np.ones(size, np.float32), np.zeros(size, np.float32), _EPS)
    gain_of, shift_of = (
        b.graph.linear(
            b.speaker,
            take_float32(b.weights, f"{name}.{part}.weight", (size, dim)),
            take_float32(b.weights, f"{name}.{part}.bias", (size,)),
        )
        for part in ("cond_weight", "cond_bias")
    )
    return b.graph.add(b.graph.mul(x, gain_of), shift_of)


def _add_positions(b: Builder, name: str, dim: int, positions: Value) -> Value:
    """Return float32 [time, dim]: the sines of all frequencies, then the cosines."""
    frequencies = take_float32(b.weights, name, (dim // 2,))
    with b.graph.full_precision():  # half precision cannot count beyond 2048
        steps = b.graph.unsqueeze(b.graph.cast(positions, "float32"), 1)
        angles = b.graph.mul(steps, b.graph.constant(frequencies))
        return b.graph.concat((b.graph.apply("Sin", angles), b.graph.apply("Cos", angles)), 1)


def _add_attention(b: Builder, name: str, t: Transformer, x: Value, axis: Axis) -> Value:
    graph, width = b.graph, t.heads * t.head_dim
    batch, time, _ = x.shape
    weight = take_float32(b.weights, f"{name}.qkv_net.weight", (3 * width, t.dim))
    bias = take_float32(b.weights, f"{name}.qkv_net.bias", (3 * width,))
    query, key, value = (
        graph.reshape(part, (0, 0, t.heads, t.head_dim), (batch, time, t.heads, t.head_dim))
        for part in graph.split(graph.linear(x, weight, bias), (width,) * 3, 2)
    )
    query = graph.mul(query, graph.number(1 / math.sqrt(t.head_dim)))
    scores = graph.matmul(graph.transpose(query, (0, 2, 1, 3)), graph.transpose(key, (0, 2, 3, 1)))
    scores = graph.where(graph.unsqueeze(axis.valid, 1, 2), scores, graph.number(_HIDDEN))
    found = graph.matmul(graph.softmax(scores), graph.transpose(value, (0, 2, 1, 3)))
    found = graph.transpose(found, (0, 2, 1, 3))
    found = graph.reshape(found, (0, 0, width), (batch, time, width))
    return graph.linear(found, take_float32(b.weights, f"{name}.o_net.weight", (t.dim, width)))


def _add_convolutions(b: Builder, name: str, t: Transformer, x: Value, axis: Axis) -> Value:
    half = t.kernel // 2
    x = b.graph.transpose(x, (0, 2, 1))
    for i, (outputs, inputs) in ((0, (t.inner, t.dim)), (2, (t.dim, t.inner))):
        if i:
            x = axis.seal(b.graph, b.graph.apply("Relu", x))
        weight = take_float32(b.weights, f"{name}.{i}.weight", (outputs, inputs, t.kernel))
        bias = take_float32(b.weights, f"{name}.{i}.bias", (outputs,))
        x = b.graph.conv(x, weight, bias, pads=(half, half))
    return b.graph.transpose(x, (0, 2, 1))
