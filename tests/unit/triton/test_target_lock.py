"""What a machine must have to run a pipeline's engines, from what engines.json says of them."""

from __future__ import annotations

import pytest

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.errors import IntegrityError
from jarvis_rules.triton.target_lock import make_target_lock, version_numbers

A100 = find_gpu("a100").to_json()
ONNX = {"toolchain": "onnxruntime", "toolchain_version": "1.23.2", "portable": True}
RTX = {
    "toolchain": "tensorrt_rtx",
    "toolchain_version": "1.7.1.116",
    "portable": False,
    "driver_minimum": "580.65.06",
    "options": {},
}
PLAN = {
    "toolchain": "tensorrt",
    "toolchain_version": "10.13.3.9",
    "portable": False,
    "driver_minimum": "525.60.13",
    "options": {"workspace_mib": 512},
}
NEWER = {"hardware_compatibility": "ampere_plus"}


@pytest.mark.parametrize("gpu", ["cpu", "a100", "a100+l4"])
def test_portable_engines_ask_for_nothing(gpu):
    assert make_target_lock(find_gpu(gpu).to_json(), {"am": ONNX, "lm": ONNX}) == {
        "gpu": gpu,
        "compute_capabilities": [],
        "compute_capability_minimum": None,
        "driver_minimum": None,
        "runtimes": {},
        "version_compatible": False,
    }


def test_compiled_engines():
    assert make_target_lock(A100, {"am": RTX, "lm": ONNX}) == {
        "gpu": "a100",
        "compute_capabilities": ["8.0"],
        "compute_capability_minimum": None,
        "driver_minimum": "580.65.06",
        "runtimes": {"TensorRT-RTX": "1.7.1.116"},
        "version_compatible": False,
    }
    lock = make_target_lock(find_gpu("a10+a100+rtx-5090").to_json(), {"am": RTX})
    assert lock["gpu"] == "a10+a100+rtx-5090"
    assert lock["compute_capabilities"] == ["8.0", "8.6", "12.0"]


def test_the_newest_driver_is_needed():
    lock = make_target_lock(A100, {"am": RTX, "lm": PLAN, "x": {**PLAN, "driver_minimum": None}})
    assert lock["driver_minimum"] == "580.65.06"
    assert lock["runtimes"] == {"TensorRT": "10.13.3.9", "TensorRT-RTX": "1.7.1.116"}
    lock = make_target_lock(A100, {"am": {k: v for k, v in PLAN.items() if k != "driver_minimum"}})
    assert lock["driver_minimum"] is None
    assert version_numbers("1000.1") > version_numbers("580.65.06") > version_numbers("580.65")


def test_an_engine_of_one_cpu_asks_for_no_gpu():
    lock = make_target_lock(find_gpu("cpu").to_json(), {"am": {**ONNX, "portable": False}})
    assert lock["compute_capabilities"] == []
    assert lock["compute_capability_minimum"] is None
    assert lock["runtimes"] == {"ONNX Runtime": "1.23.2"}


@pytest.mark.parametrize(
    ("options", "capabilities", "minimum"),
    [
        ([NEWER, NEWER], [], "8.0"),
        ([NEWER, {}], ["8.0"], None),
        ([{"hardware_compatibility": "same_compute_capability"}], ["8.0"], None),
        ([{"hardware_compatibility": "none"}], ["8.0"], None),
    ],
)
def test_hardware_compatibility(options, capabilities, minimum):
    engines = {str(i): {**PLAN, "options": given} for i, given in enumerate(options)}
    lock = make_target_lock(A100, engines)
    assert lock["compute_capabilities"] == capabilities
    assert lock["compute_capability_minimum"] == minimum


@pytest.mark.parametrize(
    ("given", "compatible"), [([True, True], True), ([True, False], False), ([], False)]
)
def test_version_compatibility(given, compatible):
    engines = {
        str(i): {**PLAN, "options": {"version_compatible": value}} for i, value in enumerate(given)
    }
    lock = make_target_lock(A100, {**engines, "portable": ONNX})
    assert lock["version_compatible"] is compatible


def test_no_server_loads_engines_of_two_versions():
    other = {**PLAN, "toolchain_version": "11.4.0.106"}
    with pytest.raises(IntegrityError, match=r"TensorRT 11\.4.* with 10\.13") as caught:
        make_target_lock(A100, {"am": PLAN, "lm": other})
    assert (caught.value.slug, caught.value.where) == ("target-lock.two-versions", "engine `lm`")
