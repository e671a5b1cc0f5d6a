"""Archives: deterministic bytes, readable by everyone, and every damage named."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import IntegrityError, JarvisBug, JarvisError, UsageError
from jarvis_rules.formats import archive as archive_module
from jarvis_rules.formats.archive import MANIFEST, open_archive
from jarvis_rules.formats.archive_manifest import ArchiveManifest, content_digest
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.jmir import read_pipeline
from jarvis_rules.formats.stored_gzip import StoredGzipWriter

VECTORS = Path(__file__).parents[2] / "vectors" / "archive"
METADATA = {"name": "asr", "kind": "speech_recognition", "description": "ä — ☃"}
MEMBERS = {"pipeline.json": b"{}", "a/graph.onnx": b"graph" * 30_000, "empty": b"", "ü.txt": b"x"}


def members(contents):
    return [Member(name, "asset", f"a {name}", data=data) for name, data in contents.items()]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "x.jmir"
    write_archive(path, "jmir", METADATA, members(MEMBERS))
    return path


def read_all(path, kind=None):
    with open_archive(path, kind) as archive:
        return {name: archive.read(name) for name in archive.manifest.files}


# Writing


def test_round_trip(path, tmp_path):
    assert read_all(path, "jmir") == MEMBERS
    with open_archive(path) as archive:
        manifest = archive.manifest
        assert (manifest.kind, manifest.version) == ("jmir", 1)
        assert METADATA.items() <= manifest.metadata.items()
        assert archive.digest("a/graph.onnx") == digest_bytes(MEMBERS["a/graph.onnx"])
        with archive.open("a/graph.onnx") as stream:
            assert stream.read(7) + stream.read() == MEMBERS["a/graph.onnx"]
        archive.extract("a/graph.onnx", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == MEMBERS["a/graph.onnx"]


def test_the_manifest_stands_first_and_members_are_sorted(path):
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
    assert [info.name for info in infos] == [MANIFEST, *sorted(MEMBERS)]
    assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_others_can_read_it(path):
    with gzip.open(path) as plain, tarfile.open(fileobj=io.BytesIO(plain.read())) as archive:
        assert {
            info.name: archive.extractfile(info).read() for info in archive.getmembers()[1:]
        } == MEMBERS
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tzf", str(path)], capture_output=True, check=True
    )
    assert listed.stdout.decode().split("\n")[:-1] == [MANIFEST, *sorted(MEMBERS)]
    subprocess.run(["gzip", "-t"], stdin=path.open("rb"), check=True)


def test_content_may_come_from_files(path, tmp_path):
    for index, data in enumerate(MEMBERS.values()):
        (tmp_path / str(index)).write_bytes(data)
    given_files = [
        Member(name, "asset", f"a {name}", path=tmp_path / str(index))
        for index, name in enumerate(MEMBERS)
    ]
    write_archive(tmp_path / "y.jmir", "jmir", METADATA, reversed(given_files))
    assert (tmp_path / "y.jmir").read_bytes() == path.read_bytes()


WRITE = """
import os, sys, time
from pathlib import Path
from jarvis_rules.formats.archive_writing import Member, write_archive
os.umask(int(sys.argv[2]))
names = set(sys.argv[3:])
members = [Member(name, "asset", f"a {name}", data=name.encode() * 9999) for name in names]
metadata = {"name": "asr", "kind": "qa", "facts": {name: [*names] and 1.5e-08 for name in names}}
write_archive(Path(sys.argv[1]), "jmir", metadata, members)
"""


def test_bytes_depend_on_nothing_but_the_content(tmp_path):
    written = []
    for index, (seed, zone, language, umask) in enumerate(
        [("0", "UTC", "C", "18"), ("7", "Asia/Tokyo", "de_DE.UTF-8", "63")]
    ):
        folder = tmp_path / str(index)
        folder.mkdir()
        environment = {
            **os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LANG": language, "LC_ALL": language
        }  # fmt: skip
        argv = [sys.executable, "-c", WRITE, "x.jmir", umask, "b", "a/c", "a/b", "z" * 120]
        subprocess.run(argv, cwd=folder, env=environment, check=True)
        written.append((folder / "x.jmir").read_bytes())
    assert written[0] == written[1]


def test_two_members_of_one_name_are_a_bug(tmp_path):
    for names in (["a", "a"], [MANIFEST]):
        twice = [Member(name, "asset", "", data=b"") for name in names]
        with pytest.raises(JarvisBug, match="two members of one name"):
            write_archive(tmp_path / "x.jmir", "jmir", METADATA, twice)


def test_content_may_be_written_by_a_function(tmp_path):
    def write(sink):
        for start in range(0, 200_000, 999):
            sink.write(data[start : start + 999])

    data, written = bytes(range(250)) * 800, []
    for member in (Member("a", "asset", "", data=data), Member("a", "asset", "", write=write)):
        write_archive(tmp_path / "x.jmir", "jmir", METADATA, [member])
        written.append((tmp_path / "x.jmir").read_bytes())
    assert written[0] == written[1]


def test_a_file_that_changes_while_it_is_written_fails(tmp_path):
    sizes = iter((5, 9))
    member = Member("a", "asset", "", write=lambda sink: sink.write(bytes(next(sizes))))
    with pytest.raises(IntegrityError, match="changed while"):
        write_archive(tmp_path / "x.jmir", "jmir", METADATA, [member])


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SPECIAL = ["1e5", "2021-01-01", "1:30", "yes", "~", "<<", "=", "0x1F", "\u2028", "\x85", "\ufeff"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXTS | st.sampled_from(SPECIAL)
    | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@example(facts={"values": SPECIAL, **dict.fromkeys(SPECIAL)})
@given(facts=st.dictionaries(TEXTS | st.sampled_from(SPECIAL), VALUES, max_size=4))
def test_any_facts_survive(tmp_path, facts):
    shared = {"one": facts, "two": facts}
    write_archive(tmp_path / "x.jmir", "jmir", {**METADATA, "facts": shared}, [])
    with open_archive(tmp_path / "x.jmir") as archive:
        found = archive.manifest.metadata["facts"]
    assert json.dumps(found, sort_keys=True) == json.dumps(shared, sort_keys=True)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.sampled_from([0, 1, 65534, 65535, 65536, 131070, 131071]) | st.integers(0, 200_000),
        min_size=1,
        max_size=4,
    )
)
def test_stored_blocks(sizes):
    """However the bytes arrive, the blocks are as long as the format allows."""
    data = [bytes([index + 1]) * size for index, size in enumerate(sizes)]
    out, whole = io.BytesIO(), io.BytesIO()
    for stream, pieces in ((out, data), (whole, [b"".join(data)])):
        writer = StoredGzipWriter(stream)
        for piece in pieces:
            writer.write(piece)
        writer.close()
    assert gzip.decompress(out.getvalue()) == b"".join(data)
    assert out.getvalue() == whole.getvalue()
    body, lengths = out.getvalue()[10:-8], []
    while body:
        final, length, inverse = struct.unpack("<BHH", body[:5])
        assert length ^ inverse == 0xFFFF
        lengths.append(length)
        body = body[5 + length :]
        assert final == (not body)
    total = sum(sizes)
    blocks = max(1, -(-total // 65535))
    assert lengths == [65535] * (blocks - 1) + [total - 65535 * (blocks - 1)]


# Reading what others wrote


def pack(path, files, compress=gzip.compress):
    """Write a tar.gz with any content."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(compress(out.getvalue()))
    return path


