"""Whether a machine can run the pipelines of a model repository, asked before a server starts.

What each needs is the target lock of its manifest; the engines themselves are not opened.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpus import PresentGpu, architecture, capability_number, load_gpus
from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.tar import quoted
from jarvis_rules.reporting.machine import Machine, describe_present, examine_machine
from jarvis_rules.reporting.repository_folder import list_manifests, read_manifest
from jarvis_rules.reporting.subject import require_repository
from jarvis_rules.triton.target_lock import (
    ONNX_RUNTIME,
    TENSORRT,
    TENSORRT_RTX,
    version_numbers,
)

_CURRENT = "current"


@dataclass(frozen=True, slots=True)
class Mismatch:
    """What a machine lacks for a lock, both sides named, and what mends it."""

    message: str
    hint: str


def find_repository(path: Path) -> Path:
    """Return the repository at `path`, which may be the folder that releases are published to.

    UsageError where there is none.
    """
    published = path / _CURRENT
    if not list_manifests(path) and list_manifests(published):
        return published
    require_repository(path)
    return path


def check_pipelines(path: Path, server: Path | None = None) -> dict[str, Any]:
    """Return what `preflight.schema.json` describes, of the repository at `path` and this machine.

    UsageError where there is no repository, IntegrityError where a manifest is damaged.
    """
    root = find_repository(path)
    machine = examine_machine(server)
    pipelines, hints = [], dict[str, None]()
    for pipeline, manifest in read_manifests(root).items():
        mismatches = list(find_mismatches(manifest["target_lock"], machine))
        hints |= dict.fromkeys(mismatch.hint for mismatch in mismatches)
        pipelines.append(
            {
                "pipeline": pipeline,
                "target_lock": manifest["target_lock"],
                "mismatches": [mismatch.message for mismatch in mismatches],
                "notes": list(_find_notes(manifest, machine)),
            }
        )
    return {
        "version": 1,
        "repository": str(root),
        "machine": {
            "gpus": [describe_present(gpu) for gpu in machine.gpus],
            "libraries": [
                {"version": library.version, "path": str(library.path)}
                for library in machine.libraries
            ],
        },
        "pipelines": pipelines,
        "fits": not hints,
        "hint": "; ".join(hints) or None,
    }


def read_manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Return the manifests of a repository by pipeline, its name safe to be printed."""
    manifests = (read_manifest(path) for path in list_manifests(root))
    return {quoted(manifest["pipeline"])[1:-1]: manifest for manifest in manifests}


def require_no_gpu(root: Path) -> None:
    """Raise JarvisError where a pipeline of the repository needs a GPU, for a server without.

    Models that have no manifest of ours are not looked at.
    """
    server = Machine("the bundled server", (), without_gpu="no GPU: it computes on the CPU")
    lines = [
        f"{pipeline}: {mismatch.message}"
        for pipeline, manifest in read_manifests(root).items()
        for mismatch in find_mismatches(manifest["target_lock"], server)
    ]
    if lines:
        hint = "serve it with NVIDIA's Triton container on that GPU, or build for the CPU: "
        raise mismatch_error(lines, root, f"{hint}`scons deploy GPU=cpu`")


def mismatch_error(lines: Sequence[str], root: Path, hint: str | None) -> JarvisError:
    """Return the error for what does not fit, a line for each."""
    return JarvisError(
        "\n".join(["not built for here", *(f"  {line}" for line in lines)]),
        slug="preflight.mismatch",
        where=str(root),
        hint=hint,
    )


def find_mismatches(lock: Mapping[str, Any], machine: Machine) -> Iterator[Mismatch]:
    """Yield what the machine lacks to run engines with that lock."""
    if _needs_gpu(lock) and not any(_runs_on(lock, gpu) for gpu in machine.gpus):
        yield Mismatch(
            f"engine for {_describe_target(lock)}, {machine.name} has {machine.describe_gpus()}",
            f"`scons deploy GPU={_target_here(machine.gpus)}` builds for what is here",
        )
    needed = lock["driver_minimum"]
    if needed is not None and machine.gpus:
        driver = machine.gpus[0].driver_version
        if version_numbers(driver) < version_numbers(needed):
            yield Mismatch(
                f"needs driver {needed} or newer, {machine.name} has {driver}",
                f"install NVIDIA's driver {needed} or newer",
            )
    version = lock["runtimes"].get(TENSORRT)
    if version is not None and (machine.libraries or machine.server):
        yield from _compare_libraries(version, lock["version_compatible"], machine)


