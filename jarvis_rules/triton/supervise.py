"""Runs tritonserver and leaves nothing behind, however the process that asked for it ends.

A program of its own, standard library only, started by `server.py` with its standard input as
the lifeline: the byte `q` or the end of the pipe (the asker was killed) means stop and remove the
scratch folder, `k` means stop and keep its log. Stopping is SIGINT, a grace period, SIGKILL for
all that is left of the server's group, and removal of the shared memory that its stubs named
(after a SIGKILL they stay in /dev/shm).
"""

from __future__ import annotations

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
POLL_SECONDS = 0.1
REAP_SECONDS = 5.0
QUIT = b"q"
KEEP_LOG = b"k"
LIBC = ctypes.CDLL(None)


def main(arguments: list[str]) -> int:
    """Run `GRACE_SECONDS SHM_PREFIX SCRATCH COMMAND…` until told to stop; return 0."""
    grace, prefix, scratch, *command = arguments
    terminated: list[int] = []
    # Handlers and not SIG_IGN: an ignored signal would stay ignored in the server.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda received, _: terminated.append(received))
    # Stubs whose server is gone become our children, so that none can be missed.
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent,  # noqa: PLW1509  this program has one thread
    )
    order = _wait(server, lambda: bool(terminated))
    _stop(server, float(grace))
    for region in SHARED_MEMORY.glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
    Path(scratch, "models").unlink(missing_ok=True)
    shutil.rmtree(scratch if order == QUIT else Path(scratch, "backends"), ignore_errors=True)
    return 0


def _wait(server: subprocess.Popen[bytes], terminated: Callable[[], bool]) -> bytes:
    """Return the order that came, or `KEEP_LOG` when the server ended by itself."""
    while server.poll() is None:
        if terminated():
            return QUIT
        if select.select([0], [], [], POLL_SECONDS)[0]:
            return os.read(0, 1) or QUIT
    return KEEP_LOG


def _stop(server: subprocess.Popen[bytes], grace: float) -> None:
    if server.poll() is None:
        server.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            server.wait(grace)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + REAP_SECONDS
    with suppress(ChildProcessError):
        while time.monotonic() < deadline:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)


def _die_with_parent() -> None:
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
