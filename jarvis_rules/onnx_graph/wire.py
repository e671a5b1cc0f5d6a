"""The bytes of an ONNX model: nodes through protobuf, weights streamed block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from google.protobuf.message import Message
    from onnx import ModelProto


OPSET = 17  # the lowest with LayerNormalization, read by every runtime that we serve with
IR_VERSION = 8

MIN_EXTERNAL = 1024  # what is smaller stays in the graph, where shape inference needs it
PAGE = 4096

_GRAPH = 7  # the number of ModelProto's field `graph`
_INITIALIZER = 5  # of GraphProto's

Dim = int | str
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...]

# ONNX's TensorProto.DataType; the numbers are part of the format.
TENSOR_TYPES = {
    "float32": 1,
    "uint8": 2,
    "int8": 3,
    "uint16": 4,
    "int16": 5,
    "int32": 6,
    "int64": 7,
    "bool": 9,
    "float16": 10,
    "float64": 11,
    "uint32": 12,
    "uint64": 13,
    "bfloat16": 16,
}


class StoredConstant(Protocol):
    """A constant whose little-endian bytes, in C order, are read block by block."""

    @property
    def dtype(self) -> str:
        """The type, a key of `TENSOR_TYPES`."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of its axes."""
        ...

    @property
    def nbytes(self) -> int:
        """How many bytes `blocks` yields in all."""
        ...

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of bounded size."""
        ...


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
    constants: Mapping[str, StoredConstant]
    inputs: Sequence[Value]
    outputs: Sequence[Value]


def encode_model(model: Model, weights: str | None = None) -> tuple[int, Iterator[bytes]]:
    """Return the length of the ModelProto and its bytes in parts: see `encode_parts`."""
    return encode_parts(_frame(model), model.constants, weights)


def encode_parts(
    frame: ModelProto, constants: Mapping[str, StoredConstant], weights: str | None = None
) -> tuple[int, Iterator[bytes]]:
    """Return the length of `frame` with `constants` as its initialisers, and its bytes in parts.

    The bytes are those that protobuf would write. Large constants are in the file `weights` beside
    it, if one is named: `encode_weights`. Parts are made while they are read, so that weights are
    never in memory. Source: onnx.proto.
    """
    head = _part(frame.graph, lambda field: field < _INITIALIZER)
    tail = _part(frame.graph, lambda field: field > _INITIALIZER)
    places = {} if weights is None else _places(constants)
    starts: dict[str, bytes] = {}
    length = len(head) + len(tail)
    for name, constant in constants.items():
        if weights is not None and name in places:
            starts[name] = _encode_reference(name, constant, weights, places[name])
        else:
            starts[name] = _encode_tensor(name, constant)
            length += constant.nbytes
        length += len(starts[name])
    first = _part(frame, lambda field: field < _GRAPH) + _tag(_GRAPH, length)
    last = _part(frame, lambda field: field > _GRAPH)

    def parts() -> Iterator[bytes]:
        yield first + head
        for name, start in starts.items():
            yield start
            if name not in places:
                yield from constants[name].blocks()
        yield tail + last

    return len(first) + length + len(last), parts()


def encode_weights(constants: Mapping[str, StoredConstant]) -> Iterator[bytes]:
    """Yield the bytes of the file that `encode_parts` refers to: each constant at its place."""
    at = 0
    for name, place in _places(constants).items():
        yield bytes(place - at)
        yield from constants[name].blocks()
        at = place + constants[name].nbytes


def _places(constants: Mapping[str, StoredConstant]) -> dict[str, int]:
    """Return where in the file of weights each constant lies that is large enough to be there."""
    places: dict[str, int] = {}
    end = 0
    for name, constant in constants.items():
        if constant.nbytes >= MIN_EXTERNAL:
            # Runtimes map pages.
            places[name] = -(-end // PAGE) * PAGE
            end = places[name] + constant.nbytes
    return places


def _frame(model: Model) -> ModelProto:
    """Return the model without its constants."""
    from onnx import ModelProto, helper

    frame = ModelProto(ir_version=IR_VERSION, producer_name="jarvis-rules")
    frame.graph.name = model.name
    for node in model.nodes:
        attributes: dict[str, Any] = dict(node.attributes)
        frame.graph.node.append(
            helper.make_node(node.op, node.inputs, node.outputs, name=node.name, **attributes)
        )
    for values, field in (
        (model.inputs, frame.graph.input),
        (model.outputs, frame.graph.output),
    ):
        for v in values:
            kind = TENSOR_TYPES[v.dtype]
            field.append(helper.make_tensor_value_info(v.name, kind, list(v.shape)))
    frame.opset_import.append(helper.make_opsetid("", OPSET))
    return frame


def _part(message: Message, keeps: Callable[[int], bool]) -> bytes:
    """Return the bytes of the fields whose numbers are kept, in the order of the numbers."""
    part = type(message)()
    part.CopyFrom(message)
    for field in message.DESCRIPTOR.fields:
        if not keeps(field.number):
            part.ClearField(field.name)
    return part.SerializeToString(deterministic=True)


def _encode_tensor(name: str, constant: StoredConstant) -> bytes:
    """Return the field of one initialiser up to and without its raw bytes."""
    text = name.encode()
    dims = b"".join(b"\x08" + _varint(n) for n in constant.shape)
    kind = b"\x10" + _varint(TENSOR_TYPES[constant.dtype])
    start = dims + kind + _tag(8, len(text)) + text + _tag(9, constant.nbytes)
    return _tag(_INITIALIZER, len(start) + constant.nbytes) + start


def _encode_reference(name: str, constant: StoredConstant, weights: str, place: int) -> bytes:
    """Return the field of one initialiser whose bytes lie in another file."""
    from onnx import TensorProto

    tensor = TensorProto(name=name, data_type=TENSOR_TYPES[constant.dtype])
    tensor.dims.extend(constant.shape)
    for key, value in (("location", weights), ("offset", place), ("length", constant.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    tensor.data_location = TensorProto.EXTERNAL
    data = tensor.SerializeToString(deterministic=True)
    return _tag(_INITIALIZER, len(data)) + data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _tag(field: int, length: int) -> bytes:
    return _varint(field << 3 | 2) + _varint(length)
