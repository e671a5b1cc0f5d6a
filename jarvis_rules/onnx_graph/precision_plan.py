"""Which nodes of a graph stay in float32, and why."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jarvis_rules.errors import IntegrityError, did_you_mean
from jarvis_rules.onnx_graph.precision_linear import can_expand
from jarvis_rules.onnx_graph.precision_types import FLOAT, Types
from jarvis_rules.onnx_graph.wire import TENSOR_TYPES

if TYPE_CHECKING:
    from onnx import NodeProto

# They give what they are given, in another place or shape.
_MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "ReverseSequence",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
_ROUNDS = frozenset({"Ceil", "Floor", "Round"})
# Whatever they are given, their results are at most 1.
_BOUNDED = frozenset(
    {"Cos", "Erf", "HardSigmoid", "Sigmoid", "Sign", "Sin", "Softmax", "Softsign", "Tanh"}
)
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})
_SEQUENCE_LENGTHS = 4  # the place of that operand
_PRODUCTS = frozenset({"Gemm", "MatMul"})
_INTEGERS = frozenset(
    TENSOR_TYPES[f"{sign}int{bits}"] for sign in ("", "u") for bits in (8, 16, 32, 64)
)


@dataclass(frozen=True, slots=True)
class Plan:
    """For each node by index what it does; a node that has nothing to do with float32 is in none.

    `half` maps to the inputs that change their type with the node, `kept` to why it stays,
    `convolved` are linear layers that stay as convolutions, `halved` products and recurrent layers
    that would have stayed but cannot. Reasons: `precision` (all stays), `hint` (the caller's),
    `operator` (no such form, or not where it is needed), `type` (a change of floating type),
    `integer` (counts and positions), `movement` (between nodes that stay).
    """

    half: dict[int, list[bool]] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)
    convolved: set[int] = field(default_factory=set)
    halved: set[int] = field(default_factory=set)


def make_plan(
    nodes: Sequence[NodeProto],
    types: Types,
    outputs: Collection[str],
    half: str | None,
    keep: Collection[str],
    linear_as_convolution: bool,
) -> Plan:
    """Decide for each node; without `half` all stay.

    Raises IntegrityError `precision.unknown-node` for a name in `keep` that no node has.
    """
    _check_names(nodes, keep)
    kept: dict[int, str] = {}
    places: dict[int, list[bool]] = {}
    for i, node in enumerate(nodes):
        if not any(types.is_float(name) for name in (*node.input, *node.output)):
            continue
        reason, found = "precision", None
        if half is not None:
            found = types.half_inputs(node, half)
            reason = "hint" if node.name in keep else _reason(node, types, found)
        if reason:
            kept[i] = reason
        elif found is not None:
            places[i] = found
    if half is not None:
        for i in sorted(_find_counts(nodes, types) - kept.keys()):
            kept[i] = "integer"
        for i in sorted(_find_moves(nodes, types, outputs, kept) - kept.keys()):
            kept[i] = "movement"
    plan = Plan(kept=kept)
    if linear_as_convolution:
        for i in [i for i in kept if nodes[i].op_type in _PRODUCTS | _RECURRENT]:
            found = types.half_inputs(nodes[i], "float16")
            if nodes[i].op_type in _PRODUCTS and can_expand(nodes[i], types):
                plan.convolved.add(i)
            elif found is not None and not _has_lengths(nodes[i]):
                del kept[i]
                plan.halved.add(i)
                places[i] = found
    plan.half.update({i: places[i] for i in sorted(places.keys() - kept.keys())})
    return plan


def _check_names(nodes: Sequence[NodeProto], keep: Collection[str]) -> None:
    known = {node.name for node in nodes}
    for name in sorted(set(keep) - known):
        near = did_you_mean(name, known)
        raise IntegrityError(
            f"`{name}` is to stay in float32, but the graph has no such node",
            slug="precision.unknown-node",
            hint=f"{near + ' ' if near else ''}the archive's `full_precision` and its graph do "
            "not belong together; export the model again",
        )


def _reason(node: NodeProto, types: Types, places: list[bool] | None) -> str:
    """Return why a node stays whatever is around it; empty where nothing of its own says so."""
    attributes = {attribute.name for attribute in node.attribute}
    if node.op_type == "Cast":
        others = {types.element(node.input[0]), types.element(node.output[0])} - {FLOAT}
        if others & _INTEGERS:
            return "integer" if types.is_float(node.output[0]) else ""
        return "" if others == {TENSOR_TYPES["bool"]} else "type"
    if places is None or not any(places) or "dtype" in attributes or node.op_type == "CastLike":
        return "operator"
    # TensorRT's parser takes no lengths here in half precision; a sum over time grows with it.
    if _has_lengths(node) or node.op_type == "CumSum":
        return "operator"
    # Mean and deviation stay float32 by its attribute `stash_type`.
    several = node.op_type == "LayerNormalization" and len(node.output) > 1
    return "operator" if several else ""


def _has_lengths(node: NodeProto) -> bool:
    is_long = node.op_type in _RECURRENT and len(node.input) > _SEQUENCE_LENGTHS
    return is_long and bool(node.input[_SEQUENCE_LENGTHS])


def _find_counts(nodes: Sequence[NodeProto], types: Types) -> set[int]:
    """Return nodes that compute on integers in float32, or what becomes integers.

    Positions and lengths go beyond 2048, the last number below which half precision has all. A
    number that is computed from them alone is as large, until something bounds it.
    """
    found: set[int] = set()
    counts: set[str] = set()
    for i, node in enumerate(nodes):
        floats = types.floats(node)
        is_cast = node.op_type == "Cast" and types.element(node.input[0]) in _INTEGERS
        if is_cast or counts.intersection(floats):
            if any(map(types.is_float, (*floats, *node.output))):
                found.add(i)
            if node.op_type not in _BOUNDED and counts.issuperset(floats):
                counts.update(filter(types.is_float, node.output))
    rounded: set[str] = set()
    for i, node in reversed(list(enumerate(nodes))):
        becomes = node.op_type == "Cast" and types.element(node.output[0]) in _INTEGERS
        if becomes or rounded.intersection(node.output):
            if types.floats(node):
                found.add(i)
            if becomes or node.op_type in _MOVES | _ROUNDS:
                rounded.update(types.floats(node))
    return found


def _find_moves(
    nodes: Sequence[NodeProto], types: Types, outputs: Collection[str], kept: Collection[int]
) -> set[int]:
    """Return nodes that only move float32 values to nodes that stay: those must not be rounded."""
    wanted: set[int] = set()
    needed = set(outputs)
    for i, node in reversed(list(enumerate(nodes))):
        if node.op_type in _MOVES and needed.intersection(node.output):
            wanted.add(i)
        if i in kept or i in wanted:
            needed.update(node.input)
    found: set[int] = set()
    # What the graph is given is float32 as it comes.
    halves: set[str] = set()
    for i, node in enumerate(nodes):
        floats = types.floats(node)
        if i in wanted and floats and not halves.intersection(floats):
            found.add(i)
        elif i not in kept:
            halves.update(filter(types.is_float, node.output))
    return found
