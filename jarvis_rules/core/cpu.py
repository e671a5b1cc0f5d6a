"""The processor of this machine, for what is made for it alone."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

FACTS = Path("/proc/cpuinfo")


def describe_cpu() -> dict[str, Any]:
    """Return the machine's architecture and the sorted features of its first processor.

    What has these in its key is not shared with a machine that lacks one of them.
    """
    text = FACTS.read_text(encoding="utf-8", errors="replace")
    lines = (line.partition(":") for line in text.splitlines())
    names = ("flags", "Features")  # as x86 and Arm call them
    flags = next((value.split() for key, _, value in lines if key.strip() in names), [])
    return {"machine": platform.machine(), "features": sorted(flags)}