def _compare_libraries(version: str, compatible: bool, machine: Machine) -> Iterator[Mismatch]:
    if any(_loads(library.version, version, compatible) for library in machine.libraries):
        return
    found = " and ".join(dict.fromkeys(library.version for library in machine.libraries))
    yield Mismatch(
        f"{TENSORRT} {version} engine, {machine.server or machine.name} has "
        + (f"{TENSORRT} {found}" if found else "no libnvinfer.so"),
        f"serve with a Triton that has {TENSORRT} {version}, or build with the server's",
    )


def _needs_gpu(lock: Mapping[str, Any]) -> bool:
    return bool(lock["compute_capabilities"] or lock["compute_capability_minimum"])


def _runs_on(lock: Mapping[str, Any], gpu: PresentGpu) -> bool:
    minimum = lock["compute_capability_minimum"]
    if minimum is None or not gpu.compute_capability:
        return gpu.compute_capability in lock["compute_capabilities"]
    return capability_number(gpu.compute_capability) >= capability_number(minimum)


def _loads(present: str, built: str, compatible: bool) -> bool:
    """Tell whether a TensorRT of one version loads an engine that another built.

    A plan loads in the version that built it, a version-compatible one in later ones too. A file's
    name says less than the compiler: 10.13.3 of 10.13.3.9.
    """
    found, needed = version_numbers(present), version_numbers(built)
    length = min(len(found), len(needed))
    found, needed = found[:length], needed[:length]
    return found == needed or (compatible and found > needed)


def _describe_target(lock: Mapping[str, Any]) -> str:
    return f"{lock['gpu']} ({_describe_capabilities(lock)})"


def _describe_capabilities(lock: Mapping[str, Any]) -> str:
    if lock["compute_capability_minimum"] is not None:
        return f"{architecture(lock['compute_capability_minimum'])} and newer"
    return " and ".join(map(architecture, lock["compute_capabilities"]))


def describe_lock(lock: Mapping[str, Any]) -> str:
    """Return what a lock asks of a machine in one line, empty where it asks for nothing."""
    newer = " or newer" if lock["version_compatible"] else ""
    parts = [
        _describe_target(lock) if _needs_gpu(lock) else "",
        f"driver {lock['driver_minimum']} or newer" if lock["driver_minimum"] else "",
        *(f"{runtime} {version}{newer}" for runtime, version in sorted(lock["runtimes"].items())),
    ]
    return ", ".join(part for part in parts if part)


def _find_notes(manifest: Mapping[str, Any], machine: Machine) -> Iterator[str]:
    """Yield what was not looked at, and what fits only in part."""
    lock = manifest["target_lock"]
    runtimes = lock["runtimes"]
    if _needs_gpu(lock) and any(_runs_on(lock, gpu) for gpu in machine.gpus):
        others = dict.fromkeys(g.describe() for g in machine.gpus if not _runs_on(lock, g))
        if others:
            yield (
                f"engine for {_describe_target(lock)}: hide {' and '.join(others)} from the server "
                "(`CUDA_VISIBLE_DEVICES`, `docker run --gpus`)"
            )
    if TENSORRT_RTX in runtimes:
        yield (
            f"needs {TENSORRT_RTX} {runtimes[TENSORRT_RTX]} in the Python that Triton's Python "
            "backend runs: that was not looked for"
        )
    if ONNX_RUNTIME in runtimes:
        yield (
            "laid out for the processor that built it (`graph_optimization=all`): whether this one "
            "has its features was not looked for"
        )
    if TENSORRT in runtimes:
        if not machine.libraries and machine.server is None:
            yield (
                f"{TENSORRT} {runtimes[TENSORRT]} engine: no libnvinfer.so was found here to "
                "compare with; `--server DIR` names the folder of a server"
            )
        built, here = manifest["gpu"]["platform"], platform.machine()
        if (built == "x86_64") != (here == "x86_64"):
            yield f"built for {built}, this machine is {here}: plans are made for one platform"


def _target_here(gpus: Sequence[PresentGpu]) -> str:
    """Return what `GPU=` takes for this machine: a target, a capability, or `cpu`."""
    aliases = {alias for gpu in load_gpus().values() for alias in gpu.aliases}
    for gpu in gpus:
        capability = f"sm{gpu.compute_capability.replace('.', '')}"
        if gpu.target is not None:
            return gpu.target.name
        if capability in aliases:
            return capability
    return "cpu"
