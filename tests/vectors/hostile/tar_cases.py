"""Hostile tar and gzip containers."""

from __future__ import annotations

import zlib

from hostile.case import case
from hostile.forge import END, WEIGHTS, Header, checkpoint, good, gz, nemo, pax, state, tar

_ZEROS = bytes(1 << 20)
_CALL = b"cposix\nsystem\n" + b"X\x0b\0\0\0touch pwned\x85R0"


def _long_name(name: bytes) -> Header:
    return Header(b"././@LongLink", name + b"\0", b"L")


def _sized(size: bytes) -> bytes:
    return nemo(Header(b"a.txt", b"", size=size))


def _hidden() -> bytes:
    """A good archive, and behind its end mark one whose weights run a command."""
    return nemo() + nemo(weights=checkpoint(state(before=_CALL)))


TAR = [
    ("tar_hardlink", "hard link to a file of the system", "member-link",
     lambda: nemo(Header(b"a", kind=b"1", link=b"/etc/passwd"))),
    ("tar_symlink_up", "symbolic link out of the archive", "member-link",
     lambda: nemo(Header(b"a", kind=b"2", link=b"../../.."))),
    ("tar_symlink_self", "symbolic link to itself", "member-link",
     lambda: nemo(Header(b"a", kind=b"2", link=b"a"))),
    ("tar_character_device", "character device", "member-device",
     lambda: nemo(Header(b"a", kind=b"3"))),
    ("tar_block_device", "block device", "member-device", lambda: nemo(Header(b"a", kind=b"4"))),
    ("tar_named_pipe", "named pipe: opening it would wait for ever", "member-device",
     lambda: nemo(Header(b"a", kind=b"6"))),
    ("tar_sparse_gnu", "sparse file of GNU tar", "member-sparse",
     lambda: nemo(Header(b"a", kind=b"S"))),
    ("tar_sparse_pax", "sparse file by pax records", "member-sparse",
     lambda: nemo(pax("GNU.sparse.major", b"1"), Header(b"a"))),
    ("tar_contiguous", "type 7, which some tools read as a file", "member-type",
     lambda: nemo(Header(b"a", kind=b"7"))),
    ("tar_unknown_type", "type Z", "member-type", lambda: nemo(Header(b"a", kind=b"Z"))),
    ("tar_traversal", "`..` in the name", "member-traversal",
     lambda: nemo(Header(b"a/../../b", b"x"))),
    ("tar_traversal_pax", "`..` in a pax path", "member-traversal",
     lambda: nemo(pax("path", b"../../b"), Header(b"a", b"x"))),
    ("tar_traversal_long_name", "`..` in a GNU long name", "member-traversal",
     lambda: nemo(_long_name(b"../../b"), Header(b"a", b"x"))),
    ("tar_traversal_prefix", "`..` in the ustar prefix", "member-traversal",
     lambda: nemo(Header(b"b", b"x", prefix=b"../.."))),
    ("tar_traversal_folder", "a folder above the archive", "member-traversal",
     lambda: nemo(Header(b"../a/", kind=b"5"))),
    ("tar_traversal_global", "a global pax path for all members", "member-traversal",
     lambda: tar(pax("path", b"../a", b"g"), Header(b"a", b"x"))),
    ("tar_absolute_pax", "an absolute pax path", "member-absolute",
     lambda: nemo(pax("path", b"/tmp/a"), Header(b"a", b"x"))),
    ("tar_backslash", "a path of Windows", "member-name", lambda: nemo(Header(b"..\\a", b"x"))),
    ("tar_escape_sequence", "a name that a terminal obeys", "member-name",
     lambda: nemo(Header(b"\x1b[2Ja", b"x"))),
    ("tar_right_to_left", "a name that is shown reversed", "member-name member.code",
     lambda: nemo(Header("a\u202etxt.exe".encode(), b"x"))),
    ("tar_name_not_utf8", "a name that is not UTF-8", "member-name",
     lambda: nemo(Header(b"\xff\xfe", b"x"))),
    ("tar_name_empty", "no name", "member-name", lambda: nemo(Header(b"", b"x"))),
    ("tar_name_slash", "a file whose name ends in a slash", "member-name",
     lambda: nemo(Header(b"a/", b"x"))),
    ("tar_name_long", "a name of 5000 characters", "member-name",
     lambda: nemo(pax("path", b"a" * 5000), Header(b"a", b"x"))),
    ("tar_duplicate_config", "two configurations", "member-duplicate",
     lambda: nemo(Header(b"model_config.yaml", good()["model_config.yaml"]))),
    ("tar_duplicate_dot", "the weights again, as `./` and `//`",
     "member-duplicate pickle.malformed",
     lambda: nemo(Header(b".//./" + WEIGHTS.encode(), b"x"))),
    ("tar_duplicate_folder", "a folder with the name of the weights", "member-duplicate",
     lambda: nemo(Header(WEIGHTS.encode() + b"/", kind=b"5"))),
    ("tar_two_sizes", "a pax size that hides a member from readers of pax", "member-size",
     lambda: nemo(pax("size", b"1024"), Header(b"a"), Header(b"b", b"x"))),
    ("tar_pax_size_text", "a pax size that is no number", "member-size",
     lambda: nemo(pax("size", b"-1"), Header(b"a"))),
    ("tar_size_negative", "a negative size", "member-size", lambda: _sized(b"\xff" * 12)),
    ("tar_size_huge", "a size of 2^87 bytes", "member-size",
     lambda: _sized(b"\x80" + b"\xff" * 11)),
    ("tar_folder_with_size", "a folder with content", "member-size",
     lambda: nemo(Header(b"a/", b"x" * 600, b"5"))),
    ("tar_pax_huge", "a pax header of a gigabyte", "member-size",
     lambda: nemo(Header(b"pax", kind=b"x", size=b"10000000000\0"))),
    ("tar_size_letters", "a size that is no number", "header", lambda: _sized(b"0x0000000ff\0")),
    ("tar_size_beyond", "a member that ends far behind the file", "truncated",
     lambda: _sized(b"07777777777\0")),
    ("tar_checksum", "a header with a wrong checksum", "header",
     lambda: nemo(Header(b"a", b"x", checksum=b"000000\0 "))),
    ("tar_pax_malformed", "a pax record with a wrong length", "header",
     lambda: nemo(Header(b"pax", b"99 a=b\n", b"x"), Header(b"a"))),
    ("tar_pax_orphan", "a pax header of no member", "header", lambda: nemo(pax("path", b"a"))),
    ("tar_no_end", "no end mark", "truncated", lambda: nemo(end=b"")),
    ("tar_half_end", "half an end mark", "truncated", lambda: nemo(end=bytes(512))),
    ("tar_many_members", "3000 empty members", "too-many-members",
     lambda: nemo(*(Header(b"%d" % i) for i in range(3000)))),
    ("tar_padding_bomb", "6 MiB of padding", "trailing-data",
     lambda: nemo(end=END + 6 * _ZEROS)),
    ("tar_behind_the_end", "a second archive behind the end mark runs a command",
     "trailing-data tar.member-duplicate pickle.call", _hidden),
    ("tar_wrong_start", "a first header with a wrong checksum", "not-a-tar",
     lambda: tar(Header(b"a", b"x", checksum=b"000000\0 "), Header(b"b", b"y"))),
]  # fmt: skip


