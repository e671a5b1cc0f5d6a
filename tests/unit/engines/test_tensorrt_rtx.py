"""TensorRT-RTX, for real: engines for GPUs that are not here. None of them is executed."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from exporters.exporter_testing import dump, source
from onnx import helper

from jarvis_rules.engines import _tensorrt_builder as builder
from jarvis_rules.engines.engine import find_engine
from jarvis_rules.errors import JarvisError, ToolchainError, UsageError
from jarvis_rules.exporters.exporter import export_model
from jarvis_rules.formats.engine_inputs import EngineInput, Extent
from jarvis_rules.onnx_graph.precision import convert_precision

from .tensorrt_testing import (
    A100,
    BATCH,
    BOTH,
    CPU,
    FLOATS,
    GB10,
    H100,
    L4,
    T4,
    V100,
    children,
    constant,
    engine_inputs,
    linear_model,
    make_model,
    value,
    write_spec,
)

ENGINE = find_engine("tensorrt_rtx")
REAL = {
    "quartznet": "model_graph.onnx",
    "hifigan": "model_graph.onnx",
    "text_classification": "model_graph.onnx",
}

# ---- without the compiler


@pytest.mark.parametrize(
    ("gpu", "words", "hint"),
    [
        (CPU, "the target is `cpu`: `tensorrt_rtx` compiles for NVIDIA GPUs only", "onnxruntime"),
        (H100, "h100 is sm_90: TensorRT-RTX cannot target it", "ENGINE=tensorrt on a machine"),
        (V100, "v100 is sm_70: TensorRT-RTX cannot target it", "ENGINE=onnxruntime, which runs"),
        (
            dataclasses.replace(H100, name="a100+h100", compute_capabilities=("8.0", "9.0")),
            "a100+h100 is sm_80 and sm_90: TensorRT-RTX cannot target sm_90",
            "ENGINE=onnxruntime",
        ),
        (
            dataclasses.replace(T4, name="t4+a100", compute_capabilities=("7.5", "8.0")),
            "t4+a100 is sm_75 and sm_80: an engine of TensorRT-RTX for sm_75 serves no other",
            "GPU=t4,a100",
        ),
    ],
)
def test_impossible_targets(gpu, words, hint):
    with pytest.raises(UsageError, match=f"^{re.escape(words)}") as caught:
        ENGINE.check_target(gpu, "fp32")
    assert caught.value.slug == "engine.target"
    assert hint in caught.value.hint


def test_v100_is_not_sent_to_a_toolchain_that_refuses_it():
    with pytest.raises(UsageError) as caught:
        ENGINE.check_target(V100, "fp32")
    assert "ENGINE=tensorrt" not in caught.value.hint


@pytest.mark.parametrize("gpu", [A100, L4, BOTH, T4, GB10])
def test_targets(gpu):
    ENGINE.check_target(gpu, "fp16")
    assert ENGINE.default_precision(gpu) == ("fp16" if gpu is T4 else "fp32")
    assert "experimental: no engine of TensorRT-RTX has been executed" in ENGINE.note(gpu)
    assert ("sbsa" in ENGINE.note(gpu)) == (gpu is GB10)


@pytest.mark.parametrize(
    ("system", "machine", "words"),
    [
        ("linux", "x86_64", "TensorRT-RTX is not installed"),
        ("linux", "aarch64", "locked for Linux on x86_64, and this is linux on aarch64"),
        ("darwin", "arm64", "locked for Linux on x86_64, and this is darwin on arm64"),
    ],
)
def test_a_machine_without_the_compiler(monkeypatch, system, machine, words):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.machine", lambda: machine)
    with pytest.raises(ToolchainError, match=words) as caught:
        ENGINE.check_machine(A100, {})
    assert caught.value.slug == "toolchain.missing-package"
    assert caught.value.hint


def test_the_lock_that_the_hint_names_has_the_compiler():
    lock = Path(__file__).parents[3] / "requirements" / "tensorrt-rtx.txt"
    for name in ("bindings", "libs"):
        assert f"\ntensorrt-rtx-cu13-{name}==" in lock.read_text(encoding="utf-8")


# ---- with it

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT-RTX is not installed",
)


def build(folder, model, **given):
    engine = folder / "engine" / ENGINE.file
    spec = write_spec(folder, model, **given)
    engine.parent.mkdir(exist_ok=True)
    return ENGINE.build(spec, engine), engine.read_bytes()


def refusal(folder, model, **given):
    with pytest.raises(JarvisError) as caught:
        build(folder, model, **given)
    assert list((folder / "engine").iterdir()) == []
    assert caught.value.hint
    return caught.value


@pytest.fixture(scope="module", params=REAL)
def real(request):
    """A graph that a recorded model exports to."""
    exported = export_model(source(request.param))
    name = next(iter(exported.graphs))
    return dump(exported)[name]


@needs_rtx
def test_a_recorded_model_of_any_size(real, tmp_path):
    graph = onnx.load_from_string(real).graph
    inputs = engine_inputs(graph)
    ENGINE.check_machine(A100, {})
    built, engine = build(tmp_path, real, inputs=inputs)
    assert engine[:4] == b"vtrt"
    assert built.toolchain_version.startswith("1.7.")
    assert not built.portable
    assert built.executed.startswith("not executed: ")
    assert built.driver_minimum == "580"
    assert [one["name"] for one in built.inputs] == [one.name for one in inputs]
    assert [one["name"] for one in built.outputs] == [one.name for one in graph.output]
    for tensor, wanted in zip(built.inputs, inputs, strict=True):
        sizes = [extent.least if extent.is_fixed else -1 for extent in wanted.dims]
        assert (tensor["dtype"], tensor["dims"]) == (wanted.dtype, sizes)
    (profile,) = built.profiles
    assert profile == {
        one.name: {
            bound: tuple(getattr(extent, size) for extent in one.dims)
            for bound, size in (("min", "least"), ("opt", "typical"), ("max", "most"))
        }
        for one in inputs
        if one.is_dynamic
    }


@needs_rtx
def test_buckets_come_out_the_same(real, tmp_path):
    """In two folders, under two names of the graph's folder, in two processes."""
    inputs = engine_inputs(onnx.load_from_string(real).graph)
    given = {"inputs": inputs, "options": {"shape_profiles": "static"}}
    first, engine = build(tmp_path / "one", real, **given)
    second, again = build(tmp_path / "another" / "place", real, **given)
    assert engine == again
    assert first == second
    assert len(first.profiles) == 2
    for profile, size in zip(first.profiles, ("typical", "most"), strict=True):
        for one in filter(lambda one: one.is_dynamic, inputs):
            shape = tuple(getattr(extent, size) for extent in one.dims)
            assert profile[one.name] == {"min": shape, "opt": shape, "max": shape}


