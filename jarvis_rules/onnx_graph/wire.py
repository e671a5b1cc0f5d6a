"""The bytes of an ONNX model: nodes through protobuf, weights streamed block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jarvis_rules.onnx_graph.constants import Constant

OPSET = 17  # the lowest with LayerNormalization, read by every runtime that we serve with
IR_VERSION = 8

MIN_EXTERNAL = 1024  # what is smaller stays in the graph, where shape inference needs it
PAGE = 4096

Dim = int | str
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...]

# ONNX's TensorProto.DataType; the numbers are part of the format.
TENSOR_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
}


@dataclass(frozen=True, slots=True)
class Value:
    """A typed tensor in the graph; `shape` mixes sizes and the names of symbolic axes."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the standard domain; an empty input name is an operand left out."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...]


@dataclass(frozen=True, slots=True)
class Model:
    """All that is written: nodes in topological order, constants, typed inputs and outputs."""

    name: str
    nodes: Sequence[Node]
    constants: Mapping[str, Constant]
    inputs: Sequence[Value]
    outputs: Sequence[Value]


def encode_model(model: Model, weights: str | None = None) -> tuple[int, Iterator[bytes]]:
    """Return the length of the ModelProto and its bytes in parts, as protobuf would write them.

    Large constants are in the file `weights` beside it, if one is named: `encode_weights`. Parts
    are made while they are read, so that weights are never in memory. Source: onnx.proto.
    """
    head, tail, opset = _encode_frame(model)
    places = {} if weights is None else _places(model)
    starts: dict[str, bytes] = {}
    length = len(head) + len(tail)
    for name, constant in model.constants.items():
        if weights is not None and name in places:
            starts[name] = _encode_reference(name, constant, weights, places[name])
        else:
            starts[name] = _encode_tensor(name, constant)
            length += constant.nbytes
        length += len(starts[name])
    producer = b"jarvis-rules"
    first = b"\x08" + _varint(IR_VERSION) + _tag(2, len(producer)) + producer + _tag(7, length)

    def parts() -> Iterator[bytes]:
        yield first + head
        for name, start in starts.items():
            yield start
            if name not in places:
                yield from model.constants[name].blocks()
        yield tail + opset

    return len(first) + length + len(opset), parts()


def encode_weights(model: Model) -> Iterator[bytes]:
    """Yield the bytes of the file that `encode_model` refers to: each constant at its place."""
    at = 0
    for name, place in _places(model).items():
        yield bytes(place - at)
        yield from model.constants[name].blocks()
        at = place + model.constants[name].nbytes


def _places(model: Model) -> dict[str, int]:
    """Return where in the file of weights each constant lies that is large enough to be there."""
    places: dict[str, int] = {}
    end = 0
    for name, constant in model.constants.items():
        if constant.nbytes >= MIN_EXTERNAL:
            # Runtimes map pages.
            places[name] = -(-end // PAGE) * PAGE
            end = places[name] + constant.nbytes
    return places


def _encode_frame(model: Model) -> tuple[bytes, bytes, bytes]:
    """Return the bytes of GraphProto before and after the initialisers, and the opset."""
    from onnx import GraphProto, ModelProto, helper

    head, tail, frame = GraphProto(name=model.name), GraphProto(), ModelProto()
    for node in model.nodes:
        attributes: dict[str, Any] = dict(node.attributes)
        head.node.append(
            helper.make_node(node.op, node.inputs, node.outputs, name=node.name, **attributes)
        )
    for values, field in ((model.inputs, tail.input), (model.outputs, tail.output)):
        for v in values:
            kind = TENSOR_TYPES[v.dtype]
            field.append(helper.make_tensor_value_info(v.name, kind, list(v.shape)))
    frame.opset_import.append(helper.make_opsetid("", OPSET))
    a, b, c = (m.SerializeToString(deterministic=True) for m in (head, tail, frame))
    return a, b, c


def _encode_tensor(name: str, constant: Constant) -> bytes:
    """Return the field of one initialiser up to and without its raw bytes."""
    text = name.encode()
    dims = b"".join(b"\x08" + _varint(n) for n in constant.shape)
    kind = b"\x10" + _varint(TENSOR_TYPES[constant.dtype])
    start = dims + kind + _tag(8, len(text)) + text + _tag(9, constant.nbytes)
    return _tag(5, len(start) + constant.nbytes) + start


def _encode_reference(name: str, constant: Constant, weights: str, place: int) -> bytes:
    """Return the field of one initialiser whose bytes lie in another file."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=TENSOR_TYPES[constant.dtype])
    tensor.dims.extend(constant.shape)
    for key, value in (("location", weights), ("offset", place), ("length", constant.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = TensorProto.EXTERNAL
    data = tensor.SerializeToString(deterministic=True)
    return _tag(5, len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _tag(field: int, length: int) -> bytes:
    return _varint(field << 3 | 2) + _varint(length)