@pytest.fixture
def parts(path):
    """The manifest, and the members."""
    with tarfile.open(path) as archive:
        files = {i.name: archive.extractfile(i).read() for i in archive.getmembers()}
    return yaml.safe_load(files.pop(MANIFEST)), files


def test_any_gzip_and_any_order_is_read(parts, tmp_path):
    manifest, files = parts
    files[f"./{MANIFEST}"] = yaml.safe_dump(manifest).encode()
    assert read_all(pack(tmp_path / "y.jmir", files)) == MEMBERS
    assert read_all(pack(tmp_path / "z.jmir", files, compress=bytes)) == MEMBERS


def refused(path, manifest, files):
    if isinstance(manifest, dict):
        manifest = yaml.safe_dump(manifest).encode()
    if manifest is not None:
        files = {MANIFEST: manifest, **files}
    pack(path, files)
    with pytest.raises(JarvisError) as caught:
        read_all(path)
    assert caught.value.hint
    assert "\x1b" not in caught.value.render()
    return caught.value


def fix_content_digest(manifest):
    metadata, roles = manifest["metadata"], ArchiveManifest.from_document(manifest).roles()
    metadata["content_digest"] = content_digest("jmir", roles, metadata)


def change_files(**changes):
    def change(manifest, _):
        manifest["files"]["a/graph.onnx"].update(changes)
        with contextlib.suppress(TypeError):
            fix_content_digest(manifest)

    return change


def change_metadata(**changes):
    return lambda manifest, _: manifest["metadata"].update(changes)


