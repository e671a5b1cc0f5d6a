"""The functions between linear layers, by the names that language models know them under."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from jarvis_rules.onnx_graph.graph import Graph, Value

Activation = Callable[[Graph, Value], Value]


def _unary(op: str) -> Activation:
    return lambda graph, x: graph.apply(op, x)


def _gelu(graph: Graph, x: Value) -> Value:
    return graph.activate(x, "gelu")


def _silu(graph: Graph, x: Value) -> Value:
    return graph.activate(x, "silu")


def _tanh_gelu(graph: Graph, x: Value) -> Value:
    curve = _plus_one(graph, graph.mul(graph.mul(x, x), graph.number(0.044715)))
    slope = graph.mul(x, graph.number(math.sqrt(2 / math.pi)))
    step = _plus_one(graph, graph.apply("Tanh", graph.mul(slope, curve)))
    return graph.mul(graph.mul(x, graph.number(0.5)), step)


def _plus_one(graph: Graph, x: Value) -> Value:
    return graph.add(x, graph.number(1.0))


def _quick_gelu(graph: Graph, x: Value) -> Value:
    return graph.mul(x, graph.apply("Sigmoid", graph.mul(x, graph.number(1.702))))


ENCODER_ACTIVATIONS: Mapping[str, Activation] = {
    "gelu": _gelu,
    "gelu_python": _gelu,
    "gelu_new": _tanh_gelu,
    "gelu_fast": _tanh_gelu,
    "gelu_accurate": _tanh_gelu,
    "gelu_pytorch_tanh": _tanh_gelu,
    "quick_gelu": _quick_gelu,
    "relu": _unary("Relu"),
    "silu": _silu,
    "swish": _silu,
    "tanh": _unary("Tanh"),
    "sigmoid": _unary("Sigmoid"),
}
"""Of transformers 4.36 `ACT2FN`; four of its names are one function up to rounding."""

HEAD_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": _unary("Relu"),
    "tanh": _unary("Tanh"),
    "sigmoid": _unary("Sigmoid"),
    "selu": _unary("Selu"),
    "celu": _unary("Celu"),
}
"""NeMo takes the function `torch.<name>`; torch has no `gelu` or `silu` there, NeMo fails too."""
