"""Triton module: punctuation and capitals for plain lower-case words.

Inputs: `TEXT` STRING [batch, 1].
Outputs: `PUNCTUATED_TEXT` STRING [batch, 1]; `PUNCTUATION_LABELS` and `CAPITALIZATION_LABELS`
STRING [batch, W], of every word; W: the most words of an item in the request, shorter rows are
filled with empty strings.
Parameters: those of `LanguageModule` and `LanguageEngine`, `punct_labels_file`,
`capit_labels_file`, `pad_label` (changes nothing), `max_seq_length` (tokens of a window with [CLS]
and [SEP]), `step` (tokens from window to window), `margin` (tokens at an inner end of a window
that are not looked at). The engine's outputs are the logits of marks and of capitals.
Source: NeMo 1.23 PunctuationCapitalizationModel.add_punctuation_capitalization.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .language_engine import Row, log_softmax
from .language_module import LanguageModule, read_labels, string_rows
from .parameters import Parameters
from .serving import Answer
from .wordpiece import first_pieces

REQUIRES = ("numpy",)


class WindowedText(NamedTuple):
    """A text as the engine takes it.

    For each window: the places in its row that are looked at, and the words that they begin.
    """

    words: list[str]
    rows: list[Row]
    places: list[NDArray[np.int64]]
    numbers: list[NDArray[np.int64]]


class Punctuated(NamedTuple):
    """A text with marks and capitals, and the labels of its words."""

    text: str
    marks: list[str]
    capitals: list[str]


class TritonPythonModel(LanguageModule):
    """What Triton's python backend runs."""

    name = "punctuation"

    def load(self, parameters: Parameters) -> None:
        """Read the labels and how windows lie."""
        self._marks = read_labels(parameters.file("punct_labels_file"))
        self._capitals = read_labels(parameters.file("capit_labels_file"))
        self._pad_label = parameters.text("pad_label")
        self._length = parameters.integer("max_seq_length") - 2
        self._margin = parameters.integer("margin")
        # Windows must not leave words out between their margins.
        self._step = min(self._length - 2 * self._margin, parameters.integer("step"))
        if self._step < 1 or self._margin < 0:
            raise ValueError(
                f"model `{parameters.model}`: step {self._step} and margin {self._margin} leave "
                f"nothing of a window of {self._length + 2} tokens"
            )

    def prepare(self, items: Sequence[tuple[str, ...]]) -> list[WindowedText]:
        """Return the windows of every text."""
        words = [text.split() for (text,) in items]
        return [
            self._windows(found, *first_pieces(pieces, len(found), self.tokenizer.unknown))
            for found, pieces in zip(words, self.tokenizer.encode(words), strict=True)
        ]

    def finish(
        self, items: Sequence[WindowedText], outputs: Sequence[list[list[NDArray[Any]]]]
    ) -> list[Punctuated]:
        """Return every text with its marks and capitals."""
        marks = _best_labels(items, [[w[0] for w in rows] for rows in outputs], self._marks)
        capitals = _best_labels(items, [[w[1] for w in rows] for rows in outputs], self._capitals)
        return [self._punctuated(*found) for found in zip(items, marks, capitals, strict=True)]

    def tensors(self, results: Sequence[Punctuated]) -> Answer:
        """Lay the results of one request out."""
        return {
            "PUNCTUATED_TEXT": string_rows([[result.text] for result in results]),
            "PUNCTUATION_LABELS": string_rows([result.marks for result in results]),
            "CAPITALIZATION_LABELS": string_rows([result.capitals for result in results]),
        }

    def _windows(self, words: list[str], ids: list[int], first: list[int]) -> WindowedText:
        """Cut a text into windows of tokens; without words it needs none."""
        text = WindowedText(words, [], [], [])
        firsts = np.array(first, np.int64)
        starts = range(0, max(len(ids) - self._length, 0) + self._step, self._step)
        for start in starts if words else ():
            end = start + self._length
            row = [self.tokenizer.start, *ids[start:end], self.tokenizer.end]
            left = start + (self._margin if start else 0)
            right = end - (self._margin if start != starts[-1] else 0)
            numbers = np.arange(*np.searchsorted(firsts, [left, right]))
            text.rows.append(Row(row))
            text.places.append(firsts[numbers] - start + 1)
            text.numbers.append(numbers)
        return text

    def _punctuated(self, item: WindowedText, marks: list[str], capitals: list[str]) -> Punctuated:
        words = [
            (word if capital == self._pad_label else _capitalize(word))
            + ("" if mark == self._pad_label else mark)
            for word, mark, capital in zip(item.words, marks, capitals, strict=True)
        ]
        return Punctuated(" ".join(words), marks, capitals)


def _best_labels(
    items: Sequence[WindowedText], logits: Sequence[Sequence[NDArray[Any]]], labels: Sequence[str]
) -> list[list[str]]:
    """Return the label of every word of each text: the best of the product over its windows.

    `logits` are those of each window, [tokens, labels].
    """
    ends = list(accumulate(len(item.words) for item in items))
    looked_at, numbers = [], []
    for item, end, windows in zip(items, ends, logits, strict=True):
        for place, number, values in zip(item.places, item.numbers, windows, strict=True):
            looked_at.append(values[place])
            numbers.append(number + (end - len(item.words)))
    if not looked_at:
        return [[] for _ in items]
    scores = log_softmax(np.concatenate(looked_at))
    words = np.concatenate(numbers)
    summed = np.stack([np.bincount(words, column, ends[-1]) for column in scores.T], axis=1)
    best = [labels[place] for place in summed.argmax(axis=1)]
    return [best[end - len(item.words) : end] for item, end in zip(items, ends, strict=True)]


def _capitalize(word: str) -> str:
    """Return a word with a capital and the rest in lower case.

    Left as it is where lower case would not give the word back: a ligature would become two
    letters.
    """
    capital = word.capitalize()
    return capital if capital.lower() == word.lower() else word
