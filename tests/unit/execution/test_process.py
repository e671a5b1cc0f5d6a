"""Running a tool, and ending it with all that it started.

Whether processes are gone is told by a pipe: each of them holds its writing end, so that end of
file means that none is left. Nothing sleeps to let something happen.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from jarvis_rules.execution import process
from jarvis_rules.execution.process import (
    ProcessCancelledError,
    ProcessTimeoutError,
    cancel_all,
    run_process,
    was_cancelled,
)
from jarvis_rules.execution.sandbox import try_sandbox

ROOT = Path(__file__).parents[3]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
}
GONE_SECONDS = 1.0
START_SECONDS = 20.0
# Starts a child in a session of its own, as a daemon if asked; all ignore SIGTERM, or only the
# child (`mortal`), or the child is started when SIGTERM comes (`late`).
TREE = """
import os, signal, sys, time
pipe, kind = int(sys.argv[1]), sys.argv[2]
def stay(on_term):
    signal.signal(signal.SIGTERM, on_term)
    os.write(pipe, b".")
    while True:
        time.sleep(60)
def start(*_):
    if os.fork() == 0:
        os.setsid()
        if kind == "daemon" and os.fork():
            os._exit(0)
        stay(signal.SIG_IGN)
if kind != "late":
    start()
stay({"mortal": signal.SIG_DFL, "late": start}.get(kind, signal.SIG_IGN))
"""
# A tool in the frame that all of ours have.
FRAMED = """
import os, sys, time
from jarvis_rules.tools.program import run_tool
sys.exit(run_tool(lambda _: (os.write(int(sys.argv[2]), b"."), time.sleep(60))))
"""
# A compiler: the tool forks a child, that starts a program, and both stay in C code for an hour
# and ignore SIGTERM.
COMPILER = """
import hashlib, os, signal, subprocess, sys
from jarvis_rules.tools.program import run_tool
BUSY = '''
import hashlib, os, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.write(int(sys.argv[1]), b".")
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
'''
def build(_):
    pipe = sys.argv[2]
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        subprocess.Popen([sys.executable, "-c", BUSY, pipe], pass_fds=[int(pipe)])
        os.write(int(pipe), b".")
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    os.waitpid(child, 0)
sys.exit(run_tool(build))
"""
# What `scons` and a command have in common: a program that runs a tool and handles signals.
PROGRAM = """
import signal, sys, threading
from pathlib import Path
from jarvis_rules.execution.process import (
    ProcessCancelledError, install_signal_handlers, run_process)
from jarvis_rules.execution.sandbox import choose_sandbox
# Whoever runs the tests under `nohup` ignores it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
style, sandbox, pipe, *tool = sys.argv[1:]
folder = Path.cwd()
for name in ("inputs", "outputs"):
    (folder / name).mkdir()
(folder / "request.json").write_text("{}")
def work():
    launch = choose_sandbox(sandbox).command([sys.executable, "-c", *tool], folder, {})
    try:
        run_process(launch.argv, cwd=launch.cwd, environment=launch.environment,
            log=folder / "log.txt", timeout=60, pass_fds=[int(pipe)])
    except ProcessCancelledError:
        print("cancelled", flush=True)
install_signal_handlers()
if style == "scons":  # replaces the handlers later, and does not end what runs
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: print("noted", flush=True))
if style == "main":
    work()
else:
    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
