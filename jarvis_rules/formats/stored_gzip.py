"""gzip made of stored deflate blocks: bytes that depend on no zlib, and that can be sought in.

A block holds at most 65535 bytes behind a header of five. The writer can end a block early: the
content of a member that begins a block has the same bytes in every archive, headers included, and
is carried from one to the next by the kernel. `docs/reference/archive-format.md` is the
specification.
"""

from __future__ import annotations

import bisect
import mmap
import os
import struct
import weakref
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# ID, deflate, no flags, no time, no extra flags, unknown operating system (RFC 1952).
HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255])
MAX_BLOCK = 0xFFFF
CHECKED_SIZE = 16 << 20
_BLOCK_HEADER = struct.Struct("<BHH")
_TRAILER = struct.Struct("<II")
# Ends of members and what lies between them: a file with more short blocks is not of ours.
_MAX_SHORT_BLOCKS = 3 * 2048
_COPY = 1 << 30
_RESIDENT = 32 << 20


class StoredGzipWriter:
    """Writes a gzip stream of stored blocks, each as long as the format allows unless `align`ed."""

    def __init__(self, out: BinaryIO) -> None:
        self.size = 0
        self.crc = 0
        self._out = out
        self._pending = bytearray()
        out.write(HEADER)

    def write(self, data: bytes | memoryview) -> None:
        """Add bytes."""
        self.crc = zlib.crc32(data, self.crc)
        self.size += len(data)
        view, at = memoryview(data), 0
        # The last block carries the final flag, so one is always held back.
        while len(self._pending) + len(view) - at > MAX_BLOCK:
            end = at + MAX_BLOCK - len(self._pending)
            self._block(self._pending, view[at:end], final=False)
            self._pending, at = bytearray(), end
        self._pending += view[at:]

    def align(self) -> None:
        """End the block, so that what follows begins one."""
        if self._pending:
            self._block(self._pending, final=False)
            self._pending = bytearray()

    def carry(self, blocks: StoredBlocks, size: int) -> None:
        """Add blocks of another stream, which hold `size` bytes, by the kernel: unread."""
        self.align()
        self._out.flush()
        at, target = blocks.start, self._out.fileno()
        while at < blocks.end:
            count = _copy_range(blocks.file, target, min(blocks.end - at, _COPY), at)
            if count == 0:
                raise OSError(f"the file ended at byte {at} of {blocks.end}")
            at += count
        self.crc = combine_crc(self.crc, blocks.crc32, size)
        self.size += size

    def _block(self, *parts: bytearray | memoryview, final: bool) -> None:
        size = sum(map(len, parts))
        self._out.write(_BLOCK_HEADER.pack(final, size, size ^ MAX_BLOCK))
        for part in parts:
            self._out.write(part)

    def close(self) -> None:
        """Write the last block and the trailer; the file itself stays open."""
        self._block(self._pending, final=True)
        self._out.write(_TRAILER.pack(self.crc, self.size & 0xFFFFFFFF))


def _copy_range(source: int, target: int, count: int, offset: int) -> int:
    """Copy bytes to where `target` stands, inside the kernel where the file systems allow it."""
    try:
        return os.copy_file_range(source, target, count, offset)
    except OSError:
        return os.sendfile(target, source, offset, count)


@dataclass(frozen=True, slots=True)
class StoredBlocks:
    """A range of an open file that holds a content in whole stored blocks, and its CRC-32."""

    file: int
    start: int
    end: int
    crc32: int


