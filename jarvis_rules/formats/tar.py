"""Hardened reading of plain and gzip tar archives: listed once, checked, never extracted."""

from __future__ import annotations

import mmap
import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.input_file import open_regular, unreadable
from jarvis_rules.formats.stored_gzip import StoredGzip, read_stored

BLOCK = 512
MAX_HEADERS = 2048  # a member takes one, with pax records or a long name two
MAX_MEMBER_SIZE = 64 << 30
MAX_TOTAL_SIZE = 128 << 30
MAX_NAME_LENGTH = 1024
MAX_EXTENSION_SIZE = 32 << 10  # pax records or a GNU long name of one member
MAX_PADDING = 4 << 20  # zero blocks after the last member; the usual record is 10 KiB
MAX_INFLATED_SIZE = 32 << 30
MAX_GZIP_STREAMS = 64
MAX_RATIO = 32  # weights barely compress, so a gzip checkpoint stays near 1
RATIO_GRACE = 4 << 20  # small archives are mostly text and padding, which do compress
GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 256 << 10
_OCTAL_LIMIT = 8**11  # the first size that the octal field of a header cannot hold

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_PAX_LENGTH = re.compile(rb"([1-9][0-9]{0,9}) ")

_FETCH_AGAIN = "fetch the file again and compare its checksum with the publisher's"
_REPACK = "no honest tool writes this; get the file from its publisher, or pack it again"
_HINTS = {
    "empty": "the download or copy did not finish; fetch the file again",
    "truncated": "the download or copy did not finish; fetch the file again",
    "not-a-tar": "expected a plain or gzip tar archive; check that this is the right file",
    "gzip": _FETCH_AGAIN,
    "header": _FETCH_AGAIN,
    "compression-bomb": "decompressing it could fill the disk; a real checkpoint barely compresses",
}
_FORBIDDEN_TYPES = {
    b"1": ("member-link", "is a hard link to"),
    b"2": ("member-link", "is a symbolic link to"),
    b"3": ("member-device", "is a character device"),
    b"4": ("member-device", "is a block device"),
    b"6": ("member-device", "is a named pipe"),
    b"S": ("member-sparse", "is a sparse file"),
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file of an archive: normalised name, byte offset in the plain tar, byte size."""

    name: str
    offset: int
    size: int


class TarArchive:
    """A checked, memory-mapped tar; a context manager. Views stay valid after it is closed.

    `stored` is its content where it lies in blocks of stored gzip.
    """

    def __init__(
        self, path: Path, members: tuple[TarMember, ...], data: mmap.mmap | StoredGzip
    ) -> None:
        self.path = path
        self.members = members
        self._data: mmap.mmap | StoredGzip | None = data

    def find(self, name: str) -> TarMember | None:
        """Return the member of exactly this normalised name, or None."""
        return next((member for member in self.members if member.name == name), None)

    @property
    def stored(self) -> StoredGzip | None:
        """The stored blocks that the tar lies in, or None where it lies in one piece."""
        return self._data if isinstance(self._data, StoredGzip) else None

    def view(self, member: TarMember) -> memoryview:
        """Return the member's bytes, read-only; not copied unless the tar lies in blocks."""
        start, end = member.offset, member.offset + member.size
        data = self._open_data()
        if isinstance(data, StoredGzip):
            return memoryview(data[start:end])
        return memoryview(data)[start:end]

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes from `start` to `end` of the tar, read-only and without copying."""
        data = self._open_data()
        if isinstance(data, StoredGzip):
            yield from data.pieces(start, end)
        else:
            yield memoryview(data)[start:end]

    def _open_data(self) -> mmap.mmap | StoredGzip:
        if self._data is None:
            raise ValueError("the archive is closed")
        return self._data

    def close(self) -> None:
        """Give up the mapping; it ends with its last view.

        Closing it by force is not safe: numpy arrays can rest on it without holding its buffer.
        """
        self._data = None

    def __enter__(self) -> TarArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def release_pages(view: memoryview) -> None:
    """Give back the memory of all that was read of the mapping that `view` is of, if it is of one.

    Views stay valid: what is read again comes again from the file, mostly from the page cache.
    """
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


def quoted(text: str, limit: int = 120) -> str:
    """Return untrusted text in backticks, safe on a terminal and at most `limit` characters."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:limit]
    )
    return "`" + shown.replace("`", "'") + ("…`" if len(text) > limit else "`")


