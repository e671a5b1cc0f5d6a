"""Hostile zips around a good pickle."""

from __future__ import annotations

import struct

from hostile.case import case
from hostile.forge import SIX, Entry, checkpoint, packed, state

_PICKLE = "archive/data.pkl"
_GOOD = (Entry(_PICKLE, state()), Entry("archive/data/0", SIX))
_CALL = state(before=b"cposix\nsystem\nX\x0b\0\0\0touch pwned\x85R0")


def _with(**changes) -> bytes:
    """The good zip, its storage entry changed."""
    return packed([_GOOD[0], Entry("archive/data/0", SIX, **changes)])


def _zip64(**lies: int) -> bytes:
    """A good zip with a zip64 directory that says something else than the plain one."""
    good = packed(_GOOD)
    count, size, start = struct.unpack("<10xH2I2x", good[-22:])
    true = {"count": count, "size": size, "start": start, "length": 44} | lies
    at = true.pop("at", len(good) - 22)
    wide = struct.pack(
        "<4sQ2H2I4Q", b"PK\6\6", true["length"], 45, 45, 0, 0,
        true["count"], true["count"], true["size"], true["start"],
    )  # fmt: skip
    return good[:-22] + wide + struct.pack("<4sIQI", b"PK\6\7", 0, at, 1) + good[-22:]


def _overlap() -> bytes:
    """Two entries of one name each that share their bytes."""
    return packed([_GOOD[0], Entry("archive/data/0", SIX), Entry(_PICKLE + "x", state(), at=0)])


