"""Encrypted builds as a whole: the same results, and the key is nowhere that it must not be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from project_testing import HERE, MODEL, Project

from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.key_source import Key

BIN = Path(sys.executable).parent
HIDDEN = "kEy-0f-the-leak-test"
OTHER = "anOther-k3y-of-the-test"
SHOWN = [text for key in (HIDDEN, OTHER) for text in (key.encode(), key.encode().hex().encode())]
DECLARATION = """\
Import("env")
model = env.NemoModel("tiny.nemo", key="file:model.key")
env.Pipeline("tiny", "speech_recognition", model, key="env:PIPELINE_KEY", offline=True)
"""


class Watch:
    """Looks at the command line and the environment of every process that descends from one."""

    def __init__(self, argv, **settings):
        self.seen = set()
        self.leaks = set()
        self._done = threading.Event()
        with subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings
        ) as process:
            self._root = process.pid
            thread = threading.Thread(target=self._look)
            thread.start()
            self.output = process.communicate(timeout=180)[0]
            self._done.set()
            thread.join()
        self.code = process.returncode

    def _look(self):
        own = self._read(self._root, "cmdline")
        while not self._done.is_set():
            for pid in self._descendants(self._root):
                command = self._read(pid, "cmdline")
                # Between fork and exec a process still shows what its parent is.
                if command in (b"", own, self._read(self._root, "cmdline")):
                    continue
                self.seen.add(command)
                for place in ("cmdline", "environ"):
                    data = self._read(pid, place)
                    if self._read(pid, "cmdline") == command and any(s in data for s in SHOWN):
                        self.leaks.add((place, command))
            time.sleep(0.002)

    def _descendants(self, pid):
        try:
            found = [file.read_text() for file in Path(f"/proc/{pid}/task").glob("*/children")]
        except OSError:  # it has ended meanwhile
            return
        for child in " ".join(found).split():
            yield child
            yield from self._descendants(child)

    def _read(self, pid, name):
        try:
            return Path(f"/proc/{pid}/{name}").read_bytes()
        except OSError:
            return b""


def holders(folder, *needles):
    """Return the files under a folder that hold one of the byte strings."""
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and any(needle in path.read_bytes() for needle in needles)
    )


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "checkout"
    shutil.copytree(HERE / "basic", folder)
    shutil.copy(MODEL, folder / "models" / "tiny.nemo")
    (folder / "models" / "SConscript").write_text(DECLARATION)
    (folder / "models" / "model.key").write_text(f"{HIDDEN}\n")
    return Project(folder, tmp_path / "cache", {"PIPELINE_KEY": OTHER})


def plaintext_of(jmir, key):
    """Return what of an archive must not be found where nobody may read it."""
    with open_archive(jmir, key=Key(key.encode())) as archive:
        graph = archive.read("acoustic_model/model_graph.onnx")
        return [graph[-400:], archive.read("pipeline.json")[:400]]


def test_the_key_is_nowhere(project):
    """Not in outputs, records, logs, the cache, or any process that the build starts."""
    watch = Watch(project.command("--debug=explain"), cwd=project.folder, env=project.variables())
    assert watch.code == 0, watch.output
    assert any(b"jarvis_rules.tools.nemo_export" in command for command in watch.seen)
    assert watch.leaks == set()
    assert not any(text.decode() in watch.output for text in SHOWN)
    assert holders(project.folder, *SHOWN) == ["models/model.key"]
    assert holders(project.cache, *SHOWN) == []
    # The plaintext of the inputs is where it is delivered, and in the user's own store.
    hidden = plaintext_of(project.folder / "out/any/tiny.jmir", OTHER)
    served = holders(project.folder, *hidden)
    assert served == ["out/cpu/engines/tiny/acoustic_model/model.onnx", *served[1:]]
    assert all(name.startswith("out/cpu/") for name in served)
    assert all(name.startswith("private-") for name in holders(project.cache, *hidden))


def test_old_commands_leak_no_key_either(tmp_path):
    environment = {**os.environ, "JARVIS_CACHE": str(tmp_path / "cache"), "PIPELINE_KEY": OTHER}
    (tmp_path / "work").mkdir()
    shutil.copy(MODEL, tmp_path / "work" / "tiny.nemo")
    (tmp_path / "model.key").write_text(HIDDEN)
    commands = [
        ("nemo2jarvis", "--key", "file:../model.key", "tiny.nemo"),
        ("jarvis-build", "speech_recognition", "tiny.jmir:env:PIPELINE_KEY",
         "tiny.ejrvs:file:../model.key", "--name", "tiny", "--offline", "-v"),
        ("jarvis-deploy", "--gpu", "cpu", "-v", "tiny.jmir:env:PIPELINE_KEY", "models"),
    ]  # fmt: skip
    for command, *arguments in commands:
        watch = Watch([str(BIN / command), *arguments], cwd=tmp_path / "work", env=environment)
        assert watch.code == 0, watch.output
        assert watch.seen
        assert watch.leaks == set()
        assert not any(text.decode() in watch.output for text in SHOWN)
    assert holders(tmp_path, *SHOWN) == ["model.key"]


def test_an_encrypted_build_serves_what_a_plain_one_serves(project):
    project.build()
    encrypted = {n: d for n, d in project.files("out/cpu/models").items() if n.count("/")}
    sconscript = project.folder / "models" / "SConscript"
    plain = DECLARATION.replace(', key="file:model.key"', "").replace(
        ', key="env:PIPELINE_KEY"', ""
    )
    sconscript.write_text(plain)
    project.build()
    assert {n: d for n, d in project.files("out/cpu/models").items() if n.count("/")} == encrypted


def test_another_key_builds_archives_anew_and_no_engine(project):
    project.build()
    project.build().assert_up_to_date()
    before = (project.folder / "out/any/tiny.jmir").read_bytes()
    project.environment["PIPELINE_KEY"] = f"{OTHER}!"
    assert project.build().ran() == ["JmirBuild", "RepositoryAssemble"]
    assert (project.folder / "out/any/tiny.jmir").read_bytes() != before
    project.environment["PIPELINE_KEY"] = OTHER
    again = project.build()
    assert again.ran() == []
    assert (project.folder / "out/any/tiny.jmir").read_bytes() == before


def test_two_checkouts_write_the_same_bytes(project, tmp_path):
    project.build()
    other = Project(tmp_path / "other", tmp_path / "cache2", project.environment)
    shutil.copytree(project.folder, other.folder, ignore=shutil.ignore_patterns("out", ".scons*"))
    other.build()
    assert other.files() == project.files()


def test_a_pipeline_of_an_encrypted_model_that_is_not_is_told(project):
    sconscript = project.folder / "models" / "SConscript"
    sconscript.write_text(DECLARATION.replace(', key="env:PIPELINE_KEY"', ""))
    result = project.build()
    assert "an encrypted model goes into `out/any/tiny.jmir`, which is not" in result.stderr


def test_a_given_archive_has_its_key_behind_it(project):
    project.build()
    shutil.copy(project.folder / "out/any/models/tiny.ejrvs", project.folder / "models")
    text = DECLARATION.replace(
        'env.NemoModel("tiny.nemo", key="file:model.key")', '"tiny.ejrvs:file:model.key"'
    )
    (project.folder / "models" / "SConscript").write_text(text)
    project.build()
    text = text.replace("file:model.key", "wrong")
    (project.folder / "models" / "SConscript").write_text(text)
    result = project.scons()
    assert (result.code, "[encryption.wrong-key]" in result.output) == (2, True)
    (project.folder / "models" / "SConscript").write_text(text.replace(":wrong", ""))
    result = project.scons()
    assert (result.code, "[encryption.missing-key]" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("key", "slug"), [("env:ABSENT", "key.environment"), ("", "key.empty"), ("file:x", "key.file")]
)
def test_a_bad_key_is_an_error_of_the_sconscript(project, key, slug):
    text = DECLARATION.replace("file:model.key", key)
    (project.folder / "models" / "SConscript").write_text(text)
    result = project.scons()
    assert (result.code, f"[{slug}]" in result.output) == (2, True)
    assert "SConscript" in result.output
