"""Hermetic, content-hashed build rules on SCons for served NeMo speech and language models."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"


def tool(env: Any) -> None:
    """Add the rules to SCons: `Environment(tools=["default", jarvis_rules.tool])`."""
    # Named by string: everything imports this module, and only SCons needs the glue.
    importlib.import_module("jarvis_rules.scons.tool").generate(env)
