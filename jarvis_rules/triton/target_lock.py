"""The target lock: what a machine must have to run the engines of a pipeline.

It stands in `<pipeline>.repository.json`, and follows from what `engines.json` says. Portable
engines run anywhere and ask for nothing. The oldest driver is the toolchain's to know; NVIDIA's
table is that of minor version compatibility, 525 for CUDA 12.x and 580 for CUDA 13.x:
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jarvis_rules.errors import IntegrityError

TENSORRT, TENSORRT_RTX, ONNX_RUNTIME = "TensorRT", "TensorRT-RTX", "ONNX Runtime"
# Toolchain → what loads its engines.
_RUNTIMES = {"tensorrt": TENSORRT, "tensorrt_rtx": TENSORRT_RTX, "onnxruntime": ONNX_RUNTIME}
# TensorRT's HardwareCompatibilityLevel AMPERE_PLUS: Ampere, which begins at 8.0, and newer.
_COMPATIBILITY, _AMPERE_PLUS, _AMPERE = "hardware_compatibility", "ampere_plus", "8.0"


def make_target_lock(
    gpu: Mapping[str, Any], engines: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the lock of a pipeline whose engines were built for `gpu`.

    `gpu` is `GpuTarget.to_json()`, `engines` maps names to what `engines.json` says of them.

    `compute_capabilities` are those that the engines run on, none where they ask for none;
    `compute_capability_minimum` stands for it and all newer ones. `runtimes` maps what loads the
    engines to the version that built them: that one, or where they are `version_compatible` a
    newer one too. IntegrityError for engines of two versions of one runtime, which no server has.
    """
    locked = {name: engine for name, engine in engines.items() if not engine["portable"]}
    options = [engine.get("options", {}) for engine in locked.values()]
    capabilities = list(gpu["compute_capabilities"]) if locked else []
    is_minimum = bool(capabilities) and all(
        given.get(_COMPATIBILITY) == _AMPERE_PLUS for given in options
    )
    drivers = [engine.get("driver_minimum") for engine in locked.values()]
    return {
        "gpu": gpu["name"],
        "compute_capabilities": [] if is_minimum else capabilities,
        "compute_capability_minimum": _AMPERE if is_minimum else None,
        "driver_minimum": max(filter(None, drivers), key=version_numbers, default=None),
        "runtimes": _runtimes(locked),
        "version_compatible": bool(options)
        and all(given.get("version_compatible") is True for given in options),
    }


def _runtimes(engines: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, engine in sorted(engines.items()):
        runtime = _RUNTIMES.get(engine["toolchain"], engine["toolchain"])
        version = engine["toolchain_version"]
        if found.setdefault(runtime, version) != version:
            raise IntegrityError(
                f"built with {runtime} {version}, another engine of the pipeline with "
                f"{found[runtime]}: no server loads both",
                slug="target-lock.two-versions",
                where=f"engine `{name}`",
                hint="build the pipeline's engines again: `scons engines`",
            )
    return found


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a version as what sorts: `580.65.06` is (580, 65, 6)."""
    return tuple(int(number) for number in re.findall(r"\d+", version))
