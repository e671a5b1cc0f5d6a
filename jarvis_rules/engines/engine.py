"""What an engine toolchain declares: where it builds, what Triton runs it with, how it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.registry import entry_names, load_entry, require_known


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What a build says of its engine: version of the compiler, tensors, and where it has run."""

    toolchain_version: str
    portable: bool
    executed: str
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine toolchain: what a file of this folder declares as `ENGINE`.

    `backend` is the Triton backend that runs its engines, `file` the engine's name in a version
    folder, `prefix` the part of a served model's name that tells the kind of engine.
    `build(graph, engine, gpu)` writes the engine for the ONNX file `graph`, beside which its
    weights may lie (`*.onnx.data`); what it writes beside `engine` is served too.
    """

    name: str
    backend: str
    prefix: str
    file: str
    build: Callable[[Path, Path, GpuTarget], BuiltEngine]
    note: Callable[[GpuTarget], str | None]


_PACKAGE = "jarvis_rules.engines"


def find_engine(name: str) -> Engine:
    """Return the engine toolchain of that name; UsageError with a suggestion for an unknown one."""
    require_known("engine toolchain", name, entry_names(_PACKAGE), "engine.unknown")
    return load_entry(_PACKAGE, name, "ENGINE", Engine)
