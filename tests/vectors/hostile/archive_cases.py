"""Hostile `.ejrvs` and `.jmir` archives: what their manifests and pipelines claim."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hostile.case import case
from hostile.forge import ARCHIVES, Header, good, gz, tar

from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.key_source import read_key

MANIFEST, PIPELINE = "manifest.yaml", "pipeline.json"
_OURS = ("archive_format", "archive_version", "content_digest", "encryption")


def _golden(kind: str) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return metadata and members of a good archive."""
    members = dict(good(ARCHIVES / ("control.jmir" if kind == "jmir" else "control_valid.ejrvs")))
    document = yaml.safe_load(members.pop(MANIFEST))
    metadata = {k: v for k, v in document["metadata"].items() if k not in _OURS}
    return metadata, members


def _written(kind: str, metadata: dict[str, Any], members: dict[str, bytes]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}"
        listed = [Member(name, "asset", "", data=data) for name, data in members.items()]
        write_archive(path, kind, metadata, listed)
        return path.read_bytes()


@cache
def _unpacked(kind: str) -> dict[str, bytes]:
    """Return the members of a good archive of today's version, the manifest first."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a.{kind}"
        path.write_bytes(_written(kind, *_golden(kind)))
        return dict(good(path))


def _packed(members: dict[str, bytes], *more: Header) -> bytes:
    headers = (Header(name.encode(), data) for name, data in members.items())
    return gz(tar(*headers, *more), level=0)


def _lie(change: Callable[[dict[str, Any]], object], kind: str = "ejrvs") -> Callable[[], bytes]:
    """An archive whose manifest says something else than what is there."""

    def make() -> bytes:
        members = dict(_unpacked(kind))
        document = yaml.safe_load(members[MANIFEST])
        change(document)
        return _packed(members | {MANIFEST: yaml.safe_dump(document).encode()})

    return make


def _manifest(text: bytes, kind: str = "ejrvs") -> Callable[[], bytes]:
    return lambda: _packed({**_unpacked(kind), MANIFEST: text + _unpacked(kind)[MANIFEST]})


def _first(document: dict[str, Any]) -> dict[str, Any]:
    return document["files"][sorted(document["files"])[0]]


def _file(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: _first(document).update(changes)


def _meta(**changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["metadata"].update(changes)


def _flipped() -> bytes:
    members = dict(_unpacked("ejrvs"))
    name = sorted(members.keys() - {MANIFEST})[0]
    return _packed(members | {name: bytes([members[name][0] ^ 1]) + members[name][1:]})


def _consistent_lie(document: dict[str, Any]) -> None:
    """Another digest, where the content digest is left as it was."""
    _first(document)["sha256"] = hashlib.sha256(b"").hexdigest()


_MANIFESTS = [
    ("unlisted", "a member that is not listed", "archive.unlisted",
     "manifest.unlisted-member member.code",
     lambda: _packed(dict(_unpacked("ejrvs")), Header(b"a.py", b"import os\n"))),
    ("missing", "a member that is not there", "archive.missing", "manifest.missing-member",
     _lie(lambda d: d["files"].update({"../../a": dict(_first(d))}))),
    ("size", "another size", "archive.member-size", "manifest.size", _lie(_file(size=1))),
    ("size_huge", "a size of 2^80", "archive.member-size", "manifest.size",
     _lie(_file(size=1 << 80))),
    ("size_negative", "a negative size", "schema.invalid", "manifest.size", _lie(_file(size=-1))),
    ("size_real", "a size that is no integer", "schema.invalid", "manifest.size",
     _lie(_file(size=1.5))),
    ("digest", "another digest", "archive.content-digest", "manifest.digest",
     _lie(_consistent_lie)),
    ("digest_short", "a digest that is none", "schema.invalid", "manifest.digest",
     _lie(_file(sha256="00"))),
    ("flipped", "one bit of a member", "archive.member-digest", "manifest.digest", _flipped),
    ("content_digest", "another content digest", "archive.content-digest", "",
     _lie(_meta(content_digest="0" * 64))),
    ("version", "version 2", "archive.version", "", _lie(_meta(archive_version=2))),
    ("version_text", "a version that is text", "schema.invalid", "",
     _lie(_meta(archive_version="1"))),
    ("format", "a format that nobody knows", "archive.unknown-format", "",
     _lie(_meta(archive_format="exe"))),
    ("format_list", "a format that is a list", "archive.unknown-format", "",
     _lie(_meta(archive_format=["ejrvs"]))),
    ("encrypted", "one member that says it is encrypted", "archive.mixed-encryption",
     "manifest.encrypted", _lie(_file(encrypted=True))),
    ("files_list", "files as a list", "schema.invalid", "manifest.unlisted-member",
     _lie(lambda d: d.update(files=[]))),
    ("metadata_text", "metadata that is text", "archive.unknown-format", "",
     _lie(lambda d: d.update(metadata="x"))),
    ("tag", "a tag that runs a command", "archive.manifest-yaml", "yaml.tag",
     _manifest(b"a: !!python/object/apply:os.system [touch pwned]\n")),
    ("alias", "an alias", "archive.manifest-yaml", "", _manifest(b"a: &a [1]\nb: *a\n")),
    ("key_twice", "one key twice", "archive.manifest-yaml", "yaml.duplicate-key",
     _manifest(b"files: {}\n")),
    ("deep", "lists in lists", "archive.manifest-yaml", "yaml.malformed",
     _manifest(b"a: " + b"[" * 900 + b"\n")),
    ("values", "400,000 values", "archive.manifest-yaml", "yaml.limit",
     _manifest(b"a: [" + b"1," * 400_000 + b"]\n")),
    ("garbage", "no YAML", "archive.manifest-yaml", "yaml.malformed",
     lambda: _packed({MANIFEST: b"\0\1"})),
    ("none", "no manifest", "archive.missing-manifest", "",
     lambda: _packed({"a.txt": b"x"})),
    ("large", "a manifest of 17 MiB", "archive.manifest-size", "yaml.limit",
     lambda: _packed({MANIFEST: b"#" * (17 << 20)})),
    ("not_finite", "a fact that is NaN", "archive.content-digest", "",
     _lie(lambda d: d["metadata"]["facts"].update(a=float("nan")))),
    ("foreign", "an archive of NVIDIA's tools", "archive.foreign", "",
     lambda: _packed({MANIFEST: b"metadata: {}\nfiles: {a.txt: {}}\n", "a.txt": b"x"})),
    ("foreign_encrypted", "an encrypted archive of NVIDIA's tools", "encryption.nvidia",
     "manifest.encrypted",
     lambda: _packed({MANIFEST: b"metadata: {}\nfiles: {a.txt: {encrypted: true}}\n",
                      "a.txt": b"x"})),
    ("is_a_jmir", "a `.jmir` under another name", "archive.wrong-kind", "",
     lambda: _packed(dict(_unpacked("jmir")))),
    ("traversal", "a member that leads out, listed as it should be", "archive.member-traversal",
     "tar.member-traversal manifest.unlisted-member",
     lambda: _packed(dict(_unpacked("ejrvs")), Header(b"../../a", b"x"))),
    ("mac", "a plain archive with an authentication", "archive.unlisted",
     "manifest.unlisted-member",
     lambda: _packed({**_unpacked("ejrvs"), "manifest.mac": b"0" * 64 + b"\n"})),
    ("pickle_asset", "a pickle among the members", "archive.unlisted",
     "member.pickle pickle.call manifest.unlisted-member",
     lambda: _packed(dict(_unpacked("ejrvs")),
                     Header(b"a.bin", b"cposix\nsystem\n(S'touch pwned'\ntR."))),
]  # fmt: skip


def _pipeline(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """An honest archive of a pipeline document that lies."""

    def make() -> bytes:
        metadata, members = _golden("jmir")
        document = json.loads(members[PIPELINE])
        change(document)
        return _written("jmir", metadata, members | {PIPELINE: json.dumps(document).encode()})

    return make


def _document(text: bytes) -> Callable[[], bytes]:
    def make() -> bytes:
        metadata, members = _golden("jmir")
        return _written("jmir", metadata, members | {PIPELINE: text})

    return make


def _without(name: str) -> Callable[[], bytes]:
    def make() -> bytes:
        metadata, members = _golden("jmir")
        return _written("jmir", metadata, {n: d for n, d in members.items() if n != name})

    return make


def _edge(index: int, end: int, name: str) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["edges"][index].__setitem__(end, name)


def _cycle(document: dict[str, Any]) -> None:
    """The first module reads what the last one makes."""
    document["edges"][0][0] = "ctc_decoder." + document["modules"][2]["outputs"][0]["name"]


def _module(index: int, **changes: Any) -> Callable[[dict[str, Any]], object]:
    return lambda document: document["modules"][index].update(changes)


def _many(document: dict[str, Any]) -> None:
    module = document["modules"][0]
    document["modules"] = [{**module, "name": f"m{i}", "model": f"t{i}"} for i in range(300)]


def _tensor(dims: list[Any]) -> list[dict[str, Any]]:
    return [{"name": "x", "dtype": "FP32", "dims": dims}]


_PIPELINES = [
    ("unknown_source", "an edge from a module that is not there", "jmir.edge",
     _pipeline(_edge(0, 0, "mallory.AUDIO"))),
    ("unknown_target", "an edge to a module that is not there", "jmir.edge",
     _pipeline(_edge(0, 1, "mallory.AUDIO"))),
    ("unknown_tensor", "an edge to a tensor that is not there", "jmir.edge",
     _pipeline(_edge(0, 1, "feature_extractor.NOTHING"))),
    ("no_tensor", "an edge of no tensor", "jmir.edge", _pipeline(_edge(0, 1, "acoustic_model"))),
    ("backwards", "an edge from an input", "jmir.edge",
     _pipeline(_edge(2, 0, "acoustic_model.audio_signal"))),
    ("fed_twice", "two edges to one tensor", "jmir.edge",
     _pipeline(lambda d: d["edges"].append(list(d["edges"][0])))),
    ("not_fed", "a tensor that nothing is sent to", "jmir.edge",
     _pipeline(lambda d: d["edges"].pop(0))),
    ("cycle", "modules that wait for each other", "jmir.cycle", _pipeline(_cycle)),
    ("missing_file", "a file that is not there", "jmir.missing-member",
     _pipeline(_module(0, files={"a.npy": "feature_extractor/nothing.npy"}))),
    ("missing_traversal", "a file outside of the archive", "jmir.missing-member",
     _pipeline(_module(0, files={"a.npy": "../../../etc/passwd"}))),
    ("missing_manifest_file", "the manifest itself as a file", "jmir.missing-member",
     _pipeline(_module(0, files={"a.yaml": "manifest.yaml"}))),
    ("missing_graph", "an engine whose graph is not there", "jmir.missing-member",
     _without("acoustic_model/model_graph.onnx")),
    ("missing_document", "no document", "archive.missing", _without(PIPELINE)),
    ("file_traversal", "a file name that leads out", "schema.invalid",
     _pipeline(_module(0, files={"../../a.npy": "x"}))),
    ("file_code", "a file that a Python model would import", "schema.invalid",
     _pipeline(_module(0, files={"numpy.py": "x"}))),
    ("uses_shell", "a module that uses a shell", "schema.invalid",
     _pipeline(_module(0, uses="shell:touch"))),
    ("uses_path", "a backend by a path", "schema.invalid",
     _pipeline(_module(0, uses="backend:../../a"))),
    ("model_path", "a Triton model in another folder", "schema.invalid",
     _pipeline(_module(0, model="../a"))),
    ("batch_huge", "a batch of 2^40", "schema.invalid",
     _pipeline(lambda d: d.update(max_batch_size=1 << 40))),
    ("batch_zero", "a batch of none", "schema.invalid",
     _pipeline(lambda d: d.update(max_batch_size=0))),
    ("batch_real", "a batch of 8.0", "schema.invalid",
     _pipeline(lambda d: d.update(max_batch_size=8.0))),
    ("dims_huge", "a dimension of 2^63", "schema.invalid",
     _pipeline(_module(0, inputs=_tensor([1 << 63])))),
    ("dims_negative", "a dimension of -2", "schema.invalid",
     _pipeline(_module(0, inputs=_tensor([-2])))),
    ("instances_huge", "2^40 instances", "schema.invalid",
     _pipeline(_module(0, instance_group_count=1 << 40))),
    ("duplicate_module", "two modules of one name", "jmir.duplicate-name",
     _pipeline(_module(1, name="feature_extractor"))),
    ("duplicate_model", "a module that is served as the pipeline", "jmir.duplicate-name",
     _pipeline(_module(1, model="control"))),
    ("module_pipeline", "a module with the name of the pipeline's own node",
     "jmir.duplicate-name", _pipeline(_module(1, name="pipeline"))),
    ("many_faults", "110,000 modules of nothing", "schema.invalid",
     _pipeline(lambda d: d.update(modules=[{}] * 110_000))),
    ("many_modules", "300 modules that nothing feeds", "jmir.edge", _pipeline(_many)),
    ("mismatch", "another pipeline than the manifest says", "jmir.manifest-mismatch",
     _pipeline(lambda d: d.update(name="other"))),
    ("version", "version 2", "schema.invalid", _pipeline(lambda d: d.update(version=2))),
    ("unknown_key", "a key that nobody knows", "schema.invalid",
     _pipeline(lambda d: d.update(run="touch pwned"))),
    ("not_json", "no JSON", "jmir.pipeline-json", _document(b"{")),
    ("not_finite", "a parameter that is NaN", "jmir.pipeline-json", _document(b'{"a": NaN}')),
    ("number", "an integer of 100,000 digits", "jmir.pipeline-json", _document(b"9" * 100_000)),
    ("real_huge", "a number beyond all reals", "schema.invalid",
     _pipeline(lambda d: d.update(max_batch_size=10**400))),
    ("deep", "lists 100,000 deep", "jmir.pipeline-json", _document(b"[" * 100_000)),
    ("surrogate", "half a character", "jmir.pipeline-json", _document(b'{"a": "\\ud800"}')),
    ("large", "a document of 17 MiB", "jmir.pipeline-size", _document(b" " * (17 << 20))),
]  # fmt: skip


@cache
def _encrypted() -> dict[str, bytes]:
    metadata = {"name": "a", "kind": "speech_recognition"}
    members = [Member(name, "asset", "", data=name.encode() * 400) for name in ("a", "b")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jmir"
        write_archive(path, "jmir", metadata, members, read_key("a key for tests"))
        return dict(good(path))


def _sealed(change: Callable[[dict[str, bytes]], object]) -> Callable[[], bytes]:
    """An encrypted archive whose members were changed."""

    def make() -> bytes:
        members = dict(_encrypted())
        change(members)
        return _packed(members)

    return make


def _said(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """An encrypted archive whose manifest says something else."""

    def change_manifest(members: dict[str, bytes]) -> None:
        document = yaml.safe_load(members[MANIFEST])
        change(document)
        members[MANIFEST] = yaml.safe_dump(document).encode()

    return _sealed(change_manifest)


def _scheme(**changes: Any) -> Callable[[], bytes]:
    return _said(lambda document: document["metadata"]["encryption"].update(changes))


# Refused without the key; what only the key can tell is in `test_encryption.py`.
_ENCRYPTED = [
    ("truncated", "an encrypted member that breaks off", "encryption.truncated", "",
     _sealed(lambda m: m.update(a=m["a"][:-20]))),
    ("extended", "an encrypted member with something behind it", "encryption.extended", "",
     _sealed(lambda m: m.update(a=m["a"] + b"x" * 16))),
    ("emptied", "an encrypted member without bytes", "encryption.truncated", "",
     _sealed(lambda m: m.update(b=b""))),
    ("no_mac", "nothing that authenticates the manifest", "archive.missing", "",
     _sealed(lambda m: m.pop("manifest.mac"))),
    ("scheme", "a cipher that nobody knows", "encryption.scheme", "", _scheme(scheme="rot13")),
    ("chunks_huge", "chunks of 2^62 bytes", "schema.invalid", "", _scheme(chunk_size=1 << 62)),
    ("chunks_none", "chunks of no bytes", "schema.invalid", "", _scheme(chunk_size=0)),
    ("chunks_one", "chunks of one byte", "schema.invalid", "", _scheme(chunk_size=1)),
    ("key_id", "a key id that is a list", "schema.invalid", "", _scheme(key_id=[1])),
    ("mixed", "one member that says it is not encrypted", "archive.mixed-encryption",
     "manifest.digest manifest.size",
     _said(lambda d: d["files"]["a"].update(encrypted=False))),
    ("undone", "an encrypted archive that says it is not", "archive.unlisted",
     "manifest.unlisted-member", _said(lambda d: d["metadata"].pop("encryption"))),
]  # fmt: skip

CASES = [
    *(
        case(f"encrypted_{name}.jmir", attack, slug, f"{rules} manifest.encrypted", make)
        for name, attack, slug, rules, make in _ENCRYPTED
    ),
    *(
        case(f"manifest_{name}.ejrvs", attack, slug, rules, make)
        for name, attack, slug, rules, make in _MANIFESTS
    ),
    *(case(f"pipeline_{name}.jmir", attack, slug, "", make)
      for name, attack, slug, make in _PIPELINES),
]  # fmt: skip
