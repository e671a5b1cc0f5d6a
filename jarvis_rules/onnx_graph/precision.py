"""A graph's precision: float32 to 16 bits, but for what must stay, as a step of its own.

TensorRT-RTX and TensorRT 11 take the types of a graph as they are. ADR 0015 says why this is not
one of the converters that exist.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import JarvisBug, JarvisError
from jarvis_rules.onnx_graph.model_file import read_model, write_model
from jarvis_rules.onnx_graph.node_graph import MAX_BYTES
from jarvis_rules.onnx_graph.precision_plan import Plan, make_plan
from jarvis_rules.onnx_graph.precision_rewrite import Rewriter
from jarvis_rules.onnx_graph.precision_types import Types

if TYPE_CHECKING:
    from onnx import NodeProto

PRECISIONS: Mapping[str, str | None] = {"fp32": None, "fp16": "float16", "bf16": "bfloat16"}
"""The type that each one computes in where it can, a key of `wire.TENSOR_TYPES`."""


@dataclass(frozen=True, slots=True)
class ClippedConstant:
    """A constant of which `count` values were beyond the type, by magnitude at most `largest`."""

    name: str
    count: int
    largest: float


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """What a conversion did; nodes by name, in the order of the graph.

    `half` counts the nodes in 16 bits; `kept` names those that stay float32 by reason (see `Plan`);
    `convolved` linear layers that became convolutions; `halved` products and recurrent layers that
    would have stayed but for the lack of such kernels; `zeroed` counts values of constants that
    became 0, `subnormal` those with fewer bits than others.
    """

    precision: str
    half: int
    kept: Mapping[str, tuple[str, ...]]
    convolved: tuple[str, ...]
    halved: tuple[str, ...]
    casts: int
    clipped: tuple[ClippedConstant, ...]
    zeroed: int
    subnormal: int

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON has it."""
        return {
            "precision": self.precision,
            "half": self.half,
            "kept": {reason: list(names) for reason, names in self.kept.items()},
            "convolved": list(self.convolved),
            "halved": list(self.halved),
            "casts": self.casts,
            "clipped": [
                {"name": c.name, "count": c.count, "largest": c.largest} for c in self.clipped
            ],
            "zeroed": self.zeroed,
            "subnormal": self.subnormal,
        }


def convert_precision(
    graph: Path,
    target: Path,
    precision: str,
    keep: Collection[str],
    *,
    linear_as_convolution: bool = False,
) -> PrecisionReport:
    """Write `graph` to `target` with float32 replaced by `precision`, a key of `PRECISIONS`.

    Inputs and outputs keep their types. The nodes named in `keep` stay float32, and so do those
    whose operator has no other form and those that count (`Plan`). Weights that lie beside the
    graph are read from there; beyond 2 GB they are written to `<target>.data`. Equal inputs give
    equal bytes.

    `linear_as_convolution` is for Turing, where TensorRT-RTX has no float32 matrix product: what
    stays float32 and multiplies by a constant becomes a convolution with kernel 1; products of two
    activations and recurrent layers are computed in half precision.

    Raises IntegrityError `precision.graph`, `precision.unknown-node`, JarvisError
    `precision.operator`.
    """
    if precision not in PRECISIONS or graph.resolve() == target.resolve():
        raise JarvisBug(f"cannot convert `{graph}` to {precision} in `{target}`")
    half = PRECISIONS[precision]
    if linear_as_convolution and half == "bfloat16":
        raise JarvisBug("Turing has no bfloat16")
    model = read_model(graph)
    try:
        types = Types(model)
        nodes = list(model.frame.graph.node)
        outputs = {value.name for value in model.frame.graph.output}
        plan = make_plan(nodes, types, outputs, half, keep, linear_as_convolution)
        rewriter = Rewriter(model, types, plan, half or "float16")
        write_model(rewriter.rewrite(), target, MAX_BYTES)
    except JarvisError as error:
        raise error.at(str(graph)) from error
    return _report(precision, nodes, plan, rewriter)


def _report(
    precision: str, nodes: Sequence[NodeProto], plan: Plan, rewriter: Rewriter
) -> PrecisionReport:
    names = [node.name or node.output[0] for node in nodes]
    kept = {
        reason: tuple(names[i] for i in sorted(plan.kept) if plan.kept[i] == reason)
        for reason in sorted(set(plan.kept.values()))
    }
    rounded = {name: constant.rounding for name, constant in rewriter.rounded.items()}
    return PrecisionReport(
        precision=precision,
        half=len(plan.half),
        kept=kept,
        convolved=tuple(names[i] for i in sorted(plan.convolved)),
        halved=tuple(names[i] for i in sorted(plan.halved)),
        casts=rewriter.casts,
        clipped=tuple(
            ClippedConstant(name, found.clipped, found.largest)
            for name, found in rounded.items()
            if found.clipped
        ),
        zeroed=sum(found.zeroed for found in rounded.values()),
        subnormal=sum(found.subnormal for found in rounded.values()),
    )
