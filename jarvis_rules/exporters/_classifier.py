"""The perceptrons that NeMo puts on an encoder to classify its tokens or its first token.

Source: NeMo 1.23 TokenClassifier, SequenceClassifier, SequenceTokenClassifier and
MultiLayerPerceptron.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._activations import HEAD_ACTIVATIONS
from jarvis_rules.exporters._bert import add_linear
from jarvis_rules.exporters._config import Section
from jarvis_rules.onnx_graph.graph import Graph, Value


@dataclass(frozen=True, slots=True)
class Head:
    """Linear layers with an activation between them; one layer alone has none."""

    layers: int
    activation: str
    log_softmax: bool = False


def read_head(section: Section, depth: str, *, default: int | None = None) -> Head:
    """Return the head of `section`, which names its number of layers `depth`.

    NeMo looks `activation` up only where there is a place for it.
    """
    layers = section.integer(depth, default, minimum=1)
    choices = tuple(HEAD_ACTIVATIONS)
    activation = section.choice("activation", choices, "relu") if layers > 1 else "relu"
    return Head(layers, activation)


def add_head(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    name: str,
    head: Head,
    x: Value,
    width: int,
    classes: int,
) -> Value:
    """Return the scores float32 [..., classes] of `x` [..., width]; `name` holds the weights."""
    for index in range(head.layers - 1):
        x = add_linear(graph, weights, f"{name}.layer{2 * index}", x, (width, width))
        x = HEAD_ACTIVATIONS[head.activation](graph, x)
    last = f"{name}.layer{2 * (head.layers - 1)}"
    scores = add_linear(graph, weights, last, x, (classes, width))
    if not head.log_softmax:
        return scores
    with graph.full_precision():
        return graph.log_softmax(scores)


def first_token(graph: Graph, hidden: Value) -> Value:
    """Return the hidden state of `[CLS]`, float32 [batch, width]."""
    return graph.gather(hidden, graph.number(0, "int64"), axis=1)
