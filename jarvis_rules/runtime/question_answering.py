"""Answers as slices of a context: windows, candidates, and the rule for no answer.

Source: NeMo 1.23 SquadDataset.convert_examples_to_features and get_predictions, get_final_text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from .language_engine import Row, softmax
from .wordpiece import Pieces, Word, WordPiece, bert_normalizer

REQUIRES = ("numpy", "tokenizers")

_WORD = re.compile("[^ \t\r\n\u202f]+")
"""What NeMo takes for a word of a context."""

_NORMALIZERS = {lowercase: bert_normalizer(lowercase, lowercase) for lowercase in (True, False)}
_CUTTER = pre_tokenizers.BertPreTokenizer()


class Settings(NamedTuple):
    """How to look for an answer; the names are NeMo's."""

    max_seq_length: int
    max_query_length: int
    doc_stride: int
    max_answer_length: int
    n_best_size: int
    version_2_with_negative: bool
    null_score_diff_threshold: float
    do_lower_case: bool


class Window(NamedTuple):
    """A piece of a context in a row: where its tokens stand there, and which ones they are.

    `widest` says of which tokens no other window shows more on both sides.
    """

    offset: int
    start: int
    length: int
    widest: NDArray[np.bool_]


class Question(NamedTuple):
    """A question and its context as the engine takes them."""

    context: str
    words: list[Word]
    pieces: Pieces
    windows: list[Window]
    rows: list[Row]


class Answer(NamedTuple):
    """A slice of the context, and its probability among all answers; empty: no answer."""

    text: str
    start: int
    end: int
    score: float


class Candidates(NamedTuple):
    """Spans of tokens of the context, first to last, and the sum of their logits."""

    first: NDArray[np.int64]
    last: NDArray[np.int64]
    score: NDArray[np.float64]


def context_words(context: str) -> list[Word]:
    """Return the words of a context with their places."""
    return [Word(found.group(), *found.span()) for found in _WORD.finditer(context)]


def place_windows(tokens: int, longest: int, stride: int) -> list[tuple[int, int]]:
    """Return start and length of each window on a context of so many tokens."""
    windows = []
    start = 0
    while start < tokens:
        length = min(tokens - start, longest)
        windows.append((start, length))
        if start + length == tokens:
            break
        start += min(length, stride)
    return windows


def widest_windows(tokens: int, windows: Sequence[tuple[int, int]]) -> NDArray[np.int64]:
    """Return the window of each token that shows most on both of its sides; -1: none does."""
    best = np.full(tokens, -1.0)
    widest = np.full(tokens, -1)
    for number, (start, length) in enumerate(windows):
        left = np.arange(length)
        score = np.minimum(left, length - 1 - left) + 0.01 * length
        better = score > best[start : start + length]
        best[start : start + length][better] = score[better]
        widest[start : start + length][better] = number
    return widest


def prepare_question(
    tokenizer: WordPiece,
    context: str,
    words: list[Word],
    question: Pieces,
    pieces: Pieces,
    settings: Settings,
) -> Question:
    """Return the rows of a question; ValueError where it leaves no room for its context."""
    asked = question.ids[: settings.max_query_length]
    longest = settings.max_seq_length - len(asked) - 3
    if longest < 1:
        raise ValueError(
            f"the question has {len(asked)} tokens, which leaves none of "
            f"{settings.max_seq_length} for the context"
        )
    head = [tokenizer.start, *asked, tokenizer.end]
    places = place_windows(len(pieces.ids), longest, settings.doc_stride)
    widest = widest_windows(len(pieces.ids), places)
    windows, rows = [], []
    for number, (start, length) in enumerate(places):
        inside = slice(start, start + length)
        windows.append(Window(len(head), start, length, widest[inside] == number))
        rows.append(Row([*head, *pieces.ids[inside], tokenizer.end], len(head)))
    return Question(context, words, pieces, windows, rows)


