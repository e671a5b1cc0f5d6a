"""Graphs too large for one ONNX file: weights in a file of their own, all the way to Triton."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from jarvis_rules.core.action import MemberInput
from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.errors import JarvisBug
from jarvis_rules.execution.delivery import Destination
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.key_source import Key
from jarvis_rules.onnx_graph import node_graph
from jarvis_rules.onnx_graph.graph import Graph
from jarvis_rules.rules.engine_plan import EngineRequest, plan_engines
from jarvis_rules.rules.engine_rules import assemble_repository, build_engines, check_engines
from jarvis_rules.rules.providers import PipelineInfo
from jarvis_rules.tools.jmir_build import build_jmir
from jarvis_rules.tools.nemo_export import export_nemo

WEIGHTS = "model_graph.onnx.data"


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(node_graph, "MAX_BYTES", 8000)


def large_graph():
    graph = Graph("large")
    x = graph.input("x", "float32", ("batch", 40))
    one = np.arange(1600, dtype=np.float32).reshape(40, 40)
    y = graph.apply("MatMul", x, graph.constant(one))
    y = graph.apply("Add", y, graph.constant(np.arange(40, dtype=np.float32)))
    graph.output(graph.apply("MatMul", y, graph.constant(one.T / 7)), "y")
    return graph


def run(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.linspace(-1, 1, 80, dtype=np.float32).reshape(2, 40)})[0]


@pytest.mark.usefixtures("small_limit")
def test_the_results_are_the_same(tmp_path, monkeypatch):
    graph = large_graph()
    assert graph.is_split()
    with (tmp_path / "split.onnx").open("wb") as file:
        size = graph.write(file, weights="w.data")
    with (tmp_path / "w.data").open("wb") as file:
        graph.write_weights(file)
    assert (tmp_path / "split.onnx").stat().st_size == size < 8000
    monkeypatch.setattr(node_graph, "MAX_BYTES", 1 << 20)
    with (tmp_path / "whole.onnx").open("wb") as file:
        assert not graph.is_split()
        graph.write(file)
    np.testing.assert_array_equal(run(tmp_path / "split.onnx"), run(tmp_path / "whole.onnx"))
    onnx.checker.check_model(str(tmp_path / "split.onnx"), full_check=True)
    split, whole = (onnx.load(str(tmp_path / f"{name}.onnx")) for name in ("split", "whole"))
    assert [t.raw_data for t in split.graph.initializer] == [
        t.raw_data for t in whole.graph.initializer
    ]


@pytest.mark.usefixtures("small_limit")
def test_places_are_pages_and_small_constants_stay(tmp_path):
    with (tmp_path / "g.onnx").open("wb") as file:
        large_graph().write(file, weights="w.data")
    model = onnx.load(str(tmp_path / "g.onnx"), load_external_data=False)
    external = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    assert list(external.values()) == [
        {"location": "w.data", "offset": "0", "length": "6400"},
        {"location": "w.data", "offset": "8192", "length": "6400"},
    ]
    assert len(model.graph.initializer) == 3


@pytest.mark.usefixtures("small_limit")
def test_a_graph_that_needs_a_second_file_is_not_written_into_one(tmp_path):
    with (tmp_path / "x").open("wb") as file, pytest.raises(JarvisBug, match="at most 8000"):
        large_graph().write(file)


@pytest.fixture
def pipeline(tmp_path, nemo, monkeypatch, request):
    """Return a function that makes a pipeline of a split model, by the tools themselves."""

    def make(keys):
        for tool, asked in (
            (export_nemo, {"model": str(nemo), "format": "ONNX"}),
            (
                build_jmir,
                {
                    "pipeline": "speech_recognition",
                    "name": "asr",
                    "options": {"offline": True},
                    "models": {"acoustic_model": str(tmp_path / "outputs/model.ejrvs")},
                },
            ),
        ):
            tool({**asked, "keys": keys})
        return tmp_path / "outputs/pipeline.jmir"

    request.getfixturevalue("small_limit")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    return make


@pytest.mark.parametrize("key", [None, Key(b"secret")], ids=["plain", "encrypted"])
def test_both_files_reach_the_repository(pipeline, executor, tmp_path, key):
    names = ("archive", "models/acoustic_model", "pipeline")
    jmir = pipeline({} if key is None else dict.fromkeys(names, key))
    member = f"acoustic_model/{WEIGHTS}"
    with open_archive(jmir, key=key) as archive:
        assert archive.manifest.files[member]["role"] == "weights"
        weights = archive.read(member)
    out = tmp_path / "out"
    info = PipelineInfo("asr", "speech_recognition", jmir, key)
    plan = plan_engines(info, find_gpu("cpu"), EngineRequest())
    engines = build_engines(info, plan, None, out / "asr.engines.json", out / "engines")
    executed = executor.run(engines.action.spec, engines.action.destination)
    assert f"inputs/{member}" in executed.action.inputs
    document = json.loads(engines.manifest.read_bytes())
    assert sorted(document["files"]) == [
        "acoustic_model/model.onnx", f"acoustic_model/{WEIGHTS}"
    ]  # fmt: skip
    assert document["engines"]["acoustic_model"]["graph_data"]
    check = check_engines(info, plan, None, engines, out / "asr.check.json")
    executor.run(check.action.spec, check.action.destination)
    repository = assemble_repository(info, plan, engines, check, out / "models", None)
    executor.run(repository.action.spec, repository.action.destination)
    found = list((out / "models").glob(f"*/1/{WEIGHTS}"))
    assert [path.read_bytes() for path in found] == [weights]
    import onnxruntime

    session = onnxruntime.InferenceSession(str(found[0].with_name("model.onnx")))
    assert [value.name for value in session.get_inputs()] == ["audio_signal", "length"]


def test_other_weights_are_another_action(pipeline, executor, tmp_path):
    jmir = pipeline({})
    info = PipelineInfo("asr", "speech_recognition", jmir)
    plan = plan_engines(info, find_gpu("cpu"), EngineRequest())
    spec = build_engines(info, plan, None, Path("m"), Path("e")).action.spec
    source = spec.inputs["acoustic_model/model_graph.onnx"]
    assert source == MemberInput(jmir, "acoustic_model/model_graph.onnx")
    executed = executor.run(spec, Destination(tmp_path / "m", tmp_path / "e"))
    assert len([name for name in executed.action.inputs if name.endswith(".data")]) == 1
