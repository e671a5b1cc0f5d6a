"""Matrix products with a constant as convolutions with kernel 1, which Turing has in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jarvis_rules.onnx_graph.model_file import read_array
from jarvis_rules.onnx_graph.precision_types import Types

if TYPE_CHECKING:
    import numpy as np
    from onnx import NodeProto

# By the rank of the other operand and whether the constant stands on its right: how axes are
# brought to [batch, K, …] and back.
_AXES: dict[tuple[int, bool], tuple[tuple[int, ...], tuple[int, ...]]] = {
    (3, True): ((0, 2, 1), (0, 2, 1)),
    (4, True): ((0, 3, 1, 2), (0, 2, 3, 1)),
    (3, False): ((), ()),
    (4, False): ((0, 2, 1, 3), (0, 2, 1, 3)),
}


def can_expand(node: NodeProto, types: Types) -> bool:
    """Return whether `node`, a MatMul or Gemm, is a product with a matrix that is constant."""
    left, right = node.input[:2]
    constant, other = (right, left) if types.is_constant(right) else (left, right)
    return (
        types.is_constant(constant)
        and types.rank(constant) == 2
        and types.rank(other) in (2, 3, 4)
        and types.opset >= 13  # Squeeze and Unsqueeze take their axes as an operand since then
    )


def expand_linear(
    node: NodeProto, inputs: Sequence[str], types: Types, fresh: Callable[[str], str]
) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """Return nodes that give what `node` gives of `inputs`, and their constants by name.

    `inputs` are what the operands of `node` are now called. The sums are those of the matrix
    product, in an order that is the runtime's in both.
    """
    from onnx import helper

    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    chain = _Chain(node, fresh)
    left, right = node.input[:2]
    is_right = types.is_constant(right)
    weight = read_array(types.constants[right if is_right else left])
    other, rank = inputs[1 - is_right], types.rank(left if is_right else right)
    if attributes.get("transB" if is_right else "transA"):
        weight = weight.T
    if attributes.get("transA" if is_right else "transB"):
        other = chain.add("Transpose", other, perm=(1, 0))
    if is_right:
        weight = weight.T
    axis = chain.constant("axis", [2 if is_right else 0])
    before, after = _AXES.get((rank or 0, is_right), ((), ()))
    if rank == 2:
        other = chain.add("Unsqueeze", other, axis)
    elif before:
        other = chain.add("Transpose", other, perm=before)
    kernel = (1,) * (2 if rank == 4 else 1)
    matrix = chain.constant("weight", weight.reshape(*weight.shape, *kernel))
    found = chain.add("Conv", other, matrix, kernel_shape=kernel)
    if rank == 2:
        found = chain.add("Squeeze", found, axis)
    elif after:
        found = chain.add("Transpose", found, perm=after)
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    if alpha != 1:
        found = chain.add("Mul", found, chain.constant("alpha", alpha))
    bias = inputs[2] if len(inputs) > 2 else ""
    if bias and beta != 1:
        bias = chain.add("Mul", bias, chain.constant("beta", beta))
    if bias:
        chain.add("Add", found, bias)
    return chain.finish()


class _Chain:
    """Nodes one behind the other, the last of which is called as the one that they replace."""

    def __init__(self, node: NodeProto, fresh: Callable[[str], str]) -> None:
        self._node = node
        self._fresh = fresh
        self._nodes: list[NodeProto] = []
        self._arrays: dict[str, np.ndarray] = {}

    def constant(self, suffix: str, value: Any) -> str:
        import numpy as np

        name = self._fresh(f"{self._node.output[0]}.{suffix}")
        array = np.asarray(value)
        self._arrays[name] = array.astype(np.int64 if array.dtype.kind == "i" else np.float32)
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = self._fresh(f"{self._node.output[0]}.{op.lower()}")
        self._nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def finish(self) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
        self._nodes[-1].name = self._node.name
        self._nodes[-1].output[0] = self._node.output[0]
        used = {name for node in self._nodes for name in node.input}
        return self._nodes, {k: v for k, v in self._arrays.items() if k in used}
