"""onnxruntime: the portable engine. The graph is served as it is, once it has loaded and run.

Triton's ONNX Runtime backend runs the file on a CPU or, with its CUDA execution provider, on any
GPU that the server's build of ONNX Runtime knows; nothing in it is specific to the target, unless
`graph_optimization=all` lays it out for the CPU of this machine.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.engines.engine import BuiltEngine, Engine, EngineSpec
from jarvis_rules.errors import JarvisError, UsageError

_PROVIDER = "CPUExecutionProvider"
# Sizes for symbolic dimensions in the trial run: small, and no two alike.
_TRIAL_BATCH, _TRIAL_SIZE = 2, 32
_DTYPES = {
    "tensor(float)": ("FP32", "float32"),
    "tensor(float16)": ("FP16", "float16"),
    "tensor(int64)": ("INT64", "int64"),
    "tensor(int32)": ("INT32", "int32"),
    "tensor(bool)": ("BOOL", "bool"),
}
_LEVELS = {
    "basic": "ORT_ENABLE_BASIC",
    "extended": "ORT_ENABLE_EXTENDED",
    "all": "ORT_ENABLE_ALL",
}


def _check_target(gpu: GpuTarget, precision: str) -> None:
    """Raise UsageError for bf16, for which ONNX Runtime has few kernels, and on a CPU none."""
    if precision == "bf16":
        raise UsageError(
            f"onnxruntime: bf16 cannot run everywhere, asked for {gpu.name}",
            slug="precision.unsupported",
            hint="take fp16 or fp32; `jarvis-rules gpus` says which compilers have bf16",
        )


def _check_machine(gpu: GpuTarget, present: Mapping[str, str]) -> None:
    """Accept every machine: the engine is the graph."""


def _default_precision(_: GpuTarget) -> str:
    return "fp32"


def _build(spec: EngineSpec, engine: Path) -> BuiltEngine:
    """Run the graph once on zeros and write it; JarvisError where ONNX Runtime refuses it."""
    import onnxruntime as ort

    graph, level = spec.graph, str(spec.options.get("graph_optimization", "none"))
    if level != "none" and spec.precision != "fp32":
        raise UsageError(
            f"`graph_optimization={level}` with precision {spec.precision}: ONNX Runtime on a CPU "
            "would write float32 arithmetic into the graph",
            slug="engine.cpu-optimization",
            where=str(graph),
            hint="leave the option out: the server's ONNX Runtime optimises when it loads",
        )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if level != "none":
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, _LEVELS[level])
        options.optimized_model_filepath = str(engine)
    spec.report("Loading the graph in ONNX Runtime")
    try:
        session = ort.InferenceSession(str(graph), options, providers=[_PROVIDER])
        inputs, outputs = map(_describe_all, (session.get_inputs(), session.get_outputs()))
        session.run(None, {node.name: _zeros(node) for node in session.get_inputs()})
    except JarvisError as error:
        engine.unlink(missing_ok=True)
        raise error.at(str(graph)) from None
    except Exception as error:
        # ONNX Runtime's own errors share no base class but Exception.
        engine.unlink(missing_ok=True)
        raise JarvisError(
            f"ONNX Runtime {ort.__version__} refuses the graph: {error}",
            slug="engine.onnxruntime",
            where=str(graph),
            hint="the graph uses what this runtime does not know: report the model's family",
        ) from None
    if level == "none":
        shutil.copyfile(graph, engine)
        # The graph refers to them by name.
        for weights in graph.parent.glob("*.onnx.data"):
            shutil.copyfile(weights, engine.with_name(weights.name))
    on_target = spec.gpu.name == CPU
    return BuiltEngine(
        toolchain_version=ort.__version__,
        portable=level != "all",
        executed=f"{_PROVIDER}, on zeros" if on_target else "not executed on this target",
        inputs=inputs,
        outputs=outputs,
    )


def _zeros(node: Any) -> Any:
    import numpy as np

    sizes = [
        size if isinstance(size, int) else _TRIAL_SIZE if axis else _TRIAL_BATCH
        for axis, size in enumerate(node.shape)
    ]
    return np.zeros(sizes, dtype=_DTYPES[node.type][1])


def _describe_all(nodes: Iterable[Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple(_describe(node) for node in nodes)


def _describe(node: Any) -> Mapping[str, Any]:
    if node.type not in _DTYPES:
        raise JarvisError(
            f"the tensor `{node.name}` is a {node.type}, which no pipeline can pass on",
            slug="engine.dtype",
            hint=f"the graph's inputs and outputs may be: {', '.join(_DTYPES)}",
        )
    dims = [size if isinstance(size, int) else -1 for size in node.shape]
    return {"name": node.name, "dtype": _DTYPES[node.type][0], "dims": dims}


def _note(_: GpuTarget) -> str | None:
    return None


ENGINE = Engine(
    name="onnxruntime",
    backend="onnxruntime",
    prefix="onnx",
    file="model.onnx",
    check_target=_check_target,
    check_machine=_check_machine,
    default_precision=_default_precision,
    build=_build,
    note=_note,
    takes_inputs=False,
    options=("graph_optimization", "tensorrt_accelerator"),
    portable=True,
)
