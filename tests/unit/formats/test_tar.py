"""The hardened tar reader: what it lists, what it refuses, and that it ends."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_rules.errors import IntegrityError, JarvisError, UsageError
from jarvis_rules.formats import tar
from jarvis_rules.formats.tar import TarArchive, open_tar, quoted

END = bytes(1024)


def header(
    name: bytes = b"a",
    size: bytes | int = 0,
    *,
    flag: bytes = b"0",
    link: bytes = b"",
    prefix: bytes = b"",
    magic: bytes = b"ustar\x0000",
) -> bytes:
    """One tar header with a right checksum; an int size is written in octal."""
    field = b"%011o\0" % size if isinstance(size, int) else size
    parts = [name.ljust(100, b"\0"), b"0000644\0" * 3, field, b"00000000000\0", b" " * 8, flag]
    parts += [link.ljust(100, b"\0"), magic, bytes(80), prefix.ljust(155, b"\0")]
    block = b"".join(parts).ljust(512, b"\0")
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def member(name: bytes = b"a", data: bytes = b"data", **how: bytes) -> bytes:
    return header(name, len(data), **how) + data + bytes(-len(data) % 512)


def pax(flag: bytes = b"x", **records: str) -> bytes:
    body = b""
    for key, value in records.items():
        line = f" {key.replace('_', '.')}={value}\n".encode()
        length = len(line) + 1
        while len(str(length)) + len(line) != length:
            length += 1
        body += str(length).encode() + line
    return member(b"pax", body, flag=flag)


def opened(tmp_path: Path, data: bytes) -> TarArchive:
    path = tmp_path / "a.nemo"
    path.write_bytes(data)
    return open_tar(path, "nemo")


def contents(archive: TarArchive) -> dict[str, bytes]:
    return {m.name: bytes(archive.view(m)) for m in archive.members}


REFUSED = {
    "absolute": (member(b"/etc/x"), "member-absolute", "`/etc/x`"),
    "absolute after prefix": (member(b"x", prefix=b"/etc"), "member-absolute", "`/etc/x`"),
    "traversal": (member(b"../x"), "member-traversal", "`../x`"),
    "inner traversal": (member(b"a/../../x"), "member-traversal", "`a/../../x`"),
    "traversing folder": (header(b"../", flag=b"5"), "member-traversal", "`../`"),
    "traversal through prefix": (member(b"x", prefix=b".."), "member-traversal", "`../x`"),
    "traversal by pax": (pax(path="../x") + member(), "member-traversal", "`../x`"),
    "traversal by global pax": (pax(b"g", path="../x") + member(), "member-traversal", "`../x`"),
    "traversal by long name": (
        member(b"././@LongLink", b"../x\0", flag=b"L") + member(),
        "member-traversal",
        "`../x`",
    ),
    "backslash": (member(b"..\\x"), "member-name", "`..\\x`"),
    "escape": (member(b"a\x1b[31m"), "member-name", "`a\\x1b[31m`"),
    "right to left": (member("a\u202eb".encode()), "member-name", "`a\\u202eb`"),
    "zero in pax": (pax(path="a\0b") + member(), "member-name", "`a\\x00b`"),
    "not utf-8": (member(b"a\xff"), "member-name", "not UTF-8"),
    "empty name": (member(b""), "member-name", "``"),
    "dot": (member(b"./"), "member-name", "`./`"),
    "slash at end": (member(b"a/"), "member-name", "`a/`"),
    "long name": (pax(path="n" * 1025) + member(), "member-name", "1025 characters"),
    "symbolic link": (header(b"a", flag=b"2", link=b"/etc/passwd"), "member-link", "`/etc/passwd`"),
    "hard link": (header(b"a", flag=b"1", link=b"b"), "member-link", "hard link to `b`"),
    "character device": (header(b"a", flag=b"3"), "member-device", "character device"),
    "block device": (header(b"a", flag=b"4"), "member-device", "block device"),
    "pipe": (header(b"a", flag=b"6"), "member-device", "named pipe"),
    "sparse": (header(b"a", flag=b"S"), "member-sparse", "sparse"),
    "sparse by pax": (pax(GNU_sparse_major="1") + member(), "member-sparse", "sparse"),
    "contiguous": (header(b"a", flag=b"7"), "member-type", "b'7'"),
    "solaris pax": (member(flag=b"X"), "member-type", "b'X'"),
    "duplicate": (member() + member(b"./a"), "member-duplicate", "`a` twice"),
    "duplicate slashes": (member(b"a/b") + member(b"a//./b"), "member-duplicate", "`a/b` twice"),
    "file and folder": (member() + header(b"a/", flag=b"5"), "member-duplicate", "`a` twice"),
    "folder with content": (header(b"a/", 512, flag=b"5") + bytes(512), "member-size", "`a/`"),
    "negative size": (header(size=b"\xff" * 12), "member-size", "negative"),
    "base 256 size": (header(size=b"\x80" + b"\xff" * 11), "member-size", "more than"),
    "octal size": (header(size=b"777777777777"), "truncated", f"{8**12 - 1} bytes"),
    "size in letters": (header(size=b"00000000abc\0"), "header", "no readable size"),
    "minus sign": (header(size=b"-0000000001\0"), "header", "no readable size"),
    "size beyond the end": (header(size=4096) + bytes(512), "truncated", "4096 bytes"),
    "pax size": (pax(size="3") + member(data=b"12345"), "member-size", "two sizes: 5"),
    "negative pax size": (pax(size="-1") + member(), "member-size", "b'-1'"),
    "huge pax size": (pax(size="9" * 30) + member(), "member-size", "pax size"),
    "absurd pax size": (pax(size=str(1 << 50)) + member(), "member-size", "more than"),
    "global pax size": (pax(b"g", size="0") + member(), "member-size", "two sizes: 4"),
    "large pax header": (header(b"p", 1 << 20, flag=b"x") + bytes(1 << 20), "member-size", "pax"),
    "malformed pax": (member(b"p", b"9 a=b\n", flag=b"x") + member(), "header", "malformed"),
    "pax without length": (member(b"p", b"a=b\n", flag=b"x") + member(), "header", "malformed"),
    "pax without value": (member(b"p", b"5 ab\n", flag=b"x") + member(), "header", "malformed"),
    "pax for nobody": (member() + pax(path="b"), "header", "no member"),
    "bad checksum first": (b"a" * 512, "not-a-tar", "neither a tar header nor gzip"),
    "bad checksum later": (member() + b"a" * 512, "header", "at byte 1024"),
    "one zero block": (member() + bytes(512) + member(b"b"), "trailing-data", "byte 1024"),
    "text after the end": (member() + END + b"rubbish", "trailing-data", "byte 1024"),
    "endless padding": (member() + bytes(5 << 20), "trailing-data", "byte 1024"),
    "many members": (b"".join(header(b"%d" % i) for i in range(3000)), "too-many-members", "2048"),
    "pax chain": (pax(comment="x") * 3000 + member(), "too-many-members", "2048"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_refuses_by_name(case: str, packed: bool, tmp_path: Path) -> None:
    data, slug, shown = REFUSED[case]
    whole = data + END
    with pytest.raises(IntegrityError) as refusal:
        opened(tmp_path, gzip.compress(whole, 0) if packed else whole)
    assert refusal.value.slug == f"nemo.{slug}"
    assert shown in refusal.value.message
    assert refusal.value.where == str(tmp_path / "a.nemo")
    assert refusal.value.hint
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("data", "slug"),
    [
        (b"", "empty"),
        (gzip.compress(b""), "not-a-tar"),
        (b"text\n" * 20, "not-a-tar"),
        (b"text\n" * 200, "not-a-tar"),
        (gzip.compress(b"text\n" * 200), "not-a-tar"),
        (b"\x1f\x8b" + b"x" * 100, "gzip"),
        (gzip.compress(member() + END)[:-9], "truncated"),
        (gzip.compress(member() + END)[:-8] + bytes(8), "gzip"),
        (gzip.compress(member() + END) + b"rubbish", "gzip"),
        (gzip.compress(b"") * 100 + gzip.compress(member() + END), "gzip"),
    ],
)
def test_refuses_what_is_no_tar(data: bytes, slug: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as refusal:
        opened(tmp_path, data)
    assert refusal.value.slug == f"nemo.{slug}"


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_lists_what_tarfile_writes(form: int, mode: str, tmp_path: Path) -> None:
    names = ["model.yaml", "./deep/ärger.txt", "n" * 90 + "/" + "m" * 60, "empty"]
    if form != tarfile.USTAR_FORMAT:
        names.append("x" * 200)
    expected = {name.removeprefix("./"): os.urandom(len(name) * 7) for name in names}
    expected["empty"] = b""
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode, format=form) as out:
        for folder in (".", "./deep", "./other/"):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            out.addfile(info)
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(expected[name.removeprefix("./")]), 12345.678
            out.addfile(info, io.BytesIO(expected[name.removeprefix("./")]))
    with open_tar(path) as archive:
        assert contents(archive) == expected
        assert archive.find("empty").size == 0
        assert archive.find("./empty") is None


def test_reads_old_headers_and_harmless_extras(tmp_path: Path) -> None:
    old = b"ustar  \0"
    data = pax(b"g", comment="made by hand") + member(b"v7", flag=b"\0", magic=bytes(8))
    data += header(b"folder/", flag=b"\0", magic=bytes(8)) + pax(mtime="1.5", size="4") + member()
    data += member(b"times", magic=old, prefix=b"13371337") + header(b"b", b" 4 \0" + bytes(8))
    data += b"data".ljust(512, b"\0") + header(b"c", b"\x80" + bytes(10) + b"\4") + bytes(512)
    archive = opened(tmp_path, data + END + bytes(100))
    assert [m.name for m in archive.members] == ["v7", "a", "times", "b", "c"]
    assert contents(archive)["b"] == b"data"


def test_reads_concatenated_and_padded_gzip(tmp_path: Path) -> None:
    whole = member() + END
    data = gzip.compress(whole[:700]) + gzip.compress(whole[700:]) + bytes(100)
    assert contents(opened(tmp_path, data)) == {"a": b"data"}


def test_pax_size_of_more_than_eight_gibibytes(tmp_path: Path) -> None:
    size, path = 8**11 + 5, tmp_path / "large.nemo"
    head = pax(size=str(size)) + header(b"a", 0)
    with path.open("wb") as out:
        out.write(head)
        out.seek(len(head) + size - 1)
        out.write(b"!")
        out.write(bytes(-size % 512) + END)
    with open_tar(path) as archive:
        (large,) = archive.members
        assert large.size == size
        assert archive.view(large)[-1:] == b"!"


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = member(b"a", b"x" * 700) + pax(path="long") + member(b"b", b"y") + END
    complete = len(whole)
    for size in [*range(0, complete, 100), *range(512, complete, 512)]:
        with pytest.raises(IntegrityError) as refusal:
            opened(tmp_path, whole[:size])
        assert refusal.value.slug in ("nemo.truncated", "nemo.not-a-tar", "nemo.empty")
    packed = gzip.compress(whole)
    for size in range(len(packed)):
        with pytest.raises(IntegrityError):
            opened(tmp_path, packed[:size])


def test_a_bomb_is_stopped_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = 0

    class Counting(io.BytesIO):
        def write(self, data: bytes) -> int:  # type: ignore[override]
            nonlocal written
            written += len(data)
            return super().write(data)

    monkeypatch.setattr(tar.tempfile, "TemporaryFile", Counting)
    with pytest.raises(IntegrityError) as refusal:
        opened(tmp_path, gzip.compress(member(data=bytes(64 << 20)) + END, 9))
    assert refusal.value.slug == "nemo.compression-bomb"
    assert written < 5 << 20


def test_a_large_gzip_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_INFLATED_SIZE", 1 << 20)
    with pytest.raises(IntegrityError) as refusal:
        opened(tmp_path, gzip.compress(member(data=os.urandom(2 << 20)) + END, 0))
    assert refusal.value.slug == "nemo.compression-bomb"


def test_the_total_is_capped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar, "MAX_TOTAL_SIZE", 5)
    with pytest.raises(IntegrityError) as refusal:
        opened(tmp_path, member() + member(b"b") + END)
    assert refusal.value.slug == "nemo.too-large"


def test_views_outlive_the_archive_and_are_read_only(tmp_path: Path) -> None:
    for data in (member() + END, gzip.compress(member() + END)):
        with opened(tmp_path, data) as archive:
            view = archive.view(archive.members[0])
            array = np.ndarray((4,), np.uint8, archive.view(archive.members[0]))
        assert view == b"data"
        assert view.readonly
        assert array.tobytes() == b"data"
        with pytest.raises(ValueError, match="closed"):
            archive.view(archive.members[0])
    assert [p.name for p in tmp_path.iterdir()] == ["a.nemo"]


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "citrinet.nemo").touch()
    with pytest.raises(UsageError) as refusal:
        open_tar(tmp_path / "citrinte.nemo")
    assert refusal.value.slug == "file.missing"
    assert refusal.value.exit_code == 2
    assert "`citrinet.nemo`" in refusal.value.hint
    with pytest.raises(UsageError) as refusal:
        open_tar(tmp_path / "no" / "such.nemo")
    assert "does not exist" in refusal.value.hint


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(UsageError) as refusal:
            open_tar(path)
        assert refusal.value.slug == "file.unreadable"


def test_an_unreadable_file_is_a_usage_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a").touch()
    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(UsageError, match="Permission denied") as refusal:
        open_tar(tmp_path / "a")
    assert refusal.value.slug == "file.unreadable"


def test_quoted_is_safe_and_short() -> None:
    assert quoted("a`b\n\x1b]0;x\x07\u202e") == "`a'b\\n\\x1b]0;x\\x07\\u202e`"
    assert quoted("x" * 500, 10) == "`xxxxxxxxxx…`"


GOOD = pax(mtime="1.5", path="long/name") + member(b"a", b"x" * 600) + member(b"b", b"y") + END


@settings(derandomize=True, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, len(GOOD)),
    st.booleans(),
)
def test_damage_is_refused_or_harmless(
    tmp_path: Path, flips: list[tuple[int, int]], size: int, repair: bool
) -> None:
    damaged = bytearray(GOOD)
    for at, value in flips:
        damaged[at] = value
    if repair:  # right checksums let the damage reach what lies behind them
        for at in (0, 1024, 2560):
            damaged[at + 148 : at + 156] = b" " * 8
            damaged[at + 148 : at + 156] = b"%06o\0 " % sum(damaged[at : at + 512])
    for data in (bytes(damaged), bytes(damaged[:size]), gzip.compress(GOOD)[: size % 200]):
        with contextlib.suppress(JarvisError), opened(tmp_path, data) as archive:
            contents(archive)
