"""Encrypted archives: whatever is done to one, it is refused, and what was done is said."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import itertools
import os
import pickle
import re
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import EXIT_INTEGRITY, IntegrityError, JarvisBug, JarvisError
from jarvis_rules.formats import archive as archive_module
from jarvis_rules.formats import encryption, key_source
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_manifest import MAC, MANIFEST, dump_yaml, load_yaml
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.encryption import ArchiveCipher, ChunkError, SealedMember
from jarvis_rules.formats.key_source import Key
from jarvis_rules.formats.schema import validate
from jarvis_rules.formats.stored_gzip import StoredGzipWriter

KEY = Key(b"a key of the test")
METADATA = {"name": "asr", "kind": "speech_recognition", "description": "test"}
CHUNK = 1024
MEMBERS = {
    "a": bytes(range(256)) * 10,  # two chunks and a half
    "b": bytes(range(255, -1, -1)) * 10,
    "c/empty": b"",
    "d": b"d" * 2048,  # two chunks, the last one full
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(encryption, "CHUNK_SIZE", CHUNK)


def members(contents=MEMBERS, role="asset"):
    return [Member(name, role, f"a {name}", data=data) for name, data in contents.items()]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.jmir"
    write_archive(path, "jmir", METADATA, members(), KEY)
    return path


def read_all(path, key=KEY):
    with open_archive(path, key=key) as archive:
        return {name: archive.read(name) for name in archive.manifest.files}


def refused(path, key=KEY):
    with pytest.raises(IntegrityError) as caught:
        read_all(path, key)
    assert caught.value.exit_code == EXIT_INTEGRITY
    assert caught.value.hint
    return caught.value


# The way of the data


def test_round_trip(path):
    assert read_all(path) == MEMBERS
    plain = gzip.decompress(path.read_bytes())
    assert MEMBERS["a"][:64] not in plain
    with tarfile.open(path) as tar:
        assert tar.getnames() == [MANIFEST, MAC, *sorted(MEMBERS)]
    with open_archive(path, key=KEY) as archive, archive.open("a") as stream:
        assert stream.read(1500) + stream.read() == MEMBERS["a"]


def test_the_manifest_is_read_without_the_key_and_members_are_not(path):
    with open_archive(path) as archive:
        assert archive.manifest.metadata["name"] == "asr"
        assert archive.digest("a") == digest_bytes(MEMBERS["a"])
        for use in (archive.read, lambda name: archive.open(name).__enter__().read()):
            with pytest.raises(IntegrityError, match="no key was given") as caught:
                use("a")
            assert caught.value.slug == "encryption.missing-key"


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.sampled_from([0, 1, 1023, 1024, 1025, 4096]), max_size=4))
def test_any_sizes_in_any_pieces(tmp_path, sizes):
    contents = {f"m{index}": os.urandom(size) for index, size in enumerate(sizes)}

    def write(data):
        def piecewise(sink):
            for start in range(0, len(data), 700):
                sink.write(data[start : start + 700])

        return piecewise

    written = []
    for made in (
        members(contents),
        [Member(n, "asset", f"a {n}", write=write(data)) for n, data in contents.items()],
    ):
        write_archive(tmp_path / "x.jmir", "jmir", METADATA, made, KEY)
        assert read_all(tmp_path / "x.jmir") == contents
        written.append((tmp_path / "x.jmir").read_bytes())
    assert written[0] == written[1]


WRITE = """
import sys
from pathlib import Path
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.key_source import Key
from jarvis_rules.formats.schema import validate
names = set(sys.argv[2:])
members = [Member(name, "asset", "", data=name.encode() * 9999) for name in names]
metadata = {"name": "asr", "kind": "qa"}
write_archive(Path(sys.argv[1]), "jmir", metadata, members, Key(b"key"))
"""


def test_bytes_depend_on_content_and_key_alone(tmp_path):
    written = []
    for seed in ("0", "7"):
        target = tmp_path / f"{seed}.jmir"
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        argv = [sys.executable, "-c", WRITE, str(target), "a", "b/c", "d"]
        subprocess.run(argv, env=environment, check=True)
        written.append(target.read_bytes())
    assert written[0] == written[1]


def ciphertexts(path):
    with tarfile.open(path) as tar:
        return {i.name: tar.extractfile(i).read() for i in tar.getmembers()}


def test_what_changes_the_ciphertext_and_what_does_not(path, tmp_path):
    """Another key, role, fact or any other member: other keys throughout. A description: none."""
    before, other = ciphertexts(path), tmp_path / "y.jmir"

    def written(metadata=METADATA, contents=MEMBERS, key=KEY, role="asset"):
        write_archive(other, "jmir", metadata, members(contents, role), key)
        return ciphertexts(other)

    same = written({**METADATA, "description": "other words"})
    assert {n: same[n] for n in MEMBERS} == {n: before[n] for n in MEMBERS}
    assert same[MAC] != before[MAC]
    for changed in (
        written({**METADATA, "name": "other"}),
        written(contents={**MEMBERS, "d": b"D"}),
        written(key=Key(b"another")),
        written(role="graph"),
    ):
        assert all(changed[name] != before[name] for name in MEMBERS)


def test_a_member_of_an_encrypted_archive_goes_on_into_others(path, tmp_path):
    """From ciphertext to plain and back, and to another key: the same as if written anew."""
    contents = {"x": MEMBERS["a"], "y": MEMBERS["c/empty"]}
    for key in (None, KEY, Key(b"other")):
        with open_archive(path, key=KEY) as archive:
            carried = [
                Member("x", "asset", "a x", source=archive.source("a")),
                Member("y", "asset", "a y", source=archive.source("c/empty")),
            ]
            write_archive(tmp_path / "carried.jmir", "jmir", METADATA, carried, key)
        write_archive(tmp_path / "anew.jmir", "jmir", METADATA, members(contents), key)
        assert (tmp_path / "carried.jmir").read_bytes() == (tmp_path / "anew.jmir").read_bytes()


def test_a_content_that_changes_while_it_is_written_leaves_nothing(tmp_path):
    contents = iter((b"one", b"two"))
    member = Member("a", "asset", "", write=lambda sink: sink.write(next(contents)))
    with pytest.raises(IntegrityError, match="changed while"):
        write_archive(tmp_path / "x.jmir", "jmir", METADATA, [member], KEY)
    assert list(tmp_path.iterdir()) == []


# Every byte and every length


@pytest.fixture
def quick(monkeypatch):
    """A manifest that was read once is not read again: the loops are about all that is around."""
    passed = {}

    def check(document, *arguments):
        if id(document) not in passed:
            validate(document, *arguments)
            passed[id(document)] = document

    monkeypatch.setattr(archive_module, "load_yaml", functools.lru_cache(8192)(load_yaml))
    monkeypatch.setattr(archive_module, "validate", check)


SMALL = {"a": bytes(range(220)) * 5}


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.jmir"
    write_archive(path, "jmir", METADATA, members(SMALL), KEY)
    assert read_all(path) == SMALL
    return path


@contextlib.contextmanager
def flipped(path, index):
    """Flip a bit of one byte, and flip it back."""
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, index)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << index % 8]), index)
        yield
        os.pwrite(file.fileno(), bytes([byte]), index)


@pytest.mark.usefixtures("quick")
def test_every_flipped_byte_is_refused(small):
    for index in range(small.stat().st_size):
        with flipped(small, index), pytest.raises(IntegrityError):
            read_all(small)
    assert read_all(small) == SMALL


@pytest.mark.usefixtures("quick")
def test_every_truncation_is_refused(small):
    for length in reversed(range(small.stat().st_size)):
        os.truncate(small, length)
        with pytest.raises(IntegrityError):
            read_all(small)


def pack_as_written(path, members):
    """Write a tar in the writer's own form, whatever is in it."""
    from jarvis_rules.formats.member_frame import END, member_header, padding

    with path.open("wb") as out:
        stream = StoredGzipWriter(out)
        for name, data in members.items():
            stream.write(member_header(name, len(data)) + data + padding(len(data)))
        stream.write(END)
        stream.close()


