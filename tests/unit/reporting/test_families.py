"""What the exporters can read, as data."""

import json

import pytest

from jarvis_rules.exporters._config import ignored, neutral, used
from jarvis_rules.exporters.exporter import Exporter, UnusedWeight, list_exporters
from jarvis_rules.formats.schema import validate
from jarvis_rules.reporting.families import describe_families, describe_family, group_sections

KEYS = (
    *ignored("training only", "dropout"),
    *used("width", "depth"),
    *neutral("bias", True, None, reason="not written"),
    *ignored("training only", "init_mode"),
    *neutral("splicing", 1),
)


def exporter(**sections):
    places = {place.replace("__", "."): keys for place, keys in sections.items()}
    unused = (UnusedWeight("loss.*", "training"),)
    return Exporter("toy", ("a.B", "c.B"), unused, lambda _: None, ("e.F",), places)


def test_a_family_as_data():
    family = describe_family(exporter(encoder=KEYS))
    assert family == {
        "family": "toy",
        "summary": "What the exporters can read, as data.",
        "classes": ["a.B", "c.B"],
        "encoders": ["e.F"],
        "sections": [{"place": "encoder", "keys": family["sections"][0]["keys"]}],
        "unused_weights": [{"pattern": "loss.*", "reason": "training"}],
    }
    keys = {key.pop("name"): key for key in family["sections"][0]["keys"]}
    assert list(keys) == ["dropout", "width", "depth", "bias", "init_mode", "splicing"]
    assert keys["dropout"] == {"treatment": "ignored", "reason": "training only", "values": []}
    assert keys["width"] == {"treatment": "used", "reason": "", "values": []}
    only = {"treatment": "neutral", "reason": "not written", "values": [True, None]}
    assert keys["bias"] == only


def test_keys_by_treatment():
    family = describe_family(exporter(a=KEYS, b=used("x"), a__c=KEYS))
    assert group_sections(family["sections"]) == [
        (
            ["a", "a.c"],
            [
                (["width", "depth"], "used"),
                (["bias"], "only true or null: not written"),
                (["splicing"], "only 1"),
                (["dropout", "init_mode"], "ignored: training only"),
            ],
        ),
        (["b"], [(["x"], "used")]),
    ]


def test_the_document_of_all_families():
    document = {"version": 1, "families": describe_families()}
    validate(json.loads(json.dumps(document, allow_nan=False)), "families", "x")
    assert [f["family"] for f in document["families"]] == [e.family for e in list_exporters()]


@pytest.mark.parametrize("known", list_exporters(), ids=lambda e: e.family)
def test_every_family_says_what_it_is_and_lists_its_keys(known):
    family = describe_family(known)
    assert family["summary"].endswith(".")
    assert "" in known.sections
    for place, keys in known.sections.items():
        names = [key.name for key in keys]
        assert len(names) == len(set(names)), place
        for key in keys:
            assert key.reason or key.treatment != "ignored", f"{place}.{key.name}"
            assert key.values or key.treatment != "neutral", f"{place}.{key.name}"
    of_sections = {place.partition(" (")[0] for place in known.sections} - {""}
    tables = {place.partition(" (")[0]: keys for place, keys in known.sections.items()}
    for place in of_sections:
        above, _, name = place.removesuffix("[]").rpartition(".")
        treatments = {key.name: key.treatment for key in tables.get(above, ())}
        assert treatments.get(name) == "used" or above not in tables, place
