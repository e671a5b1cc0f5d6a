"""Nodes, constants and names of an ONNX graph under construction, and its file.

The same bytes in every process and on every CPU: names are counters in the order of construction,
so that nothing depends on hash order, paths or time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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

MAX_BYTES = 2**31 - 1  # protobuf cannot hold a longer message


class NodeGraph:
    """A graph under construction, node by node: `Graph` adds the operators and their shapes.

    Values are immutable, equal nodes and constants exist once. Misuse (types or sizes that do not
    fit) raises JarvisBug.
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

    def _next(self, kind: str) -> str:
        number = self._counts.get(kind, 0)
        self._counts[kind] = number + 1
        return f"{kind}_{number}"

    def _claim(self, name: str) -> None:
        if any(name == v.name for v in (*self._inputs, *self._outputs)):
            raise JarvisBug(f"`{name}` is declared twice")
