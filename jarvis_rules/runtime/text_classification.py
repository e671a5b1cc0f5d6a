"""Triton module: the class of a text.

Inputs: `TEXT` STRING [batch, 1].
Outputs: `CLASS` STRING [batch, 1] and `SCORE` FP32 [batch, 1], the best one and its probability;
`CLASS_NAMES` STRING and `CLASS_SCORES` FP32 [batch, classes], all in the order of the label file.
Parameters: those of `LanguageModule` and `LanguageEngine`, `labels_file`, `max_seq_length`
(tokens with [CLS] and [SEP]; what goes beyond is left out, as by NeMo 1.23's
TextClassificationDataset).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .language_engine import Row, softmax
from .language_module import LanguageModule, read_labels, string_rows
from .parameters import Parameters
from .serving import Answer
from .wordpiece import split_words

REQUIRES = ("numpy",)


class Text(NamedTuple):
    """A text as the engine takes it."""

    rows: list[Row]


class TritonPythonModel(LanguageModule):
    """What Triton's python backend runs."""

    name = "text_classification"

    def load(self, parameters: Parameters) -> None:
        """Read the labels and the longest row."""
        self._labels = read_labels(parameters.file("labels_file"))
        self._longest = parameters.integer("max_seq_length")

    def prepare(self, items: Sequence[tuple[str, ...]]) -> list[Text]:
        """Return a row for every text."""
        words = [[word.text for word in split_words(text)] for (text,) in items]
        start, end, longest = self.tokenizer.start, self.tokenizer.end, self._longest
        return [
            Text([Row([start, *pieces.ids[: longest - 2], end])])
            for pieces in self.tokenizer.encode(words)
        ]

    def finish(
        self, items: Sequence[Text], outputs: Sequence[list[list[NDArray[Any]]]]
    ) -> Sequence[NDArray[np.float64]]:
        """Return the probability of every class, for each text."""
        if not items:
            return []
        return list(softmax(np.stack([logits for ((logits,),) in outputs])))

    def tensors(self, results: Sequence[NDArray[np.float64]]) -> Answer:
        """Lay the results of one request out."""
        scores = np.array(results, np.float64).reshape(-1, len(self._labels))
        return {
            "CLASS": string_rows([[self._labels[best]] for best in scores.argmax(axis=1)]),
            "SCORE": scores.max(axis=1, keepdims=True).astype(np.float32),
            "CLASS_NAMES": string_rows([self._labels] * len(scores)),
            "CLASS_SCORES": scores.astype(np.float32),
        }