def _tar_case(name, attack, names, make):
    first, *more = names.split()
    return case(f"{name}.nemo", attack, f"nemo.{first}", " ".join([f"tar.{first}", *more]), make)


def _block_type_three() -> bytes:
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"\x07" + bytes(600)


def _steep() -> bytes:
    """The steepest that deflate can be."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return b"".join(packer.compress(_ZEROS) for _ in range(64)) + packer.flush()


CASES = [
    *(_tar_case(*row) for row in TAR),
    case("tar_padding.nemo", "text hidden in the padding of a member", "", "tar.padding",
         lambda: nemo(Header(b"a", b"x", pad=b"hidden" * 100))),
    case("gzip_bomb_steep.nemo", "64 MiB in 64 KiB", "nemo.compression-bomb",
         "gzip.bomb tar.trailing-data", _steep),
    case("gzip_bomb_members.nemo", "60 gzip members of a MiB each", "nemo.compression-bomb",
         "gzip.bomb gzip.members tar.trailing-data", lambda: gz(_ZEROS) * 60),
    case("gzip_bomb_behind.nemo", "a good archive, and 24 MiB of zeros in a second gzip member",
         "nemo.compression-bomb", "gzip.bomb gzip.members tar.trailing-data",
         lambda: gz(nemo()) + gz(_ZEROS * 24)),
    case("gzip_nested.nemo", "gzip in gzip in gzip", "nemo.not-a-tar",
         "tar.not-a-tar member.archive",
         lambda: gz(gz(gz(nemo(), level=0), level=0), level=0)),
    case("gzip_trailing.nemo", "a program behind the gzip data", "nemo.gzip",
         "gzip.trailing-data", lambda: gz(nemo()) + b"\x7fELF" + bytes(100)),
    case("gzip_crc.nemo", "a wrong CRC-32", "nemo.gzip", "gzip.damaged",
         lambda: gz(nemo(), crc=1)),
    case("gzip_size.nemo", "a wrong size", "nemo.gzip", "gzip.damaged",
         lambda: gz(nemo(), size=1)),
    case("gzip_truncated.nemo", "breaks off", "nemo.truncated", "gzip.damaged",
         lambda: gz(nemo())[:-9]),
    case("gzip_block_type.nemo", "a block of an unknown type", "nemo.gzip", "gzip.damaged",
         _block_type_three),
    case("gzip_many_members.nemo", "100 empty gzip members", "nemo.gzip",
         "gzip.damaged gzip.members", lambda: gz(b"") * 100 + gz(nemo())),
    case("gzip_second_archive.nemo", "a second archive in a second gzip member runs a command",
         "nemo.trailing-data", "gzip.members tar.trailing-data tar.member-duplicate pickle.call",
         lambda: gz(nemo()) + gz(nemo(weights=checkpoint(state(before=_CALL))))),
    case("gzip_extra.nemo", "a program in the extra field of the gzip header", "", "gzip.extra",
         lambda: gz(nemo())[:3] + b"\4" + gz(nemo())[4:10] + b"\4\0\x7fELF" + gz(nemo())[10:]),
]  # fmt: skip