"""


class Pipe:
    """A pipe whose writing end others hold."""

    def __init__(self):
        self.reader, self.writer = os.pipe()

    def close_writer(self):
        os.close(self.writer)
        self.writer = -1

    def await_tree(self, processes=2):
        """Wait until that many processes have said that they run."""
        for _ in range(processes):
            assert self._readable(START_SECONDS), "the processes never started"
            assert os.read(self.reader, 1) == b"."

    def drain(self):
        """Take what was written so far."""
        os.set_blocking(self.reader, False)
        with contextlib.suppress(BlockingIOError):
            while os.read(self.reader, 64):
                pass
        os.set_blocking(self.reader, True)

    def seconds_until_gone(self):
        """Return how long it takes until nobody holds the pipe any more."""
        start = time.monotonic()
        assert self._readable(5), "still running"
        assert os.read(self.reader, 1) == b""
        return time.monotonic() - start

    def _readable(self, seconds):
        return bool(select.select([self.reader], [], [], seconds)[0])


@pytest.fixture
def pipe():
    made = Pipe()
    yield made
    for descriptor in (made.reader, made.writer):
        with contextlib.suppress(OSError):
            os.close(descriptor)


@pytest.fixture(params=["bwrap", "landlock", "none"])
def sandbox(request):
    attempt = try_sandbox(request.param)
    if attempt.sandbox is None:
        pytest.skip(f"{request.param} does not work here: {attempt.reason}")
    return attempt.sandbox


def python(tmp_path, code, *arguments, **settings):
    settings.setdefault("timeout", 60)
    settings.setdefault("environment", {})
    argv = [sys.executable, "-I", "-S", "-c", code, *map(str, arguments)]
    return run_process(argv, cwd=tmp_path, log=tmp_path / "log.txt", **settings)


def staged(tmp_path):
    """Return a folder as an action has it."""
    folder = tmp_path / "action"
    for name in ("inputs", "outputs"):
        (folder / name).mkdir(parents=True)
    (folder / "request.json").write_text("{}")
    return folder


# What a tool gets and what comes back


def test_returns_the_exit_code_and_logs_both_streams(tmp_path):
    code = "import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(3)"
    assert python(tmp_path, code) == 3
    assert (tmp_path / "log.txt").read_text() == "out\nerr\n"


def test_a_signal_is_a_negative_code(tmp_path, sandbox):
    folder = staged(tmp_path)
    argv = [sys.executable, "-c", "import os; os.kill(os.getpid(), 11)"]
    launch = sandbox.command(argv, folder, {})
    code = run_process(
        launch.argv,
        cwd=launch.cwd,
        environment=launch.environment,
        log=tmp_path / "log.txt",
        timeout=60,
    )
    assert code == -signal.SIGSEGV


def test_the_tool_has_what_it_is_given_and_no_more(tmp_path, monkeypatch, pipe):
    monkeypatch.setenv("UNLISTED", "secret")
    old = os.umask(0o077)
    try:
        code = (
            "import os, sys, json\n"
            "facts = {'stdin': sys.stdin.read(), 'environment': dict(os.environ),"
            " 'leads': os.getsid(0) == os.getpid(), 'umask': os.umask(0),"
            " 'descriptors': sorted(map(int, os.listdir('/proc/self/fd')))}\n"
            "os.write(int(sys.argv[1]), json.dumps(facts).encode())\n"
        )
        environment = {"LC_ALL": "C.UTF-8", "A": "1"}
        python(tmp_path, code, pipe.writer, environment=environment, pass_fds=[pipe.writer])
    finally:
        os.umask(old)
    facts = json.loads(os.read(pipe.reader, 1 << 16))
    assert facts["stdin"] == ""
    assert facts["environment"] == environment
    assert facts["leads"]
    assert facts["umask"] == 0o022
    # The last one is the listing itself.
    assert set(facts["descriptors"][:-1]) <= {0, 1, 2, 3, pipe.writer}


def test_what_is_left_of_the_group_ends_with_the_tool(tmp_path, pipe):
    code = "import os, sys, time\nif os.fork() == 0:\n    os.write(int(sys.argv[1]), b'.')\n"
    code += "    time.sleep(60)\nos.read(int(sys.argv[2]), 1)"
    reader, writer = os.pipe()
    os.write(writer, b"go")
    try:
        python(tmp_path, code, pipe.writer, reader, pass_fds=[pipe.writer, reader])
    finally:
        os.close(reader)
        os.close(writer)
    pipe.close_writer()
    end = time.monotonic() + GONE_SECONDS
    while os.read(pipe.reader, 1):
        assert time.monotonic() < end


def test_a_program_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        run_process(
            [str(tmp_path / "no")], cwd=tmp_path, environment={}, log=tmp_path / "log", timeout=1
        )


# Ending a tool


def test_time_out(tmp_path, pipe):
    start = time.monotonic()
    with pytest.raises(ProcessTimeoutError):
        python(tmp_path, "import time; time.sleep(60)", timeout=0.2, pass_fds=[pipe.writer])
    assert time.monotonic() - start < 0.2 + GONE_SECONDS
    pipe.close_writer()
    assert pipe.seconds_until_gone() < GONE_SECONDS


@pytest.mark.parametrize("how", ["event", "all"])
def test_cancelling_ends_the_whole_tree(tmp_path, pipe, sandbox, how):
    folder, event, outcome = staged(tmp_path), threading.Event(), []
    kind = "daemon" if sandbox.name != "none" else "-"
    argv = [sys.executable, "-c", TREE, str(pipe.writer), kind]
    launch = sandbox.command(argv, folder, {})

    def work():
        try:
            run_process(
                launch.argv,
                cwd=launch.cwd,
                environment=launch.environment,
                log=tmp_path / "log.txt",
                timeout=60,
                cancelled=event,
                pass_fds=[pipe.writer],
            )
        except ProcessCancelledError as error:
            outcome.append(error)

    worker = threading.Thread(target=work)
    worker.start()
    pipe.await_tree()
    pipe.close_writer()
    event.set() if how == "event" else cancel_all()
    assert pipe.seconds_until_gone() < GONE_SECONDS
    worker.join(GONE_SECONDS)
    assert len(outcome) == 1


@pytest.mark.parametrize("kind", ["mortal", "late"])
def test_what_leaves_the_group_is_ended_as_well(tmp_path, pipe, kind):
    event = threading.Event()

    def cancel():
        pipe.await_tree(1 if kind == "late" else 2)
        event.set()

    threading.Thread(target=cancel).start()
    with pytest.raises(ProcessCancelledError):
        python(tmp_path, TREE, pipe.writer, kind, pass_fds=[pipe.writer], cancelled=event)
    pipe.close_writer()
    pipe.drain()
    assert pipe.seconds_until_gone() < GONE_SECONDS


def test_a_cancellation_before_the_start_counts_from_when_the_action_began(tmp_path):
    began = time.monotonic()
    cancel_all()
    with pytest.raises(ProcessCancelledError):
        python(tmp_path, "pass", since=began)
    assert was_cancelled(began)
    assert not (tmp_path / "log.txt").exists()
    assert python(tmp_path, "pass") == 0


def test_the_caller_is_asked_while_the_tool_runs(tmp_path, pipe):
    """Whatever it raises ends the tool."""
    calls = []

    def on_poll():
        calls.append(1)
        if len(calls) == 3:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        python(tmp_path, TREE, pipe.writer, "-", pass_fds=[pipe.writer], on_poll=on_poll)
    pipe.close_writer()
    pipe.drain()
    assert pipe.seconds_until_gone() < GONE_SECONDS
    assert len(calls) == 3


def test_an_exception_in_the_waiting_thread_ends_the_tool(tmp_path, pipe, monkeypatch):
    def interrupted(*_):
        pipe.await_tree()
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "_has_exited", interrupted)
    with pytest.raises(KeyboardInterrupt):
        python(tmp_path, TREE, pipe.writer, "-", pass_fds=[pipe.writer])
    pipe.close_writer()
    assert pipe.seconds_until_gone() < GONE_SECONDS


# Signals


def start_program(tmp_path, pipe, style, sandbox, *tool):
    argv = [sys.executable, "-c", PROGRAM, style, sandbox, str(pipe.writer), *tool]
    return subprocess.Popen(
        argv,
        cwd=tmp_path,
        env=ENVIRONMENT,
        pass_fds=[pipe.writer],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("style", ["main", "scons"])
def test_signals_end_the_tools_of_a_program(tmp_path, pipe, style, number):
    tool = (TREE, str(pipe.writer), "-")
    with start_program(tmp_path, pipe, style, "none", *tool) as program:
        pipe.await_tree()
        pipe.close_writer()
        program.send_signal(number)
        assert pipe.seconds_until_gone() < GONE_SECONDS
        output = program.communicate(timeout=5)[0]
    if style == "scons":
        assert sorted(output.split()) == ["cancelled", "noted"]
    else:
        assert "KeyboardInterrupt" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("style", ["main", "scons"])
def test_signals_end_what_is_busy_in_c(tmp_path, pipe, sandbox, style, number):
    tool = (COMPILER, "request.json", str(pipe.writer))
    with start_program(tmp_path, pipe, style, sandbox.name, *tool) as program:
        pipe.await_tree()
        pipe.close_writer()
        program.send_signal(number)
        assert pipe.seconds_until_gone() < GONE_SECONDS
        output = program.communicate(timeout=5)[0]
    assert ("cancelled" if style == "scons" else "KeyboardInterrupt") in output


def test_an_ignored_signal_stays_ignored():
    code = (
        "import os, signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from jarvis_rules.execution.process import install_signal_handlers\n"
        "import threading; answers = []\n"
        "def install(): answers.append(install_signal_handlers())\n"
        "other = threading.Thread(target=install); other.start(); other.join()\n"
        "install(); install(); assert answers == [False, True, True]\n"
        "os.kill(os.getpid(), signal.SIGHUP); print('alive')\n"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(argv, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "alive\n"


def test_killing_a_program_ends_its_tools(tmp_path, pipe, sandbox):
    # Without a sandbox it is the tool itself that asks for it, and only for itself.
    framed, tree = (FRAMED, "request.json", str(pipe.writer)), (TREE, str(pipe.writer), "daemon")
    tool = framed if sandbox.name == "none" else tree
    with start_program(tmp_path, pipe, "worker", sandbox.name, *tool) as program:
        pipe.await_tree(1 if tool is framed else 2)
        pipe.close_writer()
        program.kill()
        assert pipe.seconds_until_gone() < GONE_SECONDS


@pytest.mark.parametrize("jobs", [1, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_end_the_tools_of_scons(tmp_path, pipe, jobs, number):
    (tmp_path / "SConstruct").write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from jarvis_rules.execution.process import install_signal_handlers, run_process\n"
        "install_signal_handlers()\n"
        f"TREE = {TREE!r}\n"
        "def act(target, source, env):\n"
        f"    run_process([sys.executable, '-c', TREE, '{pipe.writer}', '-'], cwd=Path.cwd(),\n"
        "        environment={}, log=Path(str(target[0]) + '.log'), timeout=60,\n"
        f"        pass_fds=[{pipe.writer}])\n"
        "for name in 'abcdef':\n"
        "    Command(name, [], Action(act, None))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-m", "SCons", "-Q", f"-j{jobs}"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        pass_fds=[pipe.writer],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as scons:
        pipe.await_tree(2 * jobs)
        pipe.close_writer()
        scons.send_signal(number)
        assert pipe.seconds_until_gone() < GONE_SECONDS
        output = scons.communicate(timeout=10)[0]
    assert scons.returncode == 2
    assert "Build interrupted" in output
    assert not (tmp_path / "f.log").exists()
