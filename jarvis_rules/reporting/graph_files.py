"""The ONNX graphs of an open archive: what they look like, their weights, and whether they hold.

A graph is in memory whole; weights that lie beside it are mapped from a temporary file.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.archive import Archive
from jarvis_rules.formats.tar import quoted

if TYPE_CHECKING:
    from jarvis_rules.formats.state_dict import Array

_WEIGHTS_SUFFIX = ".onnx.data"
_HINT = "make the archive again; if it stays, report the model's family"
_DTYPES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True, slots=True)
class GraphFile:
    """A graph of an archive: `where` names it, `model` is its protobuf without outside weights.

    `path` is the file that it lies in for as long as it is open, its weights beside it.
    """

    member: str
    where: str
    path: Path
    model: Any

    @property
    def weights(self) -> GraphWeights:
        """The initialisers, made when they are looked up."""
        return GraphWeights(self)

    def describe(self) -> dict[str, Any]:
        """Return the graph without its weights as a tree of plain values.

        `nodes` counts the operators; `wiring` is a digest over every node with its attributes.
        """
        graph = self.model.graph
        parts = [*graph.node, *graph.sparse_initializer, *self.model.functions]
        wiring = b"".join(part.SerializeToString(deterministic=True) for part in parts)
        sides = {
            side: {
                tensor["name"]: f"{tensor['dtype']} {tensor['shape']}"
                for tensor in self.tensors()[i]
            }
            for i, side in enumerate(("inputs", "outputs"))
        }
        return {
            "ir_version": self.model.ir_version,
            "opsets": {
                entry.domain or "ai.onnx": entry.version for entry in self.model.opset_import
            },
            **sides,
            "nodes": dict(Counter(node.op_type for node in graph.node)),
            "wiring": digest_bytes(wiring).sha256[:16],
        }

    def tensors(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return inputs and outputs with name, dtype and shape, as an archive's facts have them."""
        graph = self.model.graph
        weights = {tensor.name for tensor in graph.initializer}
        inputs = [_tensor(value) for value in graph.input if value.name not in weights]
        return inputs, [_tensor(value) for value in graph.output]


class GraphWeights:
    """The initialisers of a graph by name."""

    def __init__(self, graph: GraphFile) -> None:
        self._graph = graph
        self._tensors = {tensor.name: tensor for tensor in graph.model.graph.initializer}
        if len(self._tensors) != len(graph.model.graph.initializer):
            raise unreadable(graph.where, "two weights of one name")

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __getitem__(self, name: str) -> Array:
        """Return a weight; IntegrityError `graph.unreadable` where its bytes do not fit."""
        import numpy as np
        from onnx import TensorProto, numpy_helper

        tensor = self._tensors[name]
        try:
            if tensor.data_location == TensorProto.EXTERNAL:
                return self._outside(tensor)
            if any(size < 0 for size in tensor.dims):
                raise ValueError("a negative dimension")
            return np.asarray(numpy_helper.to_array(tensor))
        except (ValueError, TypeError, KeyError, OSError, OverflowError) as error:
            message = f"the weight {quoted(name)} cannot be read: {_plain(error)}"
            raise unreadable(self._graph.where, message) from None

    def _outside(self, tensor: Any) -> Array:
        import numpy as np
        from onnx import helper

        place = {entry.key: entry.value for entry in tensor.external_data}
        path = self._graph.path.with_name(place["location"])
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
        shape, offset = tuple(tensor.dims), int(place.get("offset", 0))
        count = int(np.prod(shape, dtype=object)) if shape else 1
        size = path.stat().st_size
        if min((0, offset, *shape)) < 0 or offset + count * dtype.itemsize > size:
            raise ValueError(f"it reaches beyond the {size} bytes of {quoted(path.name)}")
        if not count:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", offset, shape)


@contextlib.contextmanager
def open_graph(archive: Archive, member: str) -> Iterator[GraphFile]:
    """Take a graph of an archive, and the weights beside it, into a temporary folder.

    IntegrityError where a member fails its digest or is no ONNX graph, or where weights lie
    outside of the archive.
    """
    import onnx
    from google.protobuf.message import DecodeError

    where = f"{archive.path}!{quoted(member)[1:-1]}"
    with tempfile.TemporaryDirectory(prefix="jarvis-graph-") as folder:
        path = Path(folder, "model.onnx")
        archive.extract(member, path)
        try:
            model = onnx.load_model(str(path), load_external_data=False)
        except (DecodeError, ValueError, RecursionError) as error:
            raise unreadable(where, f"not an ONNX model: {_plain(error)}") from None
        # Protobuf gives text that is not UTF-8 as bytes.
        if not all(isinstance(text, str) for text in _texts(model)):
            raise unreadable(where, "not an ONNX model: a name in it is not UTF-8")
        for location in sorted(_locations(model)):
            beside = str(PurePosixPath(member).with_name(location)) if _is_name(location) else ""
            if beside not in archive.manifest.files:
                message = f"weights lie in {quoted(location)}, which is not in the archive"
                raise IntegrityError(message, slug="graph.weights-file", where=where, hint=_HINT)
            archive.extract(beside, path.with_name(location))
        yield GraphFile(member, where, path, model)


def _texts(model: Any) -> Iterator[Any]:
    """Yield every text of the model that is looked at here."""
    graph = model.graph
    for entry in model.opset_import:
        yield entry.domain
    for node in graph.node:
        yield from (node.op_type, node.domain, node.name)
    for tensor in graph.initializer:
        yield tensor.name
        for entry in tensor.external_data:
            yield from (entry.key, entry.value)
    for value in (*graph.input, *graph.output):
        yield value.name
        yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)


def _locations(model: Any) -> set[str]:
    """Return the files that weights lie in."""
    return {
        entry.value
        for tensor in model.graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _is_name(location: str) -> bool:
    return location.endswith(_WEIGHTS_SUFFIX) and "/" not in location


def check_graph(graph: GraphFile) -> None:
    """Raise IntegrityError `graph.invalid` where ONNX's full check refuses the graph."""
    import onnx

    try:
        onnx.checker.check_model(str(graph.path), full_check=True)
    except Exception as error:
        # The checks in C++ share no base class but Exception.
        raise IntegrityError(
            f"ONNX refuses the graph: {_plain(error)}",
            slug="graph.invalid",
            where=graph.where,
            hint=_HINT,
        ) from None


def unreadable(where: str, message: str) -> IntegrityError:
    """Return the error for a graph that cannot be read."""
    return IntegrityError(message, slug="graph.unreadable", where=where, hint=_HINT)


def graph_members(files: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the members of an archive that are graphs, in order."""
    return sorted(name for name, file in files.items() if file.get("role") == "graph")


def _tensor(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    names = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
    name = names.get(tensor.elem_type, str(tensor.elem_type))
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param for d in tensor.shape.dim]
    return {"name": value.name, "dtype": _DTYPES.get(name, name), "shape": shape}


def _plain(error: BaseException) -> str:
    text = (str(error).strip() or type(error).__name__).partition("\n")[0]
    return quoted(text, 300)[1:-1]
