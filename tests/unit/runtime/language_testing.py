"""An engine in the place of Triton's, and models as their repository lays them out, for tests."""

from __future__ import annotations

import importlib
import json
import types
from pathlib import Path

import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
MARKS = ".,?!'-/()"
# Every letter as a word and inside of one, so that any plain word has pieces, and a few longer.
VOCABULARY = [
    "[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
    *LETTERS, *(f"##{letter}" for letter in LETTERS), *MARKS,
    "vera", "lives", "in", "lima", "cape", "town", "##wn", "the", "##ing", "play", "##ed",
    *(f"##{number}" for number in range(10)), *map(str, range(10)), "中", "国", "é", "##é", "ß",
    "ü", "##ü", "A", "B", "##A", "Play", "Vera", "ñ", "ά", "σ", "##σ", "##ς", "i", "😀", "##😀",
]  # fmt: skip


class EngineError(Exception):
    """What a fake engine raises to answer with an error."""


class FakeInferenceRequest:
    """A call of the engine; `engine` makes the outputs of the input arrays, all by name."""

    engine = staticmethod(lambda **_: {})
    calls: list[dict[str, np.ndarray]] = []  # noqa: RUF012

    def __init__(self, model_name, requested_output_names, inputs, preferred_memory):
        self.model, self.wanted = model_name, requested_output_names
        self.inputs = {tensor.name: tensor.as_numpy() for tensor in inputs}
        assert preferred_memory == ("CPU", 0)

    def exec(self):
        type(self).calls.append(self.inputs)
        try:
            outputs, error = type(self).engine(**self.inputs), None
        except EngineError as fault:
            text = str(fault)
            outputs, error = {}, types.SimpleNamespace(message=lambda: text)
        return types.SimpleNamespace(
            has_error=lambda: error is not None, error=lambda: error, outputs=outputs
        )


def install_engine(triton, engine):
    """Let calls of an engine go to `engine`, and return the list of them."""
    request = type("InferenceRequest", (FakeInferenceRequest,), {"calls": []})
    request.engine = staticmethod(engine)
    triton.InferenceRequest = request
    triton.PreferredMemory = lambda kind, device: (kind, device)
    triton.TRITONSERVER_MEMORY_CPU = "CPU"
    triton.get_output_tensor_by_name = lambda response, name: triton.Tensor(
        name, response.outputs[name]
    )
    return request.calls


def scrambled(classes, seed=0):
    """Return a token-wise engine: logits that depend on each token and its neighbours alone."""

    def logits(ids, mask):
        shifted = [np.roll(ids * mask, by, axis=1) for by in (-1, 0, 1)]
        key = (shifted[0] * 31 + shifted[1] * 1009 + shifted[2] * 131 + seed * 7) % 8191
        return np.sin(key[..., np.newaxis] * (1.3 + np.arange(classes))).astype(np.float32) * 4

    return logits


def write_model(folder: Path, **files: str) -> Path:
    """Write the version folder of a model: its vocabulary and label files."""
    version = folder / "1"
    version.mkdir(parents=True, exist_ok=True)
    (version / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    for name, text in files.items():
        (version / f"{name}.csv").write_text(text, encoding="utf-8")
    return folder


def load(backend, folder, **parameters):
    """Return a loaded Triton model of a runtime module."""
    values = {
        "calls": "the-engine",
        "engine_inputs": "input_ids,attention_mask,token_type_ids",
        "engine_max_batch_size": "4",
        "vocab_file": "vocab.txt",
        "to_lower": "True",
        "strip_accents": "True",
        **{key: str(value) for key, value in parameters.items()},
    }
    config = {
        "name": backend,
        "parameters": {key: {"string_value": value} for key, value in values.items()},
    }
    model = importlib.import_module(f"jarvis_rules.runtime.{backend}").TritonPythonModel()
    model.initialize(
        {
            "model_config": json.dumps(config),
            "model_repository": str(folder),
            "model_version": "1",
        }
    )
    return model


def texts(*values):
    """Return texts, or bytes, as the STRING column that Triton hands over."""
    column = [[v if isinstance(v, bytes) else v.encode()] for v in values]
    return np.array(column, np.object_)


def decoded(array):
    """Return a STRING array as lists of texts, without what fills the rows."""
    return [[value.decode() for value in row if value] for row in array]
