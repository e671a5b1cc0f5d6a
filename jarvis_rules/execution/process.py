"""Runs one tool as a process, and ends it with all that it started.

What a time-out, a cancellation, an exception in the waiting thread, or Ctrl-C ends within one
second, for each kind of sandbox:

- `bwrap`: everything. The tool lives in a PID namespace, and the kernel ends all of it at once.
- `landlock`: everything. The sandbox's supervisor adopts orphans and ends them before itself.
- `none`: the process group, and whatever descends from the tool when it is ended. A process that
  made itself an orphan in a session of its own (a daemon) escapes.

When this program is killed with SIGKILL, bwrap and the supervisor end the tool the same way;
without a sandbox only a tool that asked for it ends (`tools/program.py`). They all rely on
PR_SET_PDEATHSIG, which Linux ties to the *thread* that started the process: so the thread that
calls `run_process` stays in it until the tool has ended.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jarvis_rules.errors import JarvisBug

UMASK = 0o022
LOG = "log.txt"
"""What a tool says goes there in its action's folder: sandboxes keep the tool's hands off it."""

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 0.3
_REAP_SECONDS = 0.5
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class ProcessTimeoutError(Exception):
    """The process ran longer than it may, and was ended."""


class ProcessCancelledError(Exception):
    """The process was ended because somebody asked for it."""


@dataclass(frozen=True, slots=True)
class Launch:
    """What to start, as a sandbox arranged it: a command line, its folder and environment."""

    argv: tuple[str, ...]
    cwd: Path
    environment: Mapping[str, str]


# Read by signal handlers, which may interrupt whoever holds a lock: hence no lock, only a float
# and a set, each changed in one step.
_running: set[int] = set()
_cancelled_at = float("-inf")
_watchers: list[threading.Thread] = []


def run_process(
    argv: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout: float,
    cancelled: threading.Event | None = None,
    since: float | None = None,
    umask: int = UMASK,
    pass_fds: Iterable[int] = (),
    standard_input: bytes = b"",
    on_poll: Callable[[], None] | None = None,
) -> int:
    """Run a program to its end, its output in `log`, and return its exit code or minus a signal.

    It gets a session of its own, so that the terminal's Ctrl-C reaches this program only, exactly
    `environment`, and `standard_input`, which must fit into a pipe. A `cancel_all` after `since`
    (monotonic; default: now) cancels it even when it came before the start: give it the moment
    from which the action was on its way, so that one that still waits for its turn never starts
    after Ctrl-C. `on_poll` is called every 50 ms while the program runs.

    ProcessTimeoutError, ProcessCancelledError: the process was ended, and so it is when any
    exception is raised here.
    """
    deadline = time.monotonic() + timeout
    begun = time.monotonic() if since is None else since

    def is_cancelled() -> bool:
        return was_cancelled(begun) or (cancelled is not None and cancelled.is_set())

    if is_cancelled():
        raise ProcessCancelledError
    with log.open("wb") as output, _input(standard_input) as source:
        process = subprocess.Popen(
            argv,
            cwd=cwd,
            env=environment,
            stdin=source,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=umask,
            pass_fds=tuple(pass_fds),
        )
    _running.add(process.pid)
    try:
        while not _has_exited(process.pid, _POLL_SECONDS):
            # Polled: signals reach the main thread only, and this may be any thread.
            if is_cancelled():
                raise ProcessCancelledError
            if time.monotonic() > deadline:
                raise ProcessTimeoutError
            if on_poll is not None:
                on_poll()
    except BaseException:
        _end_tree(process)
        raise
    finally:
        # Before it is reaped, so that `cancel_all` never signals an identifier used anew.
        _running.discard(process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        code = process.wait()
    if code != 0 and is_cancelled():
        raise ProcessCancelledError
    # bwrap and the supervisor report a signal as shells do.
    return 128 - code if code > 128 else code


@contextlib.contextmanager
def _input(data: bytes) -> Iterator[int]:
    """Yield what a process gets as its standard input: a pipe that holds `data` and then ends."""
    if not data:
        yield subprocess.DEVNULL
        return
    # Both ends close on exec: only the process that gets this one as its input inherits it.
    reader, writer = os.pipe()
    try:
        # Nobody reads yet: what does not fit would wait for ever.
        os.set_blocking(writer, False)
        written = os.write(writer, data)
        os.close(writer)
        if written != len(data):
            raise JarvisBug(f"a pipe takes {written} bytes of {len(data)}")
        yield reader
    finally:
        os.close(reader)


def was_cancelled(since: float) -> bool:
    """Return whether there was a `cancel_all` after `since`: for work that has no process yet."""
    return _cancelled_at >= since


def cancel_all() -> None:
    """End every running tool; each `run_process` raises ProcessCancelledError within moments.

    May be called from any thread and from a signal handler.
    """
    global _cancelled_at  # noqa: PLW0603  (the one moment that all of them compare with)
    _cancelled_at = time.monotonic()
    for pid in tuple(_running):
        _signal_group(pid, signal.SIGTERM)


def install_signal_handlers() -> bool:
    """Make SIGINT, SIGTERM and SIGHUP end every running tool, whoever else handles them.

    Nobody's handler is replaced, now or later: Python writes the number of each signal that has a
    Python handler to a pipe, which a thread of ours reads, and then calls the handler as always.
    SCons needs this. It installs handlers of its own when a build starts (`Taskmaster/Job.py`,
    `_setup_sig_handler`), later than any SConstruct or tool could, and these only note that the
    build is to stop after the actions that run now; whatever was installed before would not be
    called until the build is over. A thread also works while the main thread is busy in C code.

    Where SIGTERM or SIGHUP would end this program at once, they now raise KeyboardInterrupt like
    SIGINT, so that a command cleans up. Ignored signals stay ignored (`nohup`). Call it once from
    the main thread, before SCons starts its jobs; repeated calls do nothing. Return whether it
    works: from another thread, where Python forbids it, a first call does nothing and says False.
    """
    if _watchers:
        return True
    if threading.current_thread() is not threading.main_thread():
        return False
    for number in _SIGNALS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(
        target=_watch_signals, args=(reader, previous), name="jarvis-signals", daemon=True
    )
    _watchers.append(watcher)
    watcher.start()
    return True


def _watch_signals(reader: int, previous: int) -> None:
    while numbers := os.read(reader, 64):
        if previous >= 0:
            with contextlib.suppress(OSError):
                os.write(previous, numbers)
        if any(number in _SIGNALS for number in numbers):
            cancel_all()


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a process, its group and all its descendants: asked first, then killed, then gone."""
    victims = _descendants(process.pid)
    try:
        _signal_group(process.pid, signal.SIGTERM)
        _has_exited(process.pid, _GRACE_SECONDS)
    finally:
        victims += _descendants(process.pid)
        _signal_group(process.pid, signal.SIGKILL)
        for victim in victims:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(victim, signal.SIGKILL)
        # Whoever clears the tool's folder next must be alone in it.
        deadline = time.monotonic() + _REAP_SECONDS
        for victim in victims:
            _is_readable(victim, max(0.0, deadline - time.monotonic()))
            os.close(victim)


def _descendants(pid: int) -> list[int]:
    """Return descriptors of all that descend from a process: identifiers could be used anew."""
    found, pending = list[int](), [pid]
    while pending:
        children: list[int] = []
        for file in Path(f"/proc/{pending.pop()}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                children += map(int, file.read_text().split())
        for child in children:
            with contextlib.suppress(OSError):
                found.append(os.pidfd_open(child))
                pending.append(child)
    return found


def _has_exited(pid: int, seconds: float) -> bool:
    """Return whether our child has ended, after `seconds` at most; it is not reaped."""
    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # a kernel before 5.3, or one that is imitated
        time.sleep(min(seconds, 0.01))
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    try:
        return _is_readable(descriptor, seconds)
    finally:
        os.close(descriptor)


def _is_readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _signal_group(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)
