"""Recorded models for the tests of exporters; as a program: `exporter_testing.py NAME FOLDER`."""

import copy
import functools
import hashlib
import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from jarvis_rules.exporters.exporter import ExportedModel, SourceModel, export_model
from jarvis_rules.formats.nemo import open_nemo

MODELS = Path(__file__).parents[2] / "data" / "models"
GRAPH = "model_graph.onnx"


def variants(family: str) -> tuple[str, ...]:
    """Return the names of the recorded variants of `family`."""
    found = sorted(path.stem for path in MODELS.glob(f"variants/{family}/*.nemo"))
    return tuple(f"variants/{family}/{name}" for name in found)


@functools.cache
def _source(name: str) -> SourceModel:
    path = MODELS / f"{name}.nemo"
    with open_nemo(path) as archive:
        weights = {key: np.array(array) for key, array in archive.state_dict().items()}
        artifact = functools.partial(_artifact, path)
        return SourceModel(archive.target, archive.config, weights, artifact)


def _artifact(path: Path, reference: str) -> bytes:
    with open_nemo(path) as archive:
        return archive.artifact(reference)


def source(name: str) -> SourceModel:
    """Return a model whose configuration and weights a test may change."""
    model = _source(name)
    return replace(model, config=copy.deepcopy(model.config), weights=dict(model.weights))


def recorded(name: str) -> dict[str, np.ndarray]:
    with np.load(MODELS / f"{name}.npz") as arrays:
        return dict(arrays)


def alone_logprobs(
    name: str, prefix: str = ""
) -> tuple[np.ndarray, np.ndarray, dict[int, np.ndarray]]:
    """Return features, lengths and, by item, what NeMo gave for the item alone, where recorded."""
    r = recorded(name)
    results = recorded(f"{name}.alone") if (MODELS / f"{name}.alone.npz").is_file() else r
    found = {
        int(key.removeprefix(f"{prefix}logprobs_")): value
        for key, value in results.items()
        if key.startswith(f"{prefix}logprobs_") and key.removeprefix(f"{prefix}logprobs_").isdigit()
    }
    return r[f"{prefix}features"], r[f"{prefix}features_length"], found


def largest(found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest absolute difference, infinity where the shapes differ, 0 of no numbers."""
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max(initial=0.0))


def with_garbage(features: np.ndarray, lengths: np.ndarray, value: float = 1e3) -> np.ndarray:
    """Return a copy of `features` [batch, channels, time] with `value` behind the lengths."""
    noise = features.copy()
    for row, n in zip(noise, lengths, strict=True):
        row[:, n:] = value
    return noise


def dump(model: ExportedModel) -> dict[str, bytes]:
    """Return all that is exported, as files."""
    files = dict(model.assets)
    for name, graph in model.graphs.items():
        file = io.BytesIO()
        graph.write(file)
        files[name] = file.getvalue()
    files["facts.json"] = json.dumps(model.facts, allow_nan=False).encode()
    return files


def load_graphs(model: ExportedModel) -> dict[str, Callable[..., dict[str, np.ndarray]]]:
    """Return each exported graph in onnxruntime, on one thread, as a function of its inputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3

    def load(data: bytes) -> Callable[..., dict[str, np.ndarray]]:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        return lambda **feed: dict(zip(names, session.run(names, feed), strict=True))

    files = dump(model)
    return {name: load(files[name]) for name in model.graphs}


def digests(name: str) -> dict[str, str]:
    """Return the SHA-256 of all that is exported from a recorded model, by file."""
    files = dump(export_model(source(name)))
    return {file: hashlib.sha256(data).hexdigest() for file, data in files.items()}


class Runner:
    """An exported acoustic model in onnxruntime, on one thread."""

    def __init__(self, model: ExportedModel) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            dump(model)[GRAPH], options, providers=["CPUExecutionProvider"]
        )

    def __call__(self, features: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        feed = {"audio_signal": features, "length": np.asarray(length, np.int64)}
        logprobs, encoded_length = self.session.run(["logprobs", "encoded_length"], feed)
        return logprobs, encoded_length


def main() -> None:
    name, folder = sys.argv[1:]
    for member, data in dump(export_model(source(name))).items():
        (Path(folder) / member).write_bytes(data)


if __name__ == "__main__":
    main()