@needs_rtx
def test_one_engine_for_several_gpus(tmp_path):
    static = {"options": {"shape_profiles": "static"}}
    engines = {
        gpu.name: build(tmp_path / gpu.name, linear_model(), gpu=gpu, **static)[1]
        for gpu in (A100, L4, BOTH)
    }
    assert len(set(engines.values())) == 3


@needs_rtx
def test_turing_multiplies_in_half_precision_only(tmp_path):
    error = refusal(tmp_path / "fp32", linear_model(), gpu=T4)
    assert error.slug == "precision.unsupported"
    assert "in fp32" in error.message
    assert "FP32 GEMM is not supported" in error.message
    assert "cudaError" not in error.message
    assert error.hint.startswith("PRECISION=fp16")
    inputs = (dataclasses.replace(FLOATS[0], dtype="FP16"),)
    built, _ = build(
        tmp_path / "fp16", linear_model(np.float16), gpu=T4, precision="fp16", inputs=inputs
    )
    assert built.inputs[0]["dtype"] == "FP16"


@needs_rtx
@pytest.mark.parametrize(("precision", "as_convolution"), [("fp16", False), ("fp32", True)])
def test_turing_takes_what_the_precision_step_makes(tmp_path, precision, as_convolution):
    source_graph, graph = tmp_path / "exported.onnx", tmp_path / "converted.onnx"
    source_graph.write_bytes(linear_model().SerializeToString())
    convert_precision(source_graph, graph, precision, (), linear_as_convolution=as_convolution)
    built, _ = build(tmp_path / "it", graph.read_bytes(), gpu=T4, precision=precision)
    assert built.inputs[0]["dtype"] == "FP32"


