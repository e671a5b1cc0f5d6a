"""The tokenizer of a CTC model on subwords: its configuration, its files and its labels."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)

KEYS: tuple[Key, ...] = (
    *used("type", "model_path", "vocab_path", "spe_tokenizer_vocab"),
    *ignored("where the files lay when the model was trained", "dir"),
    *neutral("special_tokens", None, reason="NeMo no longer knows others"),
    *neutral("hf_kwargs", None, {}, reason="tokens named here join the vocabulary"),
)
MODEL, VOCABULARY, PIECES = "tokenizer.model", "vocab.txt", "tokenizer.vocab"
"""Public names of the files; in a `.nemo` each has a random prefix."""


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """How labels become text, the files that say so by public name, and the labels of subwords."""

    kind: str = "character"
    files: Mapping[str, bytes] = field(default_factory=dict)
    labels: Sequence[str] = ()


def read_tokenizer(
    section: Section, labels: Sequence[str], artifact: Callable[[str], bytes]
) -> Tokenizer:
    """Return the SentencePiece or WordPiece tokenizer whose pieces are `labels`, in order.

    NeMo takes the classes from the tokenizer and forgets `decoder.vocabulary`, so both must agree.
    The first releases of NeMo 1 wrote the lines of `vocab.txt` there, which say `##` where the
    model says that no word begins; the labels of the tokenizer are the pieces of its model.
    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and what
    `artifact` raises. Source: NeMo 1.23 ASRBPEMixin.
    """
    kind = section.values.get("type")
    if not isinstance(kind, str) or kind.lower() not in ("bpe", "wpe"):
        refuse(section.at("type"), kind, "one of `bpe`, `wpe`")
    section.check(KEYS)
    vocabulary = artifact(_reference(section, "vocab_path", VOCABULARY))
    if kind.lower() == "wpe":
        tokens = _read_lines(vocabulary)
        # transformers gives special tokens that the file lacks numbers of their own behind it.
        _require_labels(labels[: len(tokens)], tokens, VOCABULARY)
        return Tokenizer("wordpiece", {VOCABULARY: vocabulary}, labels)
    model = artifact(_reference(section, "model_path", MODEL))
    pieces = _read_pieces(model)
    if list(labels) == ["<unk>", *_read_lines(vocabulary)] and len(labels) == len(pieces):
        labels = pieces
    _require_labels(labels, pieces, MODEL)
    files = {MODEL: model, VOCABULARY: vocabulary}
    if section.values.get("spe_tokenizer_vocab") is not None:  # older checkpoints lack it
        files[PIECES] = artifact(_reference(section, "spe_tokenizer_vocab", PIECES))
    return Tokenizer("sentencepiece", files, pieces)


def _reference(section: Section, key: str, default: str) -> str:
    value = section.values.get(key, default)
    if not isinstance(value, str):
        refuse(section.at(key), value, "the name of a file of the checkpoint")
    return value


def _require_labels(labels: Sequence[str], pieces: list[str], file: str) -> None:
    if len(labels) != len(pieces):
        found = f"{len(pieces)} pieces"
        refuse_contradiction("decoder.vocabulary", f"{len(labels)} labels", f"`{file}`", found)
    for i, (label, piece) in enumerate(zip(labels, pieces, strict=True)):
        if label != piece:
            where = f"piece {i} of `{file}`"
            refuse_contradiction(f"decoder.vocabulary[{i}]", label, where, piece)


def _read_lines(data: bytes) -> list[str]:
    # As transformers reads it: universal newlines, and equal tokens count once.
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8", errors="replace")
    return list(dict.fromkeys(line.rstrip("\n") for line in lines))


def _read_pieces(model: bytes) -> list[str]:
    """Return the pieces of a SentencePiece model, none where it cannot be read.

    Source: sentencepiece_model.proto; ModelProto.pieces = 1, SentencePiece.piece = 1.
    """
    try:
        pieces = [part for number, part in _fields(model) if number == 1]
        return [dict(reversed(list(_fields(piece))))[1].decode() for piece in pieces]
    except (LookupError, ValueError):
        return []


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of the fields of a protobuf message that hold bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == 2:
            size, at = _varint(data, at)
            if at + size > len(data):
                raise ValueError
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while data[at] & 0x80:
        number |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if shift > 63:
            raise ValueError
    return number | data[at] << shift, at + 1
