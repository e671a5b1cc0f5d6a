"""Goes through gzip and tar as far as anything can be read, past every fault."""

from __future__ import annotations

import mmap
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.tar import (
    BLOCK,
    MAX_GZIP_STREAMS,
    MAX_HEADERS,
    MAX_INFLATED_SIZE,
    MAX_RATIO,
    RATIO_GRACE,
    Refusals,
    TarListing,
    TarMember,
    header_name,
    quoted,
)
from jarvis_rules.scanning.report import Findings

_CHUNK = 256 << 10
_MAX_SEARCH = 1 << 16  # blocks that are searched for a next header
_EXTRA, _NAME, _COMMENT, _HEADER_CRC = 4, 8, 16, 2  # flags of a gzip header


def inflate(source: mmap.mmap, findings: Findings) -> IO[bytes]:
    """Return an unlinked file with all that gzip data inflates to before it breaks or bombs."""
    plain = tempfile.TemporaryFile()  # noqa: SIM115  (the caller's)
    at = produced = streams = 0
    while at < len(source):
        if source[at : at + 2] != b"\x1f\x8b":
            if source[at : at + _CHUNK].strip(b"\0"):
                message = f"{len(source) - at} bytes follow the gzip data"
                findings.add("gzip.trailing-data", "", message, at)
            break
        streams += 1
        if streams == 2:
            findings.add("gzip.members", "", "another gzip member starts here", at)
        if streams > MAX_GZIP_STREAMS:
            findings.add("gzip.damaged", "", f"more than {MAX_GZIP_STREAMS} gzip members", at)
            break
        at, size = _inflate_one(source, _after_header(source, at, findings), plain, findings, at)
        produced += size
        if at < 0:
            break
        if _is_bomb(produced, at):
            findings.add("gzip.bomb", "", f"{at} bytes inflate to {produced}", at)
            break
    plain.flush()
    return plain


def _is_bomb(produced: int, consumed: int) -> bool:
    too_steep = produced > RATIO_GRACE and produced > MAX_RATIO * consumed
    return too_steep or produced > MAX_INFLATED_SIZE


def _after_header(source: mmap.mmap, at: int, findings: Findings) -> int:
    """Return where the deflate data of a gzip member starts."""
    flags, end = (source[at + 3 : at + 4] or b"\0")[0], at + 10
    if flags & (_EXTRA | _COMMENT):
        findings.add("gzip.extra", "", "the gzip header has an extra field or a comment", at)
    if flags & _EXTRA:
        end += 2 + int.from_bytes(source[end : end + 2], "little")
    for flag in (_NAME, _COMMENT):
        if flags & flag:
            end = source.find(b"\0", end) + 1 or len(source)
    return end + (2 if flags & _HEADER_CRC else 0)


def _inflate_one(
    source: mmap.mmap, at: int, plain: IO[bytes], findings: Findings, start: int
) -> tuple[int, int]:
    """Inflate one gzip member; return where it ends (-1: nothing follows), and its size."""
    decoder = zlib.decompressobj(-15)
    crc = produced = 0
    rest = b""
    while not decoder.eof:
        if not rest:
            rest, at = source[at : at + _CHUNK], at + len(source[at : at + _CHUNK])
        if not rest:
            findings.add("gzip.damaged", "", "the gzip data breaks off", len(source))
            return -1, produced
        try:
            piece = decoder.decompress(rest, _CHUNK)
        except zlib.error as error:
            findings.add("gzip.damaged", "", f"damaged gzip data before here: {error}", at)
            return -1, produced
        rest = decoder.unconsumed_tail
        crc, produced = zlib.crc32(piece, crc), produced + len(piece)
        plain.write(piece)
        if _is_bomb(produced, at - start):
            message = f"{at - start} bytes inflate to more than {produced}"
            findings.add("gzip.bomb", "", message, start)
            return -1, produced
    at -= len(decoder.unused_data)
    expected = crc.to_bytes(4, "little") + (produced & 0xFFFFFFFF).to_bytes(4, "little")
    if source[at : at + 8] != expected:
        findings.add("gzip.damaged", "", "CRC-32 or size of the gzip member is wrong", at)
    return at + 8, produced


class TolerantListing(TarListing):
    """The reader's own checks, member by member: a fault is a finding, and the listing goes on."""

    def __init__(self, data: mmap.mmap, path: Path, findings: Findings) -> None:
        super().__init__(data, Refusals(path, "tar"))
        self.findings = findings

    def note(self, fault: IntegrityError, at: int) -> None:
        """Add what the reader refuses as a finding; the slugs are the rules."""
        self.findings.add(fault.slug, "", fault.message, at)

    def __iter__(self) -> Iterator[TarMember]:
        """Yield every member whose bytes are there, also those that the reader refuses."""
        at = 0
        shared: dict[str, bytes] = {}
        own: dict[str, bytes] = {}
        for _ in range(MAX_HEADERS):
            header = self.data[at : at + BLOCK]
            try:
                if len(header) < BLOCK:
                    raise self.truncated("before its end mark")
                if not any(header):
                    self.check_end(at, own)
                    return
                self.check_checksum(header, at)
                size = self.number(header[124:136], at)
                if header[156:157] in b"xgLK":
                    target = shared if header[156:157] == b"g" else own
                    target |= self.extension(header[156:157], at + BLOCK, size)
            except IntegrityError as fault:
                self.note(fault, at)
                at, own = self.next_header(at + BLOCK), {}
                if at < 0:
                    return
                continue
            if header[156:157] not in b"xgLK":
                size, member = self.member(header, at + BLOCK, size, shared | own)
                own = {}
                if member:
                    yield member
            at += BLOCK + -(-size // BLOCK) * BLOCK
            if at > len(self.data):
                return
        self.findings.add("tar.too-many-members", "", f"more than {MAX_HEADERS} headers", at)

    def member(
        self, header: bytes, at: int, size: int, extra: dict[str, bytes]
    ) -> tuple[int, TarMember | None]:
        """Return a member's size and the member, whatever is wrong with it."""
        raw = extra.get("path", header_name(header))
        name = raw.decode("utf-8", "backslashreplace")
        is_file = header[156:157] in (b"0", b"\0")
        try:
            size = self.settled_size(self.decoded(raw), size, extra)
            member = self.checked(name, header, at, size)
            is_file = member is not None
        except IntegrityError as fault:
            self.note(fault, at - BLOCK)
        padding = self.data[at + size : at + -(-size // BLOCK) * BLOCK]
        if padding.strip(b"\0"):
            message = f"{len(padding)} bytes of padding behind {quoted(name)} are not zero"
            self.findings.add("tar.padding", "", message, at + size)
        name = "/".join(part for part in name.split("/") if part not in ("", "."))
        there = max(0, min(size, len(self.data) - at))
        return size, TarMember(name, at, there) if is_file and there >= min(size, 1) else None

    def next_header(self, at: int) -> int:
        """Return the place of the next block that is a header, or -1."""
        at = -(-at // BLOCK) * BLOCK
        for start in range(at, min(len(self.data), at + _MAX_SEARCH * BLOCK), BLOCK):
            header = self.data[start : start + BLOCK]
            if header[257:262] == b"ustar" and len(header) == BLOCK:
                with suppress(IntegrityError):
                    self.check_checksum(header, max(start, 1))
                    return start
        return -1