@pytest.mark.usefixtures("quick")
def test_every_flipped_byte_of_the_tar_is_refused_behind_right_checksums(small):
    """Who changes an archive on purpose makes the CRC-32 of gzip right, too."""
    data = gzip.decompress(small.read_bytes())
    pack_as_written(small, ciphertexts(small))
    with small.open("r+b") as file:
        for index, byte in enumerate(data):
            changed = bytes([byte ^ 1 << index % 8])
            crc = zlib.crc32(data[:index] + changed + data[index + 1 :])
            # One block: behind the headers of gzip and of the block.
            os.pwrite(file.fileno(), changed, 15 + index)
            os.pwrite(file.fileno(), crc.to_bytes(4, "little"), 15 + len(data))
            with pytest.raises(IntegrityError):
                read_all(small)
            os.pwrite(file.fileno(), data[index : index + 1], 15 + index)
        os.pwrite(file.fileno(), zlib.crc32(data).to_bytes(4, "little"), 15 + len(data))
    assert read_all(small) == SMALL


@pytest.mark.usefixtures("quick")
def test_every_flipped_byte_of_a_member_is_named(path):
    parts = ciphertexts(path)
    for name in ("a", "c/empty"):
        for index in range(0, len(parts[name]), 7):
            data = bytearray(parts[name])
            data[index] ^= 0x80
            pack_as_written(path, {**parts, name: bytes(data)})
            error = refused(path)
            assert error.slug == "encryption.damaged"
            assert f"`{name}`" in error.message
            assert f"chunk {index // (CHUNK + 16)} " in error.message


