"""The console: plain lines where no terminal is, live ones where it is, one summary."""

from __future__ import annotations

import io
import os
import pty
import re
import threading

import pytest

from jarvis_rules.core.events import (
    ActionCompared,
    ActionFinished,
    ActionProgress,
    ActionStarted,
    Notice,
)
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


def test_the_summary_tells_what_was_compared():
    console = Console(io.StringIO())
    for count, text in ((1, "compared 1 action twice"), (24, "compared 24 actions twice")):
        for _ in range(count - console._compared):
            console.receive(ActionCompared("A", "x"))
        assert console.summary(1) == f"{text}: equal bytes\nbuilt 0, cached 0, 1.0 s"


# Phases


def compile_slowly(console):
    """Tell phases as a long compilation does, and another one's beside it."""
    console.receive(ActionStarted("EngineBuild", TARGET))
    console.receive(ActionStarted("EngineBuild", "vad[a100]"))
    for target, seconds, phase, detail in (
        (TARGET, 0.1, "Parsing", ""),
        (TARGET, 9.9, "Parsing", ""),
        ("vad[a100]", 10.0, "Timing [tactics]", "7/100"),
        (TARGET, 10.9, "Parsing", ""),
        (TARGET, 11.9, "Parsing", ""),
        *((TARGET, 12 + step / 64, f"Layer {step}", "") for step in range(1635)),
        (TARGET, 41.0, "Serialising", "1/2"),
        (TARGET, 51.5, "Serialising", "2/2"),
        ("vad[a100]", 60.0, "Timing [tactics]", "80/100"),
        (TARGET, 300.0, "Serialising", "2/2"),
    ):
        console.receive(ActionProgress("EngineBuild", target, phase, seconds, detail))
    console.receive(ActionFinished("EngineBuild", TARGET, "executed", 301.04))
    console.receive(ActionFinished("EngineBuild", "vad[a100]", "failed", 302.0))


SLOW_LINES = """\
running  EngineBuild vad[a100] 10.0 s: Timing [tactics]
running  EngineBuild asr[a100] 10.9 s: Parsing
running  EngineBuild asr[a100] 20.9 s: Layer 570
running  EngineBuild asr[a100] 30.9 s: Layer 1210
running  EngineBuild asr[a100] 41.0 s: Serialising
executed EngineBuild asr[a100] 301.0 s
failed   EngineBuild vad[a100] 302.0 s
"""


def test_without_a_terminal_long_actions_tell_their_phase_now_and_then():
    stream = io.StringIO()
    with Console(stream) as console:
        compile_slowly(console)
    assert stream.getvalue() == SLOW_LINES


def test_a_second_run_of_an_action_tells_anew():
    stream = io.StringIO()
    console = Console(stream)
    for _ in range(2):
        console.receive(ActionProgress("A", "x", "Parsing", 15.0))
        console.receive(ActionFinished("A", "x", "executed", 16.0))
    assert stream.getvalue() == 2 * "running  A x 15.0 s: Parsing\nexecuted A x 16.0 s\n"


def test_a_quiet_one_tells_no_phase():
    stream = io.StringIO()
    with Console(stream, is_quiet=True) as console:
        compile_slowly(console)
    assert stream.getvalue() == ""


@pytest.mark.parametrize("columns", ["100", "44"])
@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {}])
def test_on_a_terminal_the_phase_stands_beside_the_age(monkeypatch, environment, columns):
    def use(console):
        console.receive(ActionStarted("EngineBuild", TARGET))
        console.receive(
            ActionProgress("EngineBuild", TARGET, "Determining [red] engines", 12.0, "3/10")
        )
        console._progress.refresh()
        console.receive(ActionFinished("EngineBuild", TARGET, "executed", 12.3))

    text = on_a_terminal(monkeypatch, use, COLUMNS=columns, **environment)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)
    if columns == "100":
        assert re.search(r"EngineBuild asr\[a100\] Determining \[red\] engines 3/10 \d+ s", plain)
    else:
        # Names are cut, and not the age.
        assert re.search(r"EngineBuild asr\S*… Determining \S*… \d+ s", plain)
    assert "executed EngineBuild asr[a100] 12.3 s\n" in plain
    assert "running" not in plain


def test_an_action_that_runs_twice_has_one_live_line(monkeypatch):
    def use(console):
        for _ in range(2):
            console.receive(ActionStarted("A", "x"))
            console.receive(ActionProgress("A", "x", "Parsing", 1.0))
            assert len(console._progress.tasks) == 1
        console.receive(ActionFinished("A", "x", "executed", 1.0))
        assert console._progress is None

    on_a_terminal(monkeypatch, use)


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
