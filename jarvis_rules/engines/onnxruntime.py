"""onnxruntime: the portable engine. The graph is served as it is, once it has loaded and run.

Triton's ONNX Runtime backend runs the file on a CPU or on any GPU that the server's build of ONNX
Runtime knows; nothing in it is specific to the target.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.engines.engine import BuiltEngine, Engine
from jarvis_rules.errors import JarvisError

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


def _build(graph: Path, engine: Path, gpu: GpuTarget) -> BuiltEngine:
    """Copy the graph and run it once on zeros; JarvisError where ONNX Runtime refuses it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(graph), options, providers=[_PROVIDER])
        inputs, outputs = map(_describe_all, (session.get_inputs(), session.get_outputs()))
        session.run(None, {node.name: _zeros(node) for node in session.get_inputs()})
    except JarvisError as error:
        raise error.at(str(graph)) from None
    except Exception as error:
        # ONNX Runtime's own errors share no base class but Exception.
        raise JarvisError(
            f"ONNX Runtime {ort.__version__} refuses the graph: {error}",
            slug="engine.onnxruntime",
            where=str(graph),
            hint="the graph uses what this runtime does not know: report the model's family",
        ) from None
    shutil.copyfile(graph, engine)
    # The graph refers to them by name.
    for weights in graph.parent.glob("*.onnx.data"):
        shutil.copyfile(weights, engine.with_name(weights.name))
    executed = f"{_PROVIDER}, on zeros" if gpu.name == CPU else "not executed on this target"
    return BuiltEngine(
        toolchain_version=ort.__version__,
        portable=True,
        executed=executed,
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


def _note(gpu: GpuTarget) -> str | None:
    if gpu.name == CPU:
        return None
    return (
        f"{gpu.name}: portable `onnxruntime` engine, not compiled for the GPU and not executed "
        "there; compilers for it are planned"
    )


ENGINE = Engine(
    name="onnxruntime",
    backend="onnxruntime",
    prefix="onnx",
    file="model.onnx",
    build=_build,
    note=_note,
)
