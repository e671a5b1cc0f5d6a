"""The real tritonserver, started and stopped by `TritonServer`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jarvis_rules.errors import JarvisError, ToolchainError
from jarvis_rules.triton import server as server_module
from jarvis_rules.triton.client import recognize
from jarvis_rules.triton.environment import ServingEnvironment, find_serving_environment
from jarvis_rules.triton.server import TritonServer

SHARED_MEMORY = Path("/dev/shm")
HOLD_A_SERVER = """
import sys, time
from pathlib import Path
from jarvis_rules.triton.environment import find_serving_environment
from jarvis_rules.triton.server import TritonServer

environment = find_serving_environment(Path(sys.argv[2]))
with TritonServer(Path(sys.argv[1]), environment) as server:
    print(server.log.parent, flush=True)
    time.sleep(60)
"""


def processes_of(scratch: Path) -> dict[int, str]:
    """The programs, by process id, of the server with this scratch folder and of its stubs."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
        except OSError:
            continue
        program = Path(line.partition("\0")[0]).name
        if program.startswith("triton") and str(scratch) in line:
            found[int(entry.name)] = program
    return found


def shared_memory_of(process: int) -> set[str]:
    return {path.name for path in SHARED_MEMORY.glob(f"jarvis_triton_{process}_*")}


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def test_a_stopped_server_leaves_nothing_behind(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    files = sorted(tiny_repository.rglob("*"))
    regions = shared_memory_of(os.getpid())

    with TritonServer(tiny_repository, serving_environment) as server:
        scratch = server.log.parent
        assert server.models == ("tiny",)
        assert sorted(processes_of(scratch).values()) == [
            *["triton_python_backend_stub"] * 3,
            "tritonserver",
        ]
        assert len(shared_memory_of(os.getpid()) - regions) == 3
        recognize(server.grpc_url, "tiny", [np.ones(160, np.float32)])

    assert processes_of(scratch) == {}
    assert shared_memory_of(os.getpid()) == regions
    assert not scratch.exists()
    assert sorted(tiny_repository.rglob("*")) == files, "no __pycache__ in what is served"


def test_a_repository_may_lie_anywhere(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    """The Python backend's stub crashes on a path with a space, and on one beyond ASCII."""
    moved = tiny_repository.rename(tiny_repository.with_name("mö dels"))
    with TritonServer(moved, serving_environment) as server:
        recognize(server.grpc_url, "tiny", [np.ones(160, np.float32)])


@pytest.mark.usefixtures("serving_environment")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_nothing_outlives_a_killed_parent(
    number: int, tiny_repository: Path, serving_cache: Path
) -> None:
    assert find_serving_environment(serving_cache) is not None
    command = [sys.executable, "-c", HOLD_A_SERVER, str(tiny_repository), str(serving_cache)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        scratch = Path(parent.stdout.readline().decode().strip())
        assert scratch.name.startswith("jarvis-triton-")
        assert processes_of(scratch)

        parent.send_signal(number)
        parent.communicate(timeout=30)

        assert eventually(lambda: not processes_of(scratch))
        assert eventually(lambda: not shared_memory_of(parent.pid))
        assert eventually(lambda: not scratch.exists())


def test_a_taken_port_is_named(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(JarvisError, match=str(port)) as caught:
            TritonServer(tiny_repository, serving_environment, grpc_port=port).__enter__()
    assert caught.value.slug == "serve.port-in-use"


def test_a_broken_model_gives_its_reason(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    broken = tiny_repository / "tiny-decoder" / "1" / "model.py"
    broken.write_text("raise RuntimeError('the vocabulary is missing')\n")

    with pytest.raises(JarvisError, match="the vocabulary is missing") as caught:
        TritonServer(tiny_repository, serving_environment).__enter__()

    assert caught.value.slug == "serve.start-failed"
    log = Path(str(caught.value).rpartition("log: ")[2])
    assert "the vocabulary is missing" in log.read_text()
    assert not (log.parent / "backends").exists()
    log.unlink()
    log.parent.rmdir()
    assert processes_of(log.parent) == {}


def test_a_model_that_never_loads_meets_the_time_limit(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    slow = tiny_repository / "tiny-decoder" / "1" / "model.py"
    slow.write_text("import time\ntime.sleep(120)\n")
    regions = shared_memory_of(os.getpid())

    with pytest.raises(JarvisError, match="not ready after 2 s") as caught:
        TritonServer(tiny_repository, serving_environment, start_timeout=2).__enter__()

    assert caught.value.slug == "serve.start-timeout"
    assert processes_of(Path(str(caught.value).rpartition("log: ")[2]).parent) == {}
    assert shared_memory_of(os.getpid()) == regions


def test_a_server_that_dies_is_noticed(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    with TritonServer(tiny_repository, serving_environment) as server:
        server.require_running()
        scratch = server.log.parent
        for process, program in processes_of(scratch).items():
            if program == "tritonserver":
                os.kill(process, signal.SIGKILL)
        with pytest.raises(JarvisError) as caught:
            eventually(lambda: bool(server.require_running()))
    assert caught.value.slug == "serve.died"
    assert eventually(lambda: not processes_of(scratch))


def test_a_faulty_repository_starts_nothing(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    (tiny_repository / "tiny-decoder" / "1" / "model.py").unlink()

    with pytest.raises(JarvisError, match=r"python\.model-missing") as caught:
        TritonServer(tiny_repository, serving_environment).__enter__()

    assert caught.value.slug == "repository.lint"


def test_an_unknown_model_is_refused_with_a_suggestion(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    with pytest.raises(JarvisError, match="`tini`") as caught:
        TritonServer(tiny_repository, serving_environment, models=["tini"]).__enter__()
    assert caught.value.slug == "serve.unknown-model"
    assert "`tiny`" in str(caught.value.hint)


def test_a_backend_that_the_server_lacks_is_named(
    tiny_repository: Path, serving_environment: ServingEnvironment
) -> None:
    model = tiny_repository / "tiny-acoustics"
    config = model / "config.pbtxt"
    config.write_text(config.read_text().replace('"onnxruntime"', '"tensorrt"'))

    with pytest.raises(ToolchainError, match="`tiny-acoustics` needs the backend `tensorrt`") as e:
        TritonServer(tiny_repository, serving_environment).__enter__()

    assert e.value.slug == "serve.backend-missing"


def test_numpy_2_is_refused(tmp_path: Path, tiny_repository: Path) -> None:
    packages = ServingEnvironment(tmp_path, "3.11").site_packages
    (packages / "numpy-2.1.0.dist-info").mkdir(parents=True)

    with pytest.raises(JarvisError, match=r"2\.1\.0") as caught:
        TritonServer(tiny_repository, ServingEnvironment(tmp_path, "3.11")).__enter__()

    assert caught.value.slug == "serving.numpy2"


def test_64_requests_at_once_are_answered_right_and_in_batches(tiny_server: TritonServer) -> None:
    from tritonclient.grpc import InferenceServerClient

    def ask(number: int) -> str:
        samples = np.full(1600 + number % 3, number / 100, np.float32)
        return recognize(tiny_server.grpc_url, "tiny", [samples])[0].transcript

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(ask, range(64)))

    assert answers == [f"peak {number / 100:.2f}" if number else "" for number in range(64)]
    client = InferenceServerClient(tiny_server.grpc_url)
    (facts,) = client.get_inference_statistics("tiny-acoustics").model_stats
    assert facts.execution_count < facts.inference_count


def test_the_stand_in_refuses_what_the_real_backend_refuses(
    tiny_repository: Path,
    serving_environment: ServingEnvironment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "check_repository", lambda _: None)
    config = tiny_repository / "tiny-acoustics" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [2, -1]", "dims: [3, -1]"))

    with pytest.raises(JarvisError) as caught:
        TritonServer(tiny_repository, serving_environment, models=["tiny-acoustics"]).__enter__()

    assert caught.value.slug == "serve.start-failed"
    assert "input `audio_signal` is configured as [-1, 3, -1], the model has [-1, 2, -1]" in str(
        caught.value
    )


def test_the_stand_in_answers_text_and_survives_a_failing_batch(
    tmp_path: Path, serving_environment: ServingEnvironment
) -> None:
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import InferenceServerException

    _write_onnx_models(tmp_path / "models")

    def ask(model: str, array: np.ndarray, data_type: str) -> np.ndarray:
        tensor = InferInput("x", list(array.shape), data_type)
        tensor.set_data_from_numpy(array)
        return client.infer(model, [tensor]).as_numpy("y")

    with TritonServer(tmp_path / "models", serving_environment) as server:
        assert server.models == ("echo", "pick")
        client = InferenceServerClient(server.grpc_url)
        text = np.array([["zürich"], ["ø"]], np.object_)
        assert [item.decode() for item in ask("echo", text, "BYTES").ravel()] == ["zürich", "ø"]

        assert ask("pick", np.array([[1, 2]]), "INT64").tolist() == [[20.0, 30.0]]
        with pytest.raises(InferenceServerException, match="indices element out of data bounds"):
            ask("pick", np.array([[99]]), "INT64")
        assert ask("pick", np.array([[0], [2]]), "INT64").tolist() == [[10.0], [30.0]]


def _write_onnx_models(root: Path) -> None:
    """Two models without an ensemble: `echo` of text, and `pick`, which fails on a bad index."""
    from onnx import TensorProto, helper, save

    table = helper.make_tensor("table", TensorProto.FLOAT, [3], [10.0, 20.0, 30.0])
    models = {
        "echo": (helper.make_node("Identity", ["x"], ["y"]), TensorProto.STRING, None),
        "pick": (helper.make_node("Gather", ["table", "x"], ["y"]), TensorProto.INT64, table),
    }
    for name, (node, element, weights) in models.items():
        answer = TensorProto.STRING if name == "echo" else TensorProto.FLOAT
        graph = helper.make_graph(
            [node],
            name,
            [helper.make_tensor_value_info("x", element, ["N", "D"])],
            [helper.make_tensor_value_info("y", answer, ["N", "D"])],
            [] if weights is None else [weights],
        )
        folder = root / name / "1"
        folder.mkdir(parents=True)
        opset = [helper.make_opsetid("", 17)]
        save(helper.make_model(graph, opset_imports=opset, ir_version=8), folder / "model.onnx")
        types = ("STRING", "STRING") if name == "echo" else ("INT64", "FP32")
        (root / name / "config.pbtxt").write_text(
            f'name: "{name}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 8\n'
            f'input {{ name: "x" data_type: TYPE_{types[0]} dims: -1 }}\n'
            f'output {{ name: "y" data_type: TYPE_{types[1]} dims: -1 }}\n'
        )