# What was done is said


def chunks(data):
    size = CHUNK + 16
    return [data[start : start + size] for start in range(0, len(data), size)]


TAMPERED = {
    "end cut off": (lambda p: {"a": p["a"][:-1]}, "truncated", "its end is missing"),
    "last chunk cut off": (lambda p: {"a": b"".join(chunks(p["a"])[:-1])}, "truncated", "`a`"),
    "nothing left": (lambda _: {"a": b""}, "truncated", "has 0 bytes"),
    "full last chunk cut off": (lambda p: {"d": chunks(p["d"])[0]}, "truncated", "`d`"),
    "byte added": (lambda p: {"a": p["a"] + b"\0"}, "extended", "something was added"),
    "chunk added": (lambda p: {"d": p["d"] + chunks(p["d"])[1]}, "extended", "`d`"),
    "chunks reordered": (
        lambda p: {"a": b"".join(chunks(p["a"])[i] for i in (1, 0, 2))}, "reordered", "is chunk 1"
    ),
    "last chunk first": (
        lambda p: {"d": b"".join(chunks(p["d"])[::-1])}, "reordered", "is chunk 1"
    ),
    "chunk repeated": (
        lambda p: {"a": b"".join(chunks(p["a"])[i] for i in (0, 0, 2))}, "reordered", "is chunk 0"
    ),
    "members exchanged": (lambda p: {"a": p["b"], "b": p["a"]}, "exchanged", "of `b`"),
    "members of other sizes exchanged": (
        lambda p: {"a": p["d"], "d": p["a"]}, "exchanged", "of `d`"
    ),
    "chunk of another member": (
        lambda p: {"a": b"".join([chunks(p["a"])[0], chunks(p["b"])[1], chunks(p["a"])[2]])},
        "exchanged",
        "of `b`",
    ),
    "bit flipped": (lambda p: {"a": p["a"][:-1] + b"?"}, "damaged", "chunk 2 of `a`"),
    "zeros": (lambda p: {"d": bytes(len(p["d"]))}, "damaged", "chunk 0 of `d`"),
    "manifest edited": (
        lambda p: {MANIFEST: p[MANIFEST].replace(b"description: test", b"description: TEST")},
        "manifest",
        "was changed",
    ),
    "manifest commented": (lambda p: {MANIFEST: p[MANIFEST] + b"#\n"}, "manifest", "was changed"),
    "mac of nothing": (lambda _: {MAC: b""}, "manifest", "was changed"),
    "mac too long": (lambda p: {MAC: p[MAC] * 99}, "manifest", "was changed"),
}  # fmt: skip


