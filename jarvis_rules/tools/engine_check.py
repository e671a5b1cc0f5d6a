"""EngineCheck: engines, and the graphs they were compiled of, against the exported graphs.

Request: `engines` (manifest) and `engine_files` (folder): input paths; `graphs` {engine:
`exported`, `compiled` (graphs), `inputs` (document of its inputs): input paths; `rounded_as`: the
precision that its numbers have}; `execute`: whether this machine can run the engines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import digest_file
from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.engine_inputs import load_engine_inputs
from jarvis_rules.formats.schema import validate
from jarvis_rules.onnx_graph.comparison import (
    ONNXRUNTIME,
    Arrays,
    OutputDifference,
    compare,
    cut_padding,
    evaluator_for,
    run_graph,
)
from jarvis_rules.onnx_graph.samples import make_samples, valid_shares
from jarvis_rules.tools.program import run_tool

REPORT = Path("outputs/check.json")


def check_engines(request: Mapping[str, Any]) -> None:
    """Compare every engine and write the report; JarvisError where one is too far off."""
    document = json.loads(Path(request["engines"]).read_bytes())
    validate(document, "engines", request["engines"])
    files = Path(request["engine_files"])
    engines = {
        name: _check(name, description, request["graphs"][name], files, request["execute"])
        for name, description in sorted(document["engines"].items())
    }
    report = {"version": 1, "gpu": document["gpu"]["name"], "engines": engines}
    validate(report, "check", str(REPORT))
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_bytes(dump_readable_json(report))


def _check(
    name: str, engine: Mapping[str, Any], graphs: Mapping[str, str], files: Path, execute: bool
) -> dict[str, Any]:
    """Return what the report says of one engine."""
    exported, compiled = Path(graphs["exported"]), Path(graphs["compiled"])
    file = files / name / engine["file"]
    precision, rounded_as = engine["precision"], graphs["rounded_as"]
    if compiled == exported and _same(file, exported):
        same = "the engine is the exported graph"
        return {"precision": precision, "comparisons": [], "not_compared": same}
    source = graphs["inputs"]
    inputs = load_engine_inputs(Path(source).read_bytes(), source)
    samples, shares = make_samples(inputs), valid_shares(inputs)
    dynamic = {
        output["name"]: [axis for axis, size in enumerate(output["dims"]) if axis and size == -1]
        for output in engine["outputs"]
    }
    expected: Arrays | None = None
    comparisons: list[dict[str, Any]] = []

    def compare_with(what: str, evaluator: str, got: Arrays) -> None:
        nonlocal expected
        if expected is None:
            outputs = run_graph(exported, samples, ONNXRUNTIME)
            expected = cut_padding(outputs, dynamic, shares)
        differences = compare(expected, cut_padding(got, dynamic, shares), rounded_as)
        _print(name, what, evaluator, differences)
        _require_within(name, engine, what, differences)
        comparisons.append(
            {
                "what": what,
                "with": evaluator,
                "outputs": [difference.to_json() for difference in differences],
            }
        )

    if compiled != exported:
        evaluator = evaluator_for(compiled, rounded_as)
        compare_with("graph", evaluator, run_graph(compiled, samples, evaluator))
    reason: str | None = None
    if engine["toolchain"] == ONNXRUNTIME:
        compare_with("engine", ONNXRUNTIME, run_graph(file, samples, ONNXRUNTIME))
    elif execute:
        compare_with("engine", engine["toolchain"], _execute(file, engine, samples))
    else:
        reason = f"not executed: this machine cannot run an engine of {engine['toolchain']}"
    return {"precision": precision, "comparisons": comparisons, "not_compared": reason}


def _same(one: Path, other: Path) -> bool:
    return digest_file(one) == digest_file(other)


def _execute(file: Path, engine: Mapping[str, Any], samples: Arrays) -> Arrays:
    """Return what an engine of TensorRT makes of the samples on the GPU of this machine."""
    from jarvis_rules.runtime.tensorrt_execution import EngineRunner

    try:
        with EngineRunner(file, engine["toolchain"]) as runner:
            return runner.run(samples)
    except (RuntimeError, ValueError) as error:
        raise JarvisError(
            f"the engine does not run here: {error}",
            slug="engine.not-runnable",
            where=str(file),
            hint="`jarvis-rules preflight` says what it needs and what this machine has",
        ) from None


def _print(name: str, what: str, evaluator: str, differences: list[OutputDifference]) -> None:
    for found in differences:
        print(  # noqa: T201  (the tool's log)
            f"{name}: {what} with {evaluator}: `{found.name}` off by {found.difference:.3g}, "
            f"allowed {found.allowed:g}"
        )


def _require_within(
    name: str, engine: Mapping[str, Any], what: str, differences: list[OutputDifference]
) -> None:
    """Raise JarvisError for the output that is worst, where any is beyond its tolerance."""
    beyond = [found for found in differences if not found.is_within]
    if beyond:
        worst = max(beyond, key=lambda found: found.difference / (found.allowed or 1e-9))
        raise JarvisError(
            f"the {what} is not what was exported: output `{worst.name}` is off by "
            f"{worst.difference:.3g}, allowed is {worst.allowed:g} ({engine['precision']})",
            slug="engine.numeric-check",
            where=f"engine `{name}`",
            hint="build it with precision fp32, and report the model's family",
        )


if __name__ == "__main__":
    sys.exit(run_tool(check_engines))
