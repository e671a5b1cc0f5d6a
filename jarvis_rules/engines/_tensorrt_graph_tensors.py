"""The tensors of a graph: what its inputs and outputs are, and whether its constants are whole.

Source of the fields: `onnx.proto`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.engines._tensorrt_messages import ELSEWHERE, REPORT
from jarvis_rules.errors import IntegrityError, JarvisError

_DTYPES = {1: "FP32", 10: "FP16", 7: "INT64", 6: "INT32", 9: "BOOL"}
# Bytes per element of the types that a tensor may have: those, and FP64, BF16, INT8, UINT8.
ITEM_BYTES = {1: 4, 10: 2, 7: 8, 6: 4, 9: 1, 11: 8, 16: 2, 3: 1, 2: 1}
# Where a tensor's values are when they are not raw bytes.
_FIELDS = {
    1: "float_data",
    11: "double_data",
    7: "int64_data",
    **dict.fromkeys((2, 3, 6, 9, 10, 16), "int32_data"),
}


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """An input of a graph; a dimension is its size, its symbol, or None."""

    name: str
    dtype: str
    dims: tuple[int | str | None, ...]

    @property
    def is_dynamic(self) -> bool:
        """Whether any dimension has no fixed size."""
        return not all(isinstance(size, int) for size in self.dims)


def invalid(message: str) -> IntegrityError:
    """Return the error for a graph that contradicts itself."""
    return IntegrityError(message, slug="engine.graph-invalid", hint=REPORT)


def describe(value: Any) -> GraphTensor:
    """Return what an input or output of a graph is; JarvisError where no engine has such a one."""
    kind = value.type.WhichOneof("value")
    element = value.type.tensor_type.elem_type
    if kind != "tensor_type" or element not in _DTYPES:
        import onnx

        name = kind or "value of no type"
        if kind == "tensor_type":
            name = f"tensor of {onnx.TensorProto.DataType.Name(element).lower()}"
        raise JarvisError(
            f"`{value.name}` is a {name.replace('_', ' ')}, which no engine takes or gives",
            slug="engine.dtype",
            hint=f"the graph's inputs and outputs may be: {', '.join(_DTYPES.values())}",
        )
    dims = tuple(
        size.dim_value if size.HasField("dim_value") else size.dim_param or None
        for size in value.type.tensor_type.shape.dim
    )
    return GraphTensor(value.name, _DTYPES[element], dims)


def check_constant(tensor: Any, folder: Path) -> None:
    """Check that a constant is of a known type, and that its values are as many as it says."""
    import onnx

    size = ITEM_BYTES.get(tensor.data_type)
    if size is None:
        known = tensor.data_type in onnx.TensorProto.DataType.values()
        name = onnx.TensorProto.DataType.Name(tensor.data_type) if known else tensor.data_type
        raise JarvisError(
            f"the constant `{tensor.name}` is of type {str(name).lower()}, which TensorRT has not",
            slug="engine.dtype",
            hint=ELSEWHERE,
        )
    expected = math.prod(tensor.dims) * size
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        found = _external_bytes(tensor, folder)
    elif tensor.HasField("raw_data"):
        found = len(tensor.raw_data)
    else:
        found = len(getattr(tensor, _FIELDS[tensor.data_type])) * size
    if min(tensor.dims, default=0) < 0 or found != expected:
        raise invalid(
            f"the constant `{tensor.name}` of shape {list(tensor.dims)} has {found} bytes, "
            f"expected {expected}"
        )


def _external_bytes(tensor: Any, folder: Path) -> int:
    """Return how many bytes of its file a constant takes; IntegrityError where it may not."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    if not location or location in {".", ".."} or any(mark in location for mark in "/\\\0"):
        raise IntegrityError(
            f"the constant `{tensor.name}` lies in `{location}`: only a file beside the graph may "
            "hold one",
            slug="engine.graph-external",
            hint="build the `.jmir` again",
        )
    file = folder / location
    available = file.stat().st_size if file.is_file() else None
    try:
        offset = int(entries.get("offset", "0"))
        length = int(entries.get("length", (available or 0) - offset))
    except ValueError:
        offset = length = -1
    if available is None or min(offset, length) < 0 or offset + length > available:
        got = "which is missing" if available is None else f"which has {available}"
        raise IntegrityError(
            f"the constant `{tensor.name}` is {length} bytes at {offset} of `{location}`, {got}",
            slug="engine.graph-external",
            hint="build the `.jmir` again",
        )
    return length
