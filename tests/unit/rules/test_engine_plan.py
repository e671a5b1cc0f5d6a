"""Which toolchain, precision and options a pipeline's engines get, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from jarvis_rules.core.gpus import PresentGpu, find_gpu
from jarvis_rules.errors import JarvisError, ToolchainError, UsageError
from jarvis_rules.formats.jmir import EngineChoices
from jarvis_rules.rules import engine_plan
from jarvis_rules.rules.engine_plan import EngineRequest, plan_engines
from jarvis_rules.rules.providers import PipelineInfo


def pipeline(toolchain=None, **options):
    choices = EngineChoices(toolchain, {"acoustic_model": options})
    return PipelineInfo("asr", "speech_recognition", Path("asr.jmir"), None, choices)


def plan(gpu="cpu", toolchain="auto", precision=None, info=None, **more):
    request = EngineRequest(toolchain, precision, **more)
    return plan_engines(info or pipeline(), find_gpu(gpu), request)


@pytest.fixture(autouse=True)
def present(monkeypatch):
    """No GPU here, unless a test puts one in."""
    found = []
    monkeypatch.setattr(engine_plan, "present_gpus", lambda: tuple(found))

    def put(name):
        target = find_gpu(name)
        capability = target.compute_capabilities[0]
        found.append(PresentGpu(f"NVIDIA {name}", capability, "580.95", 40_000, target))

    return put


def test_a_cpu_gets_the_portable_engine_and_nothing_is_said():
    chosen = plan()
    assert chosen.engine.name == "onnxruntime"
    assert (chosen.precisions, chosen.notes) == ({"acoustic_model": "fp32"}, ())
    assert chosen.is_executable
    assert chosen.converted() == {}


def test_what_a_pipeline_asks_for_by_itself_names_it():
    with pytest.raises(UsageError) as caught:
        plan("h100", info=pipeline("tensorrt_rtx"))
    assert caught.value.where == "pipeline `asr`"
    with pytest.raises(UsageError) as caught:
        plan("h100", "tensorrt_rtx")
    assert caught.value.where is None


def test_a_compiler_that_a_pipeline_asks_for_is_for_its_gpus():
    chosen = plan("cpu", info=pipeline("tensorrt_rtx"))
    assert chosen.engine.name == "onnxruntime"
    assert chosen.notes == ("cpu: onnxruntime, since tensorrt_rtx is for GPUs",)
    with pytest.raises(UsageError, match="compiles for NVIDIA GPUs only"):
        plan("cpu", "tensorrt_rtx")


def test_engines_of_ranges_differ_from_build_to_build():
    assert "shape_profiles=static" in plan("a100", "tensorrt_rtx").not_reproducible
    static = pipeline(None, shape_profiles="static")
    assert plan("a100", "tensorrt_rtx", info=static).not_reproducible is None
    assert plan().not_reproducible is None


def test_auto_says_what_it_took_and_what_else_there_is():
    chosen = plan("a100")
    assert chosen.engine.name == "onnxruntime"
    assert chosen.notes == (
        "a100: onnxruntime, since no sm_80 GPU is here for `tensorrt`; `ENGINE=tensorrt_rtx` "
        "compiles for it without one",
    )


def test_auto_names_no_compiler_that_cannot():
    assert plan("h100").notes == ("h100: onnxruntime, since no sm_90 GPU is here for `tensorrt`",)


def test_auto_with_the_gpu_but_without_the_library(present):
    present("a100")
    chosen = plan("a100")
    assert chosen.engine.name == "onnxruntime"
    assert chosen.notes[0].startswith("a100: onnxruntime, since `tensorrt` cannot build here: ")


def test_another_gpu_is_not_the_target(present):
    present("h100")
    assert plan("a100").notes[0].startswith("a100: onnxruntime, since no sm_80 GPU is here")
    with pytest.raises(JarvisError) as caught:
        plan("a100", "tensorrt")
    assert "sm_80" in caught.value.message
    assert "sm_90" in caught.value.message


@pytest.mark.parametrize("gpu", ["h100", "v100", "b200", "cpu"])
def test_pairs_that_cannot_be_are_refused_with_the_way_out(gpu):
    with pytest.raises(UsageError) as caught:
        plan(gpu, "tensorrt_rtx")
    assert gpu in caught.value.message
    assert "ENGINE=onnxruntime" in caught.value.hint


def test_tensorrt_needs_its_gpu():
    with pytest.raises(ToolchainError, match="a100"):
        plan("a100", "tensorrt")


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UsageError, match="unknown engine toolchain `tensorrtrtx`") as caught:
        EngineRequest("tensorrtrtx")
    assert "did you mean `tensorrt_rtx`" in caught.value.hint
    with pytest.raises(UsageError, match="unknown precision `fp61`") as caught:
        EngineRequest(precision="fp61")
    assert "did you mean `fp16`?" in caught.value.hint


def test_the_pipeline_comes_before_the_command_line():
    info = pipeline("onnxruntime", precision="fp32")
    chosen = plan("a100", "tensorrt_rtx", "fp16", info)
    assert chosen.engine.name == "onnxruntime"
    assert chosen.precisions == {"acoustic_model": "fp32"}
    assert plan("a100", "tensorrt_rtx", "fp16").precisions == {"acoustic_model": "fp16"}


def test_a_target_without_fp32_gets_fp16_with_a_note():
    chosen = plan("t4", "tensorrt_rtx")
    assert chosen.precisions == {"acoustic_model": "fp16"}
    assert any("t4: precision fp16" in note for note in chosen.notes)
    assert chosen.linear_as_convolution
    assert chosen.variant() == "fp16.conv"


def test_converted_graphs_are_named_after_all_that_makes_them():
    assert plan("a100", "tensorrt_rtx", "fp16").variant() == "fp16"
    assert plan("t4", "tensorrt_rtx", "fp32").variant() == "fp32.conv"
    assert plan("a100", "onnxruntime", "fp16").converted() == {"acoustic_model": "fp16"}


def test_a_precision_that_the_gpu_lacks_is_refused():
    with pytest.raises(UsageError, match=r"t4 \(sm_75\) does not compute in bf16") as caught:
        plan("t4", "tensorrt_rtx", "bf16")
    assert caught.value.slug == "precision.unsupported"


def test_only_options_of_the_toolchain_reach_its_key():
    options = {"shape_profiles": "static", "graph_optimization": "basic", "workspace_mib": 64}
    info = pipeline(None, **options)
    assert plan("a100", "tensorrt_rtx", info=info).options == {
        "acoustic_model": {"shape_profiles": "static"}
    }
    assert plan("cpu", info=info).options == {"acoustic_model": {"graph_optimization": "basic"}}
    assert plan("cpu", info=pipeline(None, workspace_mib=64)).options == {}


def test_a_timing_cache_for_what_has_none_is_refused():
    with pytest.raises(UsageError, match="onnxruntime has no timing cache") as caught:
        plan(timing_cache=Path("a.cache"))
    assert caught.value.slug == "engine.no-timing-cache"
    assert caught.value.where == "a.cache"


def test_several_gpus_are_one_target():
    chosen = plan("l4+a100", "tensorrt_rtx")
    assert chosen.gpu.name == "a100+l4"
    assert chosen.gpu.compute_capabilities == ("8.0", "8.9")
    with pytest.raises(UsageError):
        plan("t4+a100", "tensorrt_rtx", "fp16")
