"""Triton module: labels of words, and the entities that they make.

Inputs: `TEXT` STRING [batch, 1].
Outputs: `WORD_LABELS` STRING [batch, W] and `WORD_SCORES` FP32 [batch, W], the label of every
word and its probability; `ENTITY_LABELS` STRING, `ENTITY_TEXTS` STRING, `ENTITY_SCORES` FP32
[batch, E], `ENTITY_START_END` INT32 [batch, E, 2] (characters of the text). W and E: the most of
an item in the request; shorter rows are filled with empty strings, 0 and -1.
Parameters: those of `LanguageModule` and `LanguageEngine`, `labels_file`, `outside_label`,
`max_seq_length` (tokens with [CLS] and [SEP]; a longer text is refused).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from .language_module import LanguageModule, float_rows, read_labels, string_rows
from .parameters import Parameters
from .serving import Answer
from .word_labels import Span, TaggedText, best_labels, find_spans, prepare_words, span_tensors

REQUIRES = ("numpy",)


class Labelled(NamedTuple):
    """What was found in a text."""

    labels: list[str]
    scores: list[float]
    entities: list[Span]


class TritonPythonModel(LanguageModule):
    """What Triton's python backend runs."""

    name = "token_classification"

    def load(self, parameters: Parameters) -> None:
        """Read the labels and the longest row."""
        self._labels = read_labels(parameters.file("labels_file"))
        self._outside = parameters.text("outside_label")
        self._longest = parameters.integer("max_seq_length")

    def prepare(self, items: Sequence[tuple[str, ...]]) -> list[TaggedText | ValueError]:
        """Return a row for every text that is not too long."""
        return prepare_words(self.tokenizer, [text for (text,) in items], self._longest)

    def finish(
        self, items: Sequence[TaggedText], outputs: Sequence[list[list[NDArray[Any]]]]
    ) -> list[Labelled]:
        """Return the labels and entities of every text."""
        found = []
        for item, words in zip(
            items, best_labels(items, [logits for ((logits,),) in outputs]), strict=True
        ):
            labels = [self._labels[label] for label, _ in words]
            scores = [score for _, score in words]
            spans = find_spans(item.text, item.words, labels, scores, self._outside)
            found.append(Labelled(labels, scores, spans))
        return found

    def tensors(self, results: Sequence[Labelled]) -> Answer:
        """Lay the results of one request out."""
        return {
            "WORD_LABELS": string_rows([result.labels for result in results]),
            "WORD_SCORES": float_rows([result.scores for result in results]),
            **span_tensors("ENTITY", [result.entities for result in results]),
        }
