"""The zip container of torch ≥ 1.6, read where no two readers could disagree."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

from jarvis_rules.formats._checkpoint_reading import Bytes, refused, unpack
from jarvis_rules.formats.tar import quoted

MAX_ENTRIES = 200_000
MAX_INFLATED_SIZE = 1 << 30  # torch stores its entries; only a re-packed file is compressed
MAX_RATIO = 32
RATIO_GRACE = 1 << 20


class TorchZip:
    """A zip directory that leaves no two readers of different opinion."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.inflated = 0
        self.entries: dict[str, _Entry] = {}
        self.scan()

    def scan(self) -> None:
        """Fill `entries`; refuse duplicates, overlaps and what the local headers contradict."""
        count, size, start, stop = self.directory()
        if count > MAX_ENTRIES or start + size != stop:
            raise refused("zip", f"the directory of {count} entries is not where the zip ends")
        at, taken = start, []
        for _ in range(count):
            name, entry, at = self.entry(at)
            if name in self.entries:
                raise refused("zip-duplicate", f"the zip holds {quoted(name)} twice")
            self.entries[name] = entry
            taken.append((entry.header, entry.start + entry.packed, name))
        if at != stop:
            raise refused(
                "zip", f"the directory has {stop - at} bytes too many for {count} entries"
            )
        taken.sort()
        for (_, end, name), (begin, _, other) in pairwise([*taken, (start, 0, "the directory")]):
            if end > begin:
                raise refused("zip-overlap", f"{quoted(name)} overlaps {quoted(other)} in the zip")

    def directory(self) -> tuple[int, int, int, int]:
        """Return the directory's entry count, size, offset and the offset where it must end."""
        end = len(self.data) - 22
        magic, *small, comment = unpack("<4s4H2IH", self.data, max(end, 0))
        if end < 0 or magic != b"PK\5\6" or comment:
            raise refused("truncated", "the zip does not end with its directory")
        magic, stop = unpack("<4s4xQ", self.data, end - 20) if end >= 20 else (b"", 0)
        if magic != b"PK\6\7":
            wide, stop = tuple(small), end
        else:
            magic, length = unpack("<4sQ", self.data, stop)
            if magic != b"PK\6\6" or stop + 12 + length != end - 20:
                raise refused("zip", "the zip64 directory is not where the zip ends")
            wide = unpack("<2I4Q", self.data, stop + 16)
        saturated = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        agree = [a in (b, c) for a, b, c in zip(small, wide, saturated, strict=True)]
        if not all(agree) or any(wide[:2]):
            raise refused("zip", "the two directories of the zip contradict each other")
        return wide[3], wide[4], wide[5], stop

    def entry(self, at: int) -> tuple[str, _Entry, int]:
        """Return one directory entry, checked against its local header, and where the next is."""
        magic, flags, method, crc, packed, size, name_size, extra_size, comment_size, header = (
            unpack("<4s4x2H4x3I3H8xI", self.data, at)
        )
        raw = bytes(self.data[at + 46 : at + 46 + name_size])
        after = at + 46 + name_size + extra_size
        if packed == 0xFFFFFFFF or size == 0xFFFFFFFF or header == 0xFFFFFFFF:
            extra = bytes(self.data[at + 46 + name_size : after])
            size, packed, header = _zip64_fields(extra, size, packed, header)
        name = raw.decode("utf-8", "backslashreplace")
        local = unpack("<4s2x2H4x3I2H", self.data, header)
        start = header + 30 + local[6] + local[7]
        local_name = bytes(self.data[header + 30 : header + 30 + local[6]])
        if magic != b"PK\1\2" or local[0] != b"PK\3\4" or local[2] != method or local_name != raw:
            other = quoted(local_name.decode("utf-8", "backslashreplace"))
            raise refused("zip", f"its directory says {quoted(name)}, its data says {other}")
        if flags & 1 or local[1] & 1 or method not in (0, 8) or (method == 0 and packed != size):
            raise refused("zip", f"{quoted(name)} is encrypted or compressed in an unknown way")
        # Of sizes behind the content, and of zip64, the local header need not know.
        unknown = (0, 0xFFFFFFFF) if local[1] & 8 else (0xFFFFFFFF,)
        sums = zip(local[3:6], (crc, packed, size), strict=True)
        if any(a != b and a not in unknown for a, b in sums):
            raise refused("zip", f"the two headers of {quoted(name)} differ in size or CRC-32")
        entry = _Entry(header, start, packed, size, crc, method == 8)
        return name, entry, after + comment_size

    def read(self, name: str) -> Bytes:
        """Return the content of an entry: a view when stored, its CRC-32 verified."""
        if name not in self.entries:
            raise refused("storage", f"{quoted(name)} is missing in the zip")
        entry = self.entries[name]
        content: Bytes = self.data[entry.start : entry.start + entry.packed]
        if entry.deflated:
            content = self.inflate(name, entry, content)
        if zlib.crc32(content) != entry.crc:
            raise refused("crc", f"{quoted(name)} does not match its CRC-32")
        return content

    def inflate(self, name: str, entry: _Entry, packed: Bytes) -> bytes:
        """Return a decompressed entry, refused before it is when it claims too much."""
        self.inflated += entry.size
        is_bomb = entry.size > RATIO_GRACE and entry.size > MAX_RATIO * entry.packed
        if is_bomb or self.inflated > MAX_INFLATED_SIZE:
            message = f"{quoted(name)} inflates {entry.packed} bytes to {entry.size}"
            raise refused("compression-bomb", message)
        decoder = zlib.decompressobj(-15)
        try:
            content = decoder.decompress(packed, entry.size + 1)
        except zlib.error as error:
            raise refused("zip", f"{quoted(name)} is damaged: {error}") from None
        if len(content) != entry.size or not decoder.eof:
            raise refused("zip", f"{quoted(name)} does not inflate to its {entry.size} bytes")
        return content


@dataclass(frozen=True, slots=True)
class _Entry:
    header: int
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


def _zip64_fields(extra: bytes, *fields: int) -> list[int]:
    """Return the fields with each saturated one taken from the zip64 extra, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = unpack("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            return [next(wide, f) if f == 0xFFFFFFFF else f for f in fields]
        at += 4 + size
    return list(fields)
