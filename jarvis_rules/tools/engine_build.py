"""EngineBuild: the graphs of a pipeline → engines for one GPU target, and their manifest.

Request: `engine` (toolchain), `gpu` (name, compute capability, memory), `graphs`
{engine name: input path}.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import digest_file
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.engines.engine import find_engine
from jarvis_rules.formats.schema import validate
from jarvis_rules.tools.program import run_tool

MANIFEST = Path("outputs/engines.json")
TREE = Path("outputs/engines")


def build_engines(request: Mapping[str, Any]) -> None:
    """Build every engine and write the manifest."""
    engine, gpu = find_engine(request["engine"]), GpuTarget.from_json(request["gpu"])
    engines: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for name, graph in sorted(request["graphs"].items()):
        file = f"{name}/{engine.file}"
        target = TREE / file
        target.parent.mkdir(parents=True)
        built = engine.build(Path(graph), target, gpu)
        weights = [digest_file(path).sha256 for path in Path(graph).parent.glob("*.onnx.data")]
        engines[name] = {
            "toolchain": engine.name,
            "toolchain_version": built.toolchain_version,
            "backend": engine.backend,
            "file": engine.file,
            "graph": digest_file(Path(graph)).sha256,
            **({"graph_data": weights[0]} if weights else {}),
            "precision": "fp32",
            "portable": built.portable,
            "executed": built.executed,
            "inputs": [dict(tensor) for tensor in built.inputs],
            "outputs": [dict(tensor) for tensor in built.outputs],
        }
        for path in sorted(target.parent.iterdir()):
            files[f"{name}/{path.name}"] = digest_file(path).to_json()
    document = {
        "version": 1,
        "gpu": gpu.to_json(),
        "engines": engines,
        "files": files,
    }
    validate(document, "engines", str(MANIFEST))
    MANIFEST.write_bytes(dump_readable_json(document))


if __name__ == "__main__":
    sys.exit(run_tool(build_engines))
