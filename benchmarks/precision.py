"""Every model family in 16 bits against itself in float32, on the inputs that NeMo recorded.

    python benchmarks/precision.py
    python benchmarks/precision.py --variants --family conv_asr
    python benchmarks/precision.py --precision bf16
    python benchmarks/precision.py --rtx /path/to/python   # an environment with tensorrt_rtx

Prints one row for each output of each graph of the reference models of `tests/data/models`
(`--variants`: of all others too):

* largest: the largest absolute value of the output in float32, in ONNX Runtime.
* rounded: the largest absolute difference with every value rounded where the graph says so, by
  `onnx.reference`; and that relative to `largest`.
* ORT: the same in ONNX Runtime on the CPU, which removes pairs of casts and computes between them
  in float32. It has no kernels for most of bf16.
* changed: of scores the positions of the largest, of integers the values, that differ, by
  `onnx.reference`, of how many.
* kept: nodes that stay float32, of those that could have changed.
* clipped, zeroed: values of the constants beyond the type, and those that became 0.
* RTX: the time to build for compute capability 8.0 with strong typing, dynamic shapes, no GPU.

Frames and tokens of padding count nowhere. FastPitch has a run that nobody recorded: a recorded
text repeated to 480 tokens, thousands of frames (of variants only the encoder). Its decoder is
given what its encoder gave in float32. Exits 1 where a difference is beyond `TOLERANCES`, a number
is not finite, an integer changed, or TensorRT-RTX refuses a graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import families
import numpy as np
from exporters import exporter_testing as recordings
from exporters.precision_testing import (
    FEEDS,
    in_onnxruntime,
    valid_positions,
)

from jarvis_rules.exporters.exporter import ExportedModel, export_model
from jarvis_rules.onnx_graph.comparison import TOLERANCES
from jarvis_rules.onnx_graph.precision import convert_precision
from jarvis_rules.onnx_graph.reference_runtime import load_reference

SCORES = ("logits", "logprobs", "log_probs")


@dataclass
class Row:
    family: str
    model: str
    graph: str
    output: str
    largest: float = 0.0
    rounded: float = 0.0
    ort: float | None = None
    changed: int | None = None
    of: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    rtx: str = ""

    @property
    def relative(self) -> float:
        return self.rounded / self.largest if self.largest else self.rounded

    def compare(self, wanted: np.ndarray, found: np.ndarray, valid: np.ndarray) -> None:
        """Add one run; `valid` says which positions [batch, time] count."""
        if wanted.dtype.kind != "f":
            self.changed = (self.changed or 0) + int((wanted != found).sum())
            self.of += wanted.size
            return
        self.largest = max(self.largest, float(np.abs(wanted[valid]).max(initial=0.0)))
        difference = recordings.largest(found[valid], wanted[valid])
        self.rounded = families.worst((self.rounded, difference))
        if not self.output.endswith(SCORES):
            return
        if self.family == "question_answering":  # the best start and the best end of each item
            hidden = np.where(valid[:, :, None], 0, -np.inf)
            differs = (wanted + hidden).argmax(1) != (found + hidden).argmax(1)
        else:
            differs = (wanted.argmax(-1) != found.argmax(-1))[valid]
        self.changed = (self.changed or 0) + int(differs.sum())
        self.of += differs.size


def measure(family: str, name: str, precision: str, rtx: Path | None) -> list[Row]:
    model = export_model(recordings.source(name))
    rows: dict[tuple[str, str], Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded, in_ort, reports = {}, {}, {}, {}
        for graph, data in recordings.dump(model).items():
            if graph not in model.graphs:
                continue
            source, target = Path(folder) / graph, Path(folder) / f"{precision}.{graph}"
            source.write_bytes(data)
            marks = model.graphs[graph].full_precision_nodes
            reports[graph] = convert_precision(source, target, precision, marks)
            exact[graph], rounded[graph] = in_onnxruntime(source), load_reference(target)
            if precision == "fp16":
                in_ort[graph] = in_onnxruntime(target)
        built = {} if rtx is None else {g: build(rtx, model, g, precision, folder) for g in exact}
        for graph, feed in FEEDS[family](name, model, exact):
            wanted, found = exact[graph](feed), rounded[graph](feed)
            beside = in_ort[graph](feed) if in_ort else {}
            for output, value in wanted.items():
                row = rows.setdefault(
                    (graph, output),
                    Row(family, name.rpartition("/")[2], graph, output, rtx=built.get(graph, "")),
                )
                row.report = reports[graph].to_json()
                valid = valid_positions(feed, wanted, output)
                row.compare(value, found[output], valid)
                if beside and value.dtype.kind == "f":
                    difference = recordings.largest(beside[output][valid], value[valid])
                    row.ort = families.worst((row.ort or 0.0, difference))
    return list(rows.values())


def build(python: Path, model: ExportedModel, graph: str, precision: str, folder: str) -> str:
    profile = json.dumps(families.profile_of(model.facts, graph))
    path = Path(folder) / f"{precision}.{graph}"
    done = subprocess.run(
        [python, "-c", families.RTX, path, profile], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"REFUSED: exit status {done.returncode}"
    result = json.loads(done.stdout)
    if "build" not in result:
        return f"REFUSED: {'; '.join(result['errors']) or 'no message'}"
    return f"{1000 * result['build']:.0f} ms"


# ---- the table


def broken(row: Row, precision: str) -> Iterator[str]:
    absolute, relative = TOLERANCES[precision]
    bound = absolute + relative * row.largest
    if not row.rounded <= bound:  # NaN too
        yield f"differs by {row.rounded:.1e}, bound {bound:.1e}"
    if row.changed and not row.output.endswith(SCORES):
        yield f"{row.changed} of {row.of} integers changed"
    if row.rtx.startswith("REFUSED"):
        yield f"TensorRT-RTX {row.rtx}"


HEADER = [
    *("model", "graph", "output", "largest", "rounded", "relative", "ORT", "changed"),
    *("kept", "clipped", "zeroed", "RTX"),
]
LEFT_ALIGNED = 3


def cells(row: Row) -> list[str]:
    kept = sum(map(len, row.report["kept"].values()))
    is_float = row.largest > 0 or row.changed is None
    return [
        row.model,
        row.graph.removesuffix(".onnx"),
        row.output,
        *(
            [f"{row.largest:.3g}", f"{row.rounded:.1e}", f"{row.relative:.1e}"]
            if is_float
            else "---"
        ),
        "-" if row.ort is None else f"{row.ort:.1e}",
        "-" if row.changed is None else f"{row.changed} of {row.of}",
        f"{kept} of {kept + row.report['half']}",
        str(sum(c["count"] for c in row.report["clipped"])),
        str(row.report["zeroed"]),
        row.rtx.partition(":")[0] or "-",
    ]


def table(rows: list[Row]) -> str:
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < LEFT_ALIGNED else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=FEEDS, help="these alone")
    parser.add_argument("--variants", action="store_true", help="all recorded models")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--rtx", type=Path, metavar="PYTHON")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    rtx = arguments.rtx and arguments.rtx.absolute()
    if rtx and not (rtx.is_file() and families.has_rtx(rtx)):
        parser.error(f"--rtx: `{arguments.rtx}` has no tensorrt_rtx")
    rows = [
        row
        for family, name in families.find_models(arguments.variants)
        if not arguments.family or family in arguments.family
        for row in measure(family, name, arguments.precision, rtx)
    ]
    faults = [
        f"{row.family}/{row.model} {row.graph} `{row.output}`: {text}"
        for row in rows
        for text in broken(row, arguments.precision)
    ]
    if arguments.format == "json":
        print(json.dumps({"outputs": [vars(row) for row in rows], "broken": faults}, indent=1))
    else:
        print(table(rows))
        print("\n".join(f"BROKEN {text}" for text in faults) or "all within their tolerances")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
