"""GPU targets, and what each engine toolchain can build for them on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.gpus import PresentGpu, present_gpus
from jarvis_rules.engines.engine import Engine, engine_names, find_engine
from jarvis_rules.errors import JarvisError
from jarvis_rules.reporting.machine import describe_present


def describe_gpus(gpus: Iterable[GpuTarget]) -> dict[str, Any]:
    """Return what `gpus.schema.json` describes, of these targets and this machine."""
    present = present_gpus()
    engines = [find_engine(name) for name in engine_names()]
    return {
        "version": 1,
        "gpus": [_describe(gpu, engines, present) for gpu in gpus],
        "present": [describe_present(gpu) for gpu in present],
    }


def _describe(
    gpu: GpuTarget, engines: Iterable[Engine], present: tuple[PresentGpu, ...]
) -> dict[str, Any]:
    names = {found.target.name for found in present if found.target}
    return {
        "name": gpu.name,
        "description": gpu.description,
        "aliases": list(gpu.aliases),
        "compute_capabilities": list(gpu.compute_capabilities),
        "memory_gib": gpu.memory_gib,
        "precisions": list(gpu.precisions),
        "platform": gpu.platform,
        "present": bool(names & {*gpu.name.split("+")}),
        "engines": [_describe_build(engine, gpu, present) for engine in engines],
    }


def _describe_build(
    engine: Engine, gpu: GpuTarget, present: tuple[PresentGpu, ...]
) -> dict[str, Any]:
    """Return which precisions a toolchain builds for a target, and why this machine does not."""
    default = engine.default_precision(gpu)
    here = {found.name: found.compute_capability for found in present}
    fault = None
    try:
        engine.check_target(gpu, default)
        engine.check_machine(gpu, here)
    except JarvisError as error:
        fault = error
    return {
        "toolchain": engine.name,
        "precisions": list(_buildable(engine, gpu)),
        "default_precision": default,
        "slug": fault and fault.slug,
        "reason": fault and fault.message,
        "hint": fault and fault.hint,
    }


def _buildable(engine: Engine, gpu: GpuTarget) -> Iterator[str]:
    for precision in gpu.precisions:
        try:
            engine.check_target(gpu, precision)
        except JarvisError:
            continue
        yield precision


# What the error of a build that cannot be is in a table's cell.
_SHORT = {
    "engine.target": "no: cannot target it",
    "engine.precision": "no: cannot target it",
    "engine.machine": "no: GPU not here",
    "toolchain.missing-package": "no: not installed",
}


def summarise_build(build: Mapping[str, Any]) -> str:
    """Return a toolchain's part of the description of a target in a few words."""
    if build["slug"] is not None:
        return _SHORT.get(build["slug"], f"no: {build['slug']}")
    return ", ".join(build["precisions"])
