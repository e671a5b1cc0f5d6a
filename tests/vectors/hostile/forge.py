"""Writes tar, gzip, zip and pickle by hand, so that every field can lie."""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

CONTROL = Path(__file__).parents[1] / "nemo" / "control_valid.nemo"
ARCHIVES = Path(__file__).parents[1] / "archive" / "v1"
CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"


@cache
def good(path: Path = CONTROL) -> Mapping[str, bytes]:
    """Return the members of a good archive."""
    with tarfile.open(path) as archive:
        return {
            member.name.removeprefix("./"): archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.isfile()
        }


# --- tar and gzip -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Header:
    """One header and what follows it; `size` and `checksum` are right unless they are given."""

    name: bytes
    data: bytes = b""
    kind: bytes = b"0"
    size: bytes | None = None
    link: bytes = b""
    prefix: bytes = b""
    checksum: bytes | None = None
    pad: bytes = b"\0"

    def to_bytes(self) -> bytes:
        size = b"%011o\0" % len(self.data) if self.size is None else self.size
        header = bytearray(512)
        fields = ((0, self.name), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"))
        fields += ((124, size), (136, b"00000000000\0"), (148, b" " * 8), (156, self.kind))
        fields += ((157, self.link), (257, b"ustar\00000"), (345, self.prefix))
        for at, value in fields:
            header[at : at + len(value)] = value
        header[148:156] = self.checksum or b"%06o\0 " % sum(header)
        padding = self.pad * (-len(self.data) % 512)
        return bytes(header) + self.data + padding[: -len(self.data) % 512]


END = bytes(1024)


def tar(*headers: Header, end: bytes = END) -> bytes:
    return b"".join(header.to_bytes() for header in headers) + end


def nemo(*headers: Header, end: bytes = END, **members: bytes) -> bytes:
    """A good `.nemo`, its config or weights exchanged, with more headers behind."""
    config = members.get("config", good()[CONFIG])
    weights = members.get("weights", good()[WEIGHTS])
    both = (Header(CONFIG.encode(), config), Header(WEIGHTS.encode(), weights))
    return tar(*both, *headers, end=end)


def pax(name: str, value: bytes, kind: bytes = b"x") -> Header:
    body = name.encode() + b"=" + value + b"\n"
    length = len(body) + 3
    while len(record := b"%d " % length + body) != length:
        length = len(record)
    return Header(b"pax", record, kind)


def gz(data: bytes, *, level: int = 1, crc: int | None = None, size: int | None = None) -> bytes:
    """One gzip member of no time and no name."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    body = packer.compress(data) + packer.flush()
    crc = zlib.crc32(data) if crc is None else crc
    trailer = struct.pack("<2I", crc, (len(data) if size is None else size) & 0xFFFFFFFF)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + body + trailer


# --- zip --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """A zip entry; what is in `local` and `central` overrides the true fields there."""

    name: str
    data: bytes = b""
    deflate: bool = False
    local: Mapping[str, object] = field(default_factory=dict)
    central: Mapping[str, object] = field(default_factory=dict)
    in_directory: bool = True
    at: int | None = None  # the entry's place, where it is not behind the one before


def packed(entries: Sequence[Entry], tail: bytes = b"", **end: int) -> bytes:
    """A zip; `end` overrides `count`, `size`, `start` of the end mark; `tail` precedes that."""
    body, directory, count = bytearray(), bytearray(), 0
    for entry in entries:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        raw = packer.compress(entry.data) + packer.flush() if entry.deflate else entry.data
        true = {
            "name": entry.name.encode(),
            "flags": 0,
            "method": 8 if entry.deflate else 0,
            "crc": zlib.crc32(entry.data),
            "packed": len(raw),
            "size": len(entry.data),
            "header": len(body) if entry.at is None else entry.at,
            "extra": b"",
            "mode": 0,
        }
        f = {**true, **entry.local}
        if entry.at is None:
            body += struct.pack(
                "<4s5H3I2H", b"PK\3\4", 20, f["flags"], f["method"], 0, 33,
                f["crc"], f["packed"], f["size"], len(f["name"]), len(f["extra"]),
            ) + f["name"] + f["extra"] + raw  # fmt: skip
        f = {**true, **entry.central}
        if entry.in_directory:
            count += 1
            directory += struct.pack(
                "<4s6H3I5H2I", b"PK\1\2", 20, 20, f["flags"], f["method"], 0, 33,
                f["crc"], f["packed"], f["size"], len(f["name"]), len(f["extra"]), 0, 0, 0,
                f["mode"], f["header"],
            ) + f["name"] + f["extra"]  # fmt: skip
    count, size = end.get("count", count), end.get("size", len(directory))
    start = end.get("start", len(body))
    mark = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    return bytes(body) + bytes(directory) + tail + mark


# --- pickle -----------------------------------------------------------------------------------

ORDERED_DICT = b"ccollections\nOrderedDict\n)R"
SIX = struct.pack("<6f", *range(6))


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def storage(key: str = "0", count: int = 6, kind: str = "torch\nFloatStorage") -> bytes:
    names = text("storage") + b"c" + kind.encode() + b"\n" + text(key) + text("cpu")
    return b"(" + names + number(count) + b"tQ"


def tensor(
    where: bytes | None = None,
    offset: int = 0,
    size: Sequence[int] = (2, 3),
    stride: Sequence[int] = (3, 1),
) -> bytes:
    place = (storage() if where is None else where) + number(offset)
    arguments = place + numbers(*size) + numbers(*stride) + b"\x89" + ORDERED_DICT
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def state(*extra: bytes, weight: bytes | None = None, before: bytes = b"") -> bytes:
    """The pickle of `{"w": tensor}`; `before` runs first, `extra` are more opcodes in the dict."""
    pairs = text("w") + (tensor() if weight is None else weight) + b"".join(extra)
    return b"\x80\2" + before + ORDERED_DICT + b"(" + pairs + b"u."


def checkpoint(pickle: bytes, storages: Mapping[str, bytes] | None = None) -> bytes:
    """A torch zip."""
    files = {"data.pkl": pickle, "byteorder": b"little", "version": b"3\n"}
    files |= {f"data/{key}": data for key, data in (storages or {"0": SIX}).items()}
    return packed([Entry(f"archive/{name}", data) for name, data in files.items()])


def legacy(pickle: bytes, keys: bytes, storages: bytes) -> bytes:
    """A checkpoint of torch before 1.6."""
    head = (number(0x1950A86A20F9469CFC6C), number(1001), b"}")
    return b"".join(b"\x80\2" + part + b"." for part in head) + pickle + keys + storages
