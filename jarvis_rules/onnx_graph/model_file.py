"""ONNX model files read without their weights: the graph in memory, the weights where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jarvis_rules.errors import IntegrityError, JarvisBug
from jarvis_rules.onnx_graph.constants import ConstantStore
from jarvis_rules.onnx_graph.wire import (
    TENSOR_TYPES,
    StoredConstant,
    encode_parts,
    encode_weights,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

_BLOCK = 1 << 20
_NAMES = {number: name for name, number in TENSOR_TYPES.items()}
_WIDTHS = {"bool": 1, "bfloat16": 2}
# Numbers of fields in onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class FileConstant:
    """A constant whose little-endian bytes, in C order, lie at `offset` of the file `path`."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    offset: int

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of bounded size; OSError where the file became shorter."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            left = self.nbytes
            while left:
                block = file.read(min(_BLOCK, left))
                if not block:
                    raise OSError(f"`{self.path}` became shorter while it was read")
                left -= len(block)
                yield block


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model without its initialisers, and these by name in the order of the file."""

    frame: ModelProto
    constants: Mapping[str, StoredConstant]


def read_model(path: Path) -> ModelFile:
    """Read a model, of whose weights only the places are kept.

    Weights may lie in other files of the same folder. Raises IntegrityError `precision.graph` for
    what is no ONNX model, or holds tensors that cannot be read.
    """
    from google.protobuf.message import DecodeError
    from onnx import GraphProto, ModelProto

    try:
        with path.open("rb") as file:
            rest, graph, tensors = bytearray(), bytearray(), []
            for number, start, body, end in _fields(file, 0, path.stat().st_size):
                if number != _GRAPH:
                    rest += _slice(file, start, end)
                    continue
                for inner, first, content, last in _fields(file, body, end):
                    if inner == _INITIALIZER:
                        tensors.append(_read_tensor(file, content, last))
                    else:
                        graph += _slice(file, first, last)
        frame = ModelProto.FromString(bytes(rest))
        frame.graph.CopyFrom(GraphProto.FromString(bytes(graph)))
        _check_text(frame.graph)
    except (DecodeError, ValueError, UnicodeDecodeError) as error:
        raise _broken(path, f"not an ONNX model: {error or 'cannot be parsed'}") from error
    if not frame.graph.node or not frame.graph.output:
        raise _broken(path, "not an ONNX model: it has no nodes or no outputs")
    store = ConstantStore()
    constants: dict[str, StoredConstant] = {}
    for tensor, place in tensors:
        if tensor.name in constants:
            raise _broken(path, f"two initialisers are called `{tensor.name}`")
        constants[tensor.name] = _locate(path, store, tensor, place)
    return ModelFile(frame, constants)


def write_model(model: ModelFile, target: Path, limit: int) -> None:
    """Write `model`; where it has more than `limit` bytes, its weights to `<target>.data`."""
    data = target.with_name(f"{target.name}.data")
    size, parts = encode_parts(model.frame, model.constants)
    if size > limit:
        size, parts = encode_parts(model.frame, model.constants, data.name)
        if size > limit:
            raise JarvisBug(f"an ONNX file holds at most {limit} bytes, not {size}")
        with data.open("wb") as file:
            file.writelines(encode_weights(model.constants))
    with target.open("wb") as file:
        file.writelines(parts)


def read_array(constant: StoredConstant) -> Any:
    """Return all of a constant; bfloat16 as uint16."""
    import numpy as np

    kind = "uint16" if constant.dtype == "bfloat16" else constant.dtype
    data = b"".join(constant.blocks())
    return np.frombuffer(data, np.dtype(kind).newbyteorder("<")).reshape(constant.shape)


def _fields(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield for each field of a message its number, its start, that of its content, its end.

    Raises ValueError where there is no such message. Source: the protobuf wire format.
    """
    while start < end:
        key, body = _varint(file, start)
        kind = key & 7
        if kind == _VARINT:
            last = _varint(file, body)[1]
        elif kind == _BYTES:
            size, body = _varint(file, body)
            last = body + size
        elif kind in (_FIXED32, _FIXED64):
            last = body + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError(f"byte {start} starts no field")
        if last > end or not key >> 3:
            raise ValueError(f"the field at byte {start} ends at byte {last}, beyond {end}")
        yield key >> 3, start, body, last
        start = last


def _varint(file: BinaryIO, start: int) -> tuple[int, int]:
    file.seek(start)
    number = 0
    for place, byte in enumerate(file.read(10)):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, start + place + 1
    raise ValueError(f"the number at byte {start} does not end")


def _check_text(graph: GraphProto) -> None:
    """Raise ValueError for names that are not UTF-8, which protobuf gives as bytes."""
    for node in graph.node:
        names = (node.name, node.op_type, node.domain, *node.input, *node.output)
        values: list[object] = [*names, *(attribute.name for attribute in node.attribute)]
        for text in values:
            if isinstance(text, bytes):
                raise ValueError(f"the name {text!r} is not UTF-8")


def _slice(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


def _read_tensor(
    file: BinaryIO, start: int, end: int
) -> tuple[TensorProto, tuple[int, int] | None]:
    """Return a tensor without its raw bytes, and where these start and end."""
    from onnx import TensorProto

    rest, place = bytearray(), None
    for number, first, body, last in _fields(file, start, end):
        if number == _RAW_DATA:
            place = (body, last)
        else:
            rest += _slice(file, first, last)
    return TensorProto.FromString(bytes(rest)), place


def _locate(
    path: Path, store: ConstantStore, tensor: TensorProto, place: tuple[int, int] | None
) -> StoredConstant:
    """Return the constant; one that is stored as numbers is copied to `store`."""
    from onnx import TensorProto, numpy_helper

    name, shape = tensor.name, tuple(tensor.dims)
    dtype = _NAMES.get(tensor.data_type)
    if dtype is None or any(size < 0 for size in shape):
        raise _broken(path, f"the initialiser `{name}` has a type or shape that has no bytes")
    nbytes = math.prod(shape) * _width(dtype)
    if tensor.data_location == TensorProto.EXTERNAL:
        return _locate_external(path, tensor, dtype, nbytes)
    if place is not None:
        if place[1] - place[0] != nbytes:
            found = place[1] - place[0]
            raise _broken(path, f"the initialiser `{name}` has {found} bytes, expected {nbytes}")
        return FileConstant(dtype, shape, nbytes, path, place[0])
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise _broken(path, f"the initialiser `{name}` cannot be read: {error}") from error
    return store.add(array)[0]


def _locate_external(path: Path, tensor: TensorProto, dtype: str, nbytes: int) -> FileConstant:
    place = {entry.key: entry.value for entry in tensor.external_data}
    location, offset = place.get("location", ""), place.get("offset", "0")
    data = path.with_name(location) if location and Path(location).name == location else None
    if data is None or not data.is_file() or not offset.isdecimal():
        raise _broken(path, f"`{tensor.name}` lies in `{location}`, which is not beside the graph")
    size = data.stat().st_size
    if int(offset) + nbytes > size or place.get("length", str(nbytes)) != str(nbytes):
        raise _broken(
            path, f"`{tensor.name}` needs {nbytes} bytes from {offset} of `{location}` ({size})"
        )
    return FileConstant(dtype, tuple(tensor.dims), nbytes, data, int(offset))


def _width(dtype: str) -> int:
    import numpy as np

    return _WIDTHS.get(dtype) or np.dtype(dtype).itemsize


def _broken(path: Path, message: str) -> IntegrityError:
    return IntegrityError(
        message,
        where=str(path),
        slug="precision.graph",
        hint="the file is damaged; export the model again",
    )
