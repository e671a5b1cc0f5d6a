"""GPU targets: the stanzas of `gpus.toml`."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.core.registry import require_known

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PACKAGE_DATA = ("../gpus.toml",)


@functools.cache
def load_gpus() -> dict[str, GpuTarget]:
    """Return every GPU target by name."""
    text = (Path(__file__).parent.parent / "gpus.toml").read_text(encoding="utf-8")
    return {
        name: GpuTarget(name, **{**stanza, "aliases": tuple(stanza.get("aliases", ()))})
        for name, stanza in tomllib.loads(text).items()
    }


def find_gpu(name: str) -> GpuTarget:
    """Return the target of that name or alias; UsageError with a suggestion for an unknown one."""
    gpus = load_gpus()
    aliases = {alias: gpu for gpu in gpus.values() for alias in (gpu.name, *gpu.aliases)}
    key = name.strip().lower().replace("_", "-")
    if key not in aliases:
        require_known("GPU", name, aliases, "gpu.unknown", listed=gpus)
    return aliases[key]


def find_gpus(names: str) -> tuple[GpuTarget, ...]:
    """Return the targets of a comma-separated list, in the order of their names, none twice."""
    found = {find_gpu(name) for name in names.split(",") if name.strip()} or {find_gpu(CPU)}
    return tuple(sorted(found, key=lambda gpu: gpu.name))


def detect_gpu() -> tuple[GpuTarget, str]:
    """Return the target for the GPU of this machine, else `cpu`, and a sentence that says why."""
    cpu = load_gpus()[CPU]
    if shutil.which("nvidia-smi") is None:
        return cpu, "no NVIDIA driver here, so the target is `cpu`"
    argv = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        output = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return cpu, "`nvidia-smi` finds no GPU, so the target is `cpu`"
    names = [re.sub(r"[^a-z0-9]+", "-", line.strip().lower()) for line in output.splitlines()]
    for gpu in load_gpus().values():
        if names and gpu.name != CPU and gpu.name in names[0].split("-"):
            return gpu, f"found {output.splitlines()[0].strip()}, so the target is `{gpu.name}`"
    return cpu, f"the GPU here ({', '.join(names) or 'none'}) is not in gpus.toml: target `cpu`"
