"""What a graph must be before a TensorRT compiler sees it.

The compilers crash on some graphs, build others into engines that never run (an empty file parses
as an empty network), and answer most with an assertion of their source. So all of it is asked
here, of the ONNX file alone, and answered in one message. Runs in the child process: the ONNX
library is C++ too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.engines._tensorrt_graph_tensors import (
    ITEM_BYTES,
    GraphTensor,
    check_constant,
    describe,
    invalid,
)
from jarvis_rules.engines._tensorrt_messages import ELSEWHERE, REPORT
from jarvis_rules.errors import IntegrityError, JarvisError

# Tried with TensorRT-RTX 1.7: these parse, on a graph of one `Relu`.
_OPSETS = range(9, 26)
_MAX_IR_VERSION = 13

_DATA_DEPENDENT = "the shape of its result depends on values"
_SEQUENCE = "TensorRT has tensors only, no sequences"
_OPTIONAL = "TensorRT has tensors only, no optional values"
_STRING = "TensorRT has no strings"
# Operators of ONNX that its parser refuses with an assertion, or that crash its compiler.
_DENIED = {
    "Attention": "the compiler has crashed on it",
    "DFT": "TensorRT has no such operator",
    "NonZero": _DATA_DEPENDENT,
    **dict.fromkeys(
        (
            "ConcatFromSequence", "SequenceAt", "SequenceConstruct", "SequenceEmpty",
            "SequenceErase", "SequenceInsert", "SequenceLength", "SequenceMap", "SplitToSequence",
        ),
        _SEQUENCE,
    ),
    **dict.fromkeys(("Optional", "OptionalGetElement", "OptionalHasElement"), _OPTIONAL),
    **dict.fromkeys(
        (
            "RegexFullMatch", "StringConcat", "StringNormalizer", "StringSplit", "TfIdfVectorizer",
        ),
        _STRING,
    ),
}  # fmt: skip

# Weights above this size become inputs of the copy that the ONNX library looks at.
_SMALL_BYTES = 1024


@dataclass(frozen=True, slots=True)
class CheckedGraph:
    """A graph that was found in order: its inputs, and the operators that it uses."""

    inputs: tuple[GraphTensor, ...]
    operators: frozenset[str]


def check_graph(path: Path, memory_gib: int | None) -> CheckedGraph:
    """Return what is in the graph; JarvisError or IntegrityError for one that is not in order.

    `memory_gib` is the GPU's: a tensor of fixed size must fit.
    """
    model = _read_model(path)
    _check_versions(model)
    if not model.graph.output:
        raise invalid("the graph has no outputs, so there is nothing to compute")
    if model.functions:
        raise _unsupported(f"the graph defines the function `{model.functions[0].name}`", REPORT)
    operators = _check_nodes(model.graph)
    initial = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(describe(value) for value in model.graph.input if value.name not in initial)
    for value in model.graph.output:
        describe(value)
    for tensor in _tensors(model.graph):
        check_constant(tensor, path.parent)
    _check_names(model.graph, frozenset())
    _check_by_library(model, memory_gib)
    return CheckedGraph(inputs, operators)


def _read_model(path: Path) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    data = path.read_bytes()
    if not data:
        raise IntegrityError(
            "the file is empty", slug="engine.graph-unreadable", hint="build the `.jmir` again"
        )
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise IntegrityError(
            f"{len(data)} bytes that are no ONNX model, or a truncated one",
            slug="engine.graph-unreadable",
            hint="build the `.jmir` again",
        ) from None
    if not model.HasField("graph"):
        raise IntegrityError(
            "the file holds no graph: it is no ONNX model, or a truncated one",
            slug="engine.graph-unreadable",
            hint="build the `.jmir` again",
        )
    return model


def _check_versions(model: Any) -> None:
    for opset in model.opset_import:
        if opset.domain not in {"", "ai.onnx"}:
            raise _unsupported(
                f"the graph uses operators of `{opset.domain}`, and TensorRT knows those of ONNX",
                ELSEWHERE,
            )
    versions = [opset.version for opset in model.opset_import]
    if len(versions) != 1 or versions[0] not in _OPSETS:
        got = " and ".join(map(str, versions)) or "none"
        raise JarvisError(
            f"the graph is of operator set {got}, expected one of "
            f"{_OPSETS.start} to {_OPSETS.stop - 1}",
            slug="engine.graph-version",
            hint=REPORT,
        )
    if not 3 <= model.ir_version <= _MAX_IR_VERSION:
        raise JarvisError(
            f"the graph is of ONNX IR version {model.ir_version}, expected 3 to {_MAX_IR_VERSION}",
            slug="engine.graph-version",
            hint=REPORT,
        )


def _check_nodes(graph: Any) -> frozenset[str]:
    operators = set()
    if graph.sparse_initializer:
        raise _unsupported("the graph has sparse constants, and TensorRT has none", ELSEWHERE)
    for node in _nodes(graph):
        if node.domain not in {"", "ai.onnx"}:
            raise _unsupported(
                f"{_name(node)} is an operator of `{node.domain}`, and TensorRT knows those of "
                "ONNX",
                ELSEWHERE,
            )
        if node.op_type in _DENIED:
            raise _unsupported(
                f"{_name(node)} cannot be compiled: {_DENIED[node.op_type]}", ELSEWHERE
            )
        operators.add(node.op_type)
    return frozenset(operators)


def _check_names(graph: Any, outer: frozenset[str]) -> None:
    """Check that each name is made once, and before it is read."""
    own: set[str] = set()
    initial = {tensor.name for tensor in graph.initializer}
    given = [value.name for value in graph.input if value.name not in initial]
    for name in [*given, *(tensor.name for tensor in graph.initializer)]:
        _add_name(own, name)
    later = {name for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            if not name or name in own or name in outer:
                continue
            why = "a later node makes it: the graph is cyclic, or not in order"
            missing = "nothing makes it"
            raise invalid(f"{_name(node)} reads `{name}`: {why if name in later else missing}")
        for subgraph in _subgraphs(node):
            _check_names(subgraph, outer | own)
        for name in filter(None, node.output):
            _add_name(own, name)
    for value in graph.output:
        if value.name not in own and value.name not in outer:
            raise invalid(f"the graph gives `{value.name}`: nothing makes it")


def _add_name(names: set[str], name: str) -> None:
    if name in names:
        raise invalid(f"the graph makes `{name}` more than once")
    names.add(name)


def _check_by_library(model: Any, memory_gib: int | None) -> None:
    """Let the ONNX library check the graph without its weights, and the sizes that it infers."""
    import onnx

    _drop_weights(model.graph)
    try:
        onnx.checker.check_model(model)
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise invalid(f"the graph is no valid ONNX: {str(error).strip().splitlines()[0]}") from None
    if memory_gib is None:
        return
    for value in (*model.graph.value_info, *model.graph.output):
        kind = value.type.tensor_type
        sizes = [size.dim_value if size.HasField("dim_value") else 1 for size in kind.shape.dim]
        gib = math.prod(sizes) * ITEM_BYTES.get(kind.elem_type, 1) / 2**30
        if gib > memory_gib:
            raise JarvisError(
                f"the tensor `{value.name}` of shape {sizes} takes {gib:.0f} GiB, and the GPU has "
                f"{memory_gib}",
                slug="engine.graph-too-large",
                hint=REPORT,
            )


def _drop_weights(graph: Any) -> None:
    """Make inputs of the weights: the library would copy them twice to look at their shapes."""
    from onnx import helper

    inputs = {value.name for value in graph.input}
    kept = []
    for tensor in graph.initializer:
        if math.prod(tensor.dims) * ITEM_BYTES[tensor.data_type] <= _SMALL_BYTES and not len(
            tensor.external_data
        ):
            kept.append(tensor)
        elif tensor.name not in inputs:
            value = helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            graph.input.append(value)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _nodes(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _nodes(subgraph)


def _subgraphs(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(graph: Any) -> Iterator[Any]:
    """Yield every constant of the graph and of the graphs inside it."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for subgraph in _subgraphs(node):
            yield from _tensors(subgraph)


def _name(node: Any) -> str:
    return f"node `{node.name or next(iter(node.output), '')}` ({node.op_type})"


def _unsupported(message: str, hint: str) -> JarvisError:
    return JarvisError(message, slug="engine.unsupported-operator", hint=hint)
