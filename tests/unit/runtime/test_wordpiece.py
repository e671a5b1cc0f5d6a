"""The WordPiece tokenizer against HF `tokenizers`' own BERT tokenizer, on any Unicode."""

from __future__ import annotations

import random
import sys

import pytest
from language_testing import VOCABULARY
from tokenizers import BertWordPieceTokenizer

from jarvis_rules.runtime.wordpiece import (
    Pieces,
    Word,
    WordPiece,
    first_pieces,
    read_vocabulary,
    split_words,
)

# Ranges of characters, the first of them what tokenizers treat specially.
POOLS = (
    (0x20, 0x7E), (0, 0xFF), (0x100, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x590, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1E00, 0x1FFF),
    (0x2000, 0x206F), (0x20D0, 0x20F0), (0x2E80, 0x30FF), (0x4E00, 0x4FFF), (0xAC00, 0xAC80),
    (0xE000, 0xE010), (0xF900, 0xFAFF), (0xFE00, 0xFE0F), (0xFFF0, 0xFFFF), (0x1D400, 0x1D4FF),
    (0x1F300, 0x1F64F), (0x20000, 0x20040), (0x2F800, 0x2F820), (0xE0100, 0xE0110),
)  # fmt: skip
SPECIAL = ["[SEP]", "[CLS]", "[UNK]", "[PAD]", "[MASK]", "[sep]", "[SEP", "##ing", "İ", "ſ", "Σ"]


def unicode_strings(count, seed):
    """Yield strings of every kind: plain, mixed, of one script, and 10 kB words."""
    draw = random.Random(seed)  # noqa: S311  (texts, not secrets)
    for number in range(count):
        if number % 100 == 99:
            yield draw.choice(["a", "é", "中", "😀", "play"]) * (10_000 // draw.choice([1, 4]))
            continue
        pools = draw.choices(POOLS, k=draw.choice([1, 1, 2, 4]))
        pieces = []
        for _ in range(draw.randrange(40)):
            kind = draw.random()
            if kind < 0.2:
                pieces.append(draw.choice([" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u3000"]))
            elif kind < 0.35:
                pieces.append(draw.choice([*VOCABULARY[6:], *SPECIAL]).removeprefix("##"))
            else:
                pieces.append(chr(draw.randint(*draw.choice(pools))))
        yield "".join(pieces)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("lowercase", [True, False], ids=["uncased", "cased"])
def test_ids_are_the_reference_s(vocabulary, lowercase):
    reference = BertWordPieceTokenizer(
        str(vocabulary), lowercase=lowercase, strip_accents=lowercase
    )
    ours = WordPiece(vocabulary, lowercase=lowercase, strip_accents=lowercase)
    strings = list(unicode_strings(2000, seed=1 + lowercase))
    expected = [reference.encode(text, add_special_tokens=False).ids for text in strings]
    assert [pieces.ids for pieces in ours.encode([[text] for text in strings])] == expected
    assert sum(map(len, expected)) > 20_000
    # Word by word, as the modules do it: Python finds a few more ends of words than BERT, which
    # drops these control characters.
    words = [[word.text for word in split_words(text)] for text in strings]
    joined = [" ".join(found) for found in words]
    expected = [reference.encode(text, add_special_tokens=False).ids for text in joined]
    assert [pieces.ids for pieces in ours.encode(words)] == expected


def test_ids_of_known_words(vocabulary):
    ours = WordPiece(vocabulary, lowercase=True, strip_accents=True)

    def tokens(text):
        return ours.pieces(ours.encode([[text]])[0].ids)

    assert tokens("Playing, Vera!") == ["play", "##ing", ",", "vera", "!"]
    assert tokens("Véra 中国") == ["vera", "中", "国"]
    assert tokens("a\u0000b\ufffd\u200dc") == ["a", "##b", "##c"]
    assert tokens("[SEP] [sep]")[:2] == ["[SEP]", "[UNK]"]
    assert tokens("play" * 26) == ["[UNK]"]
    assert tokens("\u2603") == ["[UNK]"]
    assert tokens("") == []


def test_cased_letters_stay(vocabulary):
    ours = WordPiece(vocabulary, lowercase=False, strip_accents=False)
    assert ours.pieces(ours.encode([["Play", "play", "é"]])[0].ids) == ["Play", "play", "é"]


def test_words_are_those_of_str_split():
    text = "".join(map(chr, range(sys.maxunicode + 1)))
    assert [word.text for word in split_words(text)] == text.split()
    found = split_words("  vera\u2003lives\x1cin \n lima")
    assert found[1] == Word("lives", 7, 12)
    assert [text for text, _, _ in found] == ["vera", "lives", "in", "lima"]


def test_first_pieces_of_words_without_pieces():
    ids, first = first_pieces(Pieces([7, 8, 9], [0, 0, 2]), 4, unknown=1)
    assert (ids, first) == ([7, 8, 1, 9, 1], [0, 2, 3, 4])
    assert first_pieces(Pieces([], []), 0, unknown=1) == ([], [])


def test_a_vocabulary_is_read_as_transformers_reads_it(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_bytes("a\r\nb\u2028c\na\n".encode())
    assert read_vocabulary(path) == {"a": 2, "b\u2028c": 1}


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("[PAD]\n[UNK]\na\n")
    with pytest.raises(ValueError, match=r"lacks `\[SEP\]`, `\[CLS\]`"):
        WordPiece(path, lowercase=True, strip_accents=True)
