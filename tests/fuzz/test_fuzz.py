"""A short run of every target, in a process of its own with limits: always the same inputs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Read off the source: importing the targets here would load all of the readers.
TARGETS = [
    call.args[0].value
    for call in ast.walk(ast.parse((HERE / "targets.py").read_bytes()))
    if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Target"
]
COUNTS = {"checkpoint": 3000, "config": 3000, "encrypted": 200}


@pytest.mark.parametrize("name", TARGETS)
def test_nothing_but_our_errors(name, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-W", "ignore", "-m", "tests.fuzz", name, "--seed", "1"),
            *("--count", str(COUNTS.get(name, 400)), "--crashes", str(tmp_path)),
        ],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout
    assert "outcomes" in done.stdout


def test_the_corpus_is_small_and_of_known_targets():
    files = [path for path in (HERE / "corpus").rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} <= set(TARGETS)
    assert sum(path.stat().st_size for path in files) <= 300 << 10
