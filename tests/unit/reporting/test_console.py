"""The console: plain lines where no terminal is, live ones where it is, one summary."""

from __future__ import annotations

import io
import os
import pty
import threading

import pytest

from jarvis_rules.core.events import ActionFinished, ActionStarted, Notice
from jarvis_rules.reporting.console import Console

TARGET = "asr[a100]"


def build(console):
    for mnemonic, outcome, seconds in (
        ("NemoExport", "cached", 0.01),
        ("JmirBuild", "executed", 1.25),
        ("EngineBuild", "executed", 9.8),
    ):
        if outcome == "executed":
            console.receive(ActionStarted(mnemonic, TARGET))
        console.receive(ActionFinished(mnemonic, TARGET, outcome, seconds))
    console.note("look here")


LINES = """\
cached   NemoExport asr[a100] 0.0 s
executed JmirBuild asr[a100] 1.2 s
executed EngineBuild asr[a100] 9.8 s
note: look here
"""


def test_a_quiet_one_leaves_actions_out_and_keeps_notes():
    stream = io.StringIO()
    with Console(stream, is_quiet=True) as console:
        build(console)
        console.receive(Notice("no sandbox"))
    assert stream.getvalue() == "note: look here\nnote: no sandbox\n"
    assert console.summary(1.0).startswith("built 2, cached 1")


def test_without_a_terminal_there_are_plain_lines():
    stream = io.StringIO()
    with Console(stream) as console:
        build(console)
    assert stream.getvalue() == LINES


def on_a_terminal(monkeypatch, use, **environment):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "40", **environment}.items():
        monkeypatch.setenv(name, value)
    ours, theirs = pty.openpty()
    output = bytearray()

    def listen():
        while True:
            try:
                output.extend(os.read(ours, 65536))
            except OSError:
                return

    listener = threading.Thread(target=listen)
    listener.start()
    with os.fdopen(theirs, "w") as stream, Console(stream) as console:
        use(console)
    listener.join()
    os.close(ours)
    return output.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}])
def test_on_a_terminal_running_actions_are_shown(monkeypatch, environment):
    text = on_a_terminal(monkeypatch, build, **environment)
    assert "\x1b[" in text
    colours = {"\x1b[3" in text, "\x1b[9" in text}
    assert (True in colours) is ("NO_COLOR" not in environment)
    for line in LINES.splitlines():
        assert line in text
    assert "asr\\[" not in text


def test_on_a_dumb_terminal_there_are_plain_lines(monkeypatch):
    assert on_a_terminal(monkeypatch, build, TERM="dumb") == LINES


def test_names_are_neither_cut_nor_read_as_markup(monkeypatch):
    target = f"[red]:smile: {'long-' * 20}[/red]"

    def use(console):
        console.receive(ActionStarted("JmirBuild", target))
        console.receive(ActionFinished("JmirBuild", target, "executed", 1))

    text = on_a_terminal(monkeypatch, use, NO_COLOR="1")
    assert f"executed JmirBuild {target} 1.0 s" in text


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], "built 0, cached 0, 12.3 s"),
        (
            [("A", "x", "executed", 1.0), ("B", "y[l4]", "executed", 2.0), ("C", "z", "cached", 9)],
            "built 2, cached 1, 12.3 s; slowest B y[l4] 2.0 s",
        ),
        (
            [("A", "x", "failed", 5), ("B", "y", "cached", 1)],
            "built 0, cached 1, failed 1, 12.3 s",
        ),
    ],
)
def test_summary(events, text):
    console = Console(io.StringIO())
    for event in events:
        console.receive(ActionFinished(*event))
    assert console.summary(12.345) == text


def test_threads_do_not_mix_their_lines():
    stream = io.StringIO()
    console = Console(stream)

    def work(name):
        for _ in range(100):
            console.receive(ActionStarted("A", name))
            console.receive(ActionFinished("A", name, "executed", 1))

    threads = [threading.Thread(target=work, args=(str(i),)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(stream.getvalue().splitlines()) == sorted(
        f"executed A {i} 1.0 s" for i in range(4) for _ in range(100)
    )
    assert console.summary(1).startswith("built 400,")
