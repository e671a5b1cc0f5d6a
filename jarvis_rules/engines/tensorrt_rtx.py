"""tensorrt_rtx: engines compiled ahead of time, on any machine, for GPUs that are not there.

No kernel is timed: the engine holds portable code that the TensorRT-RTX runtime finishes on the
GPU when it loads. That runtime takes its own engines only, and only it does: a stock Triton serves
none of them, so a Python backend of ours does. Every engine here was compiled, none executed.
"""

from __future__ import annotations

import importlib.util
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.engines._tensorrt_builder import build_in_child
from jarvis_rules.engines._tensorrt_compiler import Compiler
from jarvis_rules.engines._tensorrt_targets import require_gpu
from jarvis_rules.engines.engine import BuiltEngine, Engine, EngineSpec
from jarvis_rules.errors import ToolchainError, UsageError

_NAME = "TensorRT-RTX"
_MODULE, _LIBRARY = "tensorrt_rtx_bindings", "tensorrt_rtx_libs"
# Compute capabilities that its `ComputeCapability` names. 7.5 computes matrix products in half
# precision only, and shares an engine with no other.
_TURING = "7.5"
_CAPABILITIES = (_TURING, "8.0", "8.6", "8.9", "12.0", "12.1")
# CUDA 13, which 1.7 is linked with, asks for it: NVIDIA's CUDA Compatibility guide, table 1.
_DRIVER = "580"
_INSTALL = (
    "`pip install 'jarvis-rules[tensorrt-rtx]'` (in a checkout: `pip install --require-hashes -r "
    "requirements/tensorrt-rtx.txt`)"
)


def _check_target(gpu: GpuTarget, _: str) -> None:
    """Raise UsageError for GPUs that TensorRT-RTX has no code for, and for Turing among others."""
    require_gpu(gpu, "tensorrt_rtx")
    missing = [value for value in gpu.compute_capabilities if value not in _CAPABILITIES]
    if missing:
        names = " and ".join(f"sm_{value.replace('.', '')}" for value in missing)
        them = "it" if len(gpu.compute_capabilities) == 1 else names
        raise UsageError(
            f"{gpu.name} is {gpu.architectures()}: {_NAME} cannot target {them}",
            slug="engine.target",
            hint=_way_out(gpu),
        )
    if _TURING in gpu.compute_capabilities and len(gpu.compute_capabilities) > 1:
        raise UsageError(
            f"{gpu.name} is {gpu.architectures()}: an engine of {_NAME} for sm_75 serves no other",
            slug="engine.target",
            hint=f"an engine for each: GPU={gpu.name.replace('+', ',')}",
        )


def _way_out(gpu: GpuTarget) -> str:
    """Return what to do instead: classical TensorRT has dropped Volta, and takes one GPU alone."""
    portable = "ENGINE=onnxruntime, which runs on any"
    if len(gpu.compute_capabilities) > 1 or gpu.compute_capabilities[0] == "7.0":
        return portable
    return f"ENGINE=tensorrt on a machine with that GPU, or {portable}"


def _check_machine(_: GpuTarget, __: Mapping[str, str]) -> None:
    """Raise ToolchainError where the compiler is not installed; it needs no GPU."""
    if all(importlib.util.find_spec(name) is not None for name in (_MODULE, _LIBRARY)):
        return
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ToolchainError(
            f"{_NAME} is locked for Linux on x86_64, and this is {sys.platform} on "
            f"{platform.machine()}",
            slug="toolchain.missing-package",
            hint="build on such a machine: the GPU need not be there",
        )
    raise ToolchainError(
        f"{_NAME} is not installed in {sys.prefix}",
        slug="toolchain.missing-package",
        hint=f"run {_INSTALL}, or ENGINE=onnxruntime",
    )


def _default_precision(gpu: GpuTarget) -> str:
    return "fp16" if _TURING in gpu.compute_capabilities else "fp32"


def _note(gpu: GpuTarget) -> str | None:
    note = f"{gpu.name}: experimental: no engine of {_NAME} has been executed by this project"
    if gpu.platform != "x86_64":
        return f"{note}, and its host is {gpu.platform}: the compiler here was tried on x86_64 only"
    return note


def _load() -> Any:
    import tensorrt_rtx_bindings

    return tensorrt_rtx_bindings


def _configure(trt: Any, config: Any, spec: EngineSpec) -> None:
    """Set the compute capabilities; ToolchainError where this version has not one of them.

    Unset they are a default that changes between versions, and `CURRENT` builds, on a GPU that
    TensorRT-RTX has no code for, an engine for none at all.
    """
    members = {
        name: value
        for name, value in trt.ComputeCapability.__members__.items()
        if name not in {"NONE", "CURRENT"}
    }
    # Their order is part of the engine's bytes.
    capabilities = spec.gpu.compute_capabilities
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        value = members.get(f"SM{capability.replace('.', '')}")
        # A value that it does not know is answered with False, and no message.
        if value is None or not config.set_compute_capability(value, index):
            raise ToolchainError(
                f"{_NAME} {trt.__version__} cannot target sm_{capability.replace('.', '')}",
                slug="engine.target",
                hint=f"run `{_INSTALL}`",
            )


def _finish(config: Any, engine: Path) -> None:
    """Write nothing beside the engine: no kernel was timed."""


def _describe(_: Any, spec: EngineSpec) -> Mapping[str, Any]:
    return {
        "portable": False,
        "executed": f"not executed: compiled ahead of time for {spec.gpu.architectures()}",
        "driver_minimum": _DRIVER,
    }


def _build(spec: EngineSpec, engine: Path) -> BuiltEngine:
    """Compile the graph in a child process; JarvisError where it is refused."""
    return build_in_child(_NAME, __name__, spec, engine)


COMPILER = Compiler(_NAME, _load, _configure, _finish, _describe)


ENGINE = Engine(
    name="tensorrt_rtx",
    backend="python",
    prefix="rtx",
    file="model.engine",
    check_target=_check_target,
    check_machine=_check_machine,
    default_precision=_default_precision,
    build=_build,
    note=_note,
    options=("shape_profiles",),
    runtime="tensorrt_rtx",
)
