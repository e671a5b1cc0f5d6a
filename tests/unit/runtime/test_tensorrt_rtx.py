"""Engines of TensorRT-RTX as Triton runs them: what keeps one from loading, and its answers."""

from __future__ import annotations

import importlib
import json
import sys

import numpy as np
import pytest
from cuda_testing import FakeCuda, FakeTensorRT, engine_bytes

from jarvis_rules.runtime import cuda_memory
from jarvis_rules.runtime.tensorrt_rtx import TritonPythonModel

INPUTS = {"x": ("FLOAT", [-1, 3, -1]), "length": ("INT64", [-1])}
OUTPUTS = {"y": ("FLOAT", [-1, 3, -1]), "count": ("INT64", [-1])}
STATIC = [
    {"x": ([batch, 3, size], [batch, 3, size]), "length": ([batch], [batch])}
    for batch, size in [(4, 64), (1, 512)]
]
CONFIG = {
    "name": "jarvis-rtx-m",
    "max_batch_size": 4,
    "input": [
        {"name": "x", "data_type": "TYPE_FP32", "dims": ["3", "-1"]},
        {"name": "length", "data_type": "TYPE_INT64", "dims": ["1"], "reshape": {"shape": []}},
    ],
    "output": [
        {"name": "y", "data_type": "TYPE_FP32", "dims": ["3", "-1"]},
        {"name": "count", "data_type": "TYPE_INT64", "dims": ["1"], "reshape": {"shape": []}},
    ],
}
PARAMETERS = {
    "engine_file": "model.engine",
    "engine_compute_capabilities": "8.0,8.9",
    "engine_version": "1.7.1.116",
}
BUILT = "model `jarvis-rtx-m`: its engine is for sm_80 and sm_89 and TensorRT-RTX 1.7.1.116: "
DTYPES = {"TYPE_FP32": np.float32, "TYPE_INT64": np.int64, "TYPE_FP16": np.float16}


@pytest.fixture
def pb_utils(triton):
    triton.triton_string_to_numpy = DTYPES.__getitem__
    return triton


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda(cuda_memory.PROTOTYPES, devices=2)
    monkeypatch.setattr(cuda_memory, "open_library", lambda: fake)
    return fake


@pytest.fixture
def module(cuda, monkeypatch):
    """TensorRT-RTX under the name of the wheel that is there without the package of one line."""
    fake = FakeTensorRT(cuda, "tensorrt_rtx_bindings")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", fake)
    # `None` is what makes an import fail as if nothing were there.
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    return fake


def arguments(folder, config=CONFIG, kind="GPU", **parameters):
    values = {**PARAMETERS, **parameters}
    document = {**config, "parameters": {k: {"string_value": v} for k, v in values.items()}}
    return {
        "model_config": json.dumps(document),
        "model_repository": str(folder),
        "model_version": "1",
        "model_instance_kind": kind,
        "model_instance_device_id": "1" if kind == "GPU" else "0",
    }


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.engine").write_bytes(engine_bytes(INPUTS, OUTPUTS, STATIC))
    return tmp_path


@pytest.fixture
def load(folder, pb_utils, cuda):  # noqa: ARG001
    made = []

    def loaded(*arguments_, **parameters):
        model = TritonPythonModel()
        model.initialize(arguments(folder, *arguments_, **parameters))
        made.append(model)
        return model

    yield loaded
    for model in made:
        model.finalize()
    assert cuda.is_clean


def request(pb_utils, rows, size, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, 3, size)).astype(np.float32)
    return pb_utils.Request(x=values, length=np.full(rows, size, np.int64))


def check(response, asked):
    assert response.error is None, response.error.text
    x = asked.arrays["x"]
    assert [*response.tensors] == ["y", "count"]
    assert len(response.tensors["y"]) == len(x)
    np.testing.assert_array_equal(response.tensors["y"][:, :, : x.shape[2]], 2 * x + 1)
    np.testing.assert_array_equal(response.tensors["count"], 2 * asked.arrays["length"] + 1)


@pytest.mark.parametrize("kind", ["GPU", "CPU"])
def test_requests_of_equal_shapes_run_together(load, module, pb_utils, kind):
    model = load(CONFIG, kind)
    requests = [request(pb_utils, 1, 9, 1), request(pb_utils, 1, 50, 2), request(pb_utils, 2, 9, 3)]
    for response, asked in zip(model.execute(requests), requests, strict=True):
        check(response, asked)
    assert len(module.contexts[0].runs) == 2
    assert module.cuda.used == {1 if kind == "GPU" else 0}


def test_requests_that_fit_a_profile_only_one_by_one(load, module, pb_utils):
    model = load()
    requests = [request(pb_utils, 1, 300, seed) for seed in range(3)]
    for response, asked in zip(model.execute(requests), requests, strict=True):
        check(response, asked)
    assert len(module.contexts[0].runs) == 3


