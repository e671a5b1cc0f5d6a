"""The constants of a graph: equal ones kept once, their bytes in a scratch file, not in memory."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xxhash

_BLOCK = 1 << 20
_IN_MEMORY = 1 << 20  # what a small graph needs is not worth a file


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """An array whose little-endian bytes, in C order, lie at `offset` of its store."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    offset: int
    store: ConstantStore

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of bounded size."""
        return self.store.read(self.offset, self.nbytes)


class ConstantStore:
    """Takes arrays one at a time; each may be dropped when it was added.

    So an export needs memory for one weight, however many there are and whatever is computed from
    them. The file is in `tempfile`'s folder and ends with the store.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115  (closed with the store)
        self._end = 0
        self._known: dict[tuple[str, tuple[int, ...], bytes], list[Constant]] = {}
        weakref.finalize(self, self._file.close)

    def add(self, array: np.ndarray) -> tuple[Constant, bool]:
        """Return the constant of this type, shape and content, and whether it is a new one."""
        array = np.asarray(array, dtype=array.dtype.newbyteorder("<"))
        digest = xxhash.xxh3_128()
        self._file.seek(self._end)
        for block in _blocks(array):
            digest.update(block)
            self._file.write(block)
        new = Constant(array.dtype.name, array.shape, array.nbytes, self._end, self)
        same = self._known.setdefault((new.dtype, new.shape, digest.digest()), [])
        for known in same:
            # A checkpoint could be crafted to collide in a hash that is not cryptographic.
            if all(a == b for a, b in zip(known.blocks(), new.blocks(), strict=True)):
                return known, False
        self._end += array.nbytes
        same.append(new)
        return new, True

    def read(self, offset: int, size: int) -> Iterator[bytes]:
        """Yield `size` bytes from `offset` on."""
        for start in range(offset, offset + size, _BLOCK):
            self._file.seek(start)
            yield self._file.read(min(_BLOCK, offset + size - start))


def _blocks(array: np.ndarray) -> Iterator[memoryview]:
    """Yield the bytes of `array` in C order, copied only where they lie in another."""
    if array.flags.c_contiguous:
        flat = array.reshape(-1).view(np.uint8)
        yield from (flat[start : start + _BLOCK].data for start in range(0, flat.size, _BLOCK))
        return
    rows = max(1, _BLOCK // (array.nbytes // len(array)))
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows]).reshape(-1).view(np.uint8).data
