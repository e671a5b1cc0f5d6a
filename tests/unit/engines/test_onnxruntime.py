"""The portable engine: the graph as it is, once it has been loaded and run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.engines.engine import Engine, EngineSpec, find_engine
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.onnx_graph.comparison import compare, run_graph

ENGINE = find_engine("onnxruntime")
CPU = find_gpu("cpu")


@pytest.fixture
def graph(tmp_path, ejrvs):
    path = tmp_path / "graph.onnx"
    with open_archive(ejrvs) as archive:
        archive.extract("model_graph.onnx", path)
    return path


def save(path, node="Identity", kind=TensorProto.FLOAT, shape=("batch", 3), **attributes):
    value = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    nodes = [helper.make_node(node, ["x"], ["y"], **attributes)]
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.save(model, path)
    return path


def test_the_graph_is_served_as_it_is(graph, tmp_path):
    built = ENGINE.build(EngineSpec(graph, CPU), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == graph.read_bytes()
    assert built.portable
    assert built.executed == "CPUExecutionProvider, on zeros"
    assert built.inputs == (
        {"name": "audio_signal", "dtype": "FP32", "dims": [-1, 64, -1]},
        {"name": "length", "dtype": "INT64", "dims": [-1]},
    )
    assert [t["name"] for t in built.outputs] == ["logprobs", "encoded_length"]


def test_another_target_is_not_said_to_be_executed(graph, tmp_path):
    built = ENGINE.build(EngineSpec(graph, find_gpu("a100")), tmp_path / "model.onnx")
    assert built.executed == "not executed on this target"


@pytest.mark.parametrize("level", ["basic", "extended", "all"])
def test_optimised_beforehand_it_computes_the_same(graph, tmp_path, level):
    """The level `all` lays the graph out for a CPU, so that it is portable no more."""
    first, second = tmp_path / "model.onnx", tmp_path / "again.onnx"
    spec = EngineSpec(graph, CPU, options={"graph_optimization": level})
    built = ENGINE.build(spec, first)
    assert ENGINE.build(spec, second).portable is (level != "all") is built.portable
    assert first.read_bytes() == second.read_bytes() != graph.read_bytes()
    domains = {node.domain for node in onnx.load(first).graph.node}
    assert level != "basic" or domains <= {"", "ai.onnx"}
    rng = np.random.default_rng(0)
    inputs = {
        "audio_signal": rng.standard_normal((2, 64, 48)).astype("float32"),
        "length": np.array([48, 20]),
    }
    plain, optimised = (run_graph(path, inputs, "onnxruntime") for path in (graph, first))
    assert all(found.is_within for found in compare(plain, optimised, "fp32"))


def test_a_half_precision_graph_is_not_optimised_here(graph, tmp_path):
    """On a CPU ONNX Runtime turns half precision into float32, and would write that down."""
    spec = EngineSpec(graph, CPU, "fp16", options={"graph_optimization": "basic"})
    with pytest.raises(UsageError, match="float32 arithmetic") as caught:
        ENGINE.build(spec, tmp_path / "model.onnx")
    assert caught.value.slug == "engine.cpu-optimization"
    assert not (tmp_path / "model.onnx").exists()


def test_bf16_is_refused_with_the_way_out():
    with pytest.raises(UsageError, match="bf16 cannot run everywhere") as caught:
        ENGINE.check_target(find_gpu("a100"), "bf16")
    assert caught.value.slug == "precision.unsupported"
    assert caught.value.hint.startswith("take fp16 or fp32")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        (TensorProto.FLOAT, "FP32"),
        (TensorProto.FLOAT16, "FP16"),
        (TensorProto.INT64, "INT64"),
        (TensorProto.INT32, "INT32"),
        (TensorProto.BOOL, "BOOL"),
    ],
)
def test_tensor_types(tmp_path, kind, dtype):
    built = ENGINE.build(
        EngineSpec(save(tmp_path / "g.onnx", kind=kind), CPU), tmp_path / "model.onnx"
    )
    assert built.inputs == ({"name": "x", "dtype": dtype, "dims": [-1, 3]},)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.STRING, TensorProto.UINT8])
def test_a_type_that_no_pipeline_knows_is_refused(tmp_path, kind):
    path = save(tmp_path / "g.onnx", kind=kind)
    with pytest.raises(JarvisError, match=r"the tensor `x` is a tensor\(") as caught:
        ENGINE.build(EngineSpec(path, CPU), tmp_path / "model.onnx")
    assert (caught.value.slug, caught.value.where) == ("engine.dtype", str(path))
    assert not (tmp_path / "model.onnx").exists()


def garbage(path):
    path.write_bytes(b"no graph")


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def unknown_node(path):
    save(path, node="NoSuchOp")


def fails_when_run(path):
    save(path, node="Reshape")


@pytest.mark.parametrize("damage", [garbage, cut, unknown_node, fails_when_run])
def test_what_it_cannot_run_is_refused(graph, tmp_path, damage):
    damage(graph)
    with pytest.raises(JarvisError, match="refuses the graph") as caught:
        ENGINE.build(EngineSpec(graph, CPU), tmp_path / "model.onnx")
    assert (caught.value.slug, caught.value.where) == ("engine.onnxruntime", str(graph))
    assert not (tmp_path / "model.onnx").exists()


def test_a_read_only_graph_gives_a_file_of_its_own(graph, tmp_path):
    """The executor stages a hard link to the content store."""
    graph.chmod(0o444)
    ENGINE.build(EngineSpec(graph, CPU), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_ino != graph.stat().st_ino
    assert np.frombuffer(graph.read_bytes(), "u1").size == (tmp_path / "model.onnx").stat().st_size


def test_an_unknown_toolchain_is_answered_with_the_nearest():
    assert isinstance(ENGINE, Engine)
    with pytest.raises(UsageError, match="unknown engine toolchain `onnx_runtime`") as caught:
        find_engine("onnx_runtime")
    assert "`onnxruntime`" in caught.value.hint
