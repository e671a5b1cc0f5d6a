"""onnx's reference evaluator, which rounds every value where the graph says so, made usable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def load_reference(path: Path) -> Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]:
    """Return the graph as a function of its inputs by name; slow, and without fusions.

    numpy adds float16 in float32, but bfloat16 in bfloat16, which no hardware does: there, what
    sums is computed in float32 and its result rounded. onnx takes the logarithm of a softmax, which
    is that of 0 for scores that are 104 apart.
    """
    import numpy as np
    import onnx
    from onnx.reference import ReferenceEvaluator

    evaluator = ReferenceEvaluator(onnx.load(path), new_ops=_operators())
    names = evaluator.output_names

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with np.errstate(all="ignore"):
            return dict(zip(names, evaluator.run(None, dict(inputs)), strict=True))

    return run


def _operators() -> list[Any]:
    import numpy as np
    from onnx.reference.op_run import OpRun
    from onnx.reference.ops.op_layer_normalization import _layer_normalization

    def wide(x: Any) -> Any:
        return x.astype(np.float32) if x is not None and x.dtype.name == "bfloat16" else x

    class LogSoftmax(OpRun):
        def _run(self, x: Any, axis: int = -1) -> tuple[Any]:
            shifted = wide(x) - wide(x).max(axis=axis, keepdims=True)
            total = np.exp(shifted).sum(axis=axis, keepdims=True)
            return ((shifted - np.log(total)).astype(x.dtype),)

    class Softmax(OpRun):
        def _run(self, x: Any, axis: int = -1) -> tuple[Any]:
            exps = np.exp(wide(x) - wide(x).max(axis=axis, keepdims=True))
            return ((exps / exps.sum(axis=axis, keepdims=True)).astype(x.dtype),)

    class MatMul(OpRun):
        def _run(self, a: Any, b: Any) -> tuple[Any]:
            return (np.matmul(wide(a), wide(b)).astype(a.dtype),)

    class LayerNormalization(OpRun):
        def _run(
            self,
            x: Any,
            gain: Any,
            shift: Any = None,
            axis: int = -1,
            epsilon: float = 1e-5,
            stash_type: int = 1,  # noqa: ARG002
        ) -> tuple[Any, ...]:
            first, mean, deviation = _layer_normalization(
                wide(x), wide(gain), wide(shift), axis, epsilon
            )
            return (first.astype(x.dtype), mean, deviation)[: len(self.onnx_node.output)]

    return [LogSoftmax, Softmax, MatMul, LayerNormalization]
