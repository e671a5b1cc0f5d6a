"""EngineBuild: the graphs of a pipeline → engines for one GPU target, and their manifest.

Request: `toolchain`, `gpu` (what manifests say of the target), `engines` {name: `graph` (input
path), `precision`, `options`, `inputs` (path of the document of its inputs, or null)},
`timing_cache` (input path or null); `cpu` where an engine is made for this machine's.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import digest_file
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.engines.engine import BuiltEngine, Engine, EngineSpec, find_engine
from jarvis_rules.formats.engine_inputs import load_engine_inputs
from jarvis_rules.formats.schema import validate
from jarvis_rules.tools.program import report_progress, run_tool

MANIFEST = Path("outputs/engines.json")
TREE = Path("outputs/engines")


def build_engines(request: Mapping[str, Any]) -> None:
    """Build every engine and write the manifest."""
    engine, gpu = find_engine(request["toolchain"]), GpuTarget.from_json(request["gpu"])
    engines: dict[str, Any] = {}
    files: dict[str, Any] = {}
    for name, wanted in sorted(request["engines"].items()):
        target = TREE / name / engine.file
        target.parent.mkdir(parents=True)
        spec = _spec(wanted, gpu, request["timing_cache"])
        engines[name] = _describe(engine, spec, engine.build(spec, target))
        for path in sorted(target.parent.iterdir()):
            files[f"{name}/{path.name}"] = digest_file(path).to_json()
    document = {"version": 1, "gpu": gpu.to_json(), "engines": engines, "files": files}
    validate(document, "engines", str(MANIFEST))
    MANIFEST.write_bytes(dump_readable_json(document))


def _spec(wanted: Mapping[str, Any], gpu: GpuTarget, timing_cache: str | None) -> EngineSpec:
    inputs = wanted["inputs"]
    return EngineSpec(
        graph=Path(wanted["graph"]),
        gpu=gpu,
        precision=wanted["precision"],
        inputs=() if inputs is None else load_engine_inputs(Path(inputs).read_bytes(), inputs),
        options=wanted["options"],
        timing_cache=None if timing_cache is None else Path(timing_cache),
        report=report_progress,
    )


def _describe(engine: Engine, spec: EngineSpec, built: BuiltEngine) -> dict[str, Any]:
    """Return what the manifest says of an engine."""
    weights = [digest_file(path).sha256 for path in spec.graph.parent.glob("*.onnx.data")]
    return {
        "toolchain": engine.name,
        "toolchain_version": built.toolchain_version,
        "backend": engine.backend,
        "file": engine.file,
        "graph": digest_file(spec.graph).sha256,
        **({"graph_data": weights[0]} if weights else {}),
        "precision": spec.precision,
        "options": dict(spec.options),
        **_accelerator(spec),
        "portable": built.portable,
        "driver_minimum": built.driver_minimum,
        "executed": built.executed,
        "inputs": [dict(tensor) for tensor in built.inputs],
        "outputs": [dict(tensor) for tensor in built.outputs],
        "profiles": [
            {name: {key: list(dims) for key, dims in shape.items()} for name, shape in p.items()}
            for p in built.profiles
        ],
    }


def _accelerator(spec: EngineSpec) -> dict[str, Any]:
    """Return what the server is to compile the engine with when it loads it, if anything."""
    if not spec.options.get("tensorrt_accelerator"):
        return {}
    return {"accelerator": {"precision": spec.precision}}


if __name__ == "__main__":
    sys.exit(run_tool(build_engines))
