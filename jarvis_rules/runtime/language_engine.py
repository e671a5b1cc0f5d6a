"""The engine of a language model, called from the Triton model that prepares its rows.

Rows of many requests go to the engine together, those of a long text in several calls: see
`docs/adr/0014-language-modules-call-their-engine.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .parameters import Parameters

REQUIRES = ("numpy",)


class Row(NamedTuple):
    """One sequence of tokens; `second` is where the second segment begins, if there is one."""

    ids: list[int]
    second: int | None = None


class LanguageEngine:
    """A model on the same server that takes rows of token ids.

    Args:
        parameters: `calls` (name of the engine's Triton model), `engine_inputs` and
            `engine_outputs` (names with commas), `engine_max_batch_size`.
        padding: the id that fills a row.
        width: the tokens that every row is filled to; 0: as many as the longest of its call.

    """

    def __init__(self, parameters: Parameters, padding: int, width: int = 0) -> None:
        self._model = parameters.text("calls")
        self._inputs = parameters.text("engine_inputs").split(",")
        self.outputs = parameters.text("engine_outputs").split(",")
        self._rows_at_once = parameters.integer("engine_max_batch_size")
        self._padding = padding
        self._width = width

    def run(self, rows: Sequence[Row]) -> list[list[NDArray[Any]]]:
        """Return the outputs of every row, in the order of `outputs`, without a batch dimension.

        What stands past a row's own tokens belongs to its padding.

        Raises:
            RuntimeError: the engine refuses or fails.

        """
        # Rows of like length together: little padding, and a row's result does not depend on it.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row].ids))
        results: list[list[NDArray[Any]]] = [[] for _ in rows]
        for at in range(0, len(order), self._rows_at_once):
            chosen = order[at : at + self._rows_at_once]
            for output in self._call([rows[row] for row in chosen]):
                for row, value in zip(chosen, output, strict=True):
                    results[row].append(value)
        return results

    def _call(self, rows: list[Row]) -> list[NDArray[Any]]:
        triton = _triton()
        values = fill(rows, self._padding, self._width)
        request = triton.InferenceRequest(
            model_name=self._model,
            requested_output_names=self.outputs,
            inputs=[triton.Tensor(name, values[name]) for name in self._inputs],
            preferred_memory=triton.PreferredMemory(triton.TRITONSERVER_MEMORY_CPU, 0),
        )
        response = request.exec()
        if response.has_error():
            raise RuntimeError(f"engine `{self._model}`: {response.error().message()}")
        found = [triton.get_output_tensor_by_name(response, name) for name in self.outputs]
        return [tensor.as_numpy() for tensor in found]


def fill(rows: Sequence[Row], padding: int, width: int) -> dict[str, NDArray[np.int64]]:
    """Return rows as the arrays [rows, tokens] that a BERT takes, by name."""
    lengths = np.array([len(row.ids) for row in rows])[:, np.newaxis]
    places = np.arange(max(width, int(lengths.max(initial=0))))
    taken = places < lengths
    ids = np.full(taken.shape, padding, np.int64)
    ids[taken] = np.concatenate([row.ids for row in rows])
    # Past its end a row has no second segment either.
    second = [len(row.ids) if row.second is None else row.second for row in rows]
    types = taken & (places >= np.array(second)[:, np.newaxis])
    return {
        "input_ids": ids,
        "attention_mask": taken.astype(np.int64),
        "token_type_ids": types.astype(np.int64),
    }


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return probabilities over the last axis."""
    probabilities: NDArray[np.float64] = np.exp(log_softmax(logits))
    return probabilities


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    """Return log-probabilities over the last axis."""
    shifted: NDArray[np.float64] = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def _triton() -> ModuleType:
    # It exists only inside Triton's stub, and tests put their own in its place.
    import triton_python_backend_utils

    module: ModuleType = triton_python_backend_utils
    return module
