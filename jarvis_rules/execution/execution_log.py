"""The execution log: one JSON line per action, for people and for every later report.

A build begins with a line `{"build": …}`; its actions follow. Lines are appended with one write
each, so that two processes never mix theirs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.digest import Digest
from jarvis_rules.core.events import Outcome


@dataclass(frozen=True, slots=True)
class LogEntry:
    """What happened to one action; `seconds` is wall time, the lookup included.

    `key` is empty where an input could not be read, so that there is no key. `peak_memory_mib` is
    known of executed actions only.
    """

    key: str
    mnemonic: str
    target: str
    outcome: Outcome
    seconds: float
    inputs: Mapping[str, Digest]
    outputs: Mapping[str, Digest]
    peak_memory_mib: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the line's document."""
        return {
            "key": self.key,
            "mnemonic": self.mnemonic,
            "target": self.target,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 3),
            "peak_memory_mib": self.peak_memory_mib,
            "inputs": {name: str(digest) for name, digest in sorted(self.inputs.items())},
            "outputs": {name: str(digest) for name, digest in sorted(self.outputs.items())},
        }


class ExecutionLog:
    """Appends to `path` and keeps this build's entries."""

    def __init__(self, path: Path, build: Mapping[str, Any]) -> None:
        self.path = path
        self.entries: list[LogEntry] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._append({"build": dict(build)})

    def add(self, entry: LogEntry) -> None:
        """Append one action."""
        self.entries.append(entry)
        self._append(entry.to_json())

    def _append(self, document: Mapping[str, Any]) -> None:
        line = json.dumps(document, ensure_ascii=False, separators=(",", ":")) + "\n"
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # A file name need not be UTF-8.
            os.write(handle, line.encode(errors="backslashreplace"))
        finally:
            os.close(handle)


def read_last_build(path: Path) -> list[dict[str, Any]]:
    """Return the action lines of the last build in a log; damaged lines are left out."""
    lines: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n"):
        try:
            document = json.loads(line)
        except ValueError:
            continue
        if not isinstance(document, dict):
            continue
        if "build" in document:
            lines = []
        else:
            lines.append(document)
    return lines
