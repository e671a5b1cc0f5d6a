"""Group norm over the channels and the valid frames of each item."""

from __future__ import annotations

import numpy as np

from jarvis_rules.onnx_graph.graph import Graph, Value

_EPS = 1e-5  # of torch


def add_group_norm(
    graph: Graph,
    x: Value,
    *,
    groups: int,
    gain: np.ndarray,
    shift: np.ndarray,
    mask: Value | None,
) -> Value:
    """Return the group norm of `x` [batch, C, time] with `gain` and `shift` [C].

    `mask` float32 [batch, 1, time] says which frames count; without it all do, as in NeMo. Frames
    that do not count become `shift`. Source: torch GroupNorm.
    """
    batch, _, time = x.shape
    channels = len(gain)
    # Sums of many squares, then a difference from their mean: 11 bits of mantissa are too few.
    with graph.full_precision():
        width = channels // groups
        grouped = graph.reshape(x, (0, groups, width, -1), (batch, groups, width, time))
        if mask is None:
            frames = graph.cast(graph.size_of(x, 2), "float32")
        else:
            # An empty item must not divide by zero.
            counted = graph.unsqueeze(graph.reduce_sum(mask, 2), 1)
            frames = graph.maximum(counted, graph.number(1.0))
            mask = graph.unsqueeze(mask, 1)
            grouped = graph.mul(grouped, mask)
        size = graph.mul(frames, graph.number(float(width)))
        mean = graph.div(graph.reduce_sum(grouped, 2, 3), size)
        centred = graph.sub(grouped, mean)
        centred = centred if mask is None else graph.mul(centred, mask)
        squares = graph.reduce_sum(graph.mul(centred, centred), 2, 3)
        variance = graph.add(graph.div(squares, size), graph.number(_EPS))
        scaled = graph.div(centred, graph.apply("Sqrt", variance))
        flat = graph.reshape(scaled, (0, channels, -1), (batch, channels, time))
    scaled = graph.mul(flat, graph.constant(gain[:, None]))
    return graph.add(scaled, graph.constant(shift[:, None]))
