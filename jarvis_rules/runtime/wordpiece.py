"""BERT's WordPiece tokenizer, made of the vocabulary that a checkpoint carries.

HF `tokenizers` does the work: the ids are those of its `BertWordPieceTokenizer`, whose special
tokens (`[SEP]` …) are also found in the text, as NeMo finds them there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

REQUIRES = ("tokenizers",)

_UNKNOWN = "[UNK]"
_SPECIAL = (_UNKNOWN, "[SEP]", "[CLS]", "[PAD]", "[MASK]")
_LONGEST_WORD = 100
"""In characters; a longer one is unknown."""

_WORD = re.compile(r"\S+")


class Word(NamedTuple):
    """A word and where it stands in its text, in characters."""

    text: str
    start: int
    end: int


class Pieces(NamedTuple):
    """The ids of some words' pieces, one after another, and the number of each one's word."""

    ids: list[int]
    words: list[int]


class WordPiece:
    """Words to ids.

    Args:
        vocabulary: a token on each line; its id is the number of the line.
        lowercase: whether the model knows lower case only.
        strip_accents: whether accents are left out.

    Raises:
        ValueError: a token that every BERT needs is not in the vocabulary.

    """

    def __init__(self, vocabulary: Path, *, lowercase: bool, strip_accents: bool) -> None:
        ids = read_vocabulary(vocabulary)
        missing = [token for token in _SPECIAL[:-1] if token not in ids]
        if missing:
            raise ValueError(f"`{vocabulary}` lacks {', '.join(f'`{t}`' for t in missing)}")
        self.unknown, self.end, self.start, self.padding = (ids[t] for t in _SPECIAL[:-1])
        self._tokenizer = Tokenizer(
            models.WordPiece(vocab=ids, unk_token=_UNKNOWN, max_input_chars_per_word=_LONGEST_WORD)
        )
        self._tokenizer.normalizer = bert_normalizer(lowercase, strip_accents)
        self._tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        self._tokenizer.add_special_tokens([token for token in _SPECIAL if token in ids])

    def encode(self, texts: Sequence[Sequence[str]]) -> list[Pieces]:
        """Return the pieces of every text, which is given as its words; a word may have none."""
        encodings = self._tokenizer.encode_batch(
            [list(words) for words in texts], is_pretokenized=True, add_special_tokens=False
        )
        # Only what a post-processor adds belongs to no word, and there is none.
        return [Pieces(e.ids, [w for w in e.word_ids if w is not None]) for e in encodings]

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """Return the tokens of ids; one that goes on with a word begins with `##`."""
        return [self._tokenizer.id_to_token(number) or "" for number in ids]


def bert_normalizer(lowercase: bool, strip_accents: bool) -> normalizers.Normalizer:
    """Return what BERT does to a text before it is cut into pieces."""
    return normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=strip_accents,
        lowercase=lowercase,
    )


def read_vocabulary(path: Path) -> dict[str, int]:
    """Read a vocabulary as transformers does: of equal lines the last counts."""
    with path.open(encoding="utf-8") as lines:
        return {line.rstrip("\n"): number for number, line in enumerate(lines)}


def split_words(text: str) -> list[Word]:
    """Return what stands between white space, as `str.split` finds it, with its place."""
    return [Word(found.group(), *found.span()) for found in _WORD.finditer(text)]


def first_pieces(pieces: Pieces, words: int, unknown: int) -> tuple[list[int], list[int]]:
    """Return the ids of a text of `words` words, and where each word's first piece stands.

    A word without pieces, such as a lone control character, is `unknown`: NeMo 1.23 does so for
    token classification and intents, and loses the place of every later word for punctuation.
    """
    ids: list[int] = []
    first: list[int] = []
    place = 0
    for word in range(words):
        first.append(len(ids))
        while place < len(pieces.words) and pieces.words[place] == word:
            ids.append(pieces.ids[place])
            place += 1
        if len(ids) == first[-1]:
            ids.append(unknown)
    return ids, first
