"""The BERT and DistilBERT encoders that NeMo's language models are built on.

Embeddings, then layers of self-attention and feed-forward, each followed by the layer norm of its
sum with what went in. Semantics: NeMo 1.23 BertEncoder and DistilBertEncoder, which are BertModel
and DistilBertModel of transformers 4.36.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._activations import ENCODER_ACTIVATIONS
from jarvis_rules.exporters._bert_config import Encoder
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.onnx_graph.graph import Graph, Value

_PREFIX = "bert_model"
_LOWEST_HALF = -65504.0  # finite in half precision too, so a row without a visible key gives no NaN


@dataclass(frozen=True, slots=True)
class _Names:
    """Where the layers of an architecture keep their weights."""

    layer: str
    query: str
    key: str
    value: str
    attended: str
    attended_norm: str
    inner: str
    outer: str
    outer_norm: str


_NAMES = {
    "bert": _Names(
        "encoder.layer",
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "attention.output.LayerNorm",
        "intermediate.dense",
        "output.dense",
        "output.LayerNorm",
    ),
    "distilbert": _Names(
        "transformer.layer",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
}


def add_encoder(graph: Graph, weights: Mapping[str, np.ndarray], encoder: Encoder) -> Value:
    """Write inputs and encoder, and return the last hidden states float32 [batch, time, width].

    `input_ids`, `attention_mask` and `token_type_ids` are int64 [batch, time]; a DistilBERT has no
    token types, and like NeMo's own export of it no such input. Keys with mask 0 are hidden from
    every query, so that a visible token's result depends on visible tokens alone; where a row has
    none, all keys count alike, as in NeMo.
    """
    ids = graph.input("input_ids", "int64", ("batch", "time"))
    mask = graph.input("attention_mask", "int64", ("batch", "time"))
    visible = graph.unsqueeze(graph.cast(mask, "bool"), 1, 2)
    b = _Builder(graph, weights, encoder)
    x = b.embeddings(ids)
    for index in range(encoder.layers):
        x = b.layer(x, visible, index)
    return x


class _Builder:
    """Writes the parts of one encoder."""

    def __init__(self, graph: Graph, weights: Mapping[str, np.ndarray], encoder: Encoder) -> None:
        self.graph = graph
        self.weights = weights
        self.encoder = encoder
        self.names = _NAMES[encoder.architecture]

    def embeddings(self, ids: Value) -> Value:
        """Return the normalised sum of word, token type and position embeddings.

        There is one position for each row of its table: a longer input is an index out of range.
        """
        g, encoder = self.graph, self.encoder
        x = g.gather(self.table("word", encoder.vocabulary), ids)
        if encoder.token_types:
            types = g.input("token_type_ids", "int64", ids.shape)
            x = g.add(x, g.gather(self.table("token_type", encoder.token_types), types))
        positions = g.arange(g.size_of(ids, 1), ids.shape[1])
        x = g.add(x, g.gather(self.table("position", encoder.positions), positions))
        return self.norm(x, "embeddings.LayerNorm")

    def layer(self, x: Value, visible: Value, index: int) -> Value:
        """Return layer `index` of `x`; `visible` is bool [batch, 1, 1, time]."""
        g, names = self.graph, self.names
        width, inner = self.encoder.width, self.encoder.inner
        place = f"{names.layer}.{index}"
        attended = self.attention(x, visible, place)
        attended = self.linear(attended, f"{place}.{names.attended}", (width, width))
        x = self.norm(g.add(attended, x), f"{place}.{names.attended_norm}")
        y = self.linear(x, f"{place}.{names.inner}", (inner, width))
        y = ENCODER_ACTIVATIONS[self.encoder.activation](g, y)
        y = self.linear(y, f"{place}.{names.outer}", (width, inner))
        return self.norm(g.add(y, x), f"{place}.{names.outer_norm}")

    def attention(self, x: Value, visible: Value, place: str) -> Value:
        """Return what each token takes from the visible ones, float32 [batch, time, width]."""
        g, names = self.graph, self.names
        width, heads = self.encoder.width, self.encoder.heads
        size = width // heads

        def project(name: str) -> Value:
            return self.linear(x, f"{place}.{name}", (width, width))

        def split_heads(y: Value, axes: tuple[int, ...]) -> Value:
            shape = (*x.shape[:2], heads, size)
            return g.transpose(g.reshape(y, (0, 0, heads, size), shape), axes)

        # Scaled before the product, whose sums half precision might not hold otherwise.
        query = split_heads(
            g.mul(project(names.query), g.number(1 / math.sqrt(size))), (0, 2, 1, 3)
        )
        key = split_heads(project(names.key), (0, 2, 3, 1))
        value = split_heads(project(names.value), (0, 2, 1, 3))
        scores = g.where(visible, g.matmul(query, key), g.number(_LOWEST_HALF))
        taken = g.transpose(g.matmul(g.softmax(scores), value), (0, 2, 1, 3))
        return g.reshape(taken, (0, 0, width), x.shape)

    def table(self, kind: str, rows: int) -> Value:
        """Return an embedding table [rows, width]."""
        name = f"{_PREFIX}.embeddings.{kind}_embeddings.weight"
        return self.graph.constant(take_float32(self.weights, name, (rows, self.encoder.width)))

    def linear(self, x: Value, name: str, sizes: tuple[int, int]) -> Value:
        """Return the linear layer `name` of `x`; `sizes` are those of its outputs and inputs."""
        return add_linear(self.graph, self.weights, f"{_PREFIX}.{name}", x, sizes)

    def norm(self, x: Value, name: str) -> Value:
        """Return the layer norm of `x`."""
        gain, shift = (
            take_float32(self.weights, f"{_PREFIX}.{name}.{part}", (self.encoder.width,))
            for part in ("weight", "bias")
        )
        # Half precision holds neither an epsilon of 1e-12 nor the square of 256.
        with self.graph.full_precision():
            return self.graph.layer_norm(x, gain, shift, self.encoder.epsilon)


def add_linear(
    graph: Graph, weights: Mapping[str, np.ndarray], name: str, x: Value, sizes: tuple[int, int]
) -> Value:
    """Return the linear layer `name` of `x`; `sizes` are those of its outputs and inputs."""
    weight = take_float32(weights, f"{name}.weight", sizes)
    return graph.linear(x, weight, take_float32(weights, f"{name}.bias", sizes[:1]))
