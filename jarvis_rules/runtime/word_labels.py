"""Labels of words, and the spans that they make: for named entities and slots.

NeMo 1.23 looks at the first piece of each word (`subtokens_mask`) and takes its best label.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import accumulate, groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .language_engine import Row, softmax
from .language_module import float_rows, place_rows, string_rows
from .serving import Answer
from .wordpiece import Word, WordPiece, first_pieces, split_words

REQUIRES = ("numpy",)


class TaggedText(NamedTuple):
    """A text as the engine takes it; `first` is where each word's first piece stands."""

    text: str
    words: list[Word]
    first: list[int]
    rows: list[Row]


class Span(NamedTuple):
    """Words of one kind: a slice of the text, and the mean probability of its words' labels."""

    label: str
    text: str
    start: int
    end: int
    score: float


def prepare_words(
    tokenizer: WordPiece, texts: Sequence[str], longest: int
) -> list[TaggedText | ValueError]:
    """Return a row for every text; for one of more than `longest` tokens why there is none."""
    words = [split_words(text) for text in texts]
    encoded = tokenizer.encode([[word.text for word in found] for found in words])
    prepared: list[TaggedText | ValueError] = []
    for text, found, pieces in zip(texts, words, encoded, strict=True):
        ids, first = first_pieces(pieces, len(found), tokenizer.unknown)
        if len(ids) + 2 > longest:
            reason = f"the text has {len(ids) + 2} tokens, at most {longest}: divide it"
            prepared.append(ValueError(reason))
            continue
        row = Row([tokenizer.start, *ids, tokenizer.end])
        prepared.append(TaggedText(text, found, [place + 1 for place in first], [row]))
    return prepared


def best_labels(
    items: Sequence[TaggedText], logits: Sequence[NDArray[Any]]
) -> list[list[tuple[int, float]]]:
    """Return label and probability of every word of each text, given logits [tokens, labels]."""
    if not items:
        return []
    firsts = [values[item.first] for item, values in zip(items, logits, strict=True)]
    scores = softmax(np.concatenate(firsts))
    words = zip(scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist(), strict=True)
    return [[next(words) for _ in item.words] for item in items]


def find_spans(
    text: str, words: Sequence[Word], labels: Sequence[str], scores: Sequence[float], outside: str
) -> list[Span]:
    """Return the spans of a text.

    `B-x` begins a span of kind `x`; `I-x` goes on with one, or begins one after anything else.
    Equal labels without such a prefix, one after another, are one span. A mark at the end of the
    last word stays out, as NeMo 1.23 writes a label before it.
    """
    begins, kinds = [], []
    for place, label in enumerate(labels):
        prefix, dash, kind = label.partition("-")
        marked = bool(dash) and prefix in {"B", "I"}
        kinds.append(kind if marked else label)
        same = place > 0 and kinds[place - 1] == kinds[place] and labels[place - 1] != outside
        begins.append(not same or (marked and prefix == "B"))
    numbers = list(accumulate(begins))
    spans = []
    for _, group in groupby(range(len(words)), numbers.__getitem__):
        places = list(group)
        if labels[places[0]] == outside:
            continue
        start, end = words[places[0]].start, words[places[-1]].end
        last = words[places[-1]].text
        if len(last) > 1 and unicodedata.category(last[-1]).startswith("P"):
            end -= 1
        score = sum(scores[place] for place in places) / len(places)
        spans.append(Span(kinds[places[0]], text[start:end], start, end, score))
    return spans


def span_tensors(name: str, spans: Sequence[Sequence[Span]]) -> Answer:
    """Lay the spans of one request out, `name` in front of the tensors' names."""
    return {
        f"{name}_LABELS": string_rows([[span.label for span in row] for row in spans]),
        f"{name}_TEXTS": string_rows([[span.text for span in row] for row in spans]),
        f"{name}_START_END": place_rows([[(s.start, s.end) for s in row] for row in spans]),
        f"{name}_SCORES": float_rows([[span.score for span in row] for row in spans]),
    }
