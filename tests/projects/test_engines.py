"""Engines as a build variant: real compiles for GPUs that are not here, and what they cost."""

from __future__ import annotations

import json
import shutil

import pytest
from project_testing import Project

from jarvis_rules.execution.sandbox import try_sandbox

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

GPU_STEPS = ["EngineBuild", "EngineCheck", "RepositoryAssemble"]
ALL = sorted([*GPU_STEPS, "JmirBuild", "NemoExport"])


def manifest(project: Project, gpu: str) -> dict:
    return json.loads((project.folder / f"out/{gpu}/models/tiny.repository.json").read_bytes())


def engine(project: Project, gpu: str) -> dict:
    return manifest(project, gpu)["engines"]["acoustic_model"]


def options(project: Project, **values: object) -> None:
    path = project.folder / "models" / "SConscript"
    assert ", tiny)" in path.read_text()
    path.write_text(path.read_text().replace(", tiny)", f", tiny, **{values!r})"))


def test_another_gpu_exports_nothing_again(project):
    result = project.build("deploy", "GPU=a100", "ENGINE=tensorrt_rtx")
    assert result.ran() == ALL
    assert "experimental: no engine of TensorRT-RTX has been executed" in result.stderr
    again = project.build("deploy", "GPU=a100,l4", "ENGINE=tensorrt_rtx")
    assert again.ran() == GPU_STEPS
    assert {a["target"] for a in again.actions} == {"tiny[l4]"}
    for gpu, capability in (("a100", "8.0"), ("l4", "8.9")):
        assert manifest(project, gpu)["target_lock"]["compute_capabilities"] == [capability]
        built = engine(project, gpu)
        assert built["toolchain"] == "tensorrt_rtx"
        assert built["check"]["not_compared"].startswith("not executed: ")
        assert list((project.folder / f"out/{gpu}/models").glob("*/1/model.engine"))


def test_one_engine_for_two_gpus_when_asked(project):
    project.build("deploy", "GPU=l4+a100", "ENGINE=tensorrt_rtx")
    lock = manifest(project, "a100+l4")["target_lock"]
    assert lock["compute_capabilities"] == ["8.0", "8.9"]
    project.scons("deploy", "GPU=a100+l4", "ENGINE=tensorrt_rtx").assert_up_to_date()


def test_turing_gets_half_precision(project):
    result = project.build("deploy", "GPU=t4", "ENGINE=tensorrt_rtx")
    assert "note: t4: precision fp16, the default of tensorrt_rtx there" in result.stderr
    assert result.ran() == sorted([*ALL, "PrecisionConvert"])
    built = engine(project, "t4")
    assert built["precision"] == "fp16"
    (comparison,) = built["check"]["comparisons"]
    assert (comparison["what"], comparison["with"]) == ("graph", "onnx.reference")


def test_targets_share_a_conversion(project):
    arguments = ("ENGINE=tensorrt_rtx", "PRECISION=fp16")
    project.build("deploy", "GPU=a100", *arguments)
    again = project.build("deploy", "GPU=a100,l4", *arguments)
    assert again.ran() == GPU_STEPS


def test_static_profiles_give_the_same_bytes_elsewhere(project, tmp_path):
    options(project, **{"nn.shape_profiles": "static"})
    elsewhere = tmp_path / "another user" / "checkout"
    shutil.copytree(project.folder, elsewhere)
    other = Project(elsewhere, tmp_path / "another cache", {"PYTHONHASHSEED": "7", "LC_ALL": "C"})
    arguments = ("deploy", "GPU=a100", "ENGINE=tensorrt_rtx")
    project.build(*arguments)
    assert other.build(*arguments).ran() == ALL
    assert other.files() == project.files()
    for profile in engine(project, "a100")["profiles"]:
        for shape in profile.values():
            assert shape["min"] == shape["opt"] == shape["max"]


