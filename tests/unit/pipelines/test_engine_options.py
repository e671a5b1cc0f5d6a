"""What the options of a pipeline ask of its engines."""

from __future__ import annotations

import pytest

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.jmir import EngineChoices
from jarvis_rules.pipelines._engine_options import choose_engines
from jarvis_rules.pipelines.pipeline import find_pipeline, pipeline_names

KIND = find_pipeline("speech_recognition")


def choose(**given):
    options = {name.replace("__", "."): value for name, value in given.items()}
    return choose_engines(KIND, KIND.parse_options(options))


@pytest.mark.parametrize(
    ("given", "toolchain", "options"),
    [
        ({}, None, {}),
        ({"nn__max_batch_size": 4}, None, {}),
        ({"precision": "fp16"}, None, {"precision": "fp16"}),
        ({"precision": "fp16", "nn__precision": "bf16"}, None, {"precision": "bf16"}),
        ({"precision": "fp16", "nn__use_trt_fp32": True}, None, {"precision": "fp32"}),
        ({"nn__use_trt_fp32": False}, None, {}),
        ({"nn__fp16_needs_obey_precision_pass": True}, None, {"precision": "fp16"}),
        ({"nn__use_onnx_runtime": True}, "onnxruntime", {}),
        ({"nn__use_onnx_runtime": False}, None, {}),
        ({"nn__trt_max_workspace_size": 4096}, None, {"workspace_mib": 4096}),
        ({"nn__shape_profiles": "static"}, None, {"shape_profiles": "static"}),
        ({"nn__graph_optimization": "all"}, None, {"graph_optimization": "all"}),
        ({"nn__tensorrt_accelerator": True}, None, {"tensorrt_accelerator": True}),
        ({"nn__version_compatible": True}, None, {"version_compatible": True}),
        (
            {"nn__hardware_compatibility": "ampere_plus"},
            None,
            {"hardware_compatibility": "ampere_plus"},
        ),
    ],
)
def test_choices(given, toolchain, options):
    assert choose(**given) == EngineChoices(toolchain, {"acoustic_model": options})


@pytest.mark.parametrize(
    "given",
    [
        {"nn__precision": "fp16", "nn__use_trt_fp32": True},
        {"nn__fp16_needs_obey_precision_pass": True, "nn__use_trt_fp32": True},
        {"nn__fp16_needs_obey_precision_pass": True, "nn__precision": "bf16"},
    ],
)
def test_contradictions_are_refused(given):
    with pytest.raises(UsageError, match="ask for different precisions") as caught:
        choose(**given)
    assert caught.value.slug == "option.contradiction"
    assert caught.value.hint == "give `nn.precision` alone"


@pytest.mark.parametrize("name", pipeline_names())
def test_every_pipeline_takes_them(name):
    kind = find_pipeline(name)
    (engine,) = kind.engines
    choices = choose_engines(kind, kind.parse_options({"nn.precision": "fp16"}))
    assert choices.options == {engine: {"precision": "fp16"}}
    assert EngineChoices.from_json(choices.to_json()) == choices


def test_nothing_asked_is_nothing_in_the_manifest():
    assert choose().to_json() == {"toolchain": None, "options": {}}
    assert EngineChoices.from_json(None) == EngineChoices()