@pytest.mark.parametrize("name", TAMPERED)
def test_tampering_is_told_apart(path, name):
    change, slug, text = TAMPERED[name]
    parts = ciphertexts(path)
    pack_as_written(path, {**parts, **change(parts)})
    error = refused(path)
    assert error.slug == f"encryption.{slug}"
    assert text in error.message


def test_a_member_of_another_archive_is_damage(path, tmp_path):
    write_archive(tmp_path / "y.jmir", "jmir", {**METADATA, "name": "y"}, members(), KEY)
    parts = ciphertexts(path)
    pack_as_written(path, {**parts, "a": ciphertexts(tmp_path / "y.jmir")["a"]})
    assert refused(path).slug == "encryption.damaged"


def test_the_wrong_key(path):
    for key in (Key(b"a key of the tesT"), Key(b"a key of the test\n"), Key(b"x")):
        error = refused(path, key)
        assert error.slug == "encryption.wrong-key"
        assert key.reveal().decode() not in (repr(key), error.message, error.hint)


def test_a_key_for_a_plain_archive(path):
    """Who expects an encrypted archive must not be given a plain one."""
    write_archive(path, "jmir", METADATA, members())
    assert refused(path).slug == "encryption.not-encrypted"


def edited(path, **changes):
    parts = ciphertexts(path)
    document = yaml.safe_load(parts[MANIFEST])
    document["metadata"]["encryption"].update(changes)
    pack_as_written(path, {**parts, MANIFEST: dump_yaml(document)})


def test_an_unknown_scheme_is_named(path):
    edited(path, scheme="rot13")
    for key in (KEY, None):
        assert refused(path, key).slug == "encryption.scheme"


@pytest.mark.parametrize("size", [1, 1023, 16 << 20 | 1, 1 << 60, "1024", -1])
def test_absurd_chunk_sizes_are_refused_before_the_key_is_touched(path, size, monkeypatch):
    edited(path, chunk_size=size)
    monkeypatch.setattr(encryption, "_scrypt", lambda *_: pytest.fail("too early"))
    assert refused(path).slug == "schema.invalid"


def test_encryption_that_is_said_away_is_noticed(path):
    """Without the lines that say so, the ciphertext would be read as content."""
    parts = ciphertexts(path)
    document = yaml.safe_load(parts[MANIFEST])
    del document["metadata"]["encryption"]
    for key, slug in ((KEY, "archive.unlisted"), (None, "archive.unlisted")):
        pack_as_written(path, {**parts, MANIFEST: dump_yaml(document)})
        assert refused(path, key).slug == slug
    parts.pop(MAC)
    pack_as_written(path, {**parts, MANIFEST: dump_yaml(document)})
    assert refused(path, None).slug == "archive.mixed-encryption"


def repacked(path, compress=True, order=lambda names: names):
    parts, out = ciphertexts(path), io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in order(list(parts)):
            info = tarfile.TarInfo(name)
            info.size = len(parts[name])
            tar.addfile(info, io.BytesIO(parts[name]))
    path.write_bytes(gzip.compress(out.getvalue()) if compress else out.getvalue())


@pytest.mark.parametrize("compress", [True, False])
def test_an_archive_that_was_packed_anew_is_refused(path, compress):
    repacked(path, compress)
    assert refused(path).slug == "encryption.container"


def test_another_order_of_members_is_refused(path):
    parts = ciphertexts(path)
    pack_as_written(path, dict(reversed(parts.items())))
    assert refused(path).slug == "encryption.container"


# The primitives


def sealed(size, name="m", role="asset", data=None):
    data = os.urandom(size) if data is None else data
    return SealedMember(name, role, digest_bytes(data), CHUNK), data


@pytest.fixture
def cipher():
    return ArchiveCipher(b"key", 1, "0" * 64, CHUNK)


@pytest.mark.parametrize("size", [0, 1, 1023, 1024, 1025, 2048, 5000])
def test_stored_sizes(cipher, size):
    member, data = sealed(size)
    out = io.BytesIO()
    sink = cipher.seal(member, out)
    sink.write(data)
    sink.finish()
    stored = out.getvalue()
    assert len(stored) == member.stored_size
    assert member.span(member.chunks - 1)[1] == member.stored_size
    opened = cipher.open_chunks(member, lambda start, end: stored[start:end])
    assert b"".join(opened) == data


