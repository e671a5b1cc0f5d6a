"""What is fuzzed: one target for every reader of what comes from strangers, and the scans."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fuzz import mutations
from fuzz.mutations import Mutation

from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.jmir import load_pipeline
from jarvis_rules.formats.key_source import Key, read_key
from jarvis_rules.formats.nemo import load_config, open_nemo
from jarvis_rules.formats.tar import open_tar
from jarvis_rules.scanning.scan import scan_file

sys.path.insert(0, str(Path(__file__).parents[1] / "vectors"))

CORPUS = Path(__file__).parent / "corpus"
_SEED_SIZE = 8192
_JMIR = {"name": "a", "kind": "speech_recognition"}
_CONFIG = b"target: a.B\nlabels: [a, b]\nencoder: &e {x: 1e-3}\ndecoder: {<<: *e, y: null}\n"


@dataclass(frozen=True)
class Target:
    """A reader, what it is given at first, and how that is changed.

    `run` may raise `JarvisError` only, and in the time and memory that `guard` allows.
    """

    name: str
    run: Callable[[bytes, Path], object]
    seeds: Callable[[], list[bytes]]
    mutate: Mutation

    def corpus(self) -> list[bytes]:
        """Return what was kept, and the seeds."""
        kept = sorted((CORPUS / self.name).glob("*"), key=lambda path: path.name)
        return [*(path.read_bytes() for path in kept), *self.seeds()]


def run_one(target: Target, data: bytes, folder: Path) -> str:
    """Give one input to a target; return the slug of the refusal, or nothing."""
    try:
        target.run(data, folder)
    except JarvisError as error:
        error.render().encode()
        return error.slug
    return ""


# --- tar, checkpoint, configuration -----------------------------------------------------------


def _run_tar(data: bytes, folder: Path) -> None:
    (folder / "a.tar").write_bytes(data)
    with open_tar(folder / "a.tar", "nemo") as archive:
        for member in archive.members:
            assert not member.name.startswith("/")
            assert ".." not in member.name.split("/")
            assert len(archive.view(member)) == member.size


def _tars() -> list[bytes]:
    from hostile.forge import END, Header, gz, pax, tar

    two = (Header(b"./", kind=b"5"), Header(b"./a.txt", b"a" * 600), Header(b"b", b"b"))
    long = Header(b"././@LongLink", b"c" * 150 + b"\0", b"L")
    plain = tar(*two, pax("path", b"d/e"), Header(b"d", b"x"), long, Header(b"c"))
    return [plain, gz(plain), gz(plain[:1024]) + gz(plain[1024:]), END, gz(plain, level=0)]


def _run_checkpoint(data: bytes, _: Path) -> None:
    tensors = read_checkpoint(data, "a.ckpt")
    for name in tensors:
        assert tensors[name].size < 1 << 24


def _checkpoints() -> list[bytes]:
    from hostile.make import CASES

    made = (
        case.make() for name, case in CASES.items() if name.endswith(".ckpt") and "bomb" not in name
    )
    return [data for data in made if len(data) < _SEED_SIZE]


def _configurations() -> list[bytes]:
    return [_CONFIG, b"model: {target: a.B, params: {c: [1, 2]}}\n", b"a: 1\nb: 'x'\nc: |\n  d\n"]


def _run_config(data: bytes, _: Path) -> None:
    load_config(data, "a.nemo!model_config.yaml")


# --- archives ---------------------------------------------------------------------------------


def _archive(key: Key | None = None) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jmir"
        members = [Member(name, "asset", "", data=name.encode() * 40) for name in ("a", "b")]
        write_archive(path, "jmir", _JMIR, members, key)
        return path.read_bytes()


def _key() -> Key:
    return read_key("a key for tests")


def _run_encrypted(data: bytes, folder: Path) -> None:
    _run_archive(data, folder, _key())


def _run_archive(data: bytes, folder: Path, key: Key | None = None) -> None:
    (folder / "a.jmir").write_bytes(data)
    with open_archive(folder / "a.jmir", key=key) as archive:
        for name in archive.manifest.files:
            archive.read(name)


def _run_manifest(data: bytes, folder: Path) -> None:
    from hostile.forge import Header, gz, tar

    members = (Header(name, name * 40) for name in (b"a", b"b"))
    _run_archive(gz(tar(Header(b"manifest.yaml", data), *members), level=0), folder)


def _manifests() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jmir"
        path.write_bytes(_archive())
        with open_tar(path) as archive:
            return [bytes(archive.view(archive.members[0]))]


def _run_pipeline(data: bytes, _: Path) -> None:
    load_pipeline(data, "a.jmir!pipeline.json")


def _pipelines() -> list[bytes]:
    from hostile.forge import ARCHIVES, good

    return [good(ARCHIVES / "control.jmir")["pipeline.json"]]


# --- scans ------------------------------------------------------------------------------------


def _scan(suffix: str) -> Callable[[bytes, Path], None]:
    def run(data: bytes, folder: Path) -> None:
        path = folder / f"a.{suffix}"
        path.write_bytes(data)
        report = scan_file(path)
        assert len(report.findings) < 2000
        for finding in report.findings:
            assert len(finding.message) < 4000
            assert finding.message.isprintable(), finding.message

    return run


def _nemos() -> list[bytes]:
    from hostile.forge import Header, checkpoint, gz, nemo, state

    artifact = Header(b"a.pkl", b"cposix\nsystem\n(S'x'\ntR.")
    plain = nemo(artifact, config=_CONFIG, weights=checkpoint(state()))
    return [plain, gz(plain)]


def _run_nemo(data: bytes, folder: Path) -> None:
    (folder / "a.nemo").write_bytes(data)
    with open_nemo(folder / "a.nemo") as archive:
        archive.state_dict()


TARGETS = {
    target.name: target
    for target in (
        Target("tar", _run_tar, _tars, mutations.of_tar),
        Target("nemo", _run_nemo, _nemos, mutations.of_tar),
        Target("checkpoint", _run_checkpoint, _checkpoints, mutations.of_checkpoint),
        Target("config", _run_config, _configurations, mutations.of_yaml),
        Target("archive", _run_archive, lambda: [_archive()], mutations.of_stored_gzip),
        Target("encrypted", _run_encrypted, lambda: [_archive(_key())], mutations.of_stored_gzip),
        Target("manifest", _run_manifest, _manifests, mutations.of_yaml),
        Target("pipeline", _run_pipeline, _pipelines, mutations.of_json),
        Target("scan_nemo", _scan("nemo"), _nemos, mutations.of_tar),
        Target("scan_checkpoint", _scan("ckpt"), _checkpoints, mutations.of_checkpoint),
        Target("scan_archive", _scan("jmir"), lambda: [_archive()], mutations.of_stored_gzip),
    )
}
