"""PrecisionConvert: graphs of a pipeline → the same graphs in half precision, and a report.

Request: `graphs` {engine: `graph`, `hints` (input paths), `precision`}, `linear_as_convolution`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import digest_file
from jarvis_rules.formats.engine_inputs import load_precision_hints
from jarvis_rules.formats.schema import validate
from jarvis_rules.onnx_graph.precision import convert_precision
from jarvis_rules.tools.program import run_tool

MANIFEST = Path("outputs/graphs.json")
TREE = Path("outputs/graphs")


def convert_graphs(request: Mapping[str, Any]) -> None:
    """Convert every graph and write the manifest."""
    graphs: dict[str, Any] = {}
    for name, wanted in sorted(request["graphs"].items()):
        graph, hints = Path(wanted["graph"]), Path(wanted["hints"])
        target = TREE / name / graph.name
        target.parent.mkdir(parents=True)
        report = convert_precision(
            graph,
            target,
            wanted["precision"],
            load_precision_hints(hints.read_bytes(), str(hints)),
            linear_as_convolution=request["linear_as_convolution"],
        )
        graphs[name] = {"precision": wanted["precision"], "report": report.to_json()}
    files = {
        path.relative_to(TREE).as_posix(): digest_file(path).to_json()
        for path in sorted(TREE.rglob("*"))
        if path.is_file()
    }
    document = {"version": 1, "graphs": graphs, "files": files}
    validate(document, "graphs", str(MANIFEST))
    MANIFEST.write_bytes(dump_readable_json(document))


if __name__ == "__main__":
    sys.exit(run_tool(convert_graphs))