class StoredGzip:
    """The content of a file of stored blocks, by offset; `read_stored` makes one."""

    def __init__(
        self, data: mmap.mmap, file: int, begins: array[int], starts: array[int], size: int
    ) -> None:
        self._data = data
        self.file = os.dup(file)
        weakref.finalize(self, os.close, self.file)
        self._begins = begins  # of each block: where its first byte stands in the content
        self._starts = starts  # and in the file
        self._size = size
        self._touched = 0

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, span: slice) -> bytes:
        start, stop, _ = span.indices(self._size)
        return b"".join(self.pieces(start, stop))

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to `end` of the content without copying them."""
        view = memoryview(self._data)
        block = bisect.bisect_right(self._begins, start) - 1
        while start < end:
            begin, stop = self._begins[block], self._block_end(block)
            at = self._starts[block] + start - begin
            piece = view[at : at + min(end, stop) - start]
            start, block = start + len(piece), block + 1
            self._touched += len(piece)
            if self._touched > _RESIDENT:
                # What was read stays in the page cache; this process need not hold it.
                self._data.madvise(mmap.MADV_DONTNEED)
                self._touched = 0
            yield piece

    def _block_end(self, block: int) -> int:
        return self._begins[block + 1] if block + 1 < len(self._begins) else self._size

    def whole_blocks(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the range of the file that holds exactly these bytes as `align` makes them.

        That is: in blocks of their own, each but the last as long as the format allows. None
        where they do not lie like that.
        """
        block = bisect.bisect_left(self._begins, start)
        if start >= end or block == len(self._begins) or self._begins[block] != start:
            return None
        first, at = self._starts[block] - _BLOCK_HEADER.size, start
        while at < end:
            if self._begins[block] != at or self._block_end(block) != min(end, at + MAX_BLOCK):
                return None
            at, block = self._block_end(block), block + 1
        last = self._starts[block - 1] + self._block_end(block - 1) - self._begins[block - 1]
        # The last block of the stream has another flag.
        return (first, last) if block < len(self._begins) else None


def read_stored(data: mmap.mmap, file: int) -> StoredGzip | None:
    """Return the content of gzip data that the writer above could have written, else None.

    `data` is the whole of the open `file`. The headers of the blocks and the size are read. The
    CRC-32 is compared up to `CHECKED_SIZE` bytes: beyond, members have digests of their own, and
    reading everything is what this avoids.
    """
    if data[: len(HEADER)] != HEADER:
        return None
    begins, starts = array("Q"), array("Q")
    size = _find_blocks(file, len(data), begins, starts)
    if size is None:
        return None
    crc, stated = _TRAILER.unpack_from(data, len(data) - _TRAILER.size)
    stored = StoredGzip(data, file, begins, starts, size)
    is_checked = size > CHECKED_SIZE or crc == _crc(stored)
    return stored if is_checked and stated == size & 0xFFFFFFFF else None


def _find_blocks(file: int, length: int, begins: array[int], starts: array[int]) -> int | None:
    """Add where each block begins in the content and in the file; return the content's size.

    None where there is anything else than stored blocks up to the trailer, or too many of them.
    """
    # Through the mapping, the kernel would show us, and perhaps read, all that lies between.
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
    at, size, final, short = len(HEADER), 0, 0, 0
    end = length - _TRAILER.size
    while not final and at + _BLOCK_HEADER.size <= end:
        final, block, inverse = _BLOCK_HEADER.unpack(os.pread(file, _BLOCK_HEADER.size, at))
        short += block != MAX_BLOCK
        if final > 1 or not block or block ^ inverse != MAX_BLOCK or short > _MAX_SHORT_BLOCKS:
            return None
        at += _BLOCK_HEADER.size
        begins.append(size)
        starts.append(at)
        at, size = at + block, size + block
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_NORMAL)
    return size if final and at == end else None


def _crc(stored: StoredGzip) -> int:
    crc = 0
    for piece in stored.pieces(0, len(stored)):
        crc = zlib.crc32(piece, crc)
    return crc


def combine_crc(first: int, second: int, size: int) -> int:
    """Return the CRC-32 of two pieces of data in a row, the second of `size` bytes.

    Appending a zero bit to data is a linear map of its CRC over GF(2); appending `size` bytes is
    that map applied 8 · `size` times, by repeated squaring. Source: zlib `crc32_combine`.
    """
    # Column i is what bit i becomes; the polynomial is that of RFC 1952, reflected.
    power = [0xEDB88320] + [1 << bit for bit in range(31)]
    for _ in range(3):
        power = [_times(power, column) for column in power]
    while size:
        if size & 1:
            first = _times(power, first)
        power = [_times(power, column) for column in power]
        size >>= 1
    return first ^ second


def _times(matrix: list[int], vector: int) -> int:
    result, bit = 0, 0
    while vector:
        if vector & 1:
            result ^= matrix[bit]
        vector >>= 1
        bit += 1
    return result