def open_tar(path: Path, kind: str = "tar", *, in_blocks: bool = False) -> TarArchive:
    """List and check a plain or gzip tar, told apart by magic, and map it into memory.

    `kind` is the first half of every slug (`nemo.member-link`). A gzip archive is decompressed
    into an unlinked temporary file under `MAX_RATIO` and `MAX_INFLATED_SIZE`; one of stored blocks
    is read where it lies if `in_blocks`, and its members are then in pieces. The file must not be
    truncated while it is open: the kernel would kill the process, as with every mapping.
    Raises `UsageError` where the file cannot be read and `IntegrityError` where it is refused.
    Format: POSIX.1-2001 ustar and pax, GNU long names, RFC 1952 gzip.
    """
    refuse = Refusals(path, kind)
    try:
        with open_regular(path) as source:
            magic = source.read(len(GZIP_MAGIC))
            source.seek(0)
            if not magic:
                raise refuse("empty", "expected a tar archive, got an empty file")
            if magic != GZIP_MAGIC:
                return _map(path, source, refuse)
            if in_blocks and (stored := _stored(source)) is not None:
                return TarArchive(path, tuple(TarListing(stored, refuse)), stored)
            with tempfile.TemporaryFile() as plain:
                _inflate(source, plain, refuse)
                return _map(path, plain, refuse)
    except OSError as error:
        raise unreadable(path, error) from error


@dataclass(frozen=True, slots=True)
class Refusals:
    """Makes the error for a file: `kind` is the first half of the slug, `name` the second."""

    path: Path
    kind: str

    def __call__(self, name: str, message: str) -> IntegrityError:
        """Return the error."""
        hint = _HINTS.get(name, _REPACK)
        return IntegrityError(message, slug=f"{self.kind}.{name}", hint=hint, where=str(self.path))


def _inflate(source: IO[bytes], plain: IO[bytes], refuse: Refusals) -> None:
    consumed = produced = streams = 0
    decoder = zlib.decompressobj(31)
    while chunk := source.read(_CHUNK):
        consumed += len(chunk)
        while chunk:
            if decoder.eof:
                if not chunk.strip(b"\0"):
                    break
                streams += 1
                decoder = zlib.decompressobj(31)
            if streams > MAX_GZIP_STREAMS:
                raise refuse("gzip", f"holds more than {MAX_GZIP_STREAMS} gzip streams")
            try:
                piece = decoder.decompress(chunk, _CHUNK)
            except zlib.error as error:
                raise refuse("gzip", f"damaged gzip data near byte {consumed}: {error}") from error
            chunk = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
            produced += len(piece)
            _check_inflation(consumed, produced, refuse)
            plain.write(piece)
    if not decoder.eof:
        raise refuse("truncated", f"the gzip data breaks off after {consumed} bytes")
    plain.flush()


def _check_inflation(consumed: int, produced: int, refuse: Refusals) -> None:
    if produced > MAX_INFLATED_SIZE:
        raise refuse("compression-bomb", f"decompresses to more than {MAX_INFLATED_SIZE} bytes")
    if produced > RATIO_GRACE and produced > MAX_RATIO * consumed:
        message = f"{consumed} bytes inflate to over {produced}, more than {MAX_RATIO} times"
        raise refuse("compression-bomb", message)


def _stored(source: IO[bytes]) -> StoredGzip | None:
    data = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    return read_stored(data, source.fileno())


def _map(path: Path, source: IO[bytes], refuse: Refusals) -> TarArchive:
    size = source.seek(0, 2)
    if size < BLOCK:
        raise refuse("not-a-tar", f"{size} bytes are less than one tar header")
    data = mmap.mmap(source.fileno(), 0, access=mmap.ACCESS_READ)
    return TarArchive(path, tuple(TarListing(data, refuse)), data)


