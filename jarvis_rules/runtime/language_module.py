"""What the Triton modules for text share: from requests to rows of an engine, and back.

The texts of all requests of one call are tokenized, run and finished together, since requests of
different users come as batches. A request that cannot be used is answered alone, with its error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from .language_engine import LanguageEngine, Row
from .parameters import Parameters
from .serving import Answer, answer_together, check_tensors, input_texts
from .wordpiece import WordPiece

REQUIRES = ("numpy",)

MOST_ROWS = 4096
LONGEST_TEXT = 1 << 22
"""Rows of one item, and characters of a text: what a request may ask of the server."""


class Prepared(Protocol):
    """An item of a request, ready for the engine."""

    @property
    def rows(self) -> Sequence[Row]:
        """The rows that it needs."""


class LanguageModule(ABC):
    """A Triton model for text: tokenizer, calls of the engine, post-processing.

    A subclass names its text inputs and says how texts become rows, and the engine's outputs
    results and tensors.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ("TEXT",)

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load tokenizer, parameters and engine; an exception fails the load with its text."""
        check_tensors()
        parameters = Parameters(args)
        self.tokenizer = WordPiece(
            parameters.file("vocab_file"),
            lowercase=parameters.boolean("to_lower"),
            strip_accents=parameters.boolean("strip_accents"),
        )
        self.load(parameters)
        self.engine = LanguageEngine(parameters, self.tokenizer.padding, self.row_width)

    def execute(self, requests: list[object]) -> list[object]:
        """Answer all requests, together where that is possible."""
        return answer_together(requests, self._read, self._answer, self.name)

    row_width = 0
    """The tokens that every row is filled to; 0: no more than the longest of a call needs."""

    @abstractmethod
    def load(self, parameters: Parameters) -> None:
        """Read the module's own parameters and files."""

    @abstractmethod
    def prepare(self, items: Sequence[tuple[str, ...]]) -> Sequence[Any]:
        """Return what each item, its texts in the order of `inputs`, needs of the engine.

        In the place of an item that cannot be answered stands the `ValueError` that says why.
        """

    @abstractmethod
    def finish(
        self, items: Sequence[Any], outputs: Sequence[list[list[NDArray[Any]]]]
    ) -> Sequence[Any]:
        """Return the result of every item, given what the engine says of each of its rows."""

    @abstractmethod
    def tensors(self, results: Sequence[Any]) -> Answer:
        """Lay the results of one request out as its output tensors."""

    def _read(self, request: object) -> list[tuple[str, ...]]:
        columns = [input_texts(request, name) for name in self.inputs]
        if len({len(column) for column in columns}) > 1:
            raise ValueError("inputs must have the same batch size")
        for name, column in zip(self.inputs, columns, strict=True):
            for item, text in enumerate(column):
                if len(text) > LONGEST_TEXT:
                    raise ValueError(
                        f"item {item}: `{name}` has {len(text)} characters, at most {LONGEST_TEXT}"
                    )
        return list(zip(*columns, strict=True))

    def _answer(self, requests: list[list[tuple[str, ...]]]) -> list[Answer | Exception]:
        """Return the tensors of every request, or why it has none."""
        prepared = iter(self.prepare([item for request in requests for item in request]))
        faults: dict[int, ValueError] = {}
        groups: list[list[Prepared]] = []
        for number, request in enumerate(requests):
            group: list[Prepared] = []
            for index, item in zip(range(len(request)), prepared, strict=False):
                try:
                    group.append(_checked(item))
                except ValueError as error:
                    faults.setdefault(number, ValueError(f"item {index}: {error}"))
            groups.append([] if number in faults else group)
        items = [item for group in groups for item in group]
        rows = iter(self.engine.run([row for item in items for row in item.rows]))
        outputs = [[next(rows) for _ in item.rows] for item in items]
        results = iter(self.finish(items, outputs))
        return [
            faults.get(number) or self.tensors([next(results) for _ in group])
            for number, group in enumerate(groups)
        ]


def _checked(item: Any) -> Prepared:
    if isinstance(item, ValueError):
        raise item
    if len(item.rows) > MOST_ROWS:
        raise ValueError(f"the text needs {len(item.rows)} windows, at most {MOST_ROWS}: divide it")
    prepared: Prepared = item
    return prepared


def read_labels(path: Path) -> list[str]:
    """Read a label file: a label on each line, in the order of their ids."""
    return path.read_text(encoding="utf-8").split("\n")


def string_rows(rows: Sequence[Sequence[str]]) -> NDArray[Any]:
    """Return texts as STRING [rows, most texts of a row], shorter rows filled with empty ones."""
    width = max(map(len, rows), default=0)
    array = np.full((len(rows), width), b"", np.object_)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = [text.encode() for text in row]
    return array


def float_rows(rows: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """Return numbers as FP32 [rows, most numbers of a row], filled with 0."""
    array = np.zeros((len(rows), max(map(len, rows), default=0)), np.float32)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array


def place_rows(rows: Sequence[Sequence[tuple[int, int]]]) -> NDArray[np.int32]:
    """Return starts and ends as INT32 [rows, most of a row, 2], filled with -1."""
    array = np.full((len(rows), max(map(len, rows), default=0), 2), -1, np.int32)
    for place, row in zip(array, rows, strict=True):
        if row:
            place[: len(row)] = row
    return array
