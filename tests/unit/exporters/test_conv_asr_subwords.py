"""Citrinet and its like on subwords: tokenizer, labels and files."""

from dataclasses import replace

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import _ctc_tokenizer
from jarvis_rules.exporters.exporter import export_model

from .exporter_testing import Runner, dump, recorded, source

SENTENCEPIECE, WORDPIECE = "variants/conv_asr/sentencepiece", "variants/conv_asr/wordpiece"
FILES = {
    SENTENCEPIECE: ["tokenizer.model", "tokenizer.vocab", "vocab.txt"],
    WORDPIECE: ["vocab.txt"],
}
TABLES = {"featurizer_window.npy", "featurizer_fb.npy"}


def lines(data):
    return data.decode().splitlines()


def text_of(labels, tokenization):
    if tokenization == "sentencepiece":
        return "".join(labels).replace("\u2581", " ").strip()
    special = ("[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
    return " ".join(v for v in labels if v not in special).replace(" ##", "")


@pytest.mark.parametrize("name", FILES)
def test_labels_spell_what_nemo_decodes(name):
    model = export_model(source(name))
    facts, r = model.facts, recorded(name)
    logprobs, length = Runner(model)(r["features"], r["features_length"])
    for scores, n, expected in zip(logprobs, length, r["transcripts"], strict=True):
        best = scores[:n].argmax(1)
        kept = best[np.append(True, best[1:] != best[:-1])]
        labels = [facts["labels"][k] for k in kept if k != facts["blank_id"]]
        assert text_of(labels, facts["tokenization"]) == expected


def test_facts_of_citrinet():
    facts = export_model(source("citrinet")).facts
    assert facts["tokenization"] == "sentencepiece"
    assert facts["tokenizer_files"] == FILES[SENTENCEPIECE]
    assert facts["labels"][:5] == ["<unk>", "\u2581", "e", "n", "i"]
    assert (len(facts["labels"]), facts["blank_id"]) == (64, 64)
    assert (facts["stride"], facts["ms_per_timestep"]) == (8, 80.0)
    assert facts["features"]["n_window_size"] == 400


@pytest.mark.parametrize("name", FILES)
def test_files_have_public_names(name):
    model = source(name)
    exported = export_model(model)
    assert set(exported.assets) == TABLES | set(FILES[name])
    assert exported.facts["tokenizer_files"] == FILES[name]
    for file in FILES[name]:
        assert exported.assets[file] == model.artifact(file)


def test_labels_of_sentencepiece_are_the_pieces_of_its_model():
    exported = export_model(source(SENTENCEPIECE))
    pieces = [line.split("\t")[0] for line in lines(exported.assets["tokenizer.vocab"])]
    assert exported.facts["labels"] == pieces
    assert pieces[:2] == ["<unk>", "<s>"]


def test_labels_of_wordpiece_are_its_lines_and_the_special_tokens_behind_them():
    exported = export_model(source(WORDPIECE))
    labels, tokens = exported.facts["labels"], lines(exported.assets["vocab.txt"])
    assert labels[: len(tokens)] == tokens
    assert sorted(labels[len(tokens) :]) == ["[CLS]", "[MASK]", "[PAD]", "[SEP]"]


def test_vocabularies_of_the_first_nemo_are_understood():
    """NeMo 1.0 wrote the lines of `vocab.txt` into the configuration."""
    model = source("citrinet")
    expected = dump(export_model(model))
    old = ["<unk>", *lines(model.artifact("vocab.txt"))]
    assert old != model.config["decoder"]["vocabulary"]
    assert len(old) == len(model.config["decoder"]["vocabulary"])
    model.config["decoder"]["vocabulary"] = old
    assert dump(export_model(model)) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "BPE"),
        ("dir", "/elsewhere"),
        ("dir", None),
        ("special_tokens", None),
        ("hf_kwargs", {}),
        ("model_path", "tokenizer.model"),
        ("model_path", "/home/me/tokenizer/tokenizer.model"),
    ],
)
def test_other_ways_to_name_the_tokenizer(key, value):
    model = source(SENTENCEPIECE)
    expected = dump(export_model(model))
    model.config["tokenizer"][key] = value
    assert dump(export_model(model)) == expected


def test_older_checkpoints_lack_some_keys():
    model = source(SENTENCEPIECE)
    expected = dump(export_model(model))
    for key in ("dir", "model_path", "vocab_path"):
        del model.config["tokenizer"][key]
    assert dump(export_model(model)) == expected
    del model.config["tokenizer"]["spe_tokenizer_vocab"]
    assert export_model(model).facts["tokenizer_files"] == ["tokenizer.model", "vocab.txt"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("type", "agg"),
        ("type", "char"),
        ("type", None),
        ("langs", {"en": {}}),
        ("special_tokens", {"pad": "x"}),
        ("hf_kwargs", {"mask_token": "x"}),
        ("custom_tokenizer", {"_target_": "a.B"}),
        ("model_path", 3),
        ("vocab_path", []),
        ("spe_tokenizer_vocab", {}),
    ],
)
def test_refused_by_name(key, value):
    model = source(SENTENCEPIECE)
    model.config["tokenizer"][key] = value
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`tokenizer.{key}: " in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    "key", [k for k in _ctc_tokenizer.KEYS if k.treatment == "ignored"], ids=str
)
def test_ignored_keys_change_nothing(key):
    model = source(WORDPIECE)
    expected = dump(export_model(model))
    model.config["tokenizer"][key.name] = ["anything"]
    assert key.reason
    assert dump(export_model(model)) == expected


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["order", "count"])
def test_a_tokenizer_of_another_model_is_refused(name, change):
    model = source(name)
    labels = model.config["decoder"]["vocabulary"]
    if change == "order":
        labels[3], labels[4] = labels[4], labels[3]
    else:
        del labels[10:]
        model.config["decoder"]["num_classes"] = 10
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"
    assert "decoder.vocabulary" in error.value.message


@pytest.mark.parametrize("damage", [b"", b"\xff" * 40, b"\x0a\x7f", b"\x0a\x02\x12\x00", b"\x0b"])
def test_a_damaged_model_is_refused(damage):
    model = source(SENTENCEPIECE)
    real = model.artifact

    def artifact(reference):
        return damage if reference.endswith("tokenizer.model") else real(reference)

    with pytest.raises(JarvisError, match=r"tokenizer\.model"):
        export_model(replace(model, artifact=artifact))


def test_a_missing_file_is_named():
    model = source(SENTENCEPIECE)
    model.config["tokenizer"]["model_path"] = "nemo:other.model"
    with pytest.raises(IntegrityError, match=r"other\.model"):
        export_model(model)


def test_a_model_on_subwords_needs_its_tokenizer():
    model = source(SENTENCEPIECE)
    del model.config["tokenizer"]
    with pytest.raises(JarvisError, match="`tokenizer: None`"):
        export_model(model)


def test_a_model_on_characters_does_not_read_one():
    model = source("quartznet")
    expected = dump(export_model(model))
    model.config["tokenizer"] = {"dir": "/somewhere", "type": "bpe"}
    assert dump(export_model(model)) == expected
