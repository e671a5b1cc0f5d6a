"""Where this program keeps what can be made again: `JARVIS_CACHE`, else the XDG cache folder."""

from __future__ import annotations

import functools
import os
from pathlib import Path


@functools.cache
def _absolute(chosen: str) -> Path:
    """Return the folder as it was first understood: SCons changes folders while it reads."""
    return Path(chosen).expanduser().absolute()


def cache_directory() -> Path:
    """Return the absolute cache folder, which need not exist yet.

    `JARVIS_CACHE` wins; else `jarvis-rules` under `XDG_CACHE_HOME`, which the XDG Base Directory
    Specification says to ignore when it is relative; else under `~/.cache`.
    """
    chosen = os.environ.get("JARVIS_CACHE")
    if chosen:
        return _absolute(chosen)
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "jarvis-rules"
