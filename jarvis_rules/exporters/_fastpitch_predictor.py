"""The predictors of FastPitch, one number for each token: configuration and graph.

Semantics: NeMo 1.23 TemporalPredictor, ConvReLUNorm, log_to_duration, regulate_len.
"""

from __future__ import annotations

from dataclasses import dataclass

from jarvis_rules.exporters._config import Key, Section, ignored, used
from jarvis_rules.exporters._fastpitch_transformer import (
    Axis,
    Builder,
    add_condition,
    add_norm,
    read_conditions,
    read_kernel,
)
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.onnx_graph.graph import Graph, Value

_TARGETS = ("nemo.collections.tts.modules.fastpitch.TemporalPredictor",)
KEYS: tuple[Key, ...] = (
    *used("_target_", "input_size", "filter_size", "kernel_size", "n_layers", "condition_types"),
    *ignored("training only", "dropout"),
)


@dataclass(frozen=True, slots=True)
class Predictor:
    """The understood configuration of a TemporalPredictor."""

    dim: int
    filters: int
    kernel: int
    layers: int
    conditions: frozenset[str]


def read_predictor(section: Section, conditions: frozenset[str]) -> Predictor:
    """Return the configuration of a predictor; JarvisError `export.unsupported-config`."""
    section.choice("_target_", _TARGETS)
    section.check(KEYS)
    return Predictor(
        dim=section.integer("input_size", minimum=1),
        filters=section.integer("filter_size", minimum=1),
        kernel=read_kernel(section, "kernel_size"),
        layers=section.integer("n_layers", 2, 1),
        conditions=conditions | read_conditions(section),
    )


def add_predictor(b: Builder, name: str, p: Predictor, x: Value, axis: Axis) -> Value:
    """Add the predictor `name` of `x` [batch, tokens, dim]: float32 [batch, tokens].

    Tokens that are not valid get 0.
    """
    graph, half = b.graph, p.kernel // 2
    x = add_condition(b, f"{name}.cond_input", x, p.conditions)
    x = graph.transpose(graph.mul(x, axis.columns(graph)), (0, 2, 1))
    for i in range(p.layers):
        layer = f"{name}.layers.{i}"
        size = (p.filters, int(x.shape[1]), p.kernel)
        weight = take_float32(b.weights, f"{layer}.conv.weight", size)
        bias = take_float32(b.weights, f"{layer}.conv.bias", (p.filters,))
        x = graph.apply("Relu", graph.conv(x, weight, bias, pads=(half, half)))
        x = graph.transpose(x, (0, 2, 1))
        x = add_norm(b, f"{layer}.norm", x, "layernorm" in p.conditions, p.dim)
        x = axis.seal(graph, graph.transpose(x, (0, 2, 1)))
    weight = take_float32(b.weights, f"{name}.fc.weight", (1, p.filters))
    bias = take_float32(b.weights, f"{name}.fc.bias", (1,))
    # A convolution of one tap, since some engines have no float32 matrix product.
    x = graph.conv(x, weight[:, :, None], bias)
    return graph.squeeze(graph.mul(x, axis.rows(graph)), 1)


def add_durations(
    graph: Graph, logarithms: Value, axis: Axis, shortest: int, longest: int
) -> Value:
    """Return float32 [batch, tokens]: the frames of each token at pace 1, not rounded yet."""
    frames = graph.sub(graph.apply("Exp", logarithms), graph.number(1.0))
    limits = (graph.number(float(shortest)), graph.number(float(longest)))
    return graph.mul(graph.apply("Clip", frames, *limits), graph.squeeze(axis.rows(graph), 1))


def count_token_frames(graph: Graph, durations: Value, pace: Value, axis: Axis) -> Value:
    """Return int64 [batch, tokens]: how often each token is repeated; 0 if invalid, at any pace."""
    frames = graph.add(graph.div(durations, pace), graph.number(0.5))
    frames = graph.where(axis.valid, graph.apply("Floor", frames), graph.number(0.0))
    return graph.cast(frames, "int64")


def repeat_tokens(graph: Graph, encoded: Value, token_frames: Value, frame_index: Value) -> Value:
    """Return `encoded` [batch, tokens, dim] of the token that each frame belongs to.

    Frames beyond the last token are 0. A product with a matrix of zeros and ones is exact.
    """
    ends = graph.apply("CumSum", token_frames, graph.number(1, "int64"))
    starts = graph.sub(ends, token_frames)
    frames = graph.unsqueeze(frame_index, 0, 2)
    has_begun = graph.apply("Not", graph.less(frames, graph.unsqueeze(starts, 1)))
    belongs = graph.apply("And", has_begun, graph.less(frames, graph.unsqueeze(ends, 1)))
    return graph.matmul(graph.cast(belongs, "float32"), encoded)
