"""Triton module: the intent of a sentence, and its slots.

Inputs: `TEXT` STRING [batch, 1].
Outputs: `INTENT` STRING [batch, 1] and `INTENT_SCORE` FP32 [batch, 1], the best one and its
probability; `WORD_LABELS` STRING [batch, W] and `WORD_SCORES` FP32 [batch, W], the slot label of
every word; `SLOT_LABELS` STRING, `SLOT_TEXTS` STRING, `SLOT_SCORES` FP32 [batch, S],
`SLOT_START_END` INT32 [batch, S, 2] (characters of the text). W and S: the most of an item in the
request; shorter rows are filled with empty strings, 0 and -1.
Parameters: those of `LanguageModule` and `LanguageEngine`, `intent_labels_file`,
`slot_labels_file`, `outside_label`, `max_seq_length` (tokens with [CLS] and [SEP]; a longer text
is refused). The engine's outputs are the logits of intents and of slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .language_engine import softmax
from .language_module import LanguageModule, float_rows, read_labels, string_rows
from .parameters import Parameters
from .serving import Answer
from .word_labels import Span, TaggedText, best_labels, find_spans, prepare_words, span_tensors

REQUIRES = ("numpy",)


class Understood(NamedTuple):
    """What was found in a sentence."""

    intent: str
    score: float
    labels: list[str]
    scores: list[float]
    slots: list[Span]


class TritonPythonModel(LanguageModule):
    """What Triton's python backend runs."""

    name = "intent_slot"

    def load(self, parameters: Parameters) -> None:
        """Read the labels and the longest row."""
        self._intents = read_labels(parameters.file("intent_labels_file"))
        self._slots = read_labels(parameters.file("slot_labels_file"))
        self._outside = parameters.text("outside_label")
        self._longest = parameters.integer("max_seq_length")

    def prepare(self, items: Sequence[tuple[str, ...]]) -> list[TaggedText | ValueError]:
        """Return a row for every text that is not too long."""
        return prepare_words(self.tokenizer, [text for (text,) in items], self._longest)

    def finish(
        self, items: Sequence[TaggedText], outputs: Sequence[list[list[NDArray[Any]]]]
    ) -> list[Understood]:
        """Return intent and slots of every text."""
        if not items:
            return []
        intents = softmax(np.stack([intent for ((intent, _),) in outputs]))
        slots = best_labels(items, [slot for ((_, slot),) in outputs])
        found = []
        for item, intent, words in zip(items, intents, slots, strict=True):
            labels = [self._slots[label] for label, _ in words]
            scores = [score for _, score in words]
            spans = find_spans(item.text, item.words, labels, scores, self._outside)
            best = int(intent.argmax())
            found.append(
                Understood(self._intents[best], float(intent[best]), labels, scores, spans)
            )
        return found

    def tensors(self, results: Sequence[Understood]) -> Answer:
        """Lay the results of one request out."""
        return {
            "INTENT": string_rows([[result.intent] for result in results]),
            "INTENT_SCORE": float_rows([[result.score] for result in results]),
            "WORD_LABELS": string_rows([result.labels for result in results]),
            "WORD_SCORES": float_rows([result.scores for result in results]),
            **span_tensors("SLOT", [result.slots for result in results]),
        }
