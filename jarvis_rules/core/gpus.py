"""GPU targets: the stanzas of `gpus.toml`, sums of them, and the GPUs of this machine."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.errors import UsageError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE_DATA = ("../gpus.toml",)
TIMEOUT_SECONDS = 10
# Drivers before R510 know no `compute_cap`, and refuse the whole query.
_QUERIES = (
    ("name", "compute_cap", "driver_version", "memory.total"),
    ("name", "driver_version", "memory.total"),
)
# What driver names say besides the GPU's own name: brand, form, memory, edition.
_BESIDE = re.compile(
    r"nvidia|tesla|geforce|nvgpu|pcie|nvl|sxm\d*|hbm\d+\w?|\d+gb?|ls|ac"
    r"|blackwell|generation|edition|server|workstation|max|q"
)


@functools.cache
def load_gpus() -> dict[str, GpuTarget]:
    """Return every GPU target by name, in the order of `gpus.toml`."""
    text = (Path(__file__).parent.parent / "gpus.toml").read_text(encoding="utf-8")
    return {name: _read_stanza(name, stanza) for name, stanza in tomllib.loads(text).items()}


def _read_stanza(name: str, stanza: Mapping[str, Any]) -> GpuTarget:
    capability = stanza.get("compute_capability")
    return GpuTarget(
        name=name,
        description=stanza["description"],
        compute_capabilities=() if capability is None else (capability,),
        memory_gib=stanza.get("memory_gib"),
        precisions=tuple(stanza["precisions"]),
        platform=stanza["platform"],
        aliases=tuple(stanza.get("aliases", ())),
    )


def find_gpu(name: str) -> GpuTarget:
    """Return the target of a name or alias, or of several joined by `+` (`a100+l4`).

    UsageError with a suggestion for an unknown one, and for a sum that no engine can serve.
    """
    found = {gpu.name: gpu for gpu in map(_find_one, name.split("+"))}
    targets = [found[key] for key in sorted(found)]
    return targets[0] if len(targets) == 1 else _add(targets)


def _find_one(name: str) -> GpuTarget:
    gpus = load_gpus()
    aliases = {alias: gpu for gpu in gpus.values() for alias in (gpu.name, *gpu.aliases)}
    key = re.sub(r"^sm-(?=\d)", "sm", name.strip().lower().replace("_", "-"))
    if key not in aliases:
        suggestion = did_you_mean(name.strip(), sorted(aliases))
        raise UsageError(
            f"unknown GPU `{name.strip()}`",
            slug="gpu.unknown",
            hint=f"{suggestion + ' ' if suggestion else ''}`jarvis-rules gpus` lists them",
        )
    return aliases[key]


def _add(gpus: list[GpuTarget]) -> GpuTarget:
    """Return several GPUs, sorted by name, as the one target of which all can run the engine."""
    name = "+".join(gpu.name for gpu in gpus)
    if any(gpu.name == CPU for gpu in gpus):
        raise UsageError(
            f"`{name}`: one engine cannot be for a GPU and for none",
            slug="gpu.cpu-in-sum",
            hint=f"`GPU={name.replace('+', ',')}` builds for each of them",
        )
    platforms = {gpu.platform for gpu in gpus}
    if len(platforms) > 1:
        found = ", ".join(f"{gpu.name} is {gpu.platform}" for gpu in gpus)
        raise UsageError(
            f"`{name}`: one engine cannot be for several platforms: {found}",
            slug="gpu.mixed-platforms",
            hint=f"`GPU={name.replace('+', ',')}` builds for each of them",
        )
    return GpuTarget(
        name=name,
        description=" and ".join(gpu.description for gpu in gpus),
        compute_capabilities=tuple(
            sorted({c for gpu in gpus for c in gpu.compute_capabilities}, key=capability_number)
        ),
        memory_gib=min(gpu.memory_gib for gpu in gpus if gpu.memory_gib is not None),
        precisions=tuple(
            precision
            for precision in gpus[0].precisions
            if all(precision in gpu.precisions for gpu in gpus)
        ),
        platform=gpus[0].platform,
    )


def capability_number(capability: str) -> tuple[int, int]:
    """Return a compute capability as what sorts: `8.6` before `12.0`."""
    major, minor = capability.split(".")
    return int(major), int(minor)


def architecture(capability: str) -> str:
    """Return a compute capability as people write it: `sm_80`."""
    return f"sm_{capability.replace('.', '')}"


def find_gpus(names: str) -> tuple[GpuTarget, ...]:
    """Return the targets of a comma-separated list, in the order of their names, none twice."""
    found = {find_gpu(name) for name in names.split(",") if name.strip()} or {find_gpu(CPU)}
    return tuple(sorted(found, key=lambda gpu: gpu.name))


@dataclass(frozen=True, slots=True)
class PresentGpu:
    """A GPU of this machine: what the driver says, and its target where one has that name.

    `compute_capability` is empty where neither the driver nor a target says it, `memory_mib` None
    where the driver does not say it (Jetson).
    """

    name: str
    compute_capability: str
    driver_version: str
    memory_mib: int | None
    target: GpuTarget | None

    def describe(self) -> str:
        """Return the name and the architecture: `NVIDIA L4 (sm_89)`."""
        if not self.compute_capability:
            return self.name
        return f"{self.name} ({architecture(self.compute_capability)})"


@functools.cache
def present_gpus() -> tuple[PresentGpu, ...]:
    """Return the GPUs that the NVIDIA driver of this machine has, none without a driver.

    MIG does not show: the GPU that is divided is listed, and its slices run the same engines.
    """
    if shutil.which("nvidia-smi") is None:
        return ()
    for fields in _QUERIES:
        argv = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            output = subprocess.run(
                argv,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=True,
            ).stdout
        except subprocess.CalledProcessError:
            continue
        except (OSError, subprocess.SubprocessError):
            return ()
        rows = [[cell.strip() for cell in line.split(",")] for line in output.splitlines()]
        return tuple(
            _describe(dict(zip(fields, row, strict=True)))
            for row in rows
            if len(row) == len(fields)
        )
    return ()


def _describe(row: dict[str, str]) -> PresentGpu:
    said = row.get("compute_cap", "")
    capability = said if re.fullmatch(r"\d+\.\d+", said) else ""
    target = target_of(row["name"], capability)
    if not capability and target is not None:
        (capability,) = target.compute_capabilities
    memory = re.match(r"\d+", row["memory.total"])
    return PresentGpu(
        name=row["name"],
        compute_capability=capability,
        driver_version=row["driver_version"],
        memory_mib=int(memory[0]) if memory else None,
        target=target,
    )


def target_of(name: str, capability: str) -> GpuTarget | None:
    """Return the target whose GPU the driver calls `name`, None where there is none.

    A GPU of another name is never taken for one of the same capability: memory, speed and the
    manifest's GPU would be another's (`RTX 4090 Laptop GPU` is no RTX 4090, `A10G` no A10). It is
    named, and `GPU=smXY` asks for the capability. A name whose capability is not the target's is
    not that GPU either.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    key = "-".join(word for word in words if not _BESIDE.fullmatch(word))
    for gpu in load_gpus().values():
        if gpu.name != CPU and key in (gpu.name, *gpu.aliases):
            return gpu if capability in ("", *gpu.compute_capabilities) else None
    return None


def detect_gpu() -> tuple[GpuTarget, str]:
    """Return the target for the GPU of this machine, else `cpu`, and a sentence that says why.

    Of several GPUs it is the first that has a target.
    """
    cpu = load_gpus()[CPU]
    if shutil.which("nvidia-smi") is None:
        return cpu, "no NVIDIA driver here, so the target is `cpu`"
    gpus = present_gpus()
    if not gpus:
        return cpu, "`nvidia-smi` finds no GPU, so the target is `cpu`"
    found = " and ".join(dict.fromkeys(gpu.describe() for gpu in gpus))
    for gpu in gpus:
        if gpu.target is not None:
            return gpu.target, f"found {found}, so the target is `{gpu.target.name}`"
    known = {f"sm_{alias[2:]}" for gpu in load_gpus().values() for alias in gpu.aliases}
    found_too = (architecture(gpu.compute_capability) for gpu in gpus)
    asked = next((name for name in found_too if name in known), None)
    way_out = f"; `GPU={asked}` builds for its capability" if asked else ""
    return cpu, f"found {found}, which gpus.toml does not name: the target is `cpu`{way_out}"
