"""Graphs and targets for the tests of the TensorRT toolchains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.engines.engine import EngineSpec
from jarvis_rules.formats.engine_inputs import EngineInput, Extent

PRECISIONS = ("fp32", "fp16", "bf16")
A100 = GpuTarget("a100", "", ("8.0",), 40, PRECISIONS)
L4 = GpuTarget("l4", "", ("8.9",), 24, PRECISIONS)
BOTH = GpuTarget("a100+l4", "", ("8.0", "8.9"), 24, PRECISIONS)
T4 = GpuTarget("t4", "", ("7.5",), 16, PRECISIONS[:2])
H100 = GpuTarget("h100", "", ("9.0",), 80, PRECISIONS)
V100 = GpuTarget("v100", "", ("7.0",), 16, PRECISIONS[:2])
GB10 = GpuTarget("gb10", "", ("12.1",), 128, PRECISIONS, "sbsa")
CPU = GpuTarget("cpu", "no GPU")

BATCH = Extent(1, 2, 4)
FLOATS = (EngineInput("x", "FP32", (BATCH, Extent(4, 4, 4))),)


def children():
    """Return the processes that this one has started and not waited for."""
    files = Path("/proc/self/task").glob("*/children")
    return {pid for file in files for pid in file.read_text().split()}


def value(name, dims, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, dims)


def constant(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def make_model(nodes, inputs=None, outputs=None, initializers=(), opset=17, ir_version=8):
    """Return a model; unless told, from `x` [batch, 4] to `y` of the same shape."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [value("x", ["batch", 4])] if inputs is None else inputs,
        [value("y", ["batch", 4])] if outputs is None else outputs,
        list(initializers),
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


def linear_model(dtype=np.float32):
    """Return a matrix product and a `Relu`, with weights that no two runs draw differently."""
    weights = np.sin(np.arange(16)).reshape(4, 4)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return make_model(
        [
            helper.make_node("MatMul", ["x", "weights"], ["product"], name="project"),
            helper.make_node("Relu", ["product"], ["y"], name="rectify"),
        ],
        [value("x", ["batch", 4], element)],
        [value("y", ["batch", 4], element)],
        [constant("weights", weights, dtype)],
    )


def write_spec(folder, model, gpu=A100, inputs=FLOATS, **given):
    """Write a model, or bytes, into `folder` and return what is to be built of it."""
    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / "graph.onnx"
    graph.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return EngineSpec(graph, gpu, inputs=inputs, **given)


# Least, typical and most size of each symbolic axis of the recorded models' graphs.
SIZES = {
    "batch": Extent(1, 2, 4),
    "time": Extent(32, 128, 512),
    "tokens": Extent(4, 32, 128),
    "frames": Extent(4, 64, 256),
}


def engine_inputs(graph, sizes=SIZES):
    """Return the sizes of a graph's inputs, by the names of its axes."""
    initial = {tensor.name for tensor in graph.initializer}
    return tuple(
        EngineInput(
            one.name,
            {1: "FP32", 10: "FP16", 7: "INT64", 6: "INT32", 9: "BOOL"}[
                one.type.tensor_type.elem_type
            ],
            tuple(
                sizes[size.dim_param]
                if size.dim_param
                else Extent(size.dim_value, size.dim_value, size.dim_value)
                for size in one.type.tensor_type.shape.dim
            ),
        )
        for one in graph.input
        if one.name not in initial
    )
