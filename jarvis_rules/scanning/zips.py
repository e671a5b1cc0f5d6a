"""Looks at a zip as several readers would: its directory, its local headers, what lies between."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from jarvis_rules.formats.tar import quoted, release_pages
from jarvis_rules.formats.torch_zip import MAX_ENTRIES, MAX_RATIO, RATIO_GRACE
from jarvis_rules.scanning.report import Findings

MAX_INFLATED_SIZE = 256 << 20  # of all entries; what is beyond is not inflated
MAX_COMMENT = 1 << 16
_CHUNK = 1 << 20
_DESCRIPTOR = 8  # flag: sizes and CRC-32 follow the content, the local header has none
_SATURATED = 0xFFFFFFFF
_LINK = 0o120000


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """An entry as the directory has it; `content` is None where it cannot be told."""

    name: str
    header: int
    end: int
    size: int
    content: memoryview | bytes | None


class ZipScan:
    """Lists the entries of a zip, and finds what is wrong with it."""

    def __init__(self, data: memoryview, where: str, findings: Findings) -> None:
        self.data = data
        self.where = where
        self.findings = findings
        self.inflated = 0
        self.summed = 0

    def add(self, rule: str, message: str, offset: int | None = None) -> None:
        """Add a finding."""
        self.findings.add(rule, self.where, message, offset)

    def entries(self) -> list[ZipEntry]:
        """Return the entries of the directory; without one, those that the local headers tell."""
        tail = bytes(self.data[-MAX_COMMENT - 22 :])
        at = tail.rfind(b"PK\5\6")
        if at < 0 or at + 22 > len(tail):
            self.add("zip.truncated", "the zip has no directory", len(self.data))
            return list(self.loose_entries(0, len(self.data)))
        end = len(self.data) - len(tail) + at
        if rest := len(self.data) - end - 22:
            self.add("zip.trailing-data", f"{rest} bytes follow the directory", end + 22)
        count, start, stop = self.directory(end)
        entries = []
        at = start
        for index in range(count):
            entry, at = self.entry(at)
            if entry is None:
                message = f"its end mark says {count} entries, {index} can be read"
                self.add("zip.directory", message, start)
                break
            entries.append(entry)
        else:
            if at != stop:
                message = f"{stop - at} bytes lie between the last of {count} entries and its end"
                self.add("zip.directory", message, at)
        self.check_layout(entries, start)
        return entries

    def directory(self, end: int) -> tuple[int, int, int]:
        """Return the directory's entry count, start, and stop."""
        disk, first_disk, here, count, size, start = self.unpack("<4x4H2I", end) or (0,) * 6
        stop = end
        if (locator := self.unpack("<4s4xQ", end - 20)) and locator[0] == b"PK\6\7":
            stop = locator[1]
            if (wide := self.unpack("<4sQ4x2I4Q", stop)) and wide[0] == b"PK\6\6":
                small = (disk, first_disk, here, count, size, start)
                disk, first_disk, here, count, size, start = wide[2:]
                known = zip(small, wide[2:], strict=True)
                if any(a not in (b, 0xFFFF, _SATURATED) for a, b in known):
                    message = "the zip64 directory and the plain one differ"
                    self.add("zip.directory", message, stop)
                if stop + 12 + wide[1] != end - 20:
                    self.add("zip.directory", "the zip64 directory is not where it ends", stop)
            else:
                self.add("zip.directory", "the zip64 directory is not where it should be", end)
        if here != count or disk or first_disk:
            self.add("zip.directory", "it claims to be one of several volumes", end)
        if start + size != stop:
            message = f"the directory should span {start} to {start + size}, but ends at {stop}"
            self.add("zip.directory", message, end)
            # What stands before the zip shifts all of it, as in a self-extracting program.
            start = stop - size if 0 <= stop - size < len(self.data) else start
        if count > MAX_ENTRIES:
            self.add("zip.limit", f"{count} entries, at most {MAX_ENTRIES} are looked at", end)
        return min(count, MAX_ENTRIES), start, stop

    def unpack(self, layout: str, at: int) -> tuple[Any, ...] | None:
        """Return the fields at a place, or None outside of the data."""
        if at < 0 or at + struct.calcsize(layout) > len(self.data):
            return None
        return struct.unpack_from(layout, self.data, at)

    def entry(self, at: int) -> tuple[ZipEntry | None, int]:
        """Return the directory's entry at a place, compared with its local header."""
        fields = self.unpack("<4s2x3H4x3I3H4x2I", at)
        if fields is None or fields[0] != b"PK\1\2":
            return None, at
        _, _, flags, method, crc, packed, size, *sizes, mode, header = fields
        name_end = at + 46 + sizes[0]
        extra = bytes(self.data[name_end : name_end + sizes[1]])
        raw = bytes(self.data[at + 46 : name_end])
        size, packed, header = _zip64(extra, size, packed, header)
        name = raw.decode("utf-8", "backslashreplace")
        self.check_name(name, mode >> 16, at)
        start = self.check_local(name, raw, header, flags, method, (crc, packed, size))
        end = self.descriptor_end(start + packed, crc) if flags & _DESCRIPTOR else start + packed
        content = self.content(name, start, method, crc, packed, size)
        if flags & 1:
            self.add("zip.encrypted", f"{quoted(name)} is encrypted", at)
            content = None
        return ZipEntry(name, header, end, size, content), name_end + sizes[1] + sizes[2]

    def check_name(self, name: str, mode: int, at: int) -> None:
        """Report a name that leads out of the folder that it is unpacked into."""
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            self.add("zip.name", f"the entry {quoted(name)} leads out of the zip", at)
        if mode & 0o170000 == _LINK:
            self.add("zip.name", f"the entry {quoted(name)} is a symbolic link", at)

    def check_local(
        self,
        name: str,
        raw: bytes,
        header: int,
        flags: int,
        method: int,
        sums: tuple[int, int, int],
    ) -> int:
        """Compare an entry with its local header; return where its content starts."""
        local = self.unpack("<4s2x2H4x3I2H", header)
        if local is None or local[0] != b"PK\3\4":
            self.add("zip.mismatch", f"no local header for {quoted(name)}", header)
            return header
        start = header + 30 + local[6] + local[7]
        local_raw = bytes(self.data[header + 30 : header + 30 + local[6]])
        extra = bytes(self.data[header + 30 + local[6] : start])
        size, packed = _zip64(extra, local[5], local[4])
        differs = []
        if local_raw != raw:
            differs.append(f"name {quoted(local_raw.decode('utf-8', 'backslashreplace'))}")
        if (local[1], local[2]) != (flags, method):
            differs.append(f"flags {local[1]} and method {local[2]}")
        # Before a descriptor, the header need not know.
        unknown = (0, _SATURATED) if local[1] & _DESCRIPTOR else ()
        said = (local[3], packed, size)
        if any(a != b and a not in unknown for a, b in zip(said, sums, strict=True)):
            differs.append(f"CRC-32 {local[3]:08x}, sizes {packed} and {size}")
        if differs:
            message = f"the local header of {quoted(name)} says {', '.join(differs)}"
            self.add("zip.mismatch", message, header)
        return int(start)

    def descriptor_end(self, at: int, crc: int) -> int:
        """Return where the data descriptor behind an entry's content ends."""
        for layout, length in (("<4sI2Q", 24), ("<4s3I", 16)):
            fields = self.unpack(layout, at)
            if fields and fields[:2] == (b"PK\7\10", crc) and self.is_boundary(at + length):
                return at + length
        return at

    def is_boundary(self, at: int) -> bool:
        """Return whether something of a zip starts at a place."""
        return bytes(self.data[at : at + 2]) == b"PK"

    def content(
        self, name: str, start: int, method: int, crc: int, packed: int, size: int
    ) -> memoryview | bytes | None:
        """Return an entry's content, or None where it cannot be had; report what is wrong."""
        if start + packed > len(self.data):
            self.add("zip.directory", f"{quoted(name)} reaches beyond the zip", start)
            return None
        raw = self.data[start : start + packed]
        if method == 0:
            content: memoryview | bytes = raw
            if packed != size:
                self.add("zip.encrypted", f"{quoted(name)} is stored with two sizes", start)
        elif method == 8:
            inflated = self.inflate(name, raw, size, start)
            if inflated is None:
                return None
            content = inflated
        else:
            self.add("zip.encrypted", f"{quoted(name)} is packed by method {method}", start)
            return None
        # Stored entries that overlap can show a file without end.
        self.summed += len(content)
        is_once = self.summed <= len(self.data) + MAX_INFLATED_SIZE
        if is_once and zlib.crc32(content) != crc:
            self.add("zip.crc", f"{quoted(name)} does not match its CRC-32", start)
        release_pages(self.data)
        return content

    def inflate(self, name: str, raw: memoryview, size: int, start: int) -> bytes | None:
        """Return inflated content up to the limits, whatever size is declared."""
        limit = min(max(RATIO_GRACE, MAX_RATIO * len(raw)), MAX_INFLATED_SIZE - self.inflated)
        decoder = zlib.decompressobj(-15)
        pieces: list[bytes] = []
        total = at = 0
        rest = b""
        try:
            while not decoder.eof and total <= limit and (rest or at < len(raw)):
                if not rest:
                    rest, at = bytes(raw[at : at + _CHUNK]), at + _CHUNK
                pieces.append(decoder.decompress(rest, _CHUNK))
                total += len(pieces[-1])
                rest = decoder.unconsumed_tail
        except zlib.error as error:
            self.add("zip.crc", f"{quoted(name)} is damaged: {error}", start)
        self.inflated += total
        if total > limit or total != size:
            more = "more than " if total > limit else ""
            message = f"{quoted(name)} declares {size} bytes; {len(raw)} bytes inflate to "
            self.add("zip.bomb", f"{message}{more}{total}", start)
        return None if total > limit else b"".join(pieces)

    def check_layout(self, entries: list[ZipEntry], start: int) -> None:
        """Report duplicates, overlaps, and what lies between entries."""
        names: set[str] = set()
        for entry in entries:
            if entry.name in names:
                self.add("zip.duplicate", f"holds {quoted(entry.name)} twice", entry.header)
            names.add(entry.name)
        extents = sorted((entry.header, entry.end, entry.name) for entry in entries)
        edges = [(0, 0, "the start"), *extents, (start, start, "the directory")]
        for (_, end, name), (begin, _, other) in pairwise(edges):
            if end > begin:
                self.add("zip.overlap", f"{quoted(name)} overlaps {quoted(other)}", begin)
            elif bytes(self.data[end : min(begin, end + _CHUNK)]).strip(b"\0"):
                hidden = [entry.name for entry in self.loose_entries(end, begin)]
                what = f", an entry {quoted(hidden[0])} among them" if hidden else ""
                message = f"{begin - end} bytes before {quoted(other)} belong to no entry{what}"
                self.add("zip.gap", message, end)

    def loose_entries(self, start: int, stop: int) -> Iterator[ZipEntry]:
        """Yield up to 1000 entries that the local headers in a range tell of, stored ones only."""
        at = start
        for _ in range(1000):
            at = self.find(b"PK\3\4", at, stop)
            if at < 0 or (local := self.unpack("<4s4xH16x2H", at)) is None:
                return
            begin = at + 30 + local[2] + local[3]
            raw = bytes(self.data[at + 30 : at + 30 + local[2]])
            content = self.data[begin:stop] if local[1] == 0 else None
            yield ZipEntry(raw.decode("utf-8", "backslashreplace"), at, begin, 0, content)
            at = max(begin, at + 4)

    def find(self, needle: bytes, start: int, stop: int) -> int:
        """Return where bytes are found in a range, or -1, without copying all of it."""
        for at in range(start, stop, _CHUNK):
            found = bytes(self.data[at : min(stop, at + _CHUNK + len(needle) - 1)]).find(needle)
            if found >= 0:
                return at + found
        return -1


def _zip64(extra: bytes, *fields: int) -> list[int]:
    """Return the fields with each saturated one taken from the zip64 extra, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            return [next(wide, f) if f == _SATURATED else f for f in fields]
        at += 4 + size
    return list(fields)