@needs_rtx
def test_weights_beside_the_graph(tmp_path):
    whole = {"options": {"shape_profiles": "static"}}
    _, inside = build(tmp_path / "inside", linear_model(), **whole)
    folder = tmp_path / "beside"
    folder.mkdir()
    onnx.save(
        linear_model(), folder / "graph.onnx", save_as_external_data=True,
        location="graph.onnx.data", size_threshold=0,
    )  # fmt: skip
    _, beside = build(folder, (folder / "graph.onnx").read_bytes(), **whole)
    assert inside == beside


@needs_rtx
def test_phases_and_peak_memory(tmp_path, capfd):
    phases = []
    build(tmp_path, linear_model(), report=phases.append)
    assert phases[:4] == [
        "Checking the graph",
        "Loading TensorRT-RTX",
        "Parsing the graph",
        "Building engine",
    ]
    assert "Determining refit engines" in phases
    assert phases[-1] == "Writing the engine"
    assert all(one != other for one, other in itertools.pairwise(phases))
    out = capfd.readouterr().out
    assert "TensorRT-RTX 1.7." in out
    assert int(re.search(r"^peak memory: (\d+) MiB$", out, re.MULTILINE)[1]) > 50


@needs_rtx
def test_a_crash_is_one_message(tmp_path, monkeypatch):
    """A segmentation fault in the middle of a real build."""
    crashing = (
        "import signal\n"
        "from jarvis_rules.engines import _tensorrt_child, _tensorrt_compiler as compiler\n"
        "make = compiler._make_monitor\n"
        "def crash(phase):\n"
        "    if phase == 'Determining refit engines': signal.raise_signal(signal.SIGSEGV)\n"
        "compiler._make_monitor = lambda trt, report: make(trt, lambda p: (report(p), crash(p)))\n"
        "raise SystemExit(_tensorrt_child.main())"
    )
    monkeypatch.setattr(builder, "CHILD", (sys.executable, "-c", crashing))
    error = refusal(tmp_path, linear_model())
    assert (error.slug, error.where) == ("engine.compiler-crashed", str(tmp_path / "graph.onnx"))
    assert error.message == (
        "TensorRT-RTX crashed in the phase `Determining refit engines`: SIGSEGV ended it"
    )


@needs_rtx
def test_the_compiler_dies_with_the_tool(tmp_path):
    """Stopped in the middle, then orphaned: the kernel ends it."""
    reader, writer = os.pipe()
    code = (
        "import os, signal, subprocess, sys\n"
        "from jarvis_rules.engines import _tensorrt_builder as b\n"
        f"child = subprocess.Popen([*b.CHILD, '{writer}', str(os.getpid())],"
        f" stdin=subprocess.PIPE, pass_fds=({writer},))\n"
        "print(child.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=(writer,),
        cwd=tmp_path,
    ) as tool:
        os.close(writer)
        assert int(tool.stdout.readline()) > 0
        tool.send_signal(signal.SIGKILL)
    # Its end of the pipe is closed when the last process that holds it is gone.
    with os.fdopen(reader, "rb") as pipe:
        assert pipe.read() == b""


