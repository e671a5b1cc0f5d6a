"""Two graphs on the same inputs: how far their outputs are apart, and how far they may be."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.onnx_graph.reference_runtime import load_reference

if TYPE_CHECKING:
    import numpy as np

Arrays = Mapping[str, "np.ndarray"]

TOLERANCES: Mapping[str, tuple[float, float]] = {
    "fp32": (1e-4, 1e-4),
    "fp16": (1e-3, 1e-2),
    "bf16": (1e-2, 5e-2),
}
"""Absolute and relative (to the largest magnitude of the tensor): docs/reference/precision.md."""

REFERENCE, ONNXRUNTIME = "onnx.reference", "onnxruntime"
# The reference evaluator rounds as the types say, at the speed of numpy.
_LARGEST_FOR_REFERENCE = 24 << 20


@dataclass(frozen=True, slots=True)
class OutputDifference:
    """How far one output is off, and how far it may be; integers must be equal."""

    name: str
    difference: float
    allowed: float

    @property
    def is_within(self) -> bool:
        """Whether the difference is allowed: never where a number is none."""
        return self.difference <= self.allowed

    def to_json(self) -> dict[str, Any]:
        """Return the form of a report.

        The difference by its power of ten: its last digits are those of a CPU.
        """
        return {"name": self.name, "below": decade(self.difference), "allowed": self.allowed}


def decade(value: float) -> float | None:
    """Return the least power of ten that `value` is not above; 0 for 0, None for no number."""
    if not math.isfinite(value):
        return None
    return 0.0 if value == 0 else float(f"1e{math.ceil(math.log10(value))}")


def compare(expected: Arrays, got: Arrays, precision: str) -> list[OutputDifference]:
    """Return the differences of all outputs, in the order of their names."""
    import numpy as np

    absolute, relative = TOLERANCES[precision]
    found = []
    for name in sorted(expected):
        want, have = expected[name], got.get(name)
        if have is None or have.shape != want.shape or have.dtype != want.dtype:
            found.append(OutputDifference(name, math.inf, 0.0))
            continue
        if want.dtype.kind != "f":
            unequal = float(np.count_nonzero(want != have))
            found.append(OutputDifference(name, unequal, 0.0))
            continue
        scale = float(np.abs(want).max(initial=0))
        apart = np.abs(want.astype(np.float64) - have)
        # max() passes NaN on, and NaN is within nothing.
        worst = float(apart.max(initial=0))
        found.append(OutputDifference(name, worst, float(f"{absolute + relative * scale:.2g}")))
    return found


def cut_padding(
    outputs: Arrays, dynamic: Mapping[str, Sequence[int]], shares: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return outputs with 0 past the part of each item that is its own.

    Nobody reads what stands there, and in half precision it may be anything. `dynamic` are the
    axes of an output that grow with its input, the batch left out.
    """
    import numpy as np

    found = dict(outputs)
    for name, axes in dynamic.items():
        value = found.get(name)
        if value is None or value.dtype.kind != "f" or value.shape[:1] != (len(shares),):
            continue
        for axis in axes:
            size = value.shape[axis]
            ends = [math.floor(size * share) for share in shares]
            valid = np.arange(size) < np.array(ends)[:, np.newaxis]
            shape = [len(shares), *([1] * (value.ndim - 1))]
            shape[axis] = size
            value = np.where(valid.reshape(shape), value, 0).astype(value.dtype)
        found[name] = value
    return found


def evaluator_for(graph: Path, precision: str) -> str:
    """Return what runs a graph on a CPU so that its precision shows.

    ONNX Runtime computes most of half precision in float32 there; the reference evaluator rounds,
    but takes too long for large graphs.
    """
    weights = sum(path.stat().st_size for path in graph.parent.glob(f"{graph.name}*"))
    if precision == "fp32" or (precision == "fp16" and weights > _LARGEST_FOR_REFERENCE):
        return ONNXRUNTIME
    return REFERENCE


def run_graph(graph: Path, inputs: Arrays, evaluator: str) -> dict[str, np.ndarray]:
    """Return the outputs of a graph by name; JarvisError where it does not run."""
    try:
        return load_reference(graph)(inputs) if evaluator == REFERENCE else _run(graph, inputs)
    except MemoryError:
        raise
    except Exception as error:
        # Neither evaluator has errors of its own that share a base class.
        raise JarvisError(
            f"{evaluator} cannot run the graph: {error}",
            slug="engine.not-runnable",
            where=str(graph),
            hint="report the model's family: its graph must run on any CPU",
        ) from None


def _run(graph: Path, inputs: Arrays) -> dict[str, np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))
