"""Where this program keeps what can be made again: `JARVIS_CACHE`, else the XDG cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the absolute cache folder, which need not exist yet.

    `JARVIS_CACHE` wins; else `jarvis-rules` under `XDG_CACHE_HOME`, which the XDG Base Directory
    Specification says to ignore when it is relative; else under `~/.cache`.
    """
    chosen = os.environ.get("JARVIS_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return root / "jarvis-rules"
