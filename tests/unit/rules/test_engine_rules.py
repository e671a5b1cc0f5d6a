"""What the actions behind a pipeline are made of: inputs, requests, and who may share them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from jarvis_rules.core import cpu
from jarvis_rules.core.action import FileInput, MemberInput, TreeInput
from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.errors import UsageError
from jarvis_rules.formats.jmir import EngineChoices
from jarvis_rules.rules import engine_rules
from jarvis_rules.rules.engine_plan import EngineRequest, plan_engines
from jarvis_rules.rules.providers import PipelineInfo

JMIR = Path("asr.jmir")


def info(**options):
    choices = EngineChoices(None, {"acoustic_model": options})
    return PipelineInfo("asr", "speech_recognition", JMIR, None, choices)


def build(gpu="cpu", precision=None, **options):
    pipeline = info(**options)
    plan = plan_engines(pipeline, find_gpu(gpu), EngineRequest("onnxruntime", precision))
    graphs = None
    if plan.converted():
        graphs = engine_rules.convert_graphs(pipeline, plan, Path("g.graphs.json"), Path("g"))
    engines = engine_rules.build_engines(pipeline, plan, graphs, Path("e.json"), Path("e"))
    check = engine_rules.check_engines(pipeline, plan, graphs, engines, Path("c.json"))
    repository = engine_rules.assemble_repository(
        pipeline, plan, engines, check, Path("models"), None
    )
    actions = (graphs and graphs.action, engines.action, check.action, repository.action)
    return [action and action.spec for action in actions]


def test_a_portable_engine_depends_on_the_graph_alone():
    _, engines, *_ = build()
    member = "acoustic_model/model_graph.onnx"
    assert engines.inputs == {member: MemberInput(JMIR, member)}
    assert engines.platform == {}
    assert engines.resources.gpus == 0


def test_a_converted_graph_takes_the_place_of_the_exported_one():
    graphs, engines, check, _ = build(precision="fp16")
    assert set(graphs.inputs) == {
        "acoustic_model/model_graph.onnx",
        "acoustic_model/precision_hints.json",
    }
    tree = TreeInput(Path("g.graphs.json"), Path("g"))
    assert engines.inputs == {"graphs": tree}
    assert engines.request["engines"]["acoustic_model"]["graph"] == (
        "inputs/graphs/acoustic_model/model_graph.onnx"
    )
    # The check compares it with the exported one.
    assert {"graphs", "acoustic_model/model_graph.onnx"} <= set(check.inputs)
    compared = check.request["graphs"]["acoustic_model"]
    assert compared["exported"] == "inputs/acoustic_model/model_graph.onnx"
    assert compared["compiled"] == "inputs/graphs/acoustic_model/model_graph.onnx"


def test_targets_share_a_conversion():
    one, other = (build(gpu, "fp16")[0] for gpu in ("a100", "l4"))
    assert one.static_key() == other.static_key()
    engines = [build(gpu, "fp16")[1].static_key() for gpu in ("a100", "l4")]
    assert len(set(engines)) == 2


def test_nothing_is_assembled_without_its_check():
    *_, repository = build()
    assert repository.inputs["check.json"] == FileInput(Path("c.json"))


def test_a_layout_for_this_cpu_has_the_cpu_in_its_key(monkeypatch, tmp_path):
    _, engines, *_ = build(graph_optimization="all")
    assert {"machine", "features"} == set(engines.request["cpu"])
    assert engines.request["cpu"]["features"] == sorted(engines.request["cpu"]["features"])
    _, shareable, *_ = build(graph_optimization="extended")
    assert "cpu" not in shareable.request
    other = tmp_path / "cpuinfo"
    other.write_text("processor\t: 0\nflags\t\t: sse2 avx\n")
    monkeypatch.setattr(cpu, "FACTS", other)
    _, elsewhere, *_ = build(graph_optimization="all")
    assert elsewhere.request["cpu"]["features"] == ["avx", "sse2"]
    assert elsewhere.static_key() != engines.static_key()


def test_a_layout_for_a_cpu_is_refused_for_a_gpu():
    with pytest.raises(UsageError, match="lays the graph out for this machine's CPU") as caught:
        build("a100", graph_optimization="all")
    assert caught.value.slug == "engine.cpu-optimization"


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx_bindings") is None,
    reason="TensorRT-RTX is not installed",
)
def test_turing_in_fp32_is_checked_as_what_its_products_are():
    pipeline = info(precision="fp32")
    for gpu, expected in (("t4", "fp16"), ("a100", "fp32")):
        plan = plan_engines(pipeline, find_gpu(gpu), EngineRequest("tensorrt_rtx"))
        graphs = engine_rules.convert_graphs(pipeline, plan, Path("g.json"), Path("g"))
        engines = engine_rules.build_engines(pipeline, plan, graphs, Path("e.json"), Path("e"))
        check = engine_rules.check_engines(pipeline, plan, graphs, engines, Path("c.json"))
        request = check.action.spec.request["graphs"]["acoustic_model"]
        assert request["rounded_as"] == expected
