"""Mutations that keep enough of a format intact to get past its first check."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from random import Random

Mutation = Callable[[bytes, Random], bytes]

_NUMBERS = (0, 1, 2, 7, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 31, 0xFFFFFFFF, 1 << 62, 1 << 63)


def of_bytes(data: bytes, random: Random) -> bytes:
    """Flip, overwrite, remove, repeat or exchange pieces, a few times."""
    out = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 4, 8))):
        at = random.randrange(len(out) + 1)
        size = random.choice((1, 2, 4, 8, random.randrange(1, 64), random.randrange(1, 600)))
        match random.randrange(6):
            case 0 if at < len(out):
                out[at] ^= 1 << random.randrange(8)
            case 1:
                out[at : at + size] = random.randbytes(size)
            case 2:
                del out[at : at + size]
            case 3:
                source = random.randrange(len(out) + 1)
                out[at:at] = out[source : source + size]
            case 4:
                width = random.choice((1, 2, 4, 8))
                number = random.choice(_NUMBERS) % (1 << 8 * width)
                out[at : at + width] = number.to_bytes(width, random.choice(("little", "big")))
            case _:
                out = out[:at] if random.random() < 0.1 else out
    return bytes(out)


def of_tokens(tokens: Sequence[bytes]) -> Mutation:
    """Return a mutation that writes words of a format, on top of `of_bytes`."""

    def mutate(data: bytes, random: Random) -> bytes:
        if random.random() < 0.3:
            return of_bytes(data, random)
        out = bytearray(data)
        for _ in range(random.choice((1, 2, 4))):
            at = random.randrange(len(out) + 1)
            token = random.choice(tokens) * random.choice((1, 1, 1, 1, 2, 50))
            out[at : at + random.choice((0, 0, len(token)))] = token
        return bytes(out)

    return mutate


def of_tar(data: bytes, random: Random) -> bytes:
    """Change blocks and header fields of a tar, plain or gzip, and make checksums right again."""
    packed = data[:2] == b"\x1f\x8b"
    if packed and random.random() < 0.5:
        return of_bytes(data, random)
    try:
        out = bytearray(zlib.decompress(data, 31) if packed else data)
    except zlib.error:
        return of_bytes(data, random)
    blocks = max(1, len(out) // 512)
    for _ in range(random.choice((1, 1, 2, 3))):
        at, other = (512 * random.randrange(blocks) for _ in range(2))
        match random.randrange(5):
            case 0:
                start, size = random.choice(_TAR_FIELDS)
                out[at + start : at + start + size] = _tar_value(size, random)
            case 1:
                out[at:at] = out[other : other + 512 * random.choice((1, 2, 3))]
            case 2:
                del out[at : at + 512]
            case 3:
                out[at : at + 512] = of_bytes(bytes(out[at : at + 512]), random)[:512].ljust(512)
            case _:
                out[at + 156 : at + 157] = random.choice(_TAR_KINDS)
    if random.random() < 0.9:
        fix_checksums(out)
    plain = bytes(out)
    return _gzip(plain) if packed else plain


_TAR_FIELDS = ((0, 100), (124, 12), (148, 8), (157, 100), (257, 8), (345, 155))
_TAR_KINDS = [bytes([kind]) for kind in b"0123456789\0xgLKSVMDZ"]


def _tar_value(size: int, random: Random) -> bytes:
    known = (b"../../a", b"/a", b"a/./b", b"7" * size, b"\xff" * size, b"\x80" + b"\xff" * 11, b"")
    value = random.choice((*known, random.randbytes(size), b"00000000777 "))
    return value[:size].ljust(size, b"\0")


def fix_checksums(tar: bytearray) -> None:
    """Write the right checksum into every block that looks like a header."""
    for at in range(0, len(tar) - 511, 512):
        if tar[at + 257 : at + 262] == b"ustar":
            tar[at + 148 : at + 156] = b" " * 8
            tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])


def _gzip(plain: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return packer.compress(plain) + packer.flush()


def of_stored_gzip(data: bytes, random: Random) -> bytes:
    """Change the content of stored gzip blocks, and make the CRC-32 right again."""
    out = bytearray(data)
    at, crc, spans = 10, 0, []
    while at + 5 <= len(out) and (size := int.from_bytes(out[at + 1 : at + 3], "little")):
        spans.append((at + 5, min(at + 5 + size, len(out))))
        at = spans[-1][1]
    for _ in range(random.choice((1, 1, 2))) if spans else ():
        start, end = random.choice(spans)
        piece = of_bytes(bytes(out[start:end]), random)
        out[start:end] = piece[: end - start].ljust(end - start, b"\0")
    for start, end in spans:
        crc = zlib.crc32(out[start:end], crc)
    out[-8:-4] = crc.to_bytes(4, "little")
    return bytes(out) if random.random() < 0.9 else of_bytes(bytes(out), random)


def of_checkpoint(data: bytes, random: Random) -> bytes:
    """Change the pickle in a torch zip, its storages, or the zip around them."""
    if data[:4] != b"PK\3\4":
        return of_pickle(data, random)
    if random.random() < 0.4:
        return _of_zip_fields(data, random)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            files = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except Exception:  # `zipfile` lets everything through
        return of_bytes(data, random)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files[:50]:
            change = of_pickle if name.endswith("pkl") else of_bytes
            changed = change(content, random) if random.random() < 0.6 else content
            archive.writestr(zipfile.ZipInfo(name), changed)
    return out.getvalue()


def _of_zip_fields(data: bytes, random: Random) -> bytes:
    out = bytearray(data)
    places = [at for at in range(len(out) - 4) if out[at : at + 2] == b"PK"]
    for _ in range(random.choice((1, 1, 2))) if places else ():
        at = random.choice(places) + random.randrange(4, 46)
        width = random.choice((2, 4))
        number = random.choice(_NUMBERS) % (1 << 8 * width)
        out[at : at + width] = number.to_bytes(width, "little")
    return bytes(out)


_TEXTS = (b"posix", b"system", b"builtins", b"eval", b"storage", b"torch", b"FloatStorage", b"0")
_PICKLE_TOKENS = [
    *(bytes([code]) for code in b"().0N2tl]e}sudaRbQoq"),
    *(bytes([code]) for code in b"\x85\x86\x87\x88\x89\x8f\x90\x91\x93\x94\x97"),
    *(b"h" + bytes([i]) for i in range(6)), *(b"q" + bytes([i]) for i in range(6)),
    *(b"X" + struct.pack("<I", len(t)) + t for t in _TEXTS),
    *(b"\x8c" + bytes([len(t)]) + t for t in _TEXTS),
    *(b"J" + struct.pack("<i", n) for n in (0, 1, 6, -1, 1 << 30)),
    *(b"\x8a\x08" + struct.pack("<q", n) for n in (0, 6, -6, (1 << 62), -(1 << 62))),
    b"ccollections\nOrderedDict\n", b"ctorch\nFloatStorage\n", b"cposix\nsystem\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch._utils\n_rebuild_parameter\n",
    b"iposix\nsystem\n", b"\x81", b"\x92", b"\x82\1", b"\x84\1\0\0\0", b"\x80\2", b"\x80\5",
    b"\x8b\xff\xff\xff\x7f", b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f", b"P0\n", b"I1\n", b"L5L\n",
    b"S'a'\n", b"Va\n", b"F1.5\n", b"\x95\4\0\0\0\0\0\0\0", b"p99\n", b"g1\n",
]  # fmt: skip
of_pickle = of_tokens(_PICKLE_TOKENS)

of_yaml = of_tokens([
    b"- ", b": ", b"? ", b"a: ", b"\n", b"\n  ", b"[", b"]", b"{", b"}", b", ", b"&a ", b"*a",
    b"<<: *a", b"!!python/object/apply:os.system ", b"!!set ", b"!!binary ", b"!a ", b"'", b'"',
    b"| ", b">-\n", b"#", b"%TAG ! x\n", b"---\n", b"...\n", b"1e5", b".inf", b".nan", b"0x1f",
    b"1:30", b"null", b"~", b"yes", b"2020-01-01", b"=", b"\t", b"\xef\xbb\xbf", b"\xe2\x80\xa8",
    b"\\ud800", b"9" * 70, b"_target_: os.system\n", b"target: a.B\n", b"params: ", b"cls: ",
    b"model: ", b"files: ", b"metadata: ", b"size: -1\n", b"encrypted: true\n", b"sha256: ",
    b"archive_format: ", b"archive_version: 2\n", b"encryption: {}\n",
])  # fmt: skip

of_json = of_tokens([
    b"{", b"}", b"[", b"]", b",", b":", b'"', b'""', b"null", b"true", b"false", b"NaN", b"1e999",
    b"-0", b"1.5", b"9" * 70, b'"\\ud800"', b'"name":', b'"pipeline"', b'"modules":', b'"edges":',
    b'["pipeline.A","a.A"]', b'"dims":[-1]', b'"uses":"engine:a"', b'"files":{"a":"b"}',
    b'"version":1', b"\\u0000", b"\xff", b"[" * 40, b'"reshape":[]', b'"origin":"given"',
])  # fmt: skip
