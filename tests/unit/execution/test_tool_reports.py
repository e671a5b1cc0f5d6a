"""What a tool says of itself, through every sandbox and whatever it leaves in its folder."""

from __future__ import annotations

import os
import sys

import pytest

from jarvis_rules.core.action import Action, Output
from jarvis_rules.execution import tool_reports
from jarvis_rules.execution.sandbox import try_sandbox
from jarvis_rules.execution.tool_reports import ProgressReader, read_line, read_peak_memory
from jarvis_rules.execution.tool_run import run_tool
from jarvis_rules.tools import program

# Reports each phase and waits until that has been seen; in the end as fast as it can.
PHASES = """
import os, sys
from jarvis_rules.tools.program import report_progress, run_tool
def seen():
    with open("inputs/seen") as pipe:
        pipe.read()
def work(_):
    report_progress("Parsing\\n the \\tgraph")
    seen()
    if os.fork() == 0:
        for step in range(2000):
            report_progress("Timing tactics", f"{step}/1999")
        seen()
        os._exit(0)
    os.wait()
sys.exit(run_tool(work))
"""
# Takes memory itself, or in a program that it starts.
TAKE = """
import subprocess, sys
from jarvis_rules.tools.program import run_tool
def work(_):
    own, child = {}, {}
    bytearray(b"x") * (own << 20)
    if child:
        subprocess.run([sys.executable, "-S", "-c", f"bytearray(b'x') * ({{child}} << 20)"])
sys.exit(run_tool(work))
"""


@pytest.fixture(params=["bwrap", "landlock", "none"])
def sandbox(request):
    attempt = try_sandbox(request.param)
    if attempt.sandbox is None:
        pytest.skip(f"{request.param} does not work here: {attempt.reason}")
    return attempt.sandbox


@pytest.fixture
def folder(tmp_path):
    for name in ("inputs", "outputs"):
        (tmp_path / name).mkdir()
    (tmp_path / "request.json").write_text("{}")
    return tmp_path


def run(sandbox, folder, code, **settings):
    argv = ("python", "-c", code, "request.json")
    action = Action("Test", argv, {}, Output("out"), {}, {}, timeout=60, description="Test it")
    return run_tool(sandbox, action, folder, {}, **settings)


def test_phases_are_seen_while_the_tool_runs(sandbox, folder):
    pipe, seen = folder / "inputs" / "seen", []
    os.mkfifo(pipe)

    def tell(phase, detail):
        seen.append((phase, detail))
        if len(seen) == 1 or (detail == "1999/1999" and seen.count(seen[-1]) == 1):
            pipe.write_text(".")

    run(sandbox, folder, PHASES, on_progress=tell)
    assert seen[0] == ("Parsing the graph", "")
    assert seen[-1] == ("Timing tactics", "1999/1999")
    # Of two thousand reports those were told that were there when somebody looked.
    assert len(seen) < 200
    assert list((folder / "outputs").iterdir()) == []


@pytest.mark.parametrize(("own", "child"), [(1, 0), (200, 0), (1, 200)])
def test_peak_memory_is_that_of_the_largest_process_of_the_tool(sandbox, folder, own, child):
    # What this process has must not count: `ru_maxrss` of what it starts would begin there.
    ours = bytearray(b"x") * (350 << 20)
    peak = run(sandbox, folder, TAKE.format(own, child))
    largest = max(own, child)
    assert largest < peak < largest + 100
    assert len(ours) > peak << 20


def test_a_tool_that_fails_tells_its_peak_too(folder, monkeypatch):
    def work(_):
        raise MemoryError

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["tool", "request.json"])
    monkeypatch.setattr(program, "_die_with_parent", lambda: None)
    monkeypatch.setattr("tempfile.tempdir", None)
    assert program.run_tool(work) == 1
    assert read_peak_memory(folder / program.PEAK_MEMORY_FILE) > 0


def test_both_sides_mean_the_same_files():
    assert program.PROGRESS_FILE == tool_reports.PROGRESS_FILE
    assert program.PEAK_MEMORY_FILE == tool_reports.PEAK_MEMORY_FILE
    assert program.PROGRESS_BYTES <= tool_reports.MAX_LINE_BYTES


def test_nothing_is_reported_outside_of_a_tool(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program.report_progress("phase")
    assert list(tmp_path.iterdir()) == []


def test_a_long_report_is_cut(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / program.PROGRESS_FILE
    file.touch()
    for phase in ("short", "é" * 10_000, "\udcff"):
        program.report_progress(phase)
        assert file.stat().st_size == program.PROGRESS_BYTES
        assert read_line(file).startswith(phase.replace("\udcff", "?")[:100])


def told(file):
    found = []
    ProgressReader(file, lambda *report: found.append(report)).poll()
    return found


@pytest.mark.parametrize(
    ("content", "report"),
    [
        (b"Parsing\t3/10\n", [("Parsing", "3/10")]),
        (b"Parsing   \nolder\n", [("Parsing", "")]),
        (b"\x1b[31m\x00\x07red\x85\tand\xe2\x80\xae more\xff\n", [("[31mred", "and more")]),
        (b"x" * 200 + b"\t" + b"y" * 20 + b"\n", [("x" * 80, "y" * 20)]),
        (b"a line that is not there in full", []),
        (b"x" * 300 + b"\n", []),
        (b"\t only a detail\n", []),
        (b"", []),
    ],
)
def test_what_is_told_of_a_file(tmp_path, content, report):
    file = tmp_path / "progress"
    file.write_bytes(content)
    assert told(file) == report


@pytest.mark.parametrize(
    "put",
    [
        lambda *_: None,
        lambda path, secret: path.symlink_to(secret),
        lambda path, _: path.mkdir(),
        lambda path, _: os.mkfifo(path),
    ],
    ids=["nothing", "link", "folder", "pipe"],
)
def test_nothing_but_a_plain_file_is_read(tmp_path, put):
    secret, file = tmp_path / "secret", tmp_path / "progress"
    secret.write_text("secret\n")
    put(file, secret)
    assert read_line(file) == ""
    assert told(file) == []


def test_what_stays_is_told_again_after_a_while(tmp_path, monkeypatch):
    file, now, found = tmp_path / "progress", [100.0], []
    monkeypatch.setattr(tool_reports.time, "monotonic", lambda: now[0])
    reader = ProgressReader(file, lambda *report: found.append(report))
    for moment, line in (
        (100.0, ""),
        (100.1, "A\n"),
        (100.2, "A\n"),
        (100.3, "A\t1\n"),
        (101.2, "A\t1\n"),
        (101.3, "A\t1\n"),
        (101.4, "B\n"),
    ):
        now[0] = moment
        file.write_text(line)
        reader.poll()
    assert found == [("A", ""), ("A", "1"), ("A", "1"), ("B", "")]


@pytest.mark.parametrize(
    ("content", "peak"),
    [("123\n", 123), ("0\n", 0), ("-1\n", None), ("1e9\n", None), ("٣\n", None), ("9" * 99, None)],
)
def test_a_peak_is_a_number_or_nothing(tmp_path, content, peak):
    (tmp_path / "peak").write_text(content)
    assert read_peak_memory(tmp_path / "peak") == peak
