"""Limits of time and memory for whatever an input makes a reader do."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MEMORY = 2 << 30  # of address space; importing all of it takes half a gigabyte
SECONDS = 20  # for one input; some thousand times the usual


class TooSlowError(Exception):
    """An input took longer than allowed."""


def limit_memory(size: int = MEMORY) -> None:
    """Make allocations beyond `size` bytes of address space fail, in this process."""
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


@contextmanager
def limit_time(seconds: int = SECONDS) -> Iterator[None]:
    """Raise TooSlowError in what takes longer."""

    def stop(_: int, __: FrameType | None) -> None:
        raise TooSlowError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
