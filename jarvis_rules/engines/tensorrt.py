"""tensorrt: plans of classical TensorRT, which a stock Triton serves.

It times its kernels, so it compiles on the GPU that is to run the plan, and nowhere else. Never
executed here: no library of it is to be had without NVIDIA's own package index, and the tests run
against what its published bindings declare.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.engines._cuda_devices import cuda_devices
from jarvis_rules.engines._tensorrt_builder import build_in_child
from jarvis_rules.engines._tensorrt_compiler import Compiler
from jarvis_rules.engines._tensorrt_targets import require_gpu
from jarvis_rules.engines.engine import TIMING_CACHE, BuiltEngine, Engine, EngineSpec
from jarvis_rules.errors import JarvisError, ToolchainError, UsageError
from jarvis_rules.formats.engine_inputs import Scalar

_MODULE = "tensorrt"
# The oldest driver that a release of that major version takes: for 10.x that of CUDA 12 (NVIDIA's
# CUDA Compatibility guide, table 1), for 11.x that of its CUDA 12 wheels (Prerequisites of 11.4).
_DRIVERS = {10: "525", 11: "535"}
# Volta: TensorRT 10.5 and later build nothing for it (NVIDIA's release notes).
_DROPPED = ("7.0",)


def _check_target(gpu: GpuTarget, _: str) -> None:
    """Raise UsageError for what no machine builds: no GPU, several, or one that was dropped."""
    require_gpu(gpu, "tensorrt")
    if len(gpu.compute_capabilities) > 1:
        raise UsageError(
            f"{gpu.name} is {gpu.architectures()}: TensorRT builds for the one GPU that it runs on",
            slug="engine.target",
            hint="a plan for each, on its own machine: "
            + " and ".join(f"GPU={name}" for name in gpu.name.split("+")),
        )
    if gpu.compute_capabilities[0] in _DROPPED:
        raise UsageError(
            f"{gpu.name} is {gpu.architectures()}: TensorRT 10.5 and later cannot target it",
            slug="engine.target",
            hint="ENGINE=onnxruntime, which runs on any",
        )


def _check_machine(gpu: GpuTarget, present: Mapping[str, str]) -> None:
    """Raise ToolchainError where the target's GPU, or the compiler, is not on this machine."""
    if gpu.compute_capabilities[0] not in present.values():
        raise _wrong_gpu(gpu, present)
    if importlib.util.find_spec(_MODULE) is None:
        raise ToolchainError(
            f"TensorRT is not installed in {sys.prefix}",
            slug="toolchain.missing-package",
            hint="run `pip install tensorrt` (outside our lock: it fetches from NVIDIA), or build "
            "in NVIDIA's container, or ENGINE=onnxruntime",
        )


def _wrong_gpu(gpu: GpuTarget, present: Mapping[str, str]) -> ToolchainError:
    found = " and ".join(
        f"{name} (sm_{capability.replace('.', '')})" for name, capability in present.items()
    )
    return ToolchainError(
        f"TensorRT builds on the GPU that it builds for: the target is {gpu.name} "
        f"({gpu.architectures()}), and this machine has {found or 'no NVIDIA GPU'}",
        slug="engine.machine",
        hint="build on a machine with that GPU, or ENGINE=onnxruntime, which runs on any",
    )


def _default_precision(_: GpuTarget) -> str:
    return "fp32"


def _note(gpu: GpuTarget) -> str | None:
    return f"{gpu.name}: this project has never executed a build of classical TensorRT"


def _load() -> Any:
    import tensorrt

    major = tensorrt.__version__.split(".")[0]
    if int(major) not in _DRIVERS:
        raise ToolchainError(
            f"TensorRT {tensorrt.__version__} is installed, expected 10.x or 11.x",
            slug="engine.version",
            hint="install one of those, or ENGINE=onnxruntime",
        )
    return tensorrt


def _configure(trt: Any, config: Any, spec: EngineSpec) -> None:
    """Set the options, and attach the timing cache that was given or a new one."""
    options = spec.options
    if "workspace_mib" in options:
        size = int(options["workspace_mib"] or 0) << 20
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, size)
    if options.get("version_compatible"):
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    config.hardware_compatibility_level = _compatibility(trt, options)
    given = b"" if spec.timing_cache is None else spec.timing_cache.read_bytes()
    cache = config.create_timing_cache(given)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise JarvisError(
            f"TensorRT {trt.__version__} does not take the timing cache: another GPU, or another "
            "version, wrote it",
            slug="engine.timing-cache",
            where=str(spec.timing_cache),
            hint="leave the timing cache out: a new one is written beside the engine",
        )
    if given:
        # What would be timed anew would differ from build to build.
        config.set_flag(trt.BuilderFlag.ERROR_ON_TIMING_CACHE_MISS)


def _compatibility(trt: Any, options: Mapping[str, Scalar]) -> Any:
    """Return the level of that name; UsageError for an unknown one."""
    levels = trt.HardwareCompatibilityLevel.__members__
    name = str(options.get("hardware_compatibility", "none"))
    if name.upper() not in levels:
        raise UsageError(
            f"`hardware_compatibility` is `{name}`",
            slug="option.invalid",
            hint=f"one of: {', '.join(level.lower() for level in levels)}",
        )
    return levels[name.upper()]


def _finish(config: Any, engine: Path) -> None:
    """Write the timings of this build beside the engine, for one that is to repeat it."""
    with engine.with_name(TIMING_CACHE).open("wb") as file:
        file.write(config.get_timing_cache().serialize())


def _describe(trt: Any, _: EngineSpec) -> Mapping[str, Any]:
    return {
        # What `hardware_compatibility` adds to the target is in the lock, which reads the options.
        "portable": False,
        "executed": "not executed: compiled on the target's GPU",
        "driver_minimum": _DRIVERS[int(trt.__version__.split(".")[0])],
    }


def _build(spec: EngineSpec, engine: Path) -> BuiltEngine:
    """Compile the graph on the target's GPU, in a child process that sees no other.

    ToolchainError where it is not here: the build may run elsewhere than it was configured.
    """
    devices = cuda_devices()
    wanted = spec.gpu.compute_capabilities[0]
    device = next((one for one in devices if one.compute_capability == wanted), None)
    if device is None:
        raise _wrong_gpu(spec.gpu, {one.name: one.compute_capability for one in devices})
    # TensorRT takes the first that it sees. One alone may be a slice, which has another name.
    environment = {"CUDA_VISIBLE_DEVICES": device.identifier} if len(devices) > 1 else {}
    return build_in_child("TensorRT", __name__, spec, engine, environment)


COMPILER = Compiler("TensorRT", _load, _configure, _finish, _describe)


ENGINE = Engine(
    name="tensorrt",
    backend="tensorrt",
    prefix="trt",
    file="model.plan",
    check_target=_check_target,
    check_machine=_check_machine,
    default_precision=_default_precision,
    build=_build,
    note=_note,
    options=("workspace_mib", "version_compatible", "hardware_compatibility", "timing_cache"),
    needs_gpu=True,
)