OTHER = hashlib.sha256(b"other").hexdigest()
DAMAGE = {
    "member missing": (lambda _, f: f.pop("empty"), "archive.missing", "`empty`"),
    "member unlisted": (lambda _, f: f.update({"more": b""}), "archive.unlisted", "`more`"),
    "listed and missing": (
        lambda m, _: m["files"].update({"\x1b[31m": {**m["files"]["empty"]}}),
        "archive.missing",
        "`\\x1b[31m`",
    ),
    "wrong size": (change_files(size=7), "archive.member-size", "150000 bytes"),
    "wrong digest": (change_files(sha256=OTHER), "archive.member-digest", "`a/graph.onnx`"),
    "flipped byte": (
        lambda _, f: f.update({"a/graph.onnx": b"Graph" + MEMBERS["a/graph.onnx"][5:]}),
        "archive.member-digest",
        "`a/graph.onnx`",
    ),
    "wrong content digest": (
        change_metadata(content_digest=OTHER), "archive.content-digest", "content_digest"
    ),
    "other role": (
        lambda m, _: m["files"]["empty"].update(role="graph"),
        "archive.content-digest",
        "content_digest",
    ),
    "encrypted, not how": (
        change_files(encrypted=True), "archive.mixed-encryption", "either all members"
    ),
    "other name": (change_metadata(name="other"), "archive.content-digest", "the metadata"),
    "other facts": (change_metadata(facts={"x": 1}), "archive.content-digest", "the metadata"),
    "facts no JSON": (
        change_metadata(facts={"x": float("nan")}), "archive.content-digest", "the metadata"
    ),
    "checksum too short": (change_files(crc32="0"), "schema.invalid", "crc32"),
    "newer version": (change_metadata(archive_version=2), "archive.version", "is 2"),
    "unknown format": (change_metadata(archive_format="zip"), "archive.unknown-format", "`zip`"),
    "format no text": (change_metadata(archive_format=["\x1b"]), "archive.unknown-format", "x1b"),
    "no metadata": (lambda m, _: m.pop("metadata"), "archive.unknown-format", "`None`"),
    "no files": (lambda m, _: m.pop("files"), "schema.invalid", "'files' is a required"),
    "files no map": (lambda m, _: m.update(files=[]), "schema.invalid", "`files`"),
    "key too many": (lambda m, _: m.update(more=1), "schema.invalid", "'more' was unexpected"),
    "version no number": (
        change_metadata(archive_version="1"), "schema.invalid", "metadata/archive_version"
    ),
    "digest too short": (change_files(sha256="0" * 63), "schema.invalid", "files/a/graph.onnx"),
    "digest and newline": (change_files(sha256=f"{OTHER}\n"), "schema.invalid", "sha256"),
    "size negative": (change_files(size=-1), "schema.invalid", "files/a/graph.onnx/size"),
    "size a float": (change_files(size=150000.0), "schema.invalid", "files/a/graph.onnx/size"),
    "escape in a key": (
        lambda m, _: m["files"].update({"\x1b[31m": 1}), "schema.invalid", "files/\\x1b[31m"
    ),
    "name is a path": (change_metadata(name="../../x"), "schema.invalid", "metadata/name"),
    "name is absolute": (change_metadata(name="/etc/x"), "schema.invalid", "metadata/name"),
    "name and newline": (change_metadata(name="asr\n"), "schema.invalid", "metadata/name"),
    "kind is a module": (change_metadata(kind="os.path"), "schema.invalid", "metadata/kind"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(parts, tmp_path, damage):
    change, slug, text = DAMAGE[damage]
    change(*parts)
    error = refused(tmp_path / "y.jmir", *parts)
    assert error.slug == slug
    assert text in str(error)
    assert isinstance(error, IntegrityError)


NOT_PLAIN = {
    "no YAML": b"a: [",
    "no UTF-8": b"a: \xff",
    "control character": b"a: \x01",
    "python tag": b"!!python/object/apply:os.system [touch pwned]",
    "binary": b"a: !!binary aGk=",
    "set": b"a: !!set {x}",
    "explicit number": b"a: !!int x",
    "merge": b"a: &x {b: 1}\nc:\n  <<: {b: 2}",
    "alias": b"a: &x [1]\nb: *x",
    "alias of itself": b"&x [*x]",
    "billion laughs": b"a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]",
    "number as key": b"files: {1: {}}",
    "list as key": b"? [a]\n: 1",
    "key twice": b"metadata: {archive_format: jmir, archive_format: ejrvs}",
    "deep": b"[" * 100_000,
    "deep mapping": b"{a: " * 10_000,
    "huge number": b"a: " + b"9" * 5000,
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_manifest_that_is_no_plain_yaml_is_refused(tmp_path, name):
    error = refused(tmp_path / "y.jmir", NOT_PLAIN[name], {})
    assert error.slug == "archive.manifest-yaml"
    assert "\n" not in error.message
    assert not Path("pwned").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"1", b"text", b"metadata: [1]", b"metadata: 1"])
def test_a_manifest_that_is_no_mapping_is_refused(tmp_path, text):
    assert refused(tmp_path / "y.jmir", text, {}).slug == "archive.unknown-format"


def test_a_date_is_text(parts, tmp_path):
    manifest, files = parts
    manifest["metadata"]["description"] = "DATE"
    text = yaml.safe_dump(manifest).replace("DATE", "2001-99-99").encode()
    with open_archive(pack(tmp_path / "y.jmir", {MANIFEST: text, **files})) as archive:
        assert archive.manifest.metadata["description"] == "2001-99-99"


def test_a_manifest_too_large_is_refused_unread(tmp_path, monkeypatch):
    monkeypatch.setattr(archive_module, "MAX_MANIFEST_SIZE", 10)
    assert refused(tmp_path / "y.jmir", b"x" * 11, {}).slug == "archive.manifest-size"


def test_other_tars_are_refused(tmp_path, nemo):
    assert refused(tmp_path / "y.jmir", None, {"x": b""}).slug == "archive.missing-manifest"
    with pytest.raises(IntegrityError, match=r"no member `manifest\.yaml`"), open_archive(nemo):
        pass


@pytest.mark.parametrize(
    ("name", "slug"),
    [("../x", "member-traversal"), ("/x", "member-absolute"), ("a\\b", "member-name")],
)
def test_hostile_tars_are_refused(tmp_path, name, slug):
    assert refused(tmp_path / "y.jmir", b"", {name: b""}).slug == f"archive.{slug}"


def test_a_truncated_archive_is_refused(path):
    data = path.read_bytes()
    for length in (0, 5, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(IntegrityError), open_archive(path):
            pass


def test_the_wrong_kind_is_refused(path):
    with pytest.raises(IntegrityError, match=r"a `.jmir` archive, expected `.ejrvs`") as caught:
        read_all(path, "ejrvs")
    assert caught.value.slug == "archive.wrong-kind"


def test_what_is_no_file_is_the_user_s_error(tmp_path):
    for name in (".", "absent.jmir"):
        with pytest.raises(UsageError), open_archive(tmp_path / name):
            pass


def test_a_member_that_is_not_there_is_named_and_the_others_listed(path, tmp_path):
    with open_archive(path) as archive:
        for use in (archive.read, archive.digest, lambda n: archive.extract(n, tmp_path / "y")):
            with pytest.raises(IntegrityError, match=r"no member `absent`; there are `a/graph"):
                use("absent")


def test_an_extraction_that_fails_leaves_nothing(parts, tmp_path):
    manifest, files = parts
    files["empty"], files["a/graph.onnx"] = b"", b"Graph" + MEMBERS["a/graph.onnx"][5:]
    packed = pack(tmp_path / "y.jmir", {MANIFEST: yaml.safe_dump(manifest).encode(), **files})
    with (
        open_archive(packed) as archive,
        pytest.raises(IntegrityError, match="does not match its digest"),
    ):
        archive.extract("a/graph.onnx", tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Golden archives


def test_golden_archives_stay_readable(ejrvs, jmir):
    assert set(read_all(ejrvs, "ejrvs")) == {
        "featurizer_fb.npy", "featurizer_window.npy", "model_config.yaml", "model_graph.onnx"
    }  # fmt: skip
    with open_archive(jmir, "jmir") as archive:
        pipeline = read_pipeline(archive)
        assert (pipeline.name, pipeline.max_batch_size) == ("control", 4)
        with open_archive(ejrvs) as source:
            origin = pipeline.models["acoustic_model"].content_digest
            assert origin == source.manifest.content_digest


def test_golden_archives_are_what_the_commands_write(tmp_path):
    subprocess.run([sys.executable, VECTORS / "make.py", tmp_path], check=True)
    for golden in sorted((VECTORS / "v1").iterdir()):
        assert (tmp_path / golden.name).read_bytes() == golden.read_bytes(), golden.name


def test_golden_archives_hold_nothing_of_the_machine(ejrvs, jmir):
    for path in (ejrvs, jmir):
        data = gzip.decompress(path.read_bytes())
        for trace in (os.getcwd(), "/tmp/", "/work", sys.prefix, os.uname().nodename, "2026"):  # noqa: PTH109
            assert trace.encode() not in data, trace
