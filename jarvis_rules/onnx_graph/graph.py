"""A typed builder of ONNX graphs that writes the same bytes in every process and on every CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import xxhash

from jarvis_rules.errors import JarvisBug, JarvisError

OPSET = 17  # the lowest with LayerNormalization, read by every runtime that we serve with
IR_VERSION = 8
MAX_BYTES = 2**31 - 1  # protobuf cannot hold a longer message

Dim = int | str
Attribute = int | float | str | tuple[int, ...] | tuple[float, ...]

# ONNX's TensorProto.DataType; the numbers are part of the format.
_TENSOR_TYPES = {
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
    """One operator of the standard domain, as it is written to the file."""

    op: str
    name: str
    inputs: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...]


class Graph:
    """A graph under construction; values are immutable, equal nodes and constants exist once.

    Names are counters in the order of construction, so that nothing depends on hash order, paths
    or time. Misuse (types or sizes that do not fit) raises JarvisBug: exporters check their
    checkpoint before they build.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._inputs: list[Value] = []
        self._outputs: list[Value] = []
        self._nodes: list[Node] = []
        self._constants: dict[str, np.ndarray] = {}
        self._constants_by_hash: dict[tuple[str, tuple[int, ...], bytes], list[Value]] = {}
        self._values: dict[tuple[Any, ...], Value] = {}
        self._masks: dict[str, Value] = {}
        self._counts: dict[str, int] = {}
        self._final_names: dict[str, str] = {}

    @property
    def inputs(self) -> tuple[Value, ...]:
        """The declared inputs in order."""
        return tuple(self._inputs)

    @property
    def outputs(self) -> tuple[Value, ...]:
        """The declared outputs in order."""
        return tuple(self._outputs)

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes in topological order."""
        return tuple(self._nodes)

    def input(self, name: str, dtype: str, shape: Sequence[Dim]) -> Value:
        """Declare a graph input; string dimensions are symbolic."""
        self._claim(name)
        value = Value(name, dtype, tuple(shape))
        self._inputs.append(value)
        return value

    def output(self, value: Value, name: str, shape: Sequence[Dim] | None = None) -> Value:
        """Declare `value` as graph output `name`; `shape` may rename its symbolic axes."""
        self._claim(name)
        taken = {v.name for v in self._inputs} | set(self._final_names) | set(self._constants)
        if value.name in taken:
            value = self._append("Identity", (value,), value.dtype, value.shape, ())
        self._final_names[value.name] = name
        final = Value(name, value.dtype, value.shape if shape is None else tuple(shape))
        if len(final.shape) != len(value.shape):
            raise JarvisBug(f"output `{name}` has rank {len(value.shape)}, not {len(final.shape)}")
        self._outputs.append(final)
        return final

    def constant(self, array: np.ndarray) -> Value:
        """Return `array` as an initialiser; equal content (type, shape, bytes) is stored once.

        The array is referenced, not copied, unless it is not contiguous or not little endian.
        """
        # `ascontiguousarray` would turn a scalar into a vector.
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
        dtype = array.dtype.name
        if dtype not in _TENSOR_TYPES:
            raise JarvisBug(f"a constant cannot be {dtype}")
        key = (dtype, array.shape, xxhash.xxh3_128_digest(_raw(array)))
        same = self._constants_by_hash.setdefault(key, [])
        for known in same:
            # A checkpoint could be crafted to collide in a hash that is not cryptographic.
            if _raw(self._constants[known.name]) == _raw(array):
                return known
        value = Value(self._next("constant"), dtype, array.shape)
        self._constants[value.name] = array
        same.append(value)
        return value

    def apply(
        self,
        op: str,
        *inputs: Value,
        shape: Sequence[Dim] | None = None,
        dtype: str | None = None,
        **attributes: Attribute,
    ) -> Value:
        """Add one node of the standard domain with one output and return that.

        Shape and type are those of the first input unless given. A node equal to an earlier one
        is not added again: all operators that exporters use are pure.
        """
        ordered = tuple(sorted(attributes.items()))
        key = (op, tuple(v.name for v in inputs), ordered)
        if key not in self._values:
            kind = dtype or inputs[0].dtype
            size = inputs[0].shape if shape is None else tuple(shape)
            self._values[key] = self._append(op, inputs, kind, size, ordered)
        return self._values[key]

    def conv(
        self,
        x: Value,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        dilation: int = 1,
        pads: tuple[int, int] = (0, 0),
        groups: int = 1,
    ) -> Value:
        """Return the 1-D convolution of `x` [batch, C, time] with `weight` [O, C / groups, K]."""
        outputs, per_group, kernel = weight.shape
        if len(x.shape) != 3 or x.shape[1] != per_group * groups:
            raise JarvisBug(f"conv of {x.shape} with weight {weight.shape}, {groups} groups")
        operands = [x, self.constant(weight)]
        if bias is not None:
            operands.append(self.constant(bias))
        lost = dilation * (kernel - 1) - sum(pads)
        time: Dim = x.shape[2]
        if isinstance(time, int):
            time = (time - lost - 1) // stride + 1
        elif stride != 1 or lost:
            time = self._next("time")
        return self.apply(
            "Conv",
            *operands,
            shape=(x.shape[0], outputs, time),
            dilations=(dilation,),
            group=groups,
            kernel_shape=(kernel,),
            pads=pads,
            strides=(stride,),
        )

    def add(self, a: Value, b: Value) -> Value:
        """Return a + b with broadcasting."""
        return self._combine("Add", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        """Return a * b with broadcasting."""
        return self._combine("Mul", a, b)

    def div(self, a: Value, b: Value) -> Value:
        """Return a / b with broadcasting; integers truncate towards zero."""
        return self._combine("Div", a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the larger of a and b with broadcasting."""
        return self._combine("Max", a, b)

    def activate(self, x: Value, kind: str) -> Value:
        """Return the activation `kind` (a key of `ACTIVATIONS`) of `x`."""
        return ACTIVATIONS[kind](self, x)

    def transpose(self, x: Value, axes: Sequence[int]) -> Value:
        """Return `x` with its axes in the order `axes`."""
        return self.apply("Transpose", x, shape=[x.shape[a] for a in axes], perm=tuple(axes))

    def log_softmax(self, x: Value, axis: int = -1) -> Value:
        """Return the natural-log softmax of `x` over `axis`."""
        return self.apply("LogSoftmax", x, axis=axis)

    def mask(self, lengths: Value, like: Value) -> Value:
        """Return float32 [batch, 1, time]: 1 on the first `lengths` frames of each item, else 0.

        `lengths` is int64 [batch], `time` the last axis of `like`. A length tensor belongs to one
        time axis, so it has one mask however many tensors share that axis.
        """
        if (lengths.dtype, len(lengths.shape)) != ("int64", 1):
            raise JarvisBug(f"lengths must be int64 [batch], not {lengths}")
        if lengths.name not in self._masks:
            last = len(like.shape) - 1
            frames = self.apply("Shape", like, shape=(1,), dtype="int64", start=last, end=last + 1)
            count = self.apply("Squeeze", frames, shape=())
            positions = self.apply(
                "Range",
                self.constant(np.array(0, np.int64)),
                count,
                self.constant(np.array(1, np.int64)),
                shape=like.shape[-1:],
                dtype="int64",
            )
            axes = self.constant(np.array([1, 2], np.int64))
            limits = self.apply("Unsqueeze", lengths, axes, shape=(lengths.shape[0], 1, 1))
            shape = (lengths.shape[0], 1, like.shape[-1])
            valid = self.apply("Less", positions, limits, shape=shape, dtype="bool")
            to = _TENSOR_TYPES["float32"]
            self._masks[lengths.name] = self.apply("Cast", valid, dtype="float32", to=to)
        return self._masks[lengths.name]

    def size(self) -> int:
        """Return the length of the written file in bytes."""
        return sum(len(part) for part in self._parts())

    def write(self, file: BinaryIO) -> int:
        """Write the model to `file` and return its length in bytes.

        Weights go from their arrays straight to the file, one after the other. Raises
        JarvisError `graph.too-large` above `MAX_BYTES`, before anything is written.
        """
        parts = list(self._parts())
        size = sum(len(part) for part in parts)
        if size > MAX_BYTES:
            raise JarvisError(
                f"the graph `{self.name}` needs {size} bytes, but an ONNX file holds at most "
                f"{MAX_BYTES}; weights in a file of their own are not supported yet",
                slug="graph.too-large",
                hint="use a smaller model",
            )
        for part in parts:
            file.write(part)
        return size

    def _append(
        self,
        op: str,
        inputs: Sequence[Value],
        dtype: str,
        shape: tuple[Dim, ...],
        attributes: tuple[tuple[str, Attribute], ...],
    ) -> Value:
        name = self._next(op.lower())
        self._nodes.append(Node(op, name, tuple(v.name for v in inputs), attributes))
        return Value(name, dtype, shape)

    def _combine(self, op: str, a: Value, b: Value) -> Value:
        if a.dtype != b.dtype:
            raise JarvisBug(f"{op} of {a} and {b}")
        return self.apply(op, a, b, shape=_broadcast(a.shape, b.shape))

    def _next(self, kind: str) -> str:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}_{number}"

    def _claim(self, name: str) -> None:
        if any(name == v.name for v in (*self._inputs, *self._outputs)):
            raise JarvisBug(f"`{name}` is declared twice")

    def _parts(self) -> Iterator[bytes | memoryview]:
        """Yield the ModelProto in field order, as protobuf itself would write it."""
        head, tail, opset = self._serialise_frame()
        tensors = [(self._tensor_head(n, a), _raw(a)) for n, a in self._constants.items()]
        length = len(head) + len(tail)
        for start, raw in tensors:
            body = len(start) + len(raw)
            length += len(_tag(5, body)) + body
        producer = b"jarvis-rules"
        yield b"\x08" + _varint(IR_VERSION) + _tag(2, len(producer)) + producer
        yield _tag(7, length) + head
        for start, raw in tensors:
            yield _tag(5, len(start) + len(raw)) + start
            yield raw
        yield tail + opset

    def _serialise_frame(self) -> tuple[bytes, bytes, bytes]:
        """Return the bytes of GraphProto before and after the initialisers, and the opset."""
        from onnx import GraphProto, ModelProto, helper

        head, tail, model = GraphProto(name=self.name), GraphProto(), ModelProto()
        final = self._final_names
        for node in self._nodes:
            inputs = [final.get(n, n) for n in node.inputs]
            outputs = [final.get(node.name, node.name)]
            attributes: dict[str, Any] = dict(node.attributes)
            head.node.append(
                helper.make_node(node.op, inputs, outputs, name=node.name, **attributes)
            )
        for values, field in ((self._inputs, tail.input), (self._outputs, tail.output)):
            for v in values:
                kind = _TENSOR_TYPES[v.dtype]
                field.append(helper.make_tensor_value_info(v.name, kind, list(v.shape)))
        model.opset_import.append(helper.make_opsetid("", OPSET))
        a, b, c = (m.SerializeToString(deterministic=True) for m in (head, tail, model))
        return a, b, c

    def _tensor_head(self, name: str, array: np.ndarray) -> bytes:
        """Return the TensorProto of `array` up to and without its raw bytes."""
        text = name.encode()
        dims = b"".join(b"\x08" + _varint(n) for n in array.shape)
        kind = b"\x10" + _varint(_TENSOR_TYPES[array.dtype.name])
        return dims + kind + _tag(8, len(text)) + text + _tag(9, array.nbytes)


