"""Tokenizer and labels of a language model: what its configuration names and its archive holds."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from typing import Any, NamedTuple

from jarvis_rules.errors import IntegrityError
from jarvis_rules.exporters._bert_config import refuse_megatron
from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)

VOCABULARY = "vocab.txt"
TOKENIZER_KEYS: tuple[Key, ...] = (
    *used("tokenizer_name", "vocab_file"),
    *neutral("special_tokens", None, {}, reason="they would rename tokens of the vocabulary"),
    *ignored("of SentencePiece, which no BERT uses", "tokenizer_model"),
)
_SPECIAL = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]"}
_OTHER_TOKENIZERS = ("sentencepiece", "yttm", "word", "char", "regex")


class Labels(NamedTuple):
    """Labels in the order of their ids, and the place that gave them."""

    where: str
    names: list[str]


def read_tokenizer(
    tokenizer: Section, artifact: Callable[[str], bytes], rows: int
) -> tuple[dict[str, Any], bytes]:
    """Return the facts of a WordPiece tokenizer and its vocabulary, a token on each line.

    Letter case is not in the archive: the name says it, as it does for every BERT and DistilBERT
    that transformers knows. `rows` is the number of word embeddings. Source: NeMo 1.23
    `get_tokenizer`, transformers 4.36 BertTokenizer.
    """
    tokenizer.check(TOKENIZER_KEYS)
    name = tokenizer.values.get("tokenizer_name")
    if not isinstance(name, str) or name in _OTHER_TOKENIZERS:
        refuse(tokenizer.at("tokenizer_name"), name, "the name of a BERT or DistilBERT")
    refuse_megatron(tokenizer.at("tokenizer_name"), name)
    lowercase = _is_lowercase(tokenizer.at("tokenizer_name"), name)
    file = tokenizer.values.get("vocab_file")
    if not isinstance(file, str) or not file:
        refuse(tokenizer.at("vocab_file"), file, "the name of the vocabulary in the archive")
    data = artifact(file)
    ids = _read_vocabulary(tokenizer.at("vocab_file"), file, data)
    if max(ids.values()) >= rows:
        other = "the number of word embeddings"
        refuse_contradiction(tokenizer.at("vocab_file"), f"{len(ids)} tokens", other, rows)
    facts = {
        "kind": "wordpiece",
        "vocab": VOCABULARY,
        "lowercase": lowercase,
        "strip_accents": lowercase,
        **{f"{kind}_id": ids[token] for kind, token in _SPECIAL.items()},
    }
    return facts, data


def _is_lowercase(key: str, name: str) -> bool:
    base = name.rpartition("/")[2].lower()
    if "cased" not in base and base != "bert-base-chinese":
        refuse(key, name, "a name that says `cased` or `uncased`")
    return "uncased" in base


def _read_vocabulary(key: str, file: str, data: bytes) -> dict[str, int]:
    # As a text file and not by `splitlines`, for which more characters end a line.
    lines = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    try:
        ids = {line.rstrip("\n"): index for index, line in enumerate(lines)}
    except UnicodeDecodeError:
        ids = {}
    missing = [token for token in _SPECIAL.values() if token not in ids]
    if missing:
        refuse(key, file, f"a text file that holds {', '.join(f'`{t}`' for t in missing)}")
    return ids


def labels_in_file(
    config: Section, key: str, keys: Sequence[Key], artifact: Callable[[str], bytes]
) -> list[Labels]:
    """Return the labels of the file that `class_labels.<key>` names, a label on each line.

    Nothing where there is none: a plain name is what training was told to write, and the archive
    need not hold that. `keys` are those of `class_labels`.
    """
    if not config.values.get("class_labels"):
        return []
    section = config.section("class_labels")
    section.check(keys)
    file = section.values.get(key)
    if not file:
        return []
    if not isinstance(file, str):
        refuse(section.at(key), file, "the name of a file in the archive")
    try:
        text = artifact(file).decode()
    except IntegrityError as error:
        if error.slug != "nemo.missing-artifact" or file.startswith("nemo:"):
            raise
        return []
    except UnicodeDecodeError:
        refuse(section.at(key), file, "a text file with a label on each line")
    return [_checked(section.at(key), [line.strip() for line in text.rstrip().split("\n")])]


def labels_by_id(section: Section, key: str) -> list[Labels]:
    """Return the labels of a mapping from label to id under `key`, or nothing."""
    value = section.values.get(key)
    if not value:
        return []
    if not isinstance(value, Mapping) or sorted(
        id_ if type(id_) is int else -1 for id_ in value.values()
    ) != list(range(len(value))):
        refuse(section.at(key), value, "a mapping from labels to the ids 0, 1, 2 …")
    return [_checked(section.at(key), sorted(value, key=value.__getitem__))]


def labels_in_order(section: Section, key: str) -> list[Labels]:
    """Return the labels of a list under `key`, or nothing."""
    value = section.values.get(key)
    if not value:
        return []
    if not isinstance(value, list | tuple):
        refuse(section.at(key), value, "a list of labels")
    return [_checked(section.at(key), list(value))]


def agreed_labels(key: str, found: list[Labels]) -> list[str]:
    """Return the labels that all places give; `key` is the place to name where there is none."""
    if not found:
        refuse(key, None, "the labels, or the name of their file in the archive")
    first, *others = found
    for other in others:
        for index, (expected, name) in enumerate(zip_longest(first.names, other.names)):
            if name != expected:
                place = f"{other.where}[{index}]"
                refuse_contradiction(place, name, f"`{first.where}`", expected)
    return first.names


def dump_labels(labels: list[str]) -> bytes:
    """Return a label file as NeMo writes it: a label on each line, in the order of their ids."""
    return "\n".join(labels).encode()


def _checked(where: str, names: list[Any]) -> Labels:
    if not all(map(_is_label, names)) or len(set(names)) != len(names):
        refuse(where, names, "different labels, each of them a line of text")
    return Labels(where, names)


def _is_label(name: object) -> bool:
    if not isinstance(name, str) or name.splitlines() != [name] or name.strip() != name:
        return False
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # such text has no bytes
