"""Every hostile file ends in its slug, in bounded time and memory, and touches nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.make import CASES, table

from jarvis_rules.errors import EXIT_INTEGRITY, EXIT_OK, IntegrityError
from jarvis_rules.scanning.scan import read_whole, scan_file

VECTORS = Path(__file__).parents[2] / "vectors"
OLD = VECTORS / "nemo"
# What loads and is refused later, by the exporter.
WELL_FORMED = ("control_valid", "wrong_shape", "missing_key", "unknown_target")


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that writes a case to a folder with nothing else in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def write(name):
        Path(name).write_bytes(CASES[name].make())
        return Path(name)

    return write


@pytest.mark.parametrize("name", CASES)
def test_the_reader_refuses_it_and_the_scan_says_why(name, written):
    case, path = CASES[name], written(name)
    if case.slug:
        with pytest.raises(IntegrityError) as caught:
            read_whole(path)
        assert caught.value.slug == case.slug
        assert caught.value.exit_code == EXIT_INTEGRITY
        assert caught.value.hint
        assert caught.value.message.isprintable()
        assert str(caught.value.where).startswith(name)
    else:
        read_whole(path)

    report = scan_file(path)
    own = {f.rule for f in report.findings if f.severity != "note" and f.rule != "reader.refuses"}
    assert own == set(case.rules)
    refusals = [f.message for f in report.findings if f.rule == "reader.refuses"]
    assert [message.partition(":")[0] for message in refusals] == ([case.slug] * bool(case.slug))
    assert all(finding.message.isprintable() for finding in report.findings)
    assert os.listdir() == [name]  # noqa: PTH208  (no `pwned`, no temporary file)


def test_the_table_of_the_readme_is_the_set():
    assert table() in (VECTORS / "hostile" / "README.md").read_text(encoding="utf-8")


def test_the_files_are_always_the_same():
    names = [name for name in CASES if "bomb" not in name][::7]
    code = (
        "import hashlib, json, sys; from hostile.make import CASES; "
        "print(json.dumps([hashlib.sha256(CASES[n].make()).hexdigest() for n in sys.argv[1:]]))"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code, *names],
            cwd=VECTORS,
            env={**os.environ, "PYTHONHASHSEED": seed, "TZ": zone},
            capture_output=True,
            check=True,
        ).stdout
        for seed, zone in (("1", "UTC"), ("2", "Asia/Kathmandu"))
    }
    assert len(runs) == 1


LARGE = 200_000
# One process for all: limits of 1 GiB, 120 s of processor, and files of 80 MiB.
LIMITED = """
import contextlib, io, json, resource, sys
from pathlib import Path
from jarvis_rules.cli.command import run_command
from jarvis_rules.cli.jarvis_rules import _run
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
resource.setrlimit(resource.RLIMIT_FSIZE, (80 << 20, 80 << 20))
ends = {}
for name in sys.argv[1:]:
    out, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        codes = [run_command(_run, [command, name]) for command in ("inspect", "scan")]
    ends[name] = [codes, errors.getvalue()]
print(json.dumps(ends))
"""


def test_commands_end_with_3_in_little_memory(tmp_path):
    """Every large file and every fourth of the others; `inspect` does not know `.ckpt`."""
    names = []
    for index, (name, case) in enumerate(CASES.items()):
        data = case.make()
        if len(data) > LARGE or index % 4 == 0 or "bomb" in name:
            (tmp_path / name).write_bytes(data)
            names.append(name)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, *names],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, (codes, errors) in json.loads(done.stdout).items():
        case = CASES[name]
        is_error = bool(case.slug) or any(rule == "pickle.call" for rule in case.rules)
        is_error |= any(rule == "config.target" for rule in case.rules)
        assert codes[1] == (EXIT_INTEGRITY if is_error else EXIT_OK), name
        if case.slug and name.endswith((".nemo", ".tlt", ".jmir")):
            assert codes[0] == EXIT_INTEGRITY, name
            assert f"[{case.slug}]\n\nhint: " in errors, name
        assert "Traceback" not in errors
    assert {path.name for path in tmp_path.iterdir()} == set(names)


@pytest.mark.parametrize("path", sorted(OLD.glob("*.nemo")), ids=lambda path: path.stem)
def test_the_older_set(path):
    report = scan_file(path)
    assert bool(report.count("error")) == (path.stem not in WELL_FORMED)
    calls = [f for f in report.findings if f.rule == "pickle.call"]
    assert bool(calls) == path.stem.startswith("pickle_")
    for call in calls:
        assert call.message == "loading it would call `posix.system('touch pwned')`"
        assert call.offset == 39
