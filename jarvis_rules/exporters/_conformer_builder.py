"""What the parts of a Conformer graph are written with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.errors import JarvisBug
from jarvis_rules.exporters._conformer_config import Encoder
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.onnx_graph.graph import Graph, Value

EPS = 1e-5  # of torch, and of all norms of a Conformer; the Jasper family has another


@dataclass(frozen=True, slots=True)
class Signal:
    """A tensor with time and its valid lengths int64 [batch]; `stride` from the features."""

    value: Value
    lengths: Value
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Builder:
    """The graph in the making; `masked`: no frame sees what lies beyond its item's length."""

    graph: Graph
    weights: Mapping[str, np.ndarray]
    encoder: Encoder
    masked: bool

    def take(self, name: str, *shape: int) -> np.ndarray:
        """Return a weight of the checkpoint; raises what `take_weight` raises."""
        return take_float32(self.weights, name, shape)

    def linear(self, x: Value, name: str, outputs: int) -> Value:
        """Return the linear layer `name` over the last axis of `x`."""
        weight = self.take(f"{name}.weight", outputs, _last(x))
        return self.graph.linear(x, weight, self.take(f"{name}.bias", outputs))

    def layer_norm(self, x: Value, name: str) -> Value:
        """Return the layer norm `name` over the last axis of `x`."""
        gain, shift = (self.take(f"{name}.{leaf}", _last(x)) for leaf in ("weight", "bias"))
        return self.graph.layer_norm(x, gain, shift, EPS)


def _last(x: Value) -> int:
    size = x.shape[-1]
    if not isinstance(size, int):
        raise JarvisBug(f"{x} has no size along its last axis")
    return size