def test_nothing_is_yielded_of_a_chunk_that_is_refused(cipher):
    member, data = sealed(3000)
    out = io.BytesIO()
    sink = cipher.seal(member, out)
    sink.write(data)
    sink.finish()
    stored = bytearray(out.getvalue())
    stored[CHUNK + 20] ^= 1
    opened = cipher.open_chunks(member, lambda start, end: bytes(stored[start:end]))
    assert next(opened) == data[:CHUNK]
    with pytest.raises(ChunkError, match="chunk 1"):
        next(opened)


@pytest.mark.parametrize("size", [999, 1001])
def test_a_content_of_another_size_is_a_bug(cipher, size):
    member, _ = sealed(3000)
    sink = cipher.seal(member, io.BytesIO())
    sink.write(bytes(size * 4))
    with pytest.raises(JarvisBug):
        sink.finish()


def test_no_two_members_share_a_key(monkeypatch):
    seen = []
    monkeypatch.setattr(encryption, "AESGCM", lambda key: seen.append(key) or AESGCM(key))
    base = {"name": "a", "role": "asset", "digest": digest_bytes(b"x"), "chunk_size": CHUNK}
    variants = [
        {}, {"name": "b"}, {"role": "graph"}, {"digest": digest_bytes(b"y")},
        {"chunk_size": 2 * CHUNK}, {"name": 'a","role":"asset'},
    ]  # fmt: skip
    for key, version, content in itertools.product((b"k", b"l"), (1, 2), ("0" * 64, "1" * 64)):
        cipher = ArchiveCipher(key, version, content, CHUNK)
        for changes in variants:
            cipher.seal(SealedMember(**{**base, **changes}), io.BytesIO())
        seen.append(cipher._expand({"purpose": "manifest"}))
        seen.append(cipher._secret)
        seen.append(bytes.fromhex(cipher.key_id))
    assert len(set(seen)) == len(seen) == 8 * (len(variants) + 3)


def test_nonces_are_numbers_and_a_flag():
    assert encryption._nonce(0, False) == bytes(12)
    assert encryption._nonce(258, True) == bytes(9) + b"\x01\x02\x01"


def test_scrypt_is_as_strong_as_the_page_says():
    assert (encryption.SCRYPT_N, encryption.SCRYPT_R, encryption.SCRYPT_P) == (1 << 15, 8, 1)
    assert key_source._SCRYPT["n"] == 1 << 15


def test_golden_ciphertext():
    """What was written once must stay readable: the bytes of the scheme."""
    cipher = ArchiveCipher(b"key", 1, "ab" * 32, CHUNK)
    member, data = sealed(0, data=b"content")
    out = io.BytesIO()
    sink = cipher.seal(member, out)
    sink.write(data)
    sink.finish()
    assert (cipher.key_id, out.getvalue().hex(), cipher.manifest_mac(b"manifest")) == GOLDEN


GOLDEN = (
    "90fb3ee7d49f39b8324fb38592a157e7",
    "cc89cce6ffb8601634a53f112dd9bca2911169cbd47c3f",
    b"938faf0ca7284553a162c4272548e53ab4309e48d2ab22342f6b23e8be3cec32\n",
)


PAGES = Path(__file__).parents[3] / "docs" / "reference"


def code_of(page):
    """Return the Python of a page of the specification."""
    return re.search(r"```python\n(.*?)```", (PAGES / page).read_text(encoding="utf-8"), re.S)[1]


def run_code(page, *arguments):
    argv = [sys.executable, "-c", code_of(page), *map(str, arguments)]
    return subprocess.run(argv, capture_output=True, check=False)


@pytest.mark.parametrize("name", MEMBERS)
def test_the_program_of_the_page_opens_what_we_write(path, name):
    done = run_code("encryption-format.md", path, name, KEY.reveal().decode())
    assert done.stdout == MEMBERS[name], done.stderr.decode()
    done = run_code("encryption-format.md", path, name, "other")
    assert b"AssertionError: wrong key" in done.stderr


