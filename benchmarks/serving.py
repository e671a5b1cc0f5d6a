"""The pipelines for text in the real Triton server: requests per second, and what our code costs.

    python benchmarks/serving.py
    python benchmarks/serving.py --pipeline qa --seconds 5

Builds the examples, serves them together, and sends each pipeline the lines of its `test.jsonl`,
one text to a request, from 1, 4 and 16 clients at once. Prints for each: requests per second, p50
and p99 in ms; of the time that its Python model computes, the share outside the engine, and the
same in ms for a request, both from Triton's own statistics (`batch_stats`); requests per second of
the engine alone, asked by the same clients for the same rows of ready-made token ids; and the
ratio of the two rates. Above 1, batching over requests of different lengths, which the engine alone
cannot do, gains more than all else costs. The engines are a stand-in that computes in a process of
its own on one thread, and the models tiny: shares are those of a very fast engine, and clients
and server share this machine. With the default settings it takes about two minutes.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jarvis_rules.core.cache_directory import cache_directory
from jarvis_rules.triton.environment import ensure_serving_environment
from jarvis_rules.triton.language_client import TEXT_TASKS
from jarvis_rules.triton.model_folder import Model, read_models
from jarvis_rules.triton.server import TritonServer

ROOT = Path(__file__).parents[1]
CLIENTS = (1, 4, 16)
WARM_UP = 50
SCONSTRUCT = """
import jarvis_rules
env = Environment(tools=[jarvis_rules.tool])
SConscript(Glob("examples/*/SConscript"), exports="env")
env.Default("deploy")
"""


@dataclass(frozen=True)
class Load:
    """What came of asking a model for a while."""

    rate: float
    latencies: Any  # ms

    def percentile(self, q: float) -> float:
        return float(np.percentile(self.latencies, q))


@dataclass(frozen=True)
class Served:
    """A pipeline in the repository: its ensemble, Python model and engine."""

    kind: str
    ensemble: str
    processor: Model

    @property
    def engine(self) -> str:
        return self.processor.calls


def build(kinds: list[str], folder: Path) -> Path:
    """Build the examples in a folder of their own and return the repository."""
    for kind in kinds:
        shutil.copytree(ROOT / "examples" / kind, folder / "examples" / kind)
    (folder / "SConstruct").write_text(SCONSTRUCT)
    scons = Path(sys.executable).with_name("scons")
    environment = {**os.environ, "JARVIS_CACHE": str(folder / "cache")}
    subprocess.run(
        [scons, "-Q", "-j2", "deploy", "GPU=cpu"],
        cwd=folder, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    return folder / "out" / "cpu" / "models"


def find_served(repository: Path, kinds: list[str]) -> list[Served]:
    models = read_models(repository)
    found = []
    for name, model in models.items():
        kind = model.config.parameters["kind"].string_value if model.is_ensemble else ""
        if kind in kinds:
            step = model.config.ensemble_scheduling.step[0].model_name
            found.append(Served(kind, name, models[step]))
    return sorted(found, key=lambda served: kinds.index(served.kind))


def read_items(kind: str) -> list[tuple[str, ...]]:
    lines = (ROOT / "examples" / kind / "test.jsonl").read_text(encoding="utf-8").splitlines()
    names = TEXT_TASKS[kind].inputs.values()
    return [tuple(json.loads(line)[name] for name in names) for line in lines]


def text_request(kind: str, item: tuple[str, ...]) -> dict[str, Any]:
    names = TEXT_TASKS[kind].inputs
    return {n: np.array([[t.encode()]], np.object_) for n, t in zip(names, item, strict=True)}


def row_requests(served: Served, items: list[tuple[str, ...]]) -> list[dict[str, Any]]:
    """Return what the Python model sends to its engine for each item, alone."""
    from google.protobuf.json_format import MessageToDict

    runtime = "jarvis_rules.runtime"
    parameters = importlib.import_module(f"{runtime}.parameters").Parameters(
        {
            "model_config": json.dumps(
                MessageToDict(served.processor.config, preserving_proto_field_name=True)
            ),
            "model_repository": str(served.processor.path),
            "model_version": "1",
        }
    )
    module = importlib.import_module(f"{runtime}.{served.kind}").TritonPythonModel()
    module.tokenizer = importlib.import_module(f"{runtime}.wordpiece").WordPiece(
        parameters.file("vocab_file"),
        lowercase=parameters.boolean("to_lower"),
        strip_accents=parameters.boolean("strip_accents"),
    )
    module.load(parameters)
    fill = importlib.import_module(f"{runtime}.language_engine").fill
    names = parameters.text("engine_inputs").split(",")
    requests = []
    for item in module.prepare(items):
        arrays = fill(item.rows, module.tokenizer.padding, module.row_width)
        requests.append({name: arrays[name] for name in names})
    return requests


def ask(url: str, model: str, requests: list[dict[str, Any]], clients: int, seconds: float) -> Load:
    """Send requests, each client the next one when it has its answer, for so many seconds."""
    from tritonclient.grpc import InferenceServerClient, InferInput
    from tritonclient.utils import np_to_triton_dtype

    prepared = []
    for request in requests:
        inputs = []
        for name, array in request.items():
            inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
            inputs[-1].set_data_from_numpy(array)
        prepared.append(inputs)
    latencies: list[list[float]] = [[] for _ in range(clients)]
    start = threading.Barrier(clients + 1)
    ends = [0.0]

    def run(number: int) -> None:
        with InferenceServerClient(url) as client:
            order = itertools.islice(itertools.cycle(prepared), number * 7, None)
            for inputs in itertools.islice(order, WARM_UP // clients + 1):
                client.infer(model, inputs)
            start.wait()
            for inputs in order:
                began = time.perf_counter()
                if began >= ends[0]:
                    return
                client.infer(model, inputs)
                latencies[number].append((time.perf_counter() - began) * 1e3)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    # Set before the barrier opens: no client reads it earlier.
    while start.n_waiting < clients:
        time.sleep(0.001)
    began = time.perf_counter()
    ends[0] = began + seconds
    start.wait()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    joined = list(itertools.chain.from_iterable(latencies))
    return Load(len(joined) / took, np.array(joined))


def executed(url: str, model: str) -> tuple[int, int]:
    """Return how many requests a model has answered, and the ns for which it has computed."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(url) as client:
        (stats,) = client.get_inference_statistics(model).model_stats
    ns = sum(
        batch.compute_input.ns + batch.compute_infer.ns + batch.compute_output.ns
        for batch in stats.batch_stats
    )
    return stats.inference_stats.success.count, ns


