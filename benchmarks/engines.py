"""TensorRT-RTX engines of every model family for GPUs that are not here: time, size, memory.

    python benchmarks/engines.py
    python benchmarks/engines.py --variants --family conv_asr
    python benchmarks/engines.py ~/models/*.nemo
    python benchmarks/engines.py --gpu a100 --gpu t4 --shape-profiles static

Builds one engine for each graph of the reference models of `tests/data/models` (`--variants`: of
all others too; or of the files that are named) and each GPU, in its default precision, which is
fp16 for Turing. Prints a row for each graph and GPU: nodes and bytes of the graph as it is
compiled, seconds of the whole build with its process, bytes of the engine, and the most memory
that the compiler had. No engine is executed.

A refused graph has the message in its row. Exits 1 where one is.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import onnx
from engines.tensorrt_testing import SIZES, engine_inputs
from exporters import exporter_testing as recordings

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.engines.engine import EngineSpec, find_engine
from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters.exporter import export_model, find_exporter
from jarvis_rules.formats.engine_inputs import Extent
from jarvis_rules.onnx_graph.precision import convert_precision

ENGINE = find_engine("tensorrt_rtx")
GPUS = ("a100", "l4", "t4", "a100+l4")


@dataclass
class Row:
    family: str
    model: str
    graph: str
    gpu: str
    precision: str
    nodes: int
    onnx_bytes: int
    seconds: float = 0.0
    engine_bytes: int = 0
    peak_mib: int = 0
    refusal: str = ""


@contextlib.contextmanager
def output_in(path: Path) -> Iterator[None]:
    """Send what this process and its children print to a file."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        with path.open("wb") as file:
            os.dup2(file.fileno(), 1)
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def sizes_of(facts: Mapping[str, Any]) -> dict[str, Extent]:
    """Return the sizes of each axis; a frame of a vocoder of groups is some of them."""
    per_frame, frames = facts.get("groups_per_frame", 1), SIZES["frames"]
    groups = (per_frame * size for size in (frames.least, frames.typical, frames.most))
    return {**SIZES, "groups": Extent(*groups)}


def find_models(arguments: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Yield family and name of the recorded models, or of the files that were given."""
    if not arguments.models:
        yield from families.find_models(arguments.variants)
    for path in arguments.models:
        name = path.resolve().with_suffix("").as_posix()
        source = recordings.source(name)
        yield find_exporter(source.target, source.config).family, name


def measure(family: str, name: str, gpus: list[str], mode: str) -> Iterator[Row]:
    model = export_model(recordings.source(name))
    for graph, data in recordings.dump(model).items():
        if graph not in model.graphs:
            continue
        for target in gpus:
            gpu = find_gpu(target)
            precision = ENGINE.default_precision(gpu)
            with tempfile.TemporaryDirectory() as folder:
                exported, compiled = Path(folder, "exported.onnx"), Path(folder, "graph.onnx")
                exported.write_bytes(data)
                if precision == "fp32":
                    exported.rename(compiled)
                else:
                    kept = model.graphs[graph].full_precision_nodes
                    # As builds do: what stays in float32 has no product there.
                    turing = "7.5" in gpu.compute_capabilities
                    convert_precision(
                        exported, compiled, precision, kept, linear_as_convolution=turing
                    )
                parsed = onnx.load(compiled).graph
                row = Row(
                    *(family, name.rpartition("/")[2], graph, target, precision),
                    nodes=len(parsed.node),
                    onnx_bytes=compiled.stat().st_size,
                )
                inputs = engine_inputs(parsed, sizes_of(model.facts))
                spec = EngineSpec(compiled, gpu, precision, inputs, {"shape_profiles": mode})
                build(spec, row)
            yield row


def build(spec: EngineSpec, row: Row) -> None:
    folder = spec.graph.parent
    engine, log = folder / ENGINE.file, folder / "log.txt"
    start = time.perf_counter()
    try:
        with output_in(log):
            ENGINE.build(spec, engine)
    except JarvisError as error:
        row.refusal = error.message
    else:
        row.engine_bytes = engine.stat().st_size
    row.seconds = time.perf_counter() - start
    text = log.read_text(encoding="utf-8", errors="replace")
    row.peak_mib = int(re.findall(r"^peak memory: (\d+) MiB$", text, re.MULTILINE)[-1])


HEADER = [
    *("family", "model", "graph", "GPU", "precision", "nodes", "ONNX bytes", "s", "engine bytes"),
    "peak MiB",
]
LEFT_ALIGNED = 5


def table(rows: list[Row]) -> str:
    lines = [HEADER]
    for row in rows:
        named = [row.family, row.model, row.graph.removesuffix(".onnx"), row.gpu, row.precision]
        size = row.refusal or str(row.engine_bytes)
        measured = [str(row.nodes), str(row.onnx_bytes), f"{row.seconds:.1f}", size]
        lines.append([*named, *measured, str(row.peak_mib)])
    columns = zip(*(line for line in lines), strict=True)
    widths = [max(len(cell) for cell in column if len(cell) < 40) for column in columns]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < LEFT_ALIGNED else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def summary(rows: list[Row]) -> str:
    built = [row for row in rows if not row.refusal]
    most = max((row.peak_mib for row in built), default=0)
    slowest = max((row.seconds for row in built), default=0.0)
    return (
        f"{len(built)} engines of {len(rows)}: at most {slowest:.1f} s, {most} MiB; "
        f"{len(rows) - len(built)} refused"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path, help="these `.nemo` instead of recorded")
    parser.add_argument("--family", action="append", help="these alone")
    parser.add_argument("--variants", action="store_true", help="all recorded models")
    parser.add_argument("--gpu", action="append", help=f"default: {', '.join(GPUS)}")
    parser.add_argument("--shape-profiles", choices=("dynamic", "static"), default="dynamic")
    arguments = parser.parse_args()
    ENGINE.check_machine(find_gpu("a100"), {})
    gpus = arguments.gpu or list(GPUS)
    for name in gpus:
        gpu = find_gpu(name)
        ENGINE.check_target(gpu, ENGINE.default_precision(gpu))
    rows = [
        row
        for family, name in find_models(arguments)
        if not arguments.family or family in arguments.family
        for row in measure(family, name, gpus, arguments.shape_profiles)
    ]
    print(table(rows))
    print(summary(rows))
    sys.exit(1 if any(row.refusal for row in rows) else 0)


if __name__ == "__main__":
    main()