def test_the_program_of_the_page_computes_the_content_digest(path, ejrvs):
    for archive in (path, ejrvs):
        assert run_code("archive-format.md", archive).stdout == b"True\n"


# Keys


def test_a_key_is_never_shown():
    key = Key(b"hidden", "env:NAME")
    shown = [repr(key), str(key), f"{key}", f"{[key]}", repr(ArchiveCipher(b"hidden", 1, "", 9))]
    assert not any("hidden" in text or b"hidden".hex() in text for text in shown)
    with pytest.raises(TypeError):
        pickle.dumps(key)
    assert not hasattr(key, "__dict__")


def test_fingerprints_tell_keys_apart():
    assert Key(b"a").fingerprint == Key(b"a", "elsewhere").fingerprint != Key(b"b").fingerprint
    assert Key(b"a") == Key(b"a", "elsewhere") != Key(b"b")
    assert len({Key(b"a"), Key(b"a", "elsewhere"), Key(b"b")}) == 2


@pytest.mark.parametrize(
    ("text", "path", "key"),
    [
        ("a.jmir", "a.jmir", None),
        ("a.jmir:k", "a.jmir", b"k"),
        ("a.ejrvs:k:l", "a.ejrvs", b"k:l"),
        ("a.nemo:x.jmir:k", "a.nemo", b"x.jmir:k"),
        ("dir.nemo/a.jmir:k", "dir.nemo/a.jmir", b"k"),
        ("C:a.jmir:k", "C:a.jmir", b"k"),
        ("a.riva:k", "a.riva", b"k"),
        ("a.rmir:k", "a.rmir", b"k"),
        ("a.tlt:k", "a.tlt", b"k"),
        ("a.txt:k", "a.txt:k", None),
        ("a.jmirs:k", "a.jmirs:k", None),
        ("a.jmir:ünï", "a.jmir", "ünï".encode()),
        ("a.jmir:k\n", "a.jmir", b"k\n"),
        ("a.jmir:env:NAME", "a.jmir", b"of the environment"),
        ("a.jmir:file:key", "a.jmir", b"of the file"),
        ("a.jmir:environment", "a.jmir", b"environment"),
        ("a.jmir:env", "a.jmir", b"env"),
    ],
)
def test_file_and_key(text, path, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NAME", "of the environment")
    (tmp_path / "key").write_bytes(b"of the file\n")
    found, secret = key_source.parse_file_and_key(text)
    assert str(found) == path
    assert (secret and secret.reveal()) == key


@pytest.mark.parametrize(
    ("content", "key"),
    [(b"k", b"k"), (b"k\n", b"k"), (b"k\r\n", b"k"), (b"k\n\n", b"k\n"), (b"\0\xff", b"\0\xff")],
)
def test_key_files(tmp_path, content, key):
    (tmp_path / "key").write_bytes(content)
    assert key_source.read_key(f"file:{tmp_path / 'key'}").reveal() == key


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("", "key.empty"),
        ("env:EMPTY", "key.empty"),
        ("env:", "key.environment"),
        ("env:ABSENT", "key.environment"),
        ("file:", "key.file"),
        ("file:absent", "key.file"),
        ("file:empty", "key.empty"),
        ("file:break", "key.empty"),
        ("file:long", "key.size"),
        ("file:/dev/zero", "key.size"),
        ("x" * 4097, "key.size"),
        ("empty", "key.file-name"),
        ("./empty", "key.file-name"),
    ],
)
def test_keys_that_are_refused(text, slug, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EMPTY", "")
    for name, data in {"empty": b"", "break": b"\n", "long": b"x" * 4097}.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(JarvisError) as caught:
        key_source.read_key(text, "x.jmir")
    assert (caught.value.slug, caught.value.where, caught.value.exit_code) == (slug, "x.jmir", 2)
    assert caught.value.hint


def test_a_public_key_warns():
    assert "printed in NVIDIA's documentation" in key_source.read_key("tlt_encode").warning
    assert key_source.read_key("other").warning is None
