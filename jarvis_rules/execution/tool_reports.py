"""What a tool says of itself: the phase that it is in, and the memory that it took.

Each is a small file in the tool's current folder, which `tools/program.py` writes. The tool may
write anything there, and these are read outside of its sandbox: no link is followed, nothing but a
plain file is read, no more than a line of it, and of that what can be printed.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

PROGRESS_FILE = "progress"
PEAK_MEMORY_FILE = "peak_memory"
MAX_LINE_BYTES = 256
MAX_TEXT = 80
REPEAT_SECONDS = 1.0
_MAX_MIB_DIGITS = 9


@dataclass(slots=True)
class ProgressReader:
    """Tells the phase and its detail from a tool's progress file.

    At once when they are others than before, and every `REPEAT_SECONDS` while they are the same.
    """

    file: Path
    tell: Callable[[str, str], None]
    _line: str = ""
    _told: float = 0.0

    def poll(self) -> None:
        """Look at the file, and tell if there is something to be told."""
        line, now = read_line(self.file), time.monotonic()
        if line and (line != self._line or now - self._told >= REPEAT_SECONDS):
            self._line, self._told = line, now
            phase, _, detail = line.partition("\t")
            if phase := _printable(phase):
                self.tell(phase, _printable(detail))


def read_peak_memory(file: Path) -> int | None:
    """Return the MiB that a tool's peak memory file names, or None."""
    line = read_line(file)
    is_number = line.isascii() and line.isdecimal() and len(line) <= _MAX_MIB_DIGITS
    return int(line) if is_number else None


def read_line(file: Path) -> str:
    """Return the first line of what may be anything; empty where there is none, or a long one."""
    # Opening a named pipe would wait for a writer.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(file, flags)
    except OSError:
        return ""
    try:
        is_plain = stat.S_ISREG(os.fstat(descriptor).st_mode)
        data = os.read(descriptor, MAX_LINE_BYTES) if is_plain else b""
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    line, end, _ = data.partition(b"\n")
    return line.decode(errors="ignore") if end else ""


def _printable(text: str) -> str:
    return "".join(c for c in text if c.isprintable()).strip()[:MAX_TEXT]
