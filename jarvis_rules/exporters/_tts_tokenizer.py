"""The text front end of a speech synthesis model: its tokens, their ids and the files they need.

NeMo keeps no list of tokens in a checkpoint: a tokenizer class makes it from its arguments.
Semantics: NeMo 1.23 nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from typing import Any

from jarvis_rules.exporters._config import Key, Section, neutral, refuse, used

_MODULES = (
    "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers.",
    "nemo.collections.tts.torch.tts_tokenizers.",  # NeMo 1.7 to 1.11
)
_PHONEMES = "EnglishPhonemesTokenizer"
_G2P = (
    "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p",
    "nemo.collections.tts.g2p.modules.EnglishG2p",
    "nemo.collections.common.g2p.en_us_arpabet.EnglishG2p",
    "nemo_text_processing.g2p.modules.EnglishG2p",
    "nemo.collections.tts.torch.g2ps.EnglishG2p",
)
CHARS_KEYS: tuple[Key, ...] = used(
    "_target_", "punct", "apostrophe", "add_blank_at", "pad_with_space", "non_default_punct_list"
)
PHONEMES_KEYS: tuple[Key, ...] = (
    *CHARS_KEYS,
    *used("g2p", "stresses", "chars", "space", "silence", "oov", "sep"),
)
"""Those of GermanCharsTokenizer are `CHARS_KEYS` and `chars`, a text of letters there."""
G2P_KEYS: tuple[Key, ...] = (
    *used("_target_", "phoneme_dict", "heteronyms", "encoding", "ignore_ambiguous_words"),
    *used("phoneme_probability"),
    *neutral("apply_to_oov_word", None, reason="a Python function is not in the checkpoint"),
    *neutral("word_tokenize_func", None, reason="a Python function is not in the checkpoint"),
    *neutral("mapping_file", None, reason="it replaces phonemes after the dictionary"),
)
_LARGEST_FILE = 64 << 20  # the CMU dictionary has less than 4 MiB
PUNCTUATION = tuple(',.!?-:;/"()[]{}')
_GERMAN = string.ascii_uppercase + "ÄÖÜẞ"
# Class, kind, letters and punctuation of tokenizers that take characters as they are.
_ALPHABETS = {
    "EnglishCharsTokenizer": ("english_chars", string.ascii_lowercase, PUNCTUATION),
    "GermanCharsTokenizer": (
        "german_chars",
        _GERMAN + _GERMAN.lower(),
        tuple(sorted((*PUNCTUATION, *"«»‹›„“‚‘‒–—"))),
    ),
    "SpanishCharsTokenizer": (
        "spanish_chars",
        string.ascii_lowercase + "áéíñóúü",
        tuple(sorted((*PUNCTUATION, *"«»‹›¿¡"))),
    ),
}
CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N"),
    *("NG", "P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
VOWELS = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH"),
    *("IY", "OW", "OY", "UH", "UW"),
)


def read_tts_tokenizer(
    section: Section, artifact: Callable[[str], bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return facts and files of the section `text_tokenizer`.

    Facts: `kind` (`english_chars`, `german_chars`, `spanish_chars`, `english_phonemes`), `tokens`
    in the order of their ids, `pad_id`, `oov_id`, `blank_id`, and what the text depends on. Files:
    `phoneme_dict.txt` and `heteronyms.txt` as the checkpoint has them. Raises JarvisError
    `export.unsupported-config` and IntegrityError where an artifact is missing.
    """
    names = {module + name: name for module in _MODULES for name in (*_ALPHABETS, _PHONEMES)}
    name = names[section.choice("_target_", tuple(names))]
    phonemes = name == _PHONEMES
    default = ("english_phonemes", string.ascii_lowercase, PUNCTUATION)
    kind, alphabet, punctuation = _ALPHABETS.get(name, default)
    own_letters = used("chars") if kind == "german_chars" else ()
    section.check(PHONEMES_KEYS if phonemes else (*CHARS_KEYS, *own_letters))
    facts: dict[str, Any] = {"kind": kind}
    assets: dict[str, bytes] = {}
    tokens = [_text(section, "space", " ")] if phonemes else [" "]
    letters = list(_text(section, "chars", alphabet) if own_letters else alphabet)
    if phonemes:
        facts["g2p"], assets = _read_g2p(section.section("g2p"), artifact)
        facts["stresses"] = section.boolean("stresses", False)
        facts["chars"] = section.boolean("chars", False)
        # A probability leaves some words as they are written, in training.
        facts["chars"] |= section.section("g2p").values.get("phoneme_probability") is not None
        facts["separator"] = _text(section, "sep", "|")
        if section.values.get("silence") is not None:
            tokens.append(_text(section, "silence", ""))
        marks = ("0", "1", "2") if facts["stresses"] else ("",)
        tokens += [*CONSONANTS, *(vowel + mark for vowel in VOWELS for mark in marks)]
        letters = letters if facts["chars"] else []
    facts["apostrophe"] = section.boolean("apostrophe", True)
    facts["punctuation"] = _read_punctuation(section, punctuation)
    facts["pad_with_space"] = section.boolean("pad_with_space", False)
    tokens += [*letters, *["'"] * facts["apostrophe"], *facts["punctuation"]]
    special = {"pad": "<pad>", "blank": "<blank>", "oov": "<oov>"}
    if phonemes:
        special["oov"] = _text(section, "oov", special["oov"])
    order: dict[object, tuple[str, ...]] = {None: ("pad", "oov"), "last": ("pad", "oov", "blank")}
    place = section.values.get("add_blank_at")
    if not isinstance(place, str | bool | None):
        refuse(section.at("add_blank_at"), place, "`null` or text")
    first = len(tokens)
    kinds = order.get(place, ("pad", "blank", "oov"))
    facts["tokens"] = tokens + [special[kind] for kind in kinds]
    facts |= {f"{kind}_id": first + kinds.index(kind) for kind in ("pad", "oov")}
    facts["blank_id"] = first + kinds.index("blank") if "blank" in kinds else None
    return facts, assets


