"""A typed builder of ONNX graphs: the operators that exporters use, with their shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jarvis_rules.errors import JarvisBug
from jarvis_rules.onnx_graph.node_graph import NodeGraph
from jarvis_rules.onnx_graph.wire import TENSOR_TYPES, Dim, Value

__all__ = ["ACTIVATIONS", "Dim", "Graph", "Value"]


class Graph(NodeGraph):
    """A graph under construction; values are immutable, equal nodes and constants exist once.

    Misuse (types or sizes that do not fit) raises JarvisBug: exporters check their checkpoint
    before they build.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._masks: dict[str, Value] = {}

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

    def _operands(self, x: Value, *tables: np.ndarray | None) -> list[Value]:
        return [x, *(self.constant(table) for table in tables if table is not None)]

    def _combine(self, op: str, a: Value, b: Value, dtype: str | None = None) -> Value:
        if a.dtype != b.dtype:
            raise JarvisBug(f"{op} of {a} and {b}")
        return self.apply(op, a, b, shape=_broadcast(a.shape, b.shape), dtype=dtype)


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
