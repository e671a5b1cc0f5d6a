"""Projects as folders: a copied project, the real `scons` run in it, and what its log says."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from jarvis_rules.execution.execution_log import read_last_build

HERE = Path(__file__).parent
MODEL = HERE.parent / "vectors" / "nemo" / "control_valid.nemo"
SCONS = Path(sys.executable).with_name("scons")


@dataclass
class Result:
    """What a run of scons said and did."""

    code: int
    stdout: str
    stderr: str
    actions: list[dict]

    def ran(self, outcome: str = "executed") -> list[str]:
        return sorted(a["mnemonic"] for a in self.actions if a["outcome"] == outcome)

    def assert_up_to_date(self) -> None:
        assert self.code == 0, self.stderr
        assert self.actions == []

    @property
    def output(self) -> str:
        return self.stdout + self.stderr


@dataclass
class Project:
    """A copied project, its cache, and a way to run scons in it."""

    folder: Path
    cache: Path
    environment: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        return [str(SCONS), "-Q", *arguments]

    def variables(self) -> dict[str, str]:
        return {**os.environ, "JARVIS_CACHE": str(self.cache), **self.environment}

    def scons(self, *arguments: str, out: str = "out") -> Result:
        log = self.folder / out / "execution-log.jsonl"
        before = log.read_text() if log.exists() else ""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.variables(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        began = log.exists() and log.read_text() != before
        actions = read_last_build(log) if began else []
        return Result(done.returncode, done.stdout, done.stderr, actions)

    def build(self, *arguments: str) -> Result:
        result = self.scons(*arguments)
        assert result.code == 0, result.output
        return result

    def files(self, folder: str = "out") -> dict[str, bytes]:
        """Return every artifact: neither the log, nor locks, nor the records of actions."""
        root = self.folder / folder
        return {
            path.relative_to(root).as_posix(): path.read_bytes()
            for path in sorted(root.rglob("*"))
            if path.is_file()
            and path.name not in (".lock", "execution-log.jsonl")
            and not path.name.endswith("action.json")
        }


def change_one_weight(nemo: Path) -> None:
    """Rewrite a checkpoint with one bit of one weight flipped, and nothing else."""
    with tarfile.open(nemo) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar if m.isfile()]
    with tarfile.open(nemo, "w") as tar:
        for member, data in members:
            changed = _flip(data) if member.name.endswith("model_weights.ckpt") else data
            member.size = len(changed)
            tar.addfile(member, io.BytesIO(changed))


def _flip(checkpoint: bytes) -> bytes:
    out = io.BytesIO()
    source = zipfile.ZipFile(io.BytesIO(checkpoint))
    records = [name for name in source.namelist() if "/data/" in name]
    # The largest storage is the mel filterbank, which no graph holds; the next is a kernel.
    chosen = sorted(records, key=lambda name: source.getinfo(name).file_size)[-2]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            data = bytearray(source.read(name))
            if name == chosen:
                data[0] ^= 1
            target.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), bytes(data))
    return out.getvalue()