@needs_rtx
def test_an_interruption_ends_the_compiler(tmp_path):
    class InterruptedError(Exception):
        pass

    def interrupt(phase):
        if phase == "Building engine":
            raise InterruptedError

    others = children()
    with pytest.raises(InterruptedError):
        build(tmp_path, linear_model(), report=interrupt)
    assert children() == others


# ---- sizes


@needs_rtx
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ((), "sizes are given for the inputs none, and the graph has `x`"),
        (
            (*FLOATS, EngineInput("y", "FP32", (BATCH,))),
            "sizes are given for the inputs `x`, `y`, and the graph has `x`",
        ),
        (
            (EngineInput("x", "INT64", FLOATS[0].dims),),
            "the input `x` is given as INT64 of 2 dimensions, and the graph has FP32 of 2",
        ),
        (
            (EngineInput("x", "FP32", (BATCH,)),),
            "the input `x` is given as FP32 of 1 dimensions, and the graph has FP32 of 2",
        ),
        (
            (EngineInput("x", "FP32", (BATCH, Extent(1, 4, 4))),),
            "dimension 1 of the input `x` is given as (1, 4, 4), and the graph has 4",
        ),
        (
            (EngineInput("x", "FP32", (Extent(4, 2, 8), FLOATS[0].dims[1])),),
            "takes least, typical and most sizes of (4, 2, 8), which are not in order",
        ),
        (
            (EngineInput("x", "FP32", (Extent(0, 2, 8), FLOATS[0].dims[1])),),
            "takes least, typical and most sizes of (0, 2, 8), which are not in order",
        ),
    ],
)
def test_sizes_that_are_not_the_graphs(tmp_path, inputs, words):
    error = refusal(tmp_path, linear_model(), inputs=inputs)
    assert error.slug == "engine.inputs"
    assert words in error.message


@needs_rtx
def test_one_symbol_has_one_extent(tmp_path):
    model = make_model(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [value("x", ["batch", 4]), value("z", ["batch", 4])],
    )
    other = EngineInput("z", "FP32", (Extent(1, 2, 8), FLOATS[0].dims[1]))
    error = refusal(tmp_path, model, inputs=(*FLOATS, other))
    assert error.slug == "engine.inputs"
    assert "of the input `z` is `batch` and is given as (1, 2, 8), and that of `x`" in error.message


@needs_rtx
def test_an_unknown_mode(tmp_path):
    error = refusal(tmp_path, linear_model(), options={"shape_profiles": "elastic"})
    assert (type(error), error.slug) == (UsageError, "option.invalid")


@needs_rtx
def test_a_graph_of_one_size_needs_no_profile(tmp_path):
    model = make_model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [value("x", [2, 4])],
        [value("y", [2, 4])],
        [constant("w", np.ones(4))],
    )
    inputs = (EngineInput("x", "FP32", (Extent(2, 2, 2), FLOATS[0].dims[1])),)
    built, _ = build(tmp_path, model, inputs=inputs)
    assert built.profiles == ()


@needs_rtx
def test_one_bucket_where_typical_is_most(tmp_path):
    inputs = (EngineInput("x", "FP32", (Extent(1, 4, 4), FLOATS[0].dims[1])),)
    given = {"inputs": inputs, "options": {"shape_profiles": "static"}}
    built, _ = build(tmp_path, linear_model(), **given)
    assert [profile["x"]["max"] for profile in built.profiles] == [(4, 4)]


@needs_rtx
def test_the_capabilities_are_those_of_the_compiler():
    """The table, against the enumeration of the version that is locked."""
    code = (
        "import json, tensorrt_rtx_bindings as trt;"
        "print(json.dumps(sorted(trt.ComputeCapability.__members__)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    from jarvis_rules.engines.tensorrt_rtx import _CAPABILITIES

    known = {f"SM{capability.replace('.', '')}" for capability in _CAPABILITIES}
    assert {*json.loads(output)} == known | {"NONE", "CURRENT"}
