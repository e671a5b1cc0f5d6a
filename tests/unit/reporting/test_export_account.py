"""What exporting a checkpoint gives, and what has no part in it."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError
from jarvis_rules.exporters._config import ignored, used
from jarvis_rules.exporters.exporter import Exporter, SourceModel, export_model
from jarvis_rules.formats.nemo import open_nemo
from jarvis_rules.reporting.export_account import account_for_export, list_ignored_keys

MODELS = Path(__file__).parents[2] / "data" / "models"


@functools.cache
def source(name):
    path = MODELS / f"{name}.nemo"

    def artifact(reference):
        with open_nemo(path) as archive:
            return archive.artifact(reference)

    with open_nemo(path) as archive:
        return SourceModel(archive.target, archive.config, archive.state_dict(), artifact)


def reasons(account):
    return {entry["key"]: (entry["value"], entry["reason"]) for entry in account["ignored_keys"]}


def test_a_speech_model():
    model = source("quartznet")
    account = account_for_export(model)
    assert (account["family"], account["refusal"]) == ("conv_asr", None)
    assert account["facts"] == export_model(model).facts
    assert [a["name"] for a in account["assets"]] == ["featurizer_window.npy", "featurizer_fb.npy"]
    (graph,) = account["graphs"]
    assert graph["name"] == "model_graph.onnx"
    assert [v["name"] for v in graph["inputs"]] == ["audio_signal", "length"]
    outputs = [
        {"name": "logprobs", "dtype": "float32", "shape": ["batch", "time_out", 29]},
        {"name": "encoded_length", "dtype": "int64", "shape": ["batch"]},
    ]
    assert graph["outputs"] == outputs
    assert graph["full_precision_nodes"] == 1
    found = reasons(account)
    assert found["preprocessor.dither"][0] == "1e-05"
    assert found["encoder.jasper[].dropout"] == ("0.1", "training only")
    assert found["train_ds"] == ("None", "training and its data")
    assert found["optim"][0].startswith("{'betas': [0.8, 0.5]")
    assert all(len(value) <= 80 for value, _ in found.values())
    assert not {"encoder", "preprocessor.features", "target"} & found.keys()
    count = sum(name.endswith(".num_batches_tracked") for name in model.weights)
    assert account["unused_weights"] == [
        {"pattern": "*.num_batches_tracked", "count": count, "reason": "counts training steps"}
    ]


def test_top_level_keys_that_the_rule_ignores():
    model = source("quartznet")
    config = {**model.config, "our_notes": {"by": "a"}, "repeat": 5}
    found = reasons(account_for_export(replace(model, config=config)))
    assert found["our_notes"] == ("{'by': 'a'}", "builds no module; at most other keys refer to it")
    assert found["repeat"][0] == "5"


def test_values_of_a_list_are_one_entry():
    model = source("quartznet")
    encoder = dict(model.config["encoder"])
    encoder["jasper"] = [{**b, "dropout": i / 100} for i, b in enumerate(encoder["jasper"])]
    found = reasons(account_for_export(replace(model, config={**model.config, "encoder": encoder})))
    assert found["encoder.jasper[].dropout"][0].startswith("0.0, 0.01")


def test_keys_of_a_file_that_the_configuration_names():
    found = reasons(account_for_export(source("qa")))
    assert found["language_model.config_file.hidden_dropout_prob"] == ("0.1", "training only")
    assert "language_model.config_file.qa_dropout" not in found


def test_the_form_that_knows_most_keys_decides():
    found = reasons(account_for_export(source("variants/language_model/text_distilbert")))
    assert found["language_model.config_file.qa_dropout"][1] == "training only"


@pytest.mark.parametrize(
    ("content", "listed"),
    [
        (b'{"note": 1}', ["section.note"]),
        (b"[1]", []),
        (b"not json", []),
        (b"[" * 200_000, []),
        (b'{"note": "%s"}' % (b"x" * (1 << 20)), []),
        (IntegrityError("none", slug="nemo.missing-artifact"), []),
    ],
    ids=["object", "list", "text", "deep", "large", "missing"],
)
def test_a_text_in_the_place_of_a_section(content, listed):
    """It may name a file of keys, or be anything."""
    sections = {"": used("section"), "section": ignored("a note", "note")}
    exporter = Exporter("toy", ("a.B",), (), lambda _: None, (), sections)

    def artifact(_):
        if isinstance(content, Exception):
            raise content
        return content

    entries = list_ignored_keys(exporter, {"section": "file.json"}, artifact)
    assert [entry["key"] for entry in entries] == listed


@pytest.mark.parametrize("value", [None, 1, [], [1, "a", None], {"encoder": 3}, {1: 2}], ids=repr)
def test_a_section_of_another_type(value):
    sections = {"": used("encoder"), "encoder.blocks[].inner": ignored("a note", "note")}
    exporter = Exporter("toy", ("a.B",), (), lambda _: None, (), sections)
    for config in (
        {"encoder": value},
        {"encoder": {"blocks": value}},
        {"encoder": {"blocks": [value]}},
    ):
        assert list_ignored_keys(exporter, config, lambda _: b"") == []


def test_an_unknown_class_is_a_refusal():
    account = account_for_export(replace(source("quartznet"), target="a.b.EncDecCTCModul"))
    assert account["family"] is None
    assert account["refusal"]["slug"] == "export.unknown-class"
    assert account["refusal"]["hint"].startswith("did you mean `EncDecCTCModel`")
    assert not any(account[key] for key in account.keys() - {"family", "refusal"})


def test_a_configuration_that_is_not_understood_is_a_refusal():
    model = source("quartznet")
    config = {**model.config, "encoder": {**model.config["encoder"], "quantize": True}}
    account = account_for_export(replace(model, config=config))
    assert account["family"] == "conv_asr"
    assert account["refusal"]["slug"] == "export.unsupported-config"
    assert "`encoder.quantize: True`" in account["refusal"]["message"]
    assert not any(account[key] for key in account.keys() - {"family", "refusal"})


@pytest.mark.parametrize(
    ("change", "slug"),
    [
        (lambda w: w.update(surplus=np.zeros(1, np.float32)), "export.unused-weight"),
        (lambda w: w.pop("decoder.decoder_layers.0.bias"), "export.missing-weight"),
    ],
    ids=["unused", "missing"],
)
def test_weights_that_do_not_fit_are_a_refusal(change, slug):
    model = source("quartznet")
    weights = dict(model.weights)
    change(weights)
    account = account_for_export(replace(model, weights=weights))
    assert (account["family"], account["refusal"]["slug"]) == ("conv_asr", slug)


@pytest.mark.parametrize("name", sorted(path.stem for path in MODELS.glob("*.nemo")))
def test_every_recorded_model_is_accounted_for(name):
    model = source(name)
    account = account_for_export(model)
    assert account["refusal"] is None
    assert account["graphs"]
    json.dumps(account, allow_nan=False)
    covered = sum(unused["count"] for unused in account["unused_weights"])
    assert covered < len(model.weights)