def test_the_engine_follows_what_it_is_made_of_alone(project):
    arguments = ("deploy", "GPU=a100", "ENGINE=tensorrt_rtx")
    project.build(*arguments)
    options(project, **{"greedy_decoder.asr_model_delay": 1})
    assert project.build(*arguments).ran() == ["JmirBuild", "RepositoryAssemble"]


def test_a_larger_batch_is_another_engine(project):
    arguments = ("deploy", "GPU=a100", "ENGINE=tensorrt_rtx")
    project.build(*arguments)
    options(project, max_batch_size=16)
    assert project.build(*arguments).ran() == sorted([*GPU_STEPS, "JmirBuild"])
    (profile,) = engine(project, "a100")["profiles"]
    assert profile["audio_signal"]["max"][0] == 16


def test_a_pipeline_may_choose_for_itself(project):
    path = project.folder / "models" / "SConscript"
    path.write_text(path.read_text().replace(", tiny)", ', tiny, engine="onnxruntime")'))
    project.build("deploy", "GPU=a100", "ENGINE=tensorrt_rtx")
    assert engine(project, "a100")["toolchain"] == "onnxruntime"


def test_auto_is_what_a_stock_triton_serves(project):
    result = project.build("deploy", "GPU=a100")
    assert (
        "note: a100: onnxruntime, since no sm_80 GPU is here for `tensorrt`; `ENGINE=tensorrt_rtx` "
        "compiles for it without one" in result.stderr.splitlines()
    )
    assert engine(project, "a100")["backend"] == "onnxruntime"


@pytest.mark.parametrize("gpu", ["h100", "v100"])
def test_the_way_out_of_a_refusal_works(project, gpu):
    """The exact refusals are among the failing projects."""
    refused = project.scons("deploy", f"GPU={gpu}", "ENGINE=tensorrt_rtx")
    assert "ENGINE=onnxruntime, which runs on any" in refused.stderr
    project.build("deploy", f"GPU={gpu}", "ENGINE=onnxruntime")
    assert engine(project, gpu)["portable"]


@pytest.mark.parametrize("sandbox", ["bwrap", "landlock", "none"])
def test_the_compiler_runs_in_every_sandbox(project, sandbox):
    """It is a process of the tool's own, and Landlock shows a tool nothing of its children."""
    attempt = try_sandbox(sandbox)
    if attempt.sandbox is None:
        pytest.skip(attempt.reason)
    project.environment["JARVIS_SANDBOX"] = sandbox
    result = project.build("engines", "GPU=a100", "ENGINE=tensorrt_rtx")
    (built,) = (a for a in result.actions if a["mnemonic"] == "EngineBuild")
    assert built["peak_memory_mib"] > 100


def test_what_is_not_reproducible_is_left_out_of_the_comparison(project):
    arguments = ("engines", "GPU=a100", "ENGINE=tensorrt_rtx", "CHECK=determinism")
    result = project.build(*arguments)
    assert (
        "note: EngineBuild tiny[a100] not compared: an engine of ranges differs from build to "
        "build; one with `nn.shape_profiles=static` does not" in result.stderr.splitlines()
    )
    assert "compared 3 actions twice: equal bytes" in result.stderr
    options(project, **{"nn.shape_profiles": "static"})
    result = project.build(*arguments)
    assert "compared 4 actions twice: equal bytes" in result.stderr
    assert "not compared" not in result.stderr


def test_a_pipeline_that_asks_for_a_compiler_is_served_on_a_cpu_all_the_same(project):
    path = project.folder / "models" / "SConscript"
    path.write_text(path.read_text().replace(", tiny)", ', tiny, engine="tensorrt_rtx")'))
    result = project.build("deploy", "GPU=cpu,a100")
    assert "note: cpu: onnxruntime, since tensorrt_rtx is for GPUs" in result.stderr.splitlines()
    assert engine(project, "cpu")["toolchain"] == "onnxruntime"
    assert engine(project, "a100")["toolchain"] == "tensorrt_rtx"