def read_labels(section: Section) -> dict[str, Any]:
    """Return the facts of the list `labels`, with which NeMo before 1.7 parsed text.

    Begin, end and padding follow the labels; the first two enclose every text. Raises JarvisError
    `export.unsupported-config`. Source: NeMo 1.0 and 1.23 Tacotron2Model, ENCharParser.
    """
    labels = section.values.get("labels")
    listed = isinstance(labels, list | tuple) and all(isinstance(v, str) for v in labels)
    if not listed or not labels:
        refuse(section.at("labels"), labels, "a list of labels, or a section `text_tokenizer`")
    count = len(labels)
    return {
        "kind": "labels",
        "tokens": [*labels, "<BOS>", "<EOS>", "<P>"],
        "bos_id": count,
        "eos_id": count + 1,
        "pad_id": count + 2,
    }


def _read_g2p(
    section: Section, artifact: Callable[[str], bytes]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    section.choice("_target_", _G2P)
    section.check(G2P_KEYS)
    if section.values.get("phoneme_probability") is not None:
        section.number("phoneme_probability")
    files = {}
    for key in ("phoneme_dict", "heteronyms"):
        if section.values.get(key) is not None:
            files[key] = artifact(_text(section, key, ""))
            if len(files[key]) > _LARGEST_FILE:
                refuse(section.at(key), f"{len(files[key])} bytes", f"at most {_LARGEST_FILE}")
    facts = {
        "encoding": _text(section, "encoding", "latin-1"),
        "ignore_ambiguous_words": section.boolean("ignore_ambiguous_words", True),
        **{key: f"{key}.txt" if key in files else None for key in ("phoneme_dict", "heteronyms")},
    }
    return facts, {f"{key}.txt": data for key, data in files.items()}


def _read_punctuation(section: Section, default: Sequence[str]) -> list[str]:
    marks = section.values.get("non_default_punct_list")
    if not section.boolean("punct", True):
        return []
    if marks is None:
        return list(default)
    if not isinstance(marks, list | tuple) or not all(isinstance(mark, str) for mark in marks):
        refuse(section.at("non_default_punct_list"), marks, "`null` or a list of marks")
    return list(marks)


def _text(section: Section, key: str, default: str) -> str:
    value = section.values.get(key, default)
    if not isinstance(value, str):
        refuse(section.at(key), value, "text")
    return value
