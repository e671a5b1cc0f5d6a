"""The text front end of FastPitch: where each NeMo kept it, and how many ids it makes.

Semantics: NeMo 1.23 FastPitchModel; for `train_ds.dataset.vocab` the Chars and Phonemes of
NeMo 1.0 to 1.6 (nemo.collections.asr.data.vocabs).
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._tts_tokenizer import (
    CONSONANTS,
    PUNCTUATION,
    VOWELS,
    read_tts_tokenizer,
)

VOCAB_KEYS: tuple[Key, ...] = (
    *used("notation", "punct", "stresses", "chars", "spaces", "add_blank_at", "pad_with_space"),
    *used("improved_version_g2p"),
    *ignored("NeMo 1.0 to 1.6 did not pack the dictionary", "phoneme_dict_path"),
)


@dataclass(frozen=True, slots=True)
class Text:
    """How text becomes ids: rows of the embedding, id of the padding, facts and their files."""

    rows: int
    pad_id: int
    facts: Mapping[str, Any]
    assets: Mapping[str, bytes] = field(default_factory=dict)


def read_text(config: Section, artifact: Callable[[str], bytes]) -> Text:
    """Return the text front end of a FastPitch model.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and what
    `read_tts_tokenizer` raises.
    """
    if not config.boolean("learn_alignment", False):
        return _read_labels(config, config.section("input_fft"))
    place = config
    if config.values.get("text_tokenizer") is None:
        place = _find_dataset(config)
    if place.values.get("text_tokenizer") is None:
        return _read_vocab(place.section("vocab"))
    facts, assets = read_tts_tokenizer(place.section("text_tokenizer"), artifact)
    return Text(len(facts["tokens"]), facts["pad_id"], facts, assets)


def _find_dataset(config: Section) -> Section:
    """Return the data set that NeMo 1.0 to 1.7 took its tokens from."""
    data = config.values.get("train_ds")
    data = data.get("dataset") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not {"text_tokenizer", "vocab"} & set(data):
        refuse("text_tokenizer", None, "a mapping")
    return Section("train_ds.dataset", data)


def _read_vocab(section: Section) -> Text:
    section.check(VOCAB_KEYS)
    notation = section.choice("notation", ("chars", "phonemes"))
    is_stressed = section.boolean("stresses", False)
    has_letters = section.boolean("chars", False) or notation == "chars"
    tokens = [" "]
    if notation == "phonemes":
        marks = ("0", "1", "2") if is_stressed else ("",)
        tokens += [*CONSONANTS, *(vowel + mark for vowel in VOWELS for mark in marks)]
    punctuation = list(PUNCTUATION) if section.boolean("punct", True) else []
    tokens += [*(string.ascii_lowercase if has_letters else ""), "'", *punctuation]
    # The examples of that time say `None`, which is a text in YAML: it adds a blank as well.
    place = section.values.get("add_blank_at", "last_but_one")
    if not isinstance(place, str | None):
        refuse(section.at("add_blank_at"), place, "`null` or text")
    special = {None: ["pad", "oov"], "last": ["pad", "oov", "blank"]}
    order = special.get(place, ["pad", "blank", "oov"])
    ids = {f"{name}_id": len(tokens) + i for i, name in enumerate(order)}
    tokens += [f"<{name}>" for name in order]
    facts = {
        "kind": f"vocab_{notation}",
        "punctuation": punctuation,
        "stresses": is_stressed,
        "chars": has_letters,
        "spaces": section.boolean("spaces", notation == "phonemes"),
        "pad_with_space": section.boolean("pad_with_space", False),
        "improved_version_g2p": section.boolean("improved_version_g2p", False),
        "tokens": tokens,
        "blank_id": None,
        **ids,
    }
    return Text(len(tokens), ids["pad_id"], facts)


def _read_labels(config: Section, encoder: Section) -> Text:
    """Return the ids of a model without learnt alignment, whose embedding has its own size."""
    labels = config.values.get("labels")
    listed = isinstance(labels, list | tuple) and all(isinstance(v, str) for v in labels)
    if not listed or not labels:
        refuse("labels", labels, "a list of labels, or `learn_alignment: true`")
    rows = encoder.integer("n_embed", minimum=1)
    if rows < len(labels):
        refuse_contradiction(encoder.at("n_embed"), rows, "the length of `labels`", len(labels))
    pad_id = encoder.integer("padding_idx", 0, 0)
    if pad_id >= rows:
        refuse(encoder.at("padding_idx"), pad_id, f"a row of the embedding, below {rows}")
    facts = {"kind": "fastpitch_labels", "tokens": list(labels), "pad_id": pad_id}
    return Text(rows, pad_id, facts)
