"""Engines of TensorRT-RTX in the real server of a machine without a GPU.

They load nowhere here, and say so. With a driver and a TensorRT that compute in host memory in the
place of the real ones, everything else of their model runs as it would on a GPU.
"""

from __future__ import annotations

import ctypes
import runpy
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.jmir import Module, Pipeline, Tensor
from jarvis_rules.triton.client import recognize
from jarvis_rules.triton.environment import ServingEnvironment
from jarvis_rules.triton.repository import EngineFile, compose_repository
from jarvis_rules.triton.server import TritonServer

FAKE = Path(__file__).parents[1] / "unit" / "runtime" / "cuda_testing.py"
MODEL = "jarvis-rtx-graph-am"
PROFILES = [(8, 64), (1, 600)]
MODEL_FILE = """
import sys
import jarvis_runtime.cuda_memory as cuda_memory
from cuda_testing import FakeCuda, FakeTensorRT

fake = FakeCuda(cuda_memory.PROTOTYPES)
cuda_memory.open_library = lambda: fake
sys.modules["tensorrt_rtx"] = FakeTensorRT(fake)
from jarvis_runtime.tensorrt_rtx import TritonPythonModel
"""


def write_engine_model(root: Path, scratch: Path) -> Path:
    """Add the ensemble `graph` of one engine to a repository and return its model's folder."""
    engine_bytes = runpy.run_path(str(FAKE))["engine_bytes"]
    engine = scratch / "model.engine"
    inputs = {"x": ("FLOAT", [-1, 3, -1]), "length": ("INT64", [-1])}
    outputs = {"y": ("FLOAT", [-1, 3, -1]), "count": ("INT64", [-1])}
    sizes = [{"x": [rows, 3, size], "length": [rows]} for rows, size in PROFILES]
    engine.write_bytes(
        engine_bytes(inputs, outputs, [{k: (v, v) for k, v in one.items()} for one in sizes])
    )
    described = [
        [{"name": name, "dtype": {"FLOAT": "FP32"}.get(dtype, dtype), "dims": dims}
         for name, (dtype, dims) in tensors.items()]
        for tensors in (inputs, outputs)
    ]  # fmt: skip
    description = {
        "toolchain": "tensorrt_rtx", "toolchain_version": "1.7.1.116", "backend": "python",
        "file": engine.name, "graph": "1" * 64, "inputs": described[0], "outputs": described[1],
        "profiles": [{k: dict.fromkeys(("min", "opt", "max"), v) for k, v in p.items()}
                     for p in sizes],
    }  # fmt: skip

    def tensors(first: str, second: str) -> tuple[Tensor, Tensor]:
        return Tensor(first, "FP32", (3, -1)), Tensor(second, "INT64", (1,), reshape=())

    module = Module("am", "graph-am", "engine:am", 8, tensors("x", "length"), tensors("y", "count"))
    edges = [(f"pipeline.{name}", f"am.{name}") for name in ("x", "length")]
    edges += [(f"am.{name}", f"pipeline.{name}") for name in ("y", "count")]
    pipeline = Pipeline(
        name="graph", kind="k", language_code="en-US", max_batch_size=8,
        inputs=(Tensor("x", "FP32", (3, -1)), Tensor("length", "INT64", (1,))),
        outputs=(Tensor("y", "FP32", (3, -1)), Tensor("count", "INT64", (1,))),
        modules=(module,), edges=tuple(edges), models={}, options=(),
    )  # fmt: skip
    served = EngineFile("rtx", description, engine, (), "tensorrt_rtx", ("8.0",))
    files = compose_repository(pipeline, {"am": served})
    read = {name: path.read_bytes() for name, path in files.paths.items()}
    for name, data in {**files.data, **read}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root / MODEL


def require_no_driver() -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    pytest.skip("this machine has an NVIDIA driver")


def test_an_engine_says_what_it_needs(
    tiny_repository: Path, tmp_path: Path, serving_environment: ServingEnvironment
) -> None:
    require_no_driver()
    write_engine_model(tiny_repository, tmp_path)
    with pytest.raises(JarvisError) as caught:
        TritonServer(tiny_repository, serving_environment, models=["graph"]).__enter__()
    assert caught.value.slug == "serve.start-failed"
    assert (
        f"model `{MODEL}`: its engine is for sm_80 and TensorRT-RTX 1.7.1.116: "
        "no NVIDIA driver on this machine (libcuda.so.1 is missing)"
    ) in str(caught.value)


def test_other_pipelines_of_the_repository_are_served(
    tiny_repository: Path, tmp_path: Path, serving_environment: ServingEnvironment
) -> None:
    write_engine_model(tiny_repository, tmp_path)
    with TritonServer(tiny_repository, serving_environment, models=["tiny"]) as server:
        recognize(server.grpc_url, "tiny", [np.ones(160, np.float32)])


def test_an_engine_s_model_answers_in_an_ensemble(
    tiny_repository: Path, tmp_path: Path, serving_environment: ServingEnvironment
) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    version = write_engine_model(tiny_repository, tmp_path) / "1"
    shutil.copy(FAKE, version)
    (version / "model.py").write_text(MODEL_FILE)

    def ask(seed: int, rows: int = 1, size: int | None = None) -> None:
        generator = np.random.default_rng(seed)
        size = size or int(generator.integers(1, 600))
        x = generator.normal(size=(rows, 3, size)).astype(np.float32)
        tensors = [InferInput("x", x.shape, "FP32"), InferInput("length", [rows, 1], "INT64")]
        for tensor, array in zip(tensors, (x, np.full((rows, 1), size)), strict=True):
            tensor.set_data_from_numpy(array)
        found = client.infer("graph", tensors)
        assert found.as_numpy("y").shape == (rows, 3, 64 if size <= 64 else 600)
        np.testing.assert_array_equal(found.as_numpy("y")[:, :, :size], 2 * x + 1)
        np.testing.assert_array_equal(found.as_numpy("count"), np.full((rows, 1), 2 * size + 1))

    with TritonServer(tiny_repository, serving_environment) as server:
        assert server.models == ("graph", "tiny")
        client = InferenceServerClient(server.grpc_url)
        with ThreadPoolExecutor(16) as pool:
            assert len([*pool.map(ask, range(48))]) == 48
        ask(0, rows=8, size=64)
        with pytest.raises(InferenceServerException, match=r"the engine takes \[1..8, 3, 1..64\]"):
            ask(0, rows=2, size=65)
        ask(0, rows=1, size=65)
        recognize(server.grpc_url, "tiny", [np.ones(160, np.float32)])
