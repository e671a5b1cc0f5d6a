from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jarvis_rules.errors import ToolchainError
from jarvis_rules.triton.environment import ServingEnvironment, prepare_serving_environment
from jarvis_rules.triton.server import TritonServer

ROOT = Path(__file__).parents[2]
TINY = Path(__file__).with_name("repositories") / "tiny"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.serving)


@pytest.fixture(autouse=True)
def scratch_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The logs that failing starts leave go where pytest cleans up."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture(scope="session")
def serving_cache() -> Path:
    chosen = os.environ.get("JARVIS_TEST_SERVING_CACHE")
    return Path(chosen) if chosen else ROOT / ".serving-cache"


@pytest.fixture(scope="session")
def serving_environment(serving_cache: Path) -> ServingEnvironment:
    def report(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    try:
        return prepare_serving_environment(None, serving_cache, report)
    except ToolchainError as fault:
        if fault.slug in ("serving.python-unsupported", "serving.platform-unsupported"):
            pytest.skip(str(fault))
        raise


def write_tiny_repository(root: Path) -> Path:
    """Copy the hand-written repository and make its ONNX model: a transpose."""
    from onnx import TensorProto, helper, save

    shutil.copytree(TINY, root)
    nodes = [
        helper.make_node("Transpose", ["audio_signal"], ["logprobs"], perm=[0, 2, 1]),
        helper.make_node("Identity", ["length"], ["encoded_length"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [
            helper.make_tensor_value_info("audio_signal", TensorProto.FLOAT, ["N", 2, "T"]),
            helper.make_tensor_value_info("length", TensorProto.INT64, ["N"]),
        ],
        [
            helper.make_tensor_value_info("logprobs", TensorProto.FLOAT, ["N", "T", 2]),
            helper.make_tensor_value_info("encoded_length", TensorProto.INT64, ["N"]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    save(model, root / "tiny-acoustics" / "1" / "model.onnx")
    return root


@pytest.fixture
def tiny_repository(tmp_path: Path) -> Path:
    return write_tiny_repository(tmp_path / "models")


@pytest.fixture(scope="session")
def tiny_server(
    tmp_path_factory: pytest.TempPathFactory, serving_environment: ServingEnvironment
) -> Iterator[TritonServer]:
    """One server for all tests that only ask it something."""
    repository = write_tiny_repository(tmp_path_factory.mktemp("tiny") / "models")
    with TritonServer(repository, serving_environment) as server:
        yield server
