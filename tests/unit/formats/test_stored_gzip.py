"""Stored blocks: sought in without inflating, carried from file to file by the kernel."""

from __future__ import annotations

import gzip
import io
import mmap
import os
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats import stored_gzip, tar
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.stored_gzip import (
    MAX_BLOCK,
    StoredGzip,
    StoredGzipWriter,
    combine_crc,
    read_stored,
)

METADATA = {"name": "asr", "kind": "qa"}


def written(*pieces):
    """Write pieces, each in blocks of its own."""
    out = io.BytesIO()
    writer = StoredGzipWriter(out)
    for piece in pieces:
        writer.write(piece)
        writer.align()
    writer.write(b"end")
    writer.close()
    return out.getvalue()


def opened(tmp_path, data) -> StoredGzip | None:
    path = tmp_path / "x.gz"
    path.write_bytes(data)
    with path.open("rb") as file:
        return read_stored(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), file.fileno())


SIZES = (0, 1, 65534, 65535, 65536, 131070, 200_000)


def test_any_range_is_found(tmp_path):
    data = os.urandom(70_000), b"", os.urandom(65_535), os.urandom(3), os.urandom(140_000)
    whole = b"".join(data) + b"end"
    stored = opened(tmp_path, written(*data))
    assert len(stored) == len(whole)
    for start in (0, 1, 65_534, 65_535, 65_536, 69_999, 70_000, 135_538, len(whole) - 1):
        for size in (0, 1, 3, 65_535, 70_000, len(whole)):
            end = min(start + size, len(whole))
            assert stored[start:end] == whole[start:end]
            assert b"".join(stored.pieces(start, end)) == whole[start:end]
    assert gzip.decompress(written(*data)) == whole


def damaged(data, index, byte):
    return data[:index] + bytes([byte]) + data[index + 1 :]


GOOD = written(b"one", b"two")
LENGTH = struct.pack("<BHH", 0, 3, 3 ^ MAX_BLOCK)


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(b"x" * 99, 0, mtime=0),
        damaged(GOOD, 4, 1),  # a time
        damaged(GOOD, 10, 2),  # a compressed block
        damaged(GOOD, 11, 4),  # a length that is not that of its complement
        damaged(GOOD, len(GOOD) - 1, 1),  # another size
        damaged(GOOD, len(GOOD) - 5, 1 ^ GOOD[-5]),  # another checksum
        GOOD[:-1],
        GOOD[:-8],
        GOOD[:14],
        GOOD[:10],
        GOOD + b"\0",
        GOOD + GOOD,
        b"".join([GOOD[:10], struct.pack("<BHH", 0, 0, MAX_BLOCK), GOOD[10:]]),  # an empty block
    ],
)
def test_other_gzip_is_not_taken_for_it(tmp_path, data):
    assert opened(tmp_path, data) is None


def test_very_many_short_blocks_are_not_read_as_ours(tmp_path):
    data = GOOD[:10] + (LENGTH + b"abc") * 7000 + GOOD[10:]
    assert opened(tmp_path, data) is None


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.binary(max_size=300))
def test_checksums_are_combined(first, second):
    combined = combine_crc(zlib.crc32(first), zlib.crc32(second), len(second))
    assert combined == zlib.crc32(first + second)


# Archives


def read_all(path):
    with open_archive(path) as archive:
        return {name: archive.read(name) for name in archive.manifest.files}


def carry(path, target, monkeypatch=None):
    """Write an archive anew out of another one's members."""
    with open_archive(path) as archive:
        members = [
            Member(name, "asset", f"a {name}", source=archive.source(name))
            for name in archive.manifest.files
        ]
        if monkeypatch is not None:
            monkeypatch.setattr(type(archive), "copy_to", lambda *_: pytest.fail("read"))
        write_archive(target, "jmir", METADATA, members)


@pytest.fixture
def contents():
    return {f"m{size:06}": os.urandom(size) for size in SIZES}


@pytest.fixture
def path(tmp_path, contents):
    members = [Member(n, "asset", f"a {n}", data=data) for n, data in contents.items()]
    write_archive(tmp_path / "x.jmir", "jmir", METADATA, members)
    return tmp_path / "x.jmir"


@pytest.mark.parametrize("kernel", ["copies", "sends"])
def test_members_are_carried_over_unread(path, tmp_path, contents, monkeypatch, kernel):
    if kernel == "sends":
        monkeypatch.setattr(os, "copy_file_range", lambda *_: (_ for _ in ()).throw(OSError(18)))
    del contents["m000000"]
    members = [Member(n, "asset", f"a {n}", data=data) for n, data in contents.items()]
    write_archive(path, "jmir", METADATA, members)
    carry(path, tmp_path / "y.jmir", monkeypatch)
    monkeypatch.undo()
    assert (tmp_path / "y.jmir").read_bytes() == path.read_bytes()


def test_members_in_other_containers_are_copied(path, tmp_path, contents):
    plain = gzip.decompress(path.read_bytes())
    for data in (plain, gzip.compress(plain)):
        other = tmp_path / "other.jmir"
        other.write_bytes(data)
        assert read_all(other) == contents
        carry(other, tmp_path / "y.jmir")
        assert (tmp_path / "y.jmir").read_bytes() == path.read_bytes()


def test_an_empty_member_among_carried_ones(path, tmp_path):
    carry(path, tmp_path / "y.jmir")
    assert (tmp_path / "y.jmir").read_bytes() == path.read_bytes()


def test_damage_that_is_carried_over_is_found_where_it_is_read(path, tmp_path, monkeypatch):
    """As for every archive: on opening the headers are read, members when they are used."""
    monkeypatch.setattr(stored_gzip, "CHECKED_SIZE", 0)
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1  # in the last member
    path.write_bytes(bytes(data))
    carry(path, tmp_path / "y.jmir")
    for archive in (path, tmp_path / "y.jmir"):
        with pytest.raises(IntegrityError, match="does not match its digest"):
            read_all(archive)
        with pytest.raises(gzip.BadGzipFile, match="CRC"):
            gzip.decompress(archive.read_bytes())


def test_opening_inflates_nothing(path, contents, monkeypatch):
    monkeypatch.setattr(tar, "_inflate", lambda *_: pytest.fail("inflated"))
    assert read_all(path) == contents
    with open_archive(path) as archive:
        assert archive.digest("m000001") == digest_bytes(contents["m000001"])
