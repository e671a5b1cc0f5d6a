"""What both TensorRT toolchains ask of a target before they look at it."""

from __future__ import annotations

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.errors import UsageError


def require_gpu(gpu: GpuTarget, engine: str) -> None:
    """Raise UsageError for a target without a GPU."""
    if not gpu.compute_capabilities:
        raise UsageError(
            f"the target is `{gpu.name}`: `{engine}` compiles for NVIDIA GPUs only",
            slug="engine.target",
            hint="name one (`GPU=a100`), or ENGINE=onnxruntime, which runs anywhere",
        )