@dataclass(slots=True)
class TarListing:
    """One pass over the headers of a plain tar, yielding what passed every check."""

    data: mmap.mmap | StoredGzip
    refuse: Refusals
    seen: set[str] = field(default_factory=set)
    total: int = 0

    def __iter__(self) -> Iterator[TarMember]:
        at, shared, own = 0, dict[str, bytes](), dict[str, bytes]()
        for _ in range(MAX_HEADERS):
            header = self.data[at : at + BLOCK]
            if len(header) < BLOCK:
                raise self.truncated("before its end mark")
            if not any(header):
                return self.check_end(at, own)
            self.check_checksum(header, at)
            at += BLOCK
            size = self.number(header[124:136], at)
            if header[156:157] in b"xgLK":
                target = shared if header[156:157] == b"g" else own
                target |= self.extension(header[156:157], at, size)
            else:
                extra, own = shared | own, {}
                name = self.decoded(extra.get("path", header_name(header)))
                size = self.settled_size(name, size, extra)
                if member := self.checked(name, header, at, size):
                    yield member
            at += -(-size // BLOCK) * BLOCK
        raise self.refuse("too-many-members", f"holds more than {MAX_HEADERS} headers")

    def truncated(self, place: str) -> IntegrityError:
        """Return the error for a tar that breaks off in a place."""
        return self.refuse("truncated", f"breaks off at byte {len(self.data)}, {place}")

    def check_checksum(self, header: bytes, at: int) -> None:
        """Refuse a header whose checksum, unsigned or as old tars wrote it signed, is wrong."""
        blanked = header[:148] + b" " * 8 + header[156:]
        unsigned = sum(blanked)
        signed = unsigned - 256 * sum(byte > 127 for byte in blanked)
        match = _OCTAL.fullmatch(header[148:156])
        if not match or not match[1] or int(match[1], 8) not in (unsigned, signed):
            if at == 0:
                raise self.refuse("not-a-tar", "starts with neither a tar header nor gzip")
            raise self.refuse("header", f"the member header at byte {at} has a wrong checksum")

    def number(self, value: bytes, at: int) -> int:
        """Return the size field: octal digits, or base 256 when the first bit is set (GNU)."""
        if value[0] == 0x80:
            return int.from_bytes(value[1:], "big")
        if value[0] == 0xFF:
            raise self.refuse("member-size", f"the member header at byte {at} has a negative size")
        if not (match := _OCTAL.fullmatch(value)):
            raise self.refuse("header", f"the member header at byte {at} has no readable size")
        return int(match[1] or b"0", 8)

    def extension(self, flag: bytes, at: int, size: int) -> dict[str, bytes]:
        """Return the pax records or the long name that a header of its own brings."""
        if size > MAX_EXTENSION_SIZE:
            raise self.refuse("member-size", f"the pax header at byte {at} claims {size} bytes")
        body = self.data[at : at + size]
        if len(body) < size:
            raise self.truncated("within a pax header")
        if flag in b"LK":
            return {"path": body.rstrip(b"\0")} if flag == b"L" else {}
        return dict(self.pax_records(body, at))

    def pax_records(self, body: bytes, at: int) -> Iterator[tuple[str, bytes]]:
        """Yield the `length key=value` records of a pax header."""
        start = 0
        while start < len(body):
            match = _PAX_LENGTH.match(body, start)
            end = start + int(match[1]) if match else start
            key, equals, value = body[match.end() if match else start : end].partition(b"=")
            if end > len(body) or value[-1:] != b"\n" or not equals:
                raise self.refuse("header", f"the pax header at byte {at} is malformed")
            yield key.decode("latin-1"), value[:-1]
            start = end

    def settled_size(self, name: str, size: int, extra: dict[str, bytes]) -> int:
        """Return the one size on which every tar reader agrees.

        A pax size may only say what the octal field of the header cannot, else a reader that
        knows pax and one that does not would see different members.
        """
        if any(key.startswith("GNU.sparse") for key in extra):
            raise self.refuse("member-sparse", f"{quoted(name)} is a sparse file")
        if "size" in extra:
            given = extra["size"]
            if not given.isdigit() or len(given) > 19:
                raise self.refuse("member-size", f"{quoted(name)} has the pax size {given[:20]!r}")
            if int(given) != size and int(given) < _OCTAL_LIMIT:
                message = f"{quoted(name)} has two sizes: {size} in its header, {int(given)} in pax"
                raise self.refuse("member-size", message)
            size = int(given)
        if size > MAX_MEMBER_SIZE:
            message = f"{quoted(name)} claims {size} bytes, more than {MAX_MEMBER_SIZE}"
            raise self.refuse("member-size", message)
        return size

    def decoded(self, name: bytes) -> str:
        """Return the name as text."""
        try:
            return name.decode()
        except UnicodeDecodeError:
            shown = quoted(name.decode("utf-8", "backslashreplace"))
            raise self.refuse("member-name", f"the member name {shown} is not UTF-8") from None

    def checked(self, name: str, header: bytes, at: int, size: int) -> TarMember | None:
        """Return the member when it may be read, None for a folder."""
        flag = header[156:157]
        folder = flag == b"5" or (flag == b"\0" and name.endswith("/"))
        if flag in _FORBIDDEN_TYPES:
            slug, is_a = _FORBIDDEN_TYPES[flag]
            target = header[157:257].split(b"\0")[0].decode("utf-8", "backslashreplace")
            suffix = " " + quoted(target) if slug == "member-link" else ""
            raise self.refuse(slug, f"{quoted(name)} {is_a}{suffix}")
        if not folder and flag not in (b"0", b"\0"):
            raise self.refuse("member-type", f"{quoted(name)} has the unknown type {flag!r}")
        plain = self.normalised(name, folder)
        if folder and size:
            raise self.refuse("member-size", f"the folder {quoted(name)} claims {size} bytes")
        if not plain:
            return None
        if plain in self.seen:
            raise self.refuse("member-duplicate", f"holds {quoted(plain)} twice")
        self.seen.add(plain)
        self.total += size
        if self.total > MAX_TOTAL_SIZE:
            raise self.refuse("too-large", f"the members exceed {MAX_TOTAL_SIZE} bytes in total")
        if at + size > len(self.data):
            message = f"{quoted(plain)} claims {size} bytes, but only {len(self.data) - at} follow"
            raise self.refuse("truncated", message)
        return None if folder else TarMember(plain, at, size)

    def normalised(self, name: str, folder: bool) -> str:
        """Return the name without `.` parts, or refuse one that no honest archive has."""
        parts = [part for part in name.split("/") if part not in ("", ".")]
        shown = f"the member {quoted(name)}"
        if name.startswith("/"):
            raise self.refuse("member-absolute", f"{shown} has an absolute path")
        if ".." in parts:
            raise self.refuse("member-traversal", f"{shown} leads out of the archive")
        if "\\" in name or _CONTROL.search(name):
            raise self.refuse("member-name", f"{shown} has a backslash or control character")
        if len(name) > MAX_NAME_LENGTH:
            raise self.refuse("member-name", f"{shown} has a name of {len(name)} characters")
        if not folder and (not parts or name.endswith("/")):
            raise self.refuse("member-name", f"{shown} has an empty file name")
        return "/".join(parts)

    def check_end(self, at: int, own: dict[str, bytes]) -> None:
        """Refuse an archive that ends too early, or that goes on after its end mark."""
        rest = self.data[at : at + MAX_PADDING + 1]
        if own:
            raise self.refuse("header", f"the pax header before byte {at} belongs to no member")
        if len(rest) < 2 * BLOCK:
            raise self.truncated("within its end mark")
        if len(rest) > MAX_PADDING or rest.strip(b"\0"):
            raise self.refuse("trailing-data", f"goes on after its end mark at byte {at}")


def header_name(header: bytes) -> bytes:
    """Return the member name of a ustar, GNU or v7 header, its prefix joined."""
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    # GNU keeps times where ustar keeps the prefix; only the magic tells them apart.
    is_ustar = header[257:263] == b"ustar\0"
    return prefix + b"/" + name if is_ustar and prefix else name