_ZIP = [
    ("duplicate", "two pickles, the second runs a command", "zip-duplicate",
     "zip.duplicate pickle.call", lambda: packed([*_GOOD, Entry(_PICKLE, _CALL)])),
    ("overlap", "two entries share their bytes", "zip",
     "zip.overlap zip.mismatch zip.unexpected member.pickle", _overlap),
    ("local_name", "another name in the local header", "zip", "zip.mismatch",
     lambda: _with(local={"name": b"archive/data/1"})),
    ("local_method", "another method in the local header", "zip", "zip.mismatch",
     lambda: _with(local={"method": 8})),
    ("local_sizes", "other sizes in the local header", "zip", "zip.mismatch",
     lambda: _with(local={"size": 8, "packed": 8})),
    ("local_crc", "another CRC-32 in the local header", "zip", "zip.mismatch",
     lambda: _with(local={"crc": 7})),
    ("encrypted", "an entry that says it is encrypted", "zip", "zip.encrypted",
     lambda: _with(local={"flags": 1}, central={"flags": 1})),
    ("method", "LZMA", "zip", "zip.encrypted",
     lambda: _with(local={"method": 14}, central={"method": 14})),
    ("two_sizes", "stored, with two sizes", "zip", "zip.encrypted",
     lambda: _with(local={"size": 4}, central={"size": 4})),
    ("bomb", "64 MiB of zeros as a storage", "compression-bomb", "zip.bomb",
     lambda: packed([
         Entry(_PICKLE, state(weight=_large())), Entry("archive/data/0", bytes(64 << 20), True),
     ])),
    ("bomb_pickle", "a pickle of 31 MiB of zeros", "compression-bomb", "zip.bomb",
     lambda: packed([Entry(_PICKLE, bytes(31 << 20), True)])),
    ("bomb_hidden", "16 MiB that declare 24 bytes", "zip", "zip.bomb",
     lambda: packed([_GOOD[0], Entry(
         "archive/data/0", bytes(16 << 20), True, local={"size": 24}, central={"size": 24})])),
    ("deflate_damaged", "deflate data that is none", "zip", "zip.crc zip.bomb",
     lambda: _with(local={"method": 8}, central={"method": 8})),
    ("crc", "a wrong CRC-32", "crc", "zip.crc",
     lambda: _with(local={"crc": 1}, central={"crc": 1})),
    ("header_outside", "an entry beyond the file", "truncated",
     "zip.mismatch zip.directory zip.gap zip.overlap",
     lambda: _with(central={"header": 1 << 30})),
    ("content_outside", "an entry that ends beyond the file", "zip-overlap",
     "zip.directory zip.overlap",
     lambda: _with(**{key: {"size": 1 << 20, "packed": 1 << 20} for key in ("local", "central")})),
    ("count", "a directory of one entry more", "truncated", "zip.directory",
     lambda: packed(_GOOD, count=3)),
    ("count_less", "a directory of one entry less", "zip", "zip.directory zip.gap",
     lambda: packed(_GOOD, count=1)),
    ("directory_moved", "a directory that starts elsewhere", "zip", "zip.directory",
     lambda: packed(_GOOD, start=7)),
    ("zip64_count", "a zip64 directory of other entries", "zip", "zip.directory zip.gap",
     lambda: _zip64(count=1)),
    ("zip64_outside", "a zip64 directory beyond the file", "truncated", "zip.directory",
     lambda: _zip64(at=1 << 60)),
    ("zip64_many", "2^60 entries", "zip", "zip.directory zip.limit",
     lambda: _zip64(count=1 << 60)),
    ("zip64_entry", "an entry of 2^63 bytes by its zip64 field", "zip",
     "zip.directory zip.mismatch zip.overlap",
     lambda: _with(central={
         "packed": 0xFFFFFFFF, "size": 0xFFFFFFFF,
         "extra": struct.pack("<2H2Q", 1, 16, 1 << 63, 1 << 63)})),
    ("trailing", "a program behind the directory", "truncated", "zip.trailing-data",
     lambda: packed(_GOOD) + b"\x7fELF" + bytes(60)),
    ("prepended", "a program before the zip", "not-a-zip",
     "pickle.malformed", lambda: b"\x7fELF" + bytes(60) + packed(_GOOD)),
    ("truncated", "the first half, its pickle runs a command", "truncated",
     "zip.truncated pickle.call", lambda: checkpoint(_CALL)[: len(_CALL) + 60]),
    ("two_roots", "two checkpoints in one zip", "not-a-zip", "pickle.call",
     lambda: packed([*_GOOD, Entry("other/data.pkl", _CALL)])),
    ("no_pickle", "no pickle", "not-a-zip", "", lambda: packed([_GOOD[1]])),
    ("byte_order", "a byte order that nobody has", "unsupported", "",
     lambda: packed([*_GOOD, Entry("archive/byteorder", b"middle")])),
    ("missing_storage", "a storage that is not there", "storage", "",
     lambda: packed(_GOOD[:1])),
    ("short_storage", "a storage of half its size", "storage", "",
     lambda: packed([_GOOD[0], Entry("archive/data/0", SIX[:12])])),
    ("gap", "an entry that no directory lists runs a command", "", "zip.gap",
     lambda: packed([_GOOD[0], Entry("archive/x.pkl", _CALL, in_directory=False), _GOOD[1]])),
    ("unused", "a storage that no tensor uses", "", "zip.unused",
     lambda: packed([*_GOOD, Entry("archive/data/1", b"hidden" * 9)])),
    ("traversal", "an entry that leads out of the zip", "", "zip.name zip.unexpected",
     lambda: packed([*_GOOD, Entry("../../a.txt", b"x")])),
    ("symlink", "an entry that is a symbolic link", "", "zip.name zip.unexpected",
     lambda: packed([*_GOOD, Entry("archive/a", b"/etc", central={"mode": 0o120777 << 16})])),
    ("torchscript", "code of TorchScript", "", "member.code",
     lambda: packed([*_GOOD, Entry("archive/code/a.py", b"import os\n")])),
    ("second_pickle", "another pickle in the zip runs a command", "",
     "pickle.call zip.unexpected",
     lambda: packed([*_GOOD, Entry("archive/constants.pkl", _CALL)])),
]  # fmt: skip


def _large() -> bytes:
    from hostile.forge import storage, tensor

    return tensor(storage(count=16 << 20), size=(16 << 20,), stride=(1,))


CASES = [
    case(f"zip_{name}.ckpt", attack, slug and f"checkpoint.{slug}", rules, make)
    for name, attack, slug, rules, make in _ZIP
]
