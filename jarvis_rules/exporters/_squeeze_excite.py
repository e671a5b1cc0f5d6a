"""Squeeze-excite: every channel is scaled by what the averages of all channels say."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.onnx_graph.graph import Graph, Value


def add_squeeze_excite(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    name: str,
    x: Value,
    *,
    channels: int,
    squeezed: int,
    activation: str,
    mask: Value,
) -> Value:
    """Return `x` [batch, channels, time], its channels scaled; `squeezed` is the width between.

    `mask` float32 [batch, 1, time] says which frames are averaged; the others become 0. For an
    empty item NeMo divides by zero, here its averages are 0. Raises what `take_weight` raises.
    Source: NeMo 1.23 SqueezeExcite.
    """
    first = take_float32(weights, f"{name}.fc.0.weight", (squeezed, channels))
    second = take_float32(weights, f"{name}.fc.2.weight", (channels, squeezed))
    x = graph.mul(x, mask)
    # An average over thousands of frames; what follows is tiny, and scales the whole item.
    # Convolutions, since TensorRT has no float32 matrix product for Turing.
    with graph.full_precision():
        frames = graph.maximum(graph.reduce_sum(mask, 2), graph.number(1.0))
        mean = graph.div(graph.reduce_sum(x, 2), frames)
        inner = graph.activate(graph.conv(mean, first[:, :, None]), activation)
        gate = graph.apply("Sigmoid", graph.conv(inner, second[:, :, None]))
    return graph.mul(x, gate)
