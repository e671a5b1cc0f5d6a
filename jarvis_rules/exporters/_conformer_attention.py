"""Self-attention of a Conformer, with relative positions or without, over all frames or some.

Semantics: NeMo 1.23 RelPositionMultiHeadAttention, MultiHeadAttention and, for equal sides
without global tokens, RelPositionMultiHeadAttentionLongformer, which computes a band of the same
scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._conformer_builder import Builder
from jarvis_rules.exporters._weights import require_finite
from jarvis_rules.onnx_graph.graph import Graph, Value

_HIDDEN = -10000.0  # NeMo's, and within the range of half precision


@dataclass(frozen=True, slots=True)
class Scene:
    """What attention needs to know of the frames: one for all layers at one frame rate.

    `mask` is float32 [batch, time, 1], 0 on padding. `visible` is bool [batch, 1, time or 1, time],
    true where a query may see a key; `bias` is what scores get, 0 there and much less elsewhere.
    `positions` are float32 [2 · time, d_model] for the distances time … 1 - time, or None.
    """

    lengths: Value
    mask: Value
    visible: Value
    bias: Value
    positions: Value | None


def add_scene(b: Builder, x: Value, lengths: Value) -> Scene:
    """Return the masks and relative positions for the frames `x` [batch, time, d_model]."""
    g = b.graph
    valid = g.valid(lengths, x, 1)
    mask = g.unsqueeze(g.cast(valid, "float32"), 2)
    visible = g.unsqueeze(valid, 1, 2)
    if not b.masked:
        # NeMo's padding sees nothing. What it sees matters only where padding leaks later on.
        visible = g.logical_and(visible, g.unsqueeze(valid, 1, 3))
    for condition in _limit_context(b, x):
        visible = g.logical_and(visible, condition)
    bias = g.where(visible, g.number(0.0), g.number(_HIDDEN))
    positions = _add_distances(b, x) if b.encoder.relative else None
    return Scene(lengths, mask, visible, bias, positions)


def add_absolute_positions(b: Builder, x: Value) -> Value:
    """Return `x` [batch, time, d_model] plus the table of its positions."""
    steps = b.graph.arange(b.graph.size_of(x, 1), x.shape[1])
    return b.graph.add(x, _add_table(b, steps))


def add_attention(b: Builder, name: str, x: Value, scene: Scene) -> Value:
    """Return the attention of `x` [batch, time, d_model] to itself, projected.

    Raises what `take_weight` raises.
    """
    g, width, heads = b.graph, b.encoder.width, b.encoder.heads
    size = width // heads
    batch, time, _ = x.shape
    keys = g.transpose(_split_heads(b, b.linear(x, f"{name}.linear_k", width)), (0, 2, 3, 1))
    values = g.transpose(_split_heads(b, b.linear(x, f"{name}.linear_v", width)), (0, 2, 1, 3))
    # The scores are scaled by 1 / sqrt(d); so are the queries here, which are fewer.
    weight = b.take(f"{name}.linear_q.weight", width, width)
    scaled = g.mul(g.linear(x, weight), g.number(1 / math.sqrt(size)))
    queries = _split_heads(b, scaled)
    if scene.positions is None:
        scores = g.matmul(_add_bias(b, name, queries), keys)
    else:
        scores = g.matmul(_add_bias(b, name, queries, "pos_bias_u"), keys)
        table = b.take(f"{name}.linear_pos.weight", width, width)
        distances = g.linear(scene.positions, table)
        rows = distances.shape[0]
        distances = g.reshape(distances, (0, heads, size), (rows, heads, size))
        distances = g.transpose(distances, (1, 2, 0))
        by_distance = g.matmul(_add_bias(b, name, queries, "pos_bias_v"), distances)
        scores = g.add(scores, _shift(g, by_distance, x))
    # NeMo puts -10000 in place of hidden scores; the exponential of either is 0.
    weights = g.softmax(g.add(scores, scene.bias))
    if not b.masked:
        weights = g.where(scene.visible, weights, g.number(0.0))
    out = g.transpose(g.matmul(weights, values), (0, 2, 1, 3))
    out = g.reshape(out, (0, 0, width), (batch, time, width))
    return b.linear(out, f"{name}.linear_out", width)


def _limit_context(b: Builder, x: Value) -> list[Value]:
    """Return bool [time, time] conditions on which key (column) a query (row) may see."""
    g, context = b.graph, b.encoder.context
    if context.left is None and context.right is None:
        return []
    unit = g.arange(g.size_of(x, 1), x.shape[1])
    if context.unit > 1:
        unit = g.div(unit, g.number(context.unit, "int64"))
    back = g.sub(g.unsqueeze(unit, 1), g.unsqueeze(unit, 0))
    conditions = []
    if context.left is not None:
        conditions.append(g.less(back, g.number(context.left + 1, "int64")))
    if context.right is not None:
        conditions.append(g.less(g.number(-context.right - 1, "int64"), back))
    return conditions


def _add_distances(b: Builder, x: Value) -> Value:
    """Return the table of the distances time … 1 - time between a query and a key."""
    g = b.graph
    count = g.size_of(x, 1)
    twice = g.mul(count, g.number(2, "int64"))
    return _add_table(b, g.sub(count, g.arange(twice, f"{x.shape[1]}_twice")))


def _add_table(b: Builder, steps: Value) -> Value:
    """Return float32 [steps, d_model]: sines in the even, cosines in the odd columns.

    Computed where it is used, so that no input is too long, and in the order of NeMo: the product
    of step and frequency is rounded to float32 before the sine is taken. Half precision has no
    steps beyond 2048 but the even ones, and angles that are off by radians.
    """
    g, width = b.graph, b.encoder.width
    with g.full_precision():
        column = g.unsqueeze(g.cast(steps, "float32"), 1)
        angles = g.mul(column, g.constant(_frequencies(width)))
        pairs = [g.unsqueeze(g.apply(op, angles), 2) for op in ("Sin", "Cos")]
        return g.reshape(g.concat(pairs, 2), (0, width), (steps.shape[0], width))


def _frequencies(width: int) -> np.ndarray:
    """Return float32 [width / 2], rounded as in torch: the exponent before the exponential."""
    exponents = np.arange(0, width, 2).astype(np.float32) * np.float32(-math.log(10000.0) / width)
    return np.array([math.exp(e) for e in exponents.tolist()], np.float32)


def _shift(g: Graph, scores: Value, x: Value) -> Value:
    """Return [batch, heads, time, time] from scores by distance [batch, heads, time, 2 · time].

    Row i holds the distances time … 1 - time; wanted are i … i - time + 1. Read with rows one
    shorter, row i begins i places later. NeMo pads where the distance `time` stands here.
    """
    batch, heads, time, twice = scores.shape
    count = g.apply("Shape", x, shape=(1,), dtype="int64", start=1, end=2)
    turned = g.concat([g.ints(0, 0, -1), count], 0)
    rows = g.apply("Reshape", scores, turned, shape=(batch, heads, twice, time))
    rows = g.slice(rows, 2, 1, None)
    back = g.concat([g.ints(0, 0), count, g.ints(-1)], 0)
    shorter = f"{twice}_less_one"
    shifted = g.apply("Reshape", rows, back, shape=(batch, heads, time, shorter))
    ends = (g.ints(0), count, g.ints(3))
    return g.apply("Slice", shifted, *ends, shape=(batch, heads, time, time))


def _split_heads(b: Builder, x: Value) -> Value:
    heads = (b.encoder.heads, b.encoder.width // b.encoder.heads)
    return b.graph.reshape(x, (0, 0, *heads), (*x.shape[:2], *heads))


def _add_bias(b: Builder, name: str, queries: Value, extra: str | None = None) -> Value:
    """Return scaled queries [batch, heads, time, d] with the scaled sum of their biases."""
    heads, size = b.encoder.heads, b.encoder.width // b.encoder.heads
    bias = b.take(f"{name}.linear_q.bias", heads * size).astype(np.float64).reshape(heads, size)
    if extra is not None:
        bias += b.take(f"{name}.{extra}", heads, size)
    with np.errstate(over="ignore"):
        scaled = (bias / math.sqrt(size)).astype(np.float32)
    require_finite(f"the sum of the query's biases of `{name}`", scaled)
    return b.graph.transpose(b.graph.add(queries, b.graph.constant(scaled)), (0, 2, 1, 3))
