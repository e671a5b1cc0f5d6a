"""What several families say about their graphs in the same words."""

from __future__ import annotations

from typing import Any

from jarvis_rules.onnx_graph.graph import Graph


def describe_graph(graph: Graph) -> dict[str, list[dict[str, Any]]]:
    """Return `inputs` and `outputs` of the graph in order: name, dtype and shape of each."""
    return {
        side: [{"name": v.name, "dtype": v.dtype, "shape": list(v.shape)} for v in values]
        for side, values in (("inputs", graph.inputs), ("outputs", graph.outputs))
    }
