"""What a log of tritonserver says went wrong.

The server wraps one fault three or four times: around the model, around the ensemble that needs
it, around itself. The innermost is what its user wants to read.
"""

from __future__ import annotations

import re
from pathlib import Path

NOISE = (
    "Unable to allocate pinned system memory",
    "failed to allocate pinned system memory",
    "CudaDriverHelper has not been initialized",
    "Failed to initialize NVML",
    "unable to create stream for",
    "DCGM unable to start",
    "chttp2_server.cc",
)
"""What the server says on every machine without a GPU, and what it says twice."""

ENTRY = re.compile(r"^(?P<level>[IWEF])\d{4} [\d:.]+ +\d+ (?P<file>[\w./]+):\d+\] *(?P<text>.*)$")
ROOT_CAUSE = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<reason>.*)", re.DOTALL)
STATUS = re.compile(r"^(Internal|Invalid argument|Unavailable|Not found|Unsupported): ")
LOADING = re.compile(r'"loading: (?P<model>.+):\d+"')
LOADED = re.compile(r"\"successfully loaded '(?P<model>[^']+)'\"")
IN_USE = re.compile(r"Socket '[^']*:(?P<port>\d+)' already in use")
MOST_LINES = 15


def reasons(log: Path) -> list[str]:
    """Return lines that say why the server failed: root causes, else complaints, else its tail."""
    complaints = _complaints(_read(log))
    causes = [
        f"`{found['model']}`: {STATUS.sub('', found['reason'])}"
        for found in map(ROOT_CAUSE.search, complaints)
        if found
    ]
    lines = [line for text in causes or _innermost(complaints) for line in _readable(text)]
    return lines[:MOST_LINES] or tail(log)


def still_loading(log: Path) -> list[str]:
    """Return the models whose loading began and did not end."""
    text = "\n".join(_read(log))
    loaded = {found["model"] for found in LOADED.finditer(text)}
    begun = dict.fromkeys(found["model"] for found in LOADING.finditer(text))
    return [model for model in begun if model not in loaded]


def tail(log: Path, count: int = 5) -> list[str]:
    """Return the last non-empty lines that are not noise."""
    lines = [line.rstrip() for line in _read(log) if line.strip() and not _is_noise(line)]
    return lines[-count:]


def port_in_use(log: Path) -> int | None:
    """Return the port that the server could not open, or None when that was not the fault."""
    found = IN_USE.search("\n".join(_read(log)))
    return int(found["port"]) if found else None


def _read(log: Path) -> list[str]:
    try:
        return log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _complaints(lines: list[str]) -> list[str]:
    """Return each complaint with its continuation lines, in order."""
    found: list[str] = []
    open_ended = False
    for line in lines:
        entry = ENTRY.match(line)
        if entry or line.startswith("error: "):
            open_ended = not _is_noise(line) and (entry is None or _is_complaint(entry))
            if open_ended:
                found.append(entry["text"] if entry else line.removeprefix("error: "))
        elif open_ended and not line.startswith(("+-", "|")):
            found[-1] += "\n" + line
    return [text.strip().removeprefix('"').removesuffix('"') for text in found]


def _is_complaint(entry: re.Match[str]) -> bool:
    # The stub reports its own failure to start as information.
    return entry["level"] in "EF" or (entry["file"] == "pb_stub.cc" and "Failed" in entry["text"])


def _is_noise(line: str) -> bool:
    return any(noise in line for noise in NOISE)


def _innermost(complaints: list[str]) -> list[str]:
    """Drop what another complaint wraps, or says more exactly."""
    wrapping = [text for text in complaints if text.startswith("creating server: ")]
    inner = [text for text in dict.fromkeys(complaints) if text not in wrapping]
    return inner or wrapping


def _readable(text: str) -> list[str]:
    lines = text.replace("\\n", "\n").splitlines()
    return [line.rstrip() for line in lines if line.strip(" ;") and "<frozen " not in line]