def measure(server: TritonServer, served: Served, clients: int, seconds: float) -> str:
    url, items = server.grpc_url, read_items(served.kind)
    models = (served.processor.name, served.engine)
    before = [executed(url, model) for model in models]
    texts = [text_request(served.kind, item) for item in items]
    whole = ask(url, served.ensemble, texts, clients, seconds)
    after = [executed(url, model) for model in models]
    computed, in_engine = (b[1] - a[1] for a, b in zip(before, after, strict=True))
    outside = computed - in_engine
    alone = ask(url, served.engine, row_requests(served, items), clients, seconds)
    return (
        f"{served.kind:<21}{clients:>8}{whole.rate:>9.0f}{whole.percentile(50):>9.2f}"
        f"{whole.percentile(99):>9.2f}{outside / computed:>9.0%}"
        f"{outside / 1e6 / (after[0][0] - before[0][0]):>9.3f}"
        f"{alone.rate:>9.0f}{whole.rate / alone.rate:>8.2f}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--pipeline", choices=TEXT_TASKS, action="append", help="only this kind")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    args = parser.parse_args()
    kinds = args.pipeline or list(TEXT_TASKS)
    environment = ensure_serving_environment(
        cache_directory(), lambda text: print(text, file=sys.stderr)
    )
    with tempfile.TemporaryDirectory() as folder:
        repository = build(kinds, Path(folder))
        print(f"{'':<21}{'':>8}{'':>9}{'':>9}{'':>9}{'outside engine':>18}{'engine alone':>17}")
        print(
            f"{'pipeline':<21}{'clients':>8}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}"
            f"{'share':>9}{'ms/req':>9}{'req/s':>9}{'ratio':>8}"
        )
        with TritonServer(repository, environment) as server:
            for served in find_served(repository, kinds):
                for clients in CLIENTS:
                    print(measure(server, served, clients, args.seconds), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
