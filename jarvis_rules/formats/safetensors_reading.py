"""Reading weights that lie as safetensors: a header in JSON, then the tensors.

Every tensor is checked to lie within the file; nothing is executed. See `safetensors.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.state_dict import Array
from jarvis_rules.formats.tar import quoted

MAX_HEADER_SIZE = 100 << 20
_DTYPES = {
    "I64": "<i8",
    "F64": "<f8",
    "F32": "<f4",
    "I32": "<i4",
    "F16": "<f2",
    "I16": "<i2",
    "I8": "|i1",
    "U8": "|u1",
    "BOOL": "|b1",
}
_RESERVED = "__metadata__"


def read_safetensors(data: memoryview, where: str) -> Mapping[str, Array]:
    """Return the tensors by name: views of `data`, made when they are looked up.

    IntegrityError `safetensors.damaged` where the file is not well-formed: the tensors must fill
    it without gaps.
    """
    try:
        return _Tensors(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"not safetensors: {error}",
            slug="safetensors.damaged",
            where=where,
            hint="make the archive again: `nemo2jarvis --format CKPT`",
        ) from None


class _Tensors(Mapping[str, Array]):
    def __init__(self, data: memoryview) -> None:
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > min(MAX_HEADER_SIZE, len(data) - 8):
            raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
        header = json.loads(bytes(data[8 : 8 + size]))
        if not isinstance(header, dict):
            raise ValueError("the header is no map")
        header.pop(_RESERVED, None)
        self._data = data[8 + size :]
        self._places = {name: _place(name, entry) for name, entry in header.items()}
        end = 0
        for start, stop in sorted((start, stop) for _, _, start, stop in self._places.values()):
            if start != end:
                raise ValueError(f"byte {end} is of no tensor, or of two")
            end = stop
        if end != len(self._data):
            raise ValueError(f"the tensors end at byte {end} of {len(self._data)}")

    def __getitem__(self, name: str) -> Array:
        dtype, shape, start, stop = self._places[name]
        return np.frombuffer(self._data[start:stop], dtype).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def _place(name: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    match entry:
        case {"dtype": str(kind), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
            kind in _DTYPES and all(type(n) is int and 0 <= n < 1 << 48 for n in shape)
        ):
            size = np.dtype(_DTYPES[kind]).itemsize * math.prod(shape)
            if len(shape) <= 32 and 0 <= start <= stop and stop - start == size:
                return _DTYPES[kind], tuple(shape), start, stop
    raise ValueError(f"the tensor {quoted(name)} has no proper type, shape and place")
