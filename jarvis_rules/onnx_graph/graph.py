"""A typed builder of ONNX graphs that writes the same bytes in every process and on every CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from jarvis_rules.core.digest import Sink
from jarvis_rules.errors import JarvisBug
from jarvis_rules.onnx_graph.constants import Constant, ConstantStore
from jarvis_rules.onnx_graph.wire import (
    TENSOR_TYPES,
    Attribute,
    Dim,
    Model,
    Node,
    Value,
    encode_model,
    encode_weights,
)

__all__ = ["ACTIVATIONS", "MAX_BYTES", "Attribute", "Dim", "Graph", "Node", "Value"]

MAX_BYTES = 2**31 - 1  # protobuf cannot hold a longer message


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
        self._store = ConstantStore()
        self._constants: dict[str, Constant] = {}
        self._constant_values: dict[Constant, Value] = {}
        self._values: dict[tuple[Any, ...], tuple[str, tuple[Value, ...]]] = {}
        self._masks: dict[str, Value] = {}
        self._counts: dict[str, int] = {}
        self._final_names: dict[str, str] = {}
        self._full_precision: dict[str, None] = {}
        self._is_full_precision = False

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

    @property
    def full_precision_nodes(self) -> tuple[str, ...]:
        """The names of the nodes made under `full_precision`, in topological order."""
        return tuple(self._full_precision)

    @contextmanager
    def full_precision(self) -> Iterator[None]:
        """Mark every node made inside: it stays float32 when an engine is built in half precision.

        For positions, durations, exponentials, long sums: what 11 bits of mantissa or the range of
        half precision would get wrong. A node that two places share is marked if either does.
        """
        before, self._is_full_precision = self._is_full_precision, True
        try:
            yield
        finally:
            self._is_full_precision = before

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
            value = self._copy(value)
        self._final_names[value.name] = name
        final = Value(name, value.dtype, value.shape if shape is None else tuple(shape))
        if len(final.shape) != len(value.shape):
            raise JarvisBug(f"output `{name}` has rank {len(value.shape)}, not {len(final.shape)}")
        self._outputs.append(final)
        return final

    def constant(self, array: np.ndarray) -> Value:
        """Return `array` as an initialiser; equal content (type, shape, bytes) is stored once.

        The bytes are copied to a scratch file: the array is not kept.
        """
        if array.dtype.name not in TENSOR_TYPES:
            raise JarvisBug(f"a constant cannot be {array.dtype.name}")
        constant, is_new = self._store.add(array)
        if is_new:
            value = Value(self._next("constant"), constant.dtype, constant.shape)
            self._constants[value.name] = constant
            self._constant_values[constant] = value
        return self._constant_values[constant]

    def ints(self, *numbers: int) -> Value:
        """Return an int64 vector."""
        return self.constant(np.array(numbers, np.int64))

    def number(self, number: float, dtype: str = "float32") -> Value:
        """Return a scalar."""
        return self.constant(np.array(number, dtype))

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
        kind = dtype or inputs[0].dtype
        size = inputs[0].shape if shape is None else tuple(shape)
        return self._append(op, inputs, ((kind, size),), ordered)[0]

    def apply_many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[tuple[str, Sequence[Dim]]],
        **attributes: Attribute,
    ) -> tuple[Value, ...]:
        """Add one node with several outputs, given as (dtype, shape); None leaves an input out."""
        kinds = tuple((dtype, tuple(shape)) for dtype, shape in outputs)
        return self._append(op, inputs, kinds, tuple(sorted(attributes.items())))

    def conv(
        self,
        x: Value,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        dilation: int = 1,
        pads: tuple[int, int] | None = None,
        groups: int = 1,
    ) -> Value:
        """Return the convolution of `x` [batch, C, …] with `weight` [O, C / groups, …].

        One or two axes behind the channels, all of them with the same stride, dilation and pads
        (begin, end).
        """
        outputs, per_group, *kernel = weight.shape
        if len(x.shape) != weight.ndim or x.shape[1] != per_group * groups:
            raise JarvisBug(f"conv of {x.shape} with weight {weight.shape}, {groups} groups")
        begin, end = pads or (0, 0)
        sizes: list[Dim] = []
        for size, taps in zip(x.shape[2:], kernel, strict=True):
            lost = dilation * (taps - 1) - begin - end
            if isinstance(size, int):
                sizes.append((size - lost - 1) // stride + 1)
            else:
                sizes.append(self._next("time") if stride != 1 or lost else size)
        return self.apply(
            "Conv",
            *self._operands(x, weight, bias),
            shape=(x.shape[0], outputs, *sizes),
            dilations=(dilation,) * len(kernel),
            group=groups,
            kernel_shape=tuple(kernel),
            pads=(begin,) * len(kernel) + (end,) * len(kernel),
            strides=(stride,) * len(kernel),
        )

    def conv_transpose(
        self,
        x: Value,
        weight: np.ndarray,
        bias: np.ndarray | None = None,
        *,
        stride: int = 1,
        pads: tuple[int, int] = (0, 0),
        groups: int = 1,
    ) -> Value:
        """Return the transposed 1-D convolution of `x` [batch, C, time] with [C, O / groups, K]."""
        inputs, per_group, kernel = weight.shape
        if len(x.shape) != 3 or x.shape[1] != inputs:
            raise JarvisBug(f"transposed conv of {x.shape} with weight {weight.shape}")
        time = x.shape[2]
        if isinstance(time, int):
            time = (time - 1) * stride + kernel - sum(pads)
        elif stride != 1 or kernel - 1 != sum(pads):
            time = self._next("time")
        return self.apply(
            "ConvTranspose",
            *self._operands(x, weight, bias),
            shape=(x.shape[0], per_group * groups, time),
            group=groups,
            kernel_shape=(kernel,),
            pads=pads,
            strides=(stride,),
        )

    def matmul(self, a: Value, b: Value) -> Value:
        """Return the matrix product over the last two axes, broadcast over the others."""
        inner = (a.shape[-1], b.shape[-2])
        if a.dtype != b.dtype or (all(isinstance(n, int) for n in inner) and len(set(inner)) > 1):
            raise JarvisBug(f"MatMul of {a} and {b}")
        outer = _broadcast(a.shape[:-2], b.shape[:-2])
        return self.apply("MatMul", a, b, shape=(*outer, a.shape[-2], b.shape[-1]))

    def linear(self, x: Value, weight: np.ndarray, bias: np.ndarray | None = None) -> Value:
        """Return `x` [..., I] times `weight` [O, I] transposed, plus `bias` [O]."""
        product = self.matmul(x, self.constant(weight.T))
        return product if bias is None else self.add(product, self.constant(bias))

    def layer_norm(self, x: Value, gain: np.ndarray, shift: np.ndarray, eps: float) -> Value:
        """Return the layer norm of `x` over its last axis."""
        operands = (x, self.constant(gain), self.constant(shift))
        return self.apply("LayerNormalization", *operands, axis=-1, epsilon=eps)

    def softmax(self, x: Value, axis: int = -1) -> Value:
        """Return the softmax of `x` over `axis`."""
        return self.apply("Softmax", x, axis=axis)

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        """Return `a` where the bool `condition` holds, else `b`, with broadcasting."""
        shape = _broadcast(_broadcast(condition.shape, a.shape), b.shape)
        return self.apply("Where", condition, a, b, shape=shape, dtype=a.dtype)

    def less(self, a: Value, b: Value) -> Value:
        """Return the bool a < b with broadcasting."""
        return self._combine("Less", a, b, "bool")

    def logical_and(self, a: Value, b: Value) -> Value:
        """Return the bool a and b with broadcasting."""
        return self._combine("And", a, b)

    def cast(self, x: Value, dtype: str) -> Value:
        """Return `x` as `dtype`; floats are truncated towards zero."""
        if x.dtype == dtype:
            return x
        return self.apply("Cast", x, dtype=dtype, to=TENSOR_TYPES[dtype])

    def reshape(self, x: Value, sizes: Sequence[int], shape: Sequence[Dim]) -> Value:
        """Return `x` reshaped; in `sizes`, 0 keeps the size of that axis and -1 takes the rest."""
        return self.apply("Reshape", x, self.ints(*sizes), shape=shape)

    def unsqueeze(self, x: Value, *axes: int) -> Value:
        """Return `x` with axes of size 1 where the result has `axes` (not negative, ascending)."""
        shape = list(x.shape)
        for axis in axes:
            shape.insert(axis, 1)
        return self.apply("Unsqueeze", x, self.ints(*axes), shape=shape)

    def squeeze(self, x: Value, *axes: int) -> Value:
        """Return `x` without its `axes` (not negative) of size 1."""
        shape = [size for axis, size in enumerate(x.shape) if axis not in axes]
        return self.apply("Squeeze", x, self.ints(*axes), shape=shape)

    def concat(self, values: Sequence[Value], axis: int) -> Value:
        """Return `values` one behind the other along `axis` (not negative)."""
        shape = list(values[0].shape)
        sizes = [value.shape[axis] for value in values]
        known = [size for size in sizes if isinstance(size, int)]
        shape[axis] = sum(known) if len(known) == len(sizes) else self._next("joined")
        return self.apply("Concat", *values, shape=shape, axis=axis)

    def split(self, x: Value, sizes: Sequence[int], axis: int) -> tuple[Value, ...]:
        """Return `x` cut into pieces of `sizes` along `axis` (not negative)."""
        outputs = [(x.dtype, (*x.shape[:axis], n, *x.shape[axis + 1 :])) for n in sizes]
        return self.apply_many("Split", (x, self.ints(*sizes)), outputs, axis=axis)

    def slice(self, x: Value, axis: int, start: int, stop: int | None, step: int = 1) -> Value:
        """Return `x[start:stop:step]` along `axis`, with Python's meaning of the numbers."""
        size = x.shape[axis]
        cut: Dim = self._next("slice")
        if isinstance(size, int):
            cut = len(range(size)[start:stop:step])
        last = (2**63 - 1 if step > 0 else -(2**63)) if stop is None else stop
        ends = (self.ints(start), self.ints(last), self.ints(axis), self.ints(step))
        shape = (*x.shape[:axis], cut, *x.shape[axis + 1 :])
        return self.apply("Slice", x, *ends, shape=shape)

    def gather(self, table: Value, indices: Value, axis: int = 0) -> Value:
        """Return the entries `indices` (int64, any shape) of `table` along `axis`."""
        shape = (*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])
        return self.apply("Gather", table, indices, shape=shape, axis=axis)

    def size_of(self, x: Value, axis: int) -> Value:
        """Return the size of `axis` (not negative) of `x`, an int64 scalar."""
        size = self.apply("Shape", x, shape=(1,), dtype="int64", start=axis, end=axis + 1)
        return self.apply("Squeeze", size, shape=())

    def arange(self, count: Value, size: Dim) -> Value:
        """Return the int64 vector 0 … count - 1; `size` is the dimension it gets."""
        zero, one = self.number(0, "int64"), self.number(1, "int64")
        return self.apply("Range", zero, count, one, shape=(size,), dtype="int64")

    def add(self, a: Value, b: Value) -> Value:
        """Return a + b with broadcasting."""
        return self._combine("Add", a, b)

    def sub(self, a: Value, b: Value) -> Value:
        """Return a - b with broadcasting."""
        return self._combine("Sub", a, b)

    def mul(self, a: Value, b: Value) -> Value:
        """Return a * b with broadcasting."""
        return self._combine("Mul", a, b)

    def div(self, a: Value, b: Value) -> Value:
        """Return a / b with broadcasting; integers truncate towards zero."""
        return self._combine("Div", a, b)

    def maximum(self, a: Value, b: Value) -> Value:
        """Return the larger of a and b with broadcasting."""
        return self._combine("Max", a, b)

    def reduce_sum(self, x: Value, *axes: int) -> Value:
        """Return the sum of `x` over `axes` (not negative), which keep size 1."""
        return self.apply("ReduceSum", x, self.ints(*axes), shape=_reduced(x, axes))

    def reduce_max(self, x: Value, *axes: int) -> Value:
        """Return the maximum of `x` over `axes` (not negative), which keep size 1."""
        return self.apply("ReduceMax", x, shape=_reduced(x, axes), axes=axes)

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
            valid = self.unsqueeze(self.valid(lengths, like, len(like.shape) - 1), 1)
            self._masks[lengths.name] = self.cast(valid, "float32")
        return self._masks[lengths.name]

    def valid(self, lengths: Value, like: Value, axis: int) -> Value:
        """Return bool [batch, time]: true on the first `lengths` of each item along `axis`."""
        positions = self.arange(self.size_of(like, axis), like.shape[axis])
        return self.less(positions, self.unsqueeze(lengths, 1))

    def size(self) -> int:
        """Return the length of the written file in bytes."""
        return encode_model(self._model())[0]

    def is_split(self) -> bool:
        """Return whether the weights must lie in a file of their own."""
        return self.size() > MAX_BYTES

    def write(self, file: Sink, weights: str | None = None) -> int:
        """Write the model to `file` and return its length in bytes.

        Large weights are in the file `weights` in the same folder, if one is named: that must be
        so where `is_split`. It may be called again, and writes the same bytes.
        """
        size, parts = encode_model(self._model(), weights)
        if size > MAX_BYTES:
            raise JarvisBug(f"an ONNX file holds at most {MAX_BYTES} bytes, not {size}")
        for part in parts:
            file.write(part)
        return size

    def write_weights(self, file: Sink) -> None:
        """Write what a model refers to that was written with `weights`."""
        for part in encode_weights(self._model().constants):
            file.write(part)

    def _model(self) -> Model:
        final = self._final_names
        nodes = [
            Node(
                node.op,
                node.name,
                tuple(final.get(n, n) for n in node.inputs),
                tuple(final.get(n, n) for n in node.outputs),
                node.attributes,
            )
            for node in self._nodes
        ]
        return Model(self.name, nodes, self._constants, self._inputs, self._outputs)

    def _copy(self, value: Value) -> Value:
        # Not through `_append`: an output needs a node of its own, also when it is the second.
        name = self._next("identity")
        self._nodes.append(Node("Identity", name, (value.name,), (name,), ()))
        return Value(name, value.dtype, value.shape)

    def _operands(self, x: Value, *tables: np.ndarray | None) -> list[Value]:
        return [x, *(self.constant(table) for table in tables if table is not None)]

    def _append(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: tuple[tuple[str, tuple[Dim, ...]], ...],
        attributes: tuple[tuple[str, Attribute], ...],
    ) -> tuple[Value, ...]:
        """Add a node, or find the equal one; a node of one output lends that its name."""
        names = tuple("" if v is None else v.name for v in inputs)
        key = (op, names, attributes)
        if key not in self._values:
            name = self._next(op.lower())
            several = len(outputs) > 1
            results = [f"{name}.{i}" if several else name for i in range(len(outputs))]
            self._nodes.append(Node(op, name, names, tuple(results), attributes))
            self._values[key] = (
                name,
                tuple(
                    Value(result, dtype, shape)
                    for result, (dtype, shape) in zip(results, outputs, strict=True)
                ),
            )
        name, values = self._values[key]
        if self._is_full_precision:
            self._full_precision[name] = None
        return values

    def _combine(self, op: str, a: Value, b: Value, dtype: str | None = None) -> Value:
        if a.dtype != b.dtype:
            raise JarvisBug(f"{op} of {a} and {b}")
        return self.apply(op, a, b, shape=_broadcast(a.shape, b.shape), dtype=dtype)

    def _next(self, kind: str) -> str:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}_{number}"

    def _claim(self, name: str) -> None:
        if any(name == v.name for v in (*self._inputs, *self._outputs)):
            raise JarvisBug(f"`{name}` is declared twice")


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


def _reduced(x: Value, axes: Sequence[int]) -> list[Dim]:
    return [1 if axis in axes else size for axis, size in enumerate(x.shape)]


def _clip_unit(graph: Graph, x: Value) -> Value:
    return graph.apply("Clip", x, graph.number(-1.0), graph.number(1.0))


def _swish(graph: Graph, x: Value) -> Value:
    return graph.mul(x, graph.apply("Sigmoid", x))


def _gelu(graph: Graph, x: Value) -> Value:
    error = graph.apply("Erf", graph.mul(x, graph.number(math.sqrt(0.5))))
    return graph.mul(graph.mul(x, graph.number(0.5)), graph.add(error, graph.number(1.0)))


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
