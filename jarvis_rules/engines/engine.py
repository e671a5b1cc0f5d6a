"""What an engine toolchain declares: where it builds, what Triton runs it with, how it builds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.registry import entry_names, load_entry, require_known
from jarvis_rules.formats.engine_inputs import EngineInput, Scalar

PRECISIONS = ("fp32", "fp16", "bf16")
TIMING_CACHE = "timing.cache"
"""What a build times, beside its engine: for a later build to repeat it, and never served."""


def _ignore(_: str) -> None:
    """Report a phase to nobody."""


Profile = Mapping[str, Mapping[str, tuple[int, ...]]]
"""A shape profile: input name → `min`, `opt`, `max` → dimensions."""


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """What to build an engine of.

    `graph` is an ONNX file in `precision` already, beside which its weights may lie
    (`*.onnx.data`); `inputs` the sizes that it is to take, where the toolchain asks for them;
    `options` those of the toolchain's options that were given; `report` is told of each phase.
    """

    graph: Path
    gpu: GpuTarget
    precision: str = "fp32"
    inputs: tuple[EngineInput, ...] = ()
    options: Mapping[str, Scalar] = field(default_factory=dict)
    timing_cache: Path | None = None
    report: Callable[[str], None] = _ignore


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """What a build says of its engine: compiler, tensors, profiles, and where it has run.

    Tensors are `{"name", "dtype", "dims"}`, the batch dimension first, -1 for any size. `portable`
    engines run on other GPUs too. `driver_minimum` is the oldest NVIDIA driver that its runtime
    takes, where one is needed.
    """

    toolchain_version: str
    portable: bool
    executed: str
    inputs: tuple[Mapping[str, Any], ...]
    outputs: tuple[Mapping[str, Any], ...]
    profiles: tuple[Profile, ...] = ()
    driver_minimum: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine toolchain: what a file of this folder declares as `ENGINE`.

    `backend` is the Triton backend that runs its engines (`python` where a module of `runtime/`
    does: `runtime`), `file` the engine's name in a version folder, `prefix` the part of a served
    model's name that tells the kind of engine. `options` names the build options that it takes;
    `takes_inputs` whether the sizes of the graph's inputs go into the engine, and its key.

    `check_target(gpu, precision)` raises JarvisError where no machine could build that pair, with
    what to do instead; `check_machine(gpu, present)` where this one cannot, given the compute
    capability of each GPU that is here by its name. Both are asked at configure time: they read no
    model and import no compiler (nor `core.gpus`: every engine's key would change with the table).
    `default_precision(gpu)` is what is built where nobody asks for one. `needs_gpu`: it builds on
    a machine with the target only; `portable`: its engines run on any machine. `build(spec,
    engine)` writes the engine; what it writes beside it is served too, but for `timing.cache`.
    """

    name: str
    backend: str
    prefix: str
    file: str
    check_target: Callable[[GpuTarget, str], None]
    check_machine: Callable[[GpuTarget, Mapping[str, str]], None]
    default_precision: Callable[[GpuTarget], str]
    build: Callable[[EngineSpec, Path], BuiltEngine]
    note: Callable[[GpuTarget], str | None]
    takes_inputs: bool = True
    options: tuple[str, ...] = ()
    runtime: str | None = None
    needs_gpu: bool = False
    portable: bool = False


_PACKAGE = "jarvis_rules.engines"


def engine_names() -> tuple[str, ...]:
    """Return the names of the engine toolchains."""
    return entry_names(_PACKAGE)


@functools.cache
def find_engine(name: str) -> Engine:
    """Return the engine toolchain of that name; UsageError with a suggestion for an unknown one."""
    require_known("engine toolchain", name, engine_names(), "engine.unknown")
    return load_entry(_PACKAGE, name, "ENGINE", Engine)