@pytest.mark.usefixtures("module")
def test_a_request_that_fits_nothing_fails_alone(load, pb_utils):
    requests = [request(pb_utils, 1, 9), request(pb_utils, 1, 513), request(pb_utils, 2, 300)]
    good, long, wide = load().execute(requests)
    check(good, requests[0])
    for response, shape in ((long, "[1, 3, 513]"), (wide, "[2, 3, 300]")):
        assert response.error.code == "INVALID_ARG"
        assert f"`x` has shape {shape}, the engine takes [1..4, 3, 1..64]" in response.error.text


def test_a_model_without_a_batch_runs_requests_alone(load, module, pb_utils):
    requests = [request(pb_utils, 1, 9, 1), request(pb_utils, 1, 9, 2)]
    model = load({**CONFIG, "max_batch_size": 0})
    for response, asked in zip(model.execute(requests), requests, strict=True):
        check(response, asked)
    assert len(module.contexts[0].runs) == 2


@pytest.mark.usefixtures("module")
def test_inputs_that_are_not_the_engine_s(load, pb_utils):
    wrong = pb_utils.Request(x=np.zeros((1, 3, 9)), length=np.zeros(1, np.int64))
    unlike = request(pb_utils, 2, 9)
    unlike.arrays["length"] = np.zeros(1, np.int64)
    good = request(pb_utils, 1, 9)
    first, second, third = load().execute([wrong, unlike, good])
    assert "`x` must be float32" in first.error.text
    assert second.error.text == "inputs of unlike batches: `x` [2, 3, 9], `length` [1]"
    check(third, good)


def test_a_gpu_that_fails_is_no_fault_of_the_request(load, module, pb_utils):
    model = load()
    module.refused.add("run")
    (response,) = model.execute([request(pb_utils, 1, 9)])
    assert response.error.code == "INTERNAL"
    assert response.error.text.startswith(
        "tensorrt_rtx failed: RuntimeError: engine `model.engine`"
    )


def refusal(folder, **changes):
    with pytest.raises(RuntimeError) as caught:
        TritonPythonModel().initialize(arguments(folder, **changes))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("pb_utils")
class TestWhatKeepsAnEngineFromLoading:
    def test_no_driver(self, folder, monkeypatch):
        monkeypatch.setattr(cuda_memory, "LIBRARY", "libcuda-of-nobody.so.1")
        assert refusal(folder) == (
            f"{BUILT}no NVIDIA driver on this machine (libcuda-of-nobody.so.1 is missing)"
        )

    def test_another_gpu(self, folder, cuda):
        cuda.capability = (9, 0)
        assert refusal(folder) == f"{BUILT}GPU 1 is Fake GPU 1, sm_90"
        assert cuda.is_clean

    @pytest.mark.usefixtures("cuda")
    def test_no_package(self, folder, monkeypatch):
        for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "path", [])
        monkeypatch.setattr(sys, "meta_path", [])
        assert refusal(folder) == (
            f"{BUILT}it needs the Python package `tensorrt_rtx` or `tensorrt_rtx_bindings`, "
            "which is not installed"
        )

    @pytest.mark.usefixtures("cuda")
    def test_a_package_without_its_library(self, folder, tmp_path, monkeypatch):
        for name in ("tensorrt_rtx", "tensorrt_rtx_bindings"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        (tmp_path / "tensorrt_rtx.py").write_text("import ctypes; ctypes.CDLL('libabsent.so')")
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        assert f"{BUILT}the Python package `tensorrt_rtx` is broken: libabsent" in refusal(folder)

    def test_another_version(self, folder, cuda, module):
        module.validity, module.__version__ = (2, 1), "1.6.0"
        assert refusal(folder) == (
            f"{BUILT}engine `model.engine` cannot run here: it was built by another version "
            "(tensorrt_rtx_bindings 1.6.0 on Fake GPU 1, sm_80)"
        )
        assert cuda.is_clean

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"max_batch_size": 5}, "max_batch_size is 5, the engine takes at most 4 rows"),
            ({"input": CONFIG["input"][:1]}, "input `length` of the engine is not configured"),
            (
                {"output": [{**CONFIG["output"][0], "name": "z"}]},
                "output `z` is not in the engine, which has y, count",
            ),
            (
                {"output": [{**CONFIG["output"][0], "data_type": "TYPE_FP16"}]},
                "output `y` is TYPE_FP16, the engine has float32",
            ),
        ],
    )
    def test_a_configuration_that_is_not_the_engine_s(self, folder, cuda, module, changes, text):
        with pytest.raises(ValueError, match=f"^model `jarvis-rtx-m`: {text}$"):
            TritonPythonModel().initialize(arguments(folder, {**CONFIG, **changes}))
        assert module.contexts
        assert cuda.is_clean

    def test_no_engine(self, folder):
        (folder / "1" / "model.engine").unlink()
        with pytest.raises(ValueError, match=r"file `.*model.engine` .* is missing"):
            TritonPythonModel().initialize(arguments(folder))