def _raw(array: np.ndarray) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _tag(field: int, length: int) -> bytes:
    return _varint(field << 3 | 2) + _varint(length)


def _broadcast(a: tuple[Dim, ...], b: tuple[Dim, ...]) -> tuple[Dim, ...]:
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    out: list[Dim] = []
    for m, n in pairs:
        # Two symbols may name one length: a mask is made for the first tensor of its time axis.
        if isinstance(m, int) and isinstance(n, int) and m != n and 1 not in (m, n):
            raise JarvisBug(f"shapes {a} and {b} do not broadcast")
        out.append(n if m == 1 else m)
    return tuple(out)


def _float(graph: Graph, number: float) -> Value:
    return graph.constant(np.array(number, np.float32))


def _clip_unit(graph: Graph, x: Value) -> Value:
    return graph.apply("Clip", x, _float(graph, -1.0), _float(graph, 1.0))


def _swish(graph: Graph, x: Value) -> Value:
    return graph.mul(x, graph.apply("Sigmoid", x))


def _gelu(graph: Graph, x: Value) -> Value:
    error = graph.apply("Erf", graph.mul(x, _float(graph, math.sqrt(0.5))))
    return graph.mul(graph.mul(x, _float(graph, 0.5)), graph.add(error, _float(graph, 1.0)))


ACTIVATIONS: Mapping[str, Callable[[Graph, Value], Value]] = {
    "identity": lambda _, x: x,
    "hardtanh": _clip_unit,
    "relu": lambda graph, x: graph.apply("Relu", x),
    "selu": lambda graph, x: graph.apply("Selu", x),
    "swish": _swish,
    "silu": _swish,
    "gelu": _gelu,
}
"""NeMo 1.23 `activation_registry`; hardtanh is clipped to [-1, 1], gelu is the exact one."""