def find_answers(
    question: Question, outputs: Sequence[NDArray[Any]], tokenizer: WordPiece, settings: Settings
) -> list[Answer]:
    """Return the answers of a question, the one that NeMo predicts first, then by score.

    `outputs` are the logits [tokens, 2] of each row, padding included. Where NeMo 1.23 finds no
    span and answers `empty`, a word that need not stand in the context, this answers nothing.
    """
    logits = [output.astype(np.float64) for output in outputs]
    found = [
        _candidates(window, values, settings)
        for window, values in zip(question.windows, logits, strict=True)
    ]
    if not found:
        return []
    joined = Candidates(*map(np.concatenate, zip(*found, strict=True)))
    null = min(values[0].sum() for values in logits) if settings.version_2_with_negative else None
    best: dict[str, tuple[int, int, float]] = {}
    for place in np.argsort(-joined.score, kind="stable"):
        score = float(joined.score[place])
        if null is not None and null > score:
            best.setdefault("", (0, 0, null))
        if len(best) >= settings.n_best_size:
            break
        text, start, end = _slice(question, joined, place, tokenizer, settings.do_lower_case)
        best.setdefault(text, (start, end, score))
    if null is not None:
        best.setdefault("", (0, 0, null))
    if not best:
        return []
    scores = softmax(np.array([score for _, _, score in best.values()]))
    answers = [
        Answer(question.context[start:end], start, end, float(score))
        for (start, end, _), score in zip(best.values(), scores, strict=True)
    ]
    spans = [place for place, answer in enumerate(answers) if answer.text]
    first = spans[0] if spans else 0
    if null is not None and spans:
        difference = null - list(best.values())[first][2]
        if difference > settings.null_score_diff_threshold:
            first = list(best).index("")
    return [answers.pop(first), *answers]


def _candidates(window: Window, logits: NDArray[np.float64], settings: Settings) -> Candidates:
    """Return the spans of a window that may be an answer, in NeMo's order."""
    # NeMo picks among all places, padding and question too, and only then looks what they are.
    picked = np.argsort(logits, axis=0, kind="stable")[::-1][: settings.n_best_size] - window.offset
    starts, ends = (column[(column >= 0) & (column < window.length)] for column in picked.T)
    starts = starts[window.widest[starts]]
    first, last = np.repeat(starts, len(ends)), np.tile(ends, len(starts))
    fits = (last >= first) & (last - first < settings.max_answer_length)
    first, last = first[fits], last[fits]
    score = logits[first + window.offset, 0] + logits[last + window.offset, 1]
    return Candidates(first + window.start, last + window.start, score)


def _slice(
    question: Question, found: Candidates, place: int, tokenizer: WordPiece, lowercase: bool
) -> tuple[str, int, int]:
    """Return a candidate as NeMo writes it, and its characters in the context."""
    first, last = int(found.first[place]), int(found.last[place])
    pieces = question.pieces
    tokens = " ".join(tokenizer.pieces(pieces.ids[first : last + 1]))
    text = " ".join(tokens.replace(" ##", "").replace("##", "").split())
    words = question.words[pieces.words[first] : pieces.words[last] + 1]
    joined = " ".join(word.text for word in words)
    start, end = project(text, joined, lowercase)
    places = [at for word in words for at in (*range(word.start, word.end), word.end)]
    return joined[start:end], places[start], places[end - 1] + 1


def project(text: str, words: str, lowercase: bool) -> tuple[int, int]:
    """Return the characters of `words` that pieces put together as `text` stand for.

    All of `words` where the two cannot be brought together. Source: NeMo 1.23 get_final_text.
    """
    everything = 0, len(words)
    normalized = _NORMALIZERS[lowercase].normalize_str(words)
    cut = _CUTTER.pre_tokenize_str(normalized)
    cleaned = " ".join(token for token, _ in cut)
    start = cleaned.find(text)
    if start < 0 or not text:
        return everything
    letters = [place for place, letter in enumerate(words) if letter != " "]
    if len(letters) != len(cleaned) - cleaned.count(" "):
        return everything
    before = start - cleaned.count(" ", 0, start)
    inside = len(text) - text.count(" ")
    return letters[before], letters[before + inside - 1] + 1
