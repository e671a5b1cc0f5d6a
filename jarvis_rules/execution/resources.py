"""What actions need of the machine, and a gate that never lets more through than there is.

SCons knows a number of jobs only; `-j8` on two cores must not start eight tools that each want
one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jarvis_rules.core.action import Resources


@dataclass(slots=True)
class Capacity:
    """What this machine has: cores that this process may use, memory in MiB, GPUs."""

    cpus: int
    memory_mib: int
    gpus: int

    @classmethod
    def of_this_machine(cls) -> Capacity:
        """Return the machine's capacity, as far as this process may use it."""
        return cls(
            len(os.sched_getaffinity(0)),
            _memory_mib(),
            len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        )


class ResourceGate:
    """Lets actions run as long as all that run fit the capacity; thread-safe.

    An action that wants more than there is runs alone.
    """

    def __init__(self, capacity: Capacity | None = None) -> None:
        self._capacity = capacity or Capacity.of_this_machine()
        self._used = Capacity(0, 0, 0)
        self._running = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, wanted: Resources) -> Iterator[None]:
        """Wait until `wanted` is free, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: self._fits(wanted))
            self._add(wanted, 1)
        try:
            yield
        finally:
            with self._changed:
                self._add(wanted, -1)
                self._changed.notify_all()

    def _fits(self, wanted: Resources) -> bool:
        used, capacity = self._used, self._capacity
        return self._running == 0 or (
            used.cpus + wanted.cpus <= capacity.cpus
            and used.memory_mib + wanted.memory_mib <= capacity.memory_mib
            and used.gpus + wanted.gpus <= capacity.gpus
        )

    def _add(self, wanted: Resources, sign: int) -> None:
        self._used.cpus += sign * wanted.cpus
        self._used.memory_mib += sign * wanted.memory_mib
        self._used.gpus += sign * wanted.gpus
        self._running += sign


def _memory_mib() -> int:
    """Return the memory that is available now, within this process' control group's limit."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    lines = dict(line.split(":", 1) for line in text.splitlines())
    available = int(lines["MemAvailable"].split()[0]) >> 10
    with contextlib.suppress(OSError, ValueError):
        available = min(available, int(Path("/sys/fs/cgroup/memory.max").read_text()) >> 20)
    return available
