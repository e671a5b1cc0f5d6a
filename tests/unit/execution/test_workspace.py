"""What commands open: a cache that cannot be used and an output folder that is held."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_rules.errors import ToolchainError, UsageError
from jarvis_rules.execution.store import UNFINISHED
from jarvis_rules.execution.workspace import lock_tree, open_executor

HOLD = (
    "import sys; from pathlib import Path;"
    "from jarvis_rules.execution.workspace import lock_tree;"
    "c = lock_tree(Path(sys.argv[1])); c.__enter__(); print('held', flush=True);"
    "sys.stdin.read()"
)


def test_an_executor_leaves_its_cache_tidy(tmp_path, monkeypatch):
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path / "new" / "cache"))
    with open_executor() as executor:
        executor.store.put_bytes(b"x")
    assert not any((tmp_path / "new" / "cache" / "tmp").iterdir())


def test_a_cache_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ToolchainError, match="cache folder"), open_executor():
        pass


def test_an_output_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(UsageError, match="cannot be the output folder"), lock_tree(folder):
            pass


def test_what_a_killed_build_left_is_removed(tmp_path):
    left = tmp_path / "models" / "m" / f".model.onnx.x1{UNFINISHED}"
    left.parent.mkdir(parents=True)
    left.touch()
    (tmp_path / "models" / "m" / "model.onnx").touch()
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    assert killed.stdout.readline() == b"held\n"
    killed.kill()
    killed.communicate()
    with lock_tree(tmp_path):
        assert sorted(os.listdir(left.parent)) == ["model.onnx"]  # noqa: PTH208


def test_a_build_that_ended_leaves_nothing_to_look_for(tmp_path, monkeypatch):
    with lock_tree(tmp_path):
        pass
    assert (tmp_path / ".lock").read_bytes() == b""
    monkeypatch.setattr(Path, "rglob", lambda *_: pytest.fail("looked at every file"))
    with lock_tree(tmp_path), contextlib.suppress(KeyboardInterrupt):
        raise KeyboardInterrupt
    assert (tmp_path / ".lock").read_bytes() == b""


def test_a_second_build_waits_for_the_first(tmp_path):
    with lock_tree(tmp_path):
        second = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert second.stderr.readline() == f"another build holds {tmp_path}, waiting\n"
        assert second.poll() is None
    with second:
        assert second.stdout.read() == "held\n"
