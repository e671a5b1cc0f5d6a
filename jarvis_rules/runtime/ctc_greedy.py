"""Greedy CTC decoding as in NeMo 1.23 (`GreedyCTCInfer`, `CTCDecoding.decode_hypothesis`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUIRES = ("numpy",)

_UNKNOWN_PIECE = "<unk>"
_UNKNOWN_TEXT = " ⁇ "
"""How SentencePiece shows a piece that it does not know."""

_CLOSING_MARKS = ".,?"
"""NeMo 1.23 drops white space before these."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word, when it was said (ms), and the sum of the log-probabilities of its frames."""

    text: str
    start_ms: int
    end_ms: int
    score: float


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A transcript, the sum of log-probabilities of all frames that are not blank, the words."""

    transcript: str
    score: float
    words: tuple[Word, ...]


@dataclass(frozen=True, slots=True)
class _Runs:
    """Consecutive frames of one class that is not blank."""

    classes: list[int]
    starts: list[int]
    ends: list[int]
    scores: list[float]


def decode(
    logprobs: NDArray[np.float32],
    lengths: NDArray[np.int64],
    labels: Sequence[str],
    blank_id: int,
    ms_per_timestep: float,
    *,
    word_separator: str = " ",
    delay: int = 0,
) -> list[Hypothesis]:
    """Take the best class of every frame, collapse repeats, drop blanks, join.

    Args:
        logprobs: [B, T, V] natural-log probabilities, float32. Frames past an item's length are not
            looked at.
        lengths: [B] valid frames, integers.
        labels: text of each class. If blank is the last class it may be left out.
        blank_id: the class that stands for nothing.
        ms_per_timestep: milliseconds from one frame to the next.
        word_separator: " " for characters: the transcript is the labels joined, as it comes, spaces
            at its ends included. For SentencePiece labels the mark of a word's start: it is shown
            as a space, except at the start of the transcript, and `<unk>` as " ⁇ ".
        delay: frames by which the model answers late: words are moved earlier by so many, at most
            to the start.

    Returns:
        One hypothesis per item. Of equal log-probabilities the first class wins, as in torch. White
        space before `.`, `,` and `?` is dropped, as in NeMo. Words are what stands between spaces,
        from the first frame of the first character to the end of the last frame of the last.

    Raises:
        ValueError: shapes, lengths or labels don't fit together, or a valid frame holds NaN.

    """
    _check(logprobs, lengths, labels, blank_id)

    def to_ms(frame: int) -> int:
        return round(max(frame - delay, 0) * ms_per_timestep)

    if not logprobs.size:
        return [Hypothesis("", 0.0, ()) for _ in lengths]
    best_classes = logprobs.argmax(axis=2)
    best_scores = logprobs.max(axis=2)
    hypotheses = []
    for item, length in enumerate(lengths.tolist()):
        scores = best_scores[item, :length].astype(np.float64)
        if np.isnan(scores).any():
            frame = int(np.argmax(np.isnan(scores)))
            raise ValueError(f"item {item}: log-probabilities are NaN at frame {frame}")
        runs = _collapse(best_classes[item, :length], scores, blank_id)
        characters = _characters([labels[label] for label in runs.classes], word_separator)
        hypotheses.append(
            Hypothesis(
                transcript="".join(text for text, _ in characters),
                score=float(sum(runs.scores)),
                words=tuple(_words(characters, runs, to_ms)),
            )
        )
    return hypotheses


def _check(
    logprobs: NDArray[Any], lengths: NDArray[Any], labels: Sequence[str], blank_id: int
) -> None:
    if logprobs.ndim != 3 or lengths.shape != logprobs.shape[:1]:
        raise ValueError(
            "log-probabilities must be [B, T, V] and lengths [B], "
            f"got {list(logprobs.shape)} and {list(lengths.shape)}"
        )
    _, frames, classes = logprobs.shape
    blank_is_last = blank_id == classes - 1 and len(labels) == classes - 1
    if not blank_is_last and not (len(labels) == classes and 0 <= blank_id < classes):
        raise ValueError(f"{classes} classes don't fit {len(labels)} labels with blank {blank_id}")
    wrong = (lengths < 0) | (lengths > frames)
    if wrong.any():
        raise ValueError(f"length must be 0 to {frames}, got {int(lengths[wrong][0])}")


def _collapse(classes: NDArray[np.intp], scores: NDArray[np.float64], blank_id: int) -> _Runs:
    if not classes.size:
        return _Runs([], [], [], [])
    starts = np.concatenate(([0], np.flatnonzero(classes[1:] != classes[:-1]) + 1))
    ends = np.append(starts[1:], classes.size)
    sums = np.add.reduceat(scores, starts)
    kept = classes[starts] != blank_id
    return _Runs(
        classes[starts][kept].tolist(),
        starts[kept].tolist(),
        ends[kept].tolist(),
        sums[kept].tolist(),
    )


def _characters(pieces: list[str], word_separator: str) -> list[tuple[str, int]]:
    """Return every character of the transcript with the index of the piece it comes from."""
    characters: list[tuple[str, int]] = []
    spaces: list[tuple[str, int]] = []
    for index, piece in enumerate(pieces):
        text = piece
        if word_separator != " ":
            text = _shown(piece, word_separator, first=not characters and not spaces)
        for character in text:
            if character.isspace():
                spaces.append((character, index))
                continue
            if character not in _CLOSING_MARKS:
                characters += spaces
            spaces.clear()
            characters.append((character, index))
    return characters + spaces


def _shown(piece: str, word_separator: str, *, first: bool) -> str:
    if piece == _UNKNOWN_PIECE:
        return _UNKNOWN_TEXT
    if first:
        while piece.startswith(word_separator):
            piece = piece[len(word_separator) :]
    return piece.replace(word_separator, " ")


def _words(
    characters: list[tuple[str, int]], runs: _Runs, to_ms: Callable[[int], int]
) -> Iterator[Word]:
    for is_space, group in groupby(characters, key=lambda pair: pair[0] == " "):
        if is_space:
            continue
        word = list(group)
        first, last = word[0][1], word[-1][1]
        yield Word(
            text="".join(character for character, _ in word),
            start_ms=to_ms(runs.starts[first]),
            end_ms=to_ms(runs.ends[last]),
            score=sum(runs.scores[index] for index in dict.fromkeys(index for _, index in word)),
        )
