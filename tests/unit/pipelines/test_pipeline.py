"""Options: every type, every class, every refusal; where each value came from."""

from __future__ import annotations

import math

import pytest

from jarvis_rules.core.registry import load_entry
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.formats.jmir import OptionValue
from jarvis_rules.pipelines.pipeline import (
    Option,
    OptionValues,
    PipelineKind,
    find_pipeline,
    pipeline_names,
    require_name,
)

OPTIONS = (
    Option("text", str, "a", "some text"),
    Option("count", int, 8, "how many", minimum=1),
    Option("ratio", float, None, "how much", minimum=-1),
    Option("flag", bool, True, "whether"),
    Option("choice", str, "greedy", "which", choices=("greedy", "beam")),
    Option("old", float, None, "no effect here", effect="no-effect"),
    Option("later", bool, False, "something great", effect="planned"),
    Option("later.text", str, None, "something greater", effect="planned"),
)
KIND = PipelineKind("test", "", (), OPTIONS, {}, (), lambda _: (), lambda *_: None)
BY_NAME = {option.name: option for option in OPTIONS}


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("text", "x", "x"),
        ("text", "", ""),
        ("text", 5, "5"),
        ("count", 5, 5),
        ("count", "5", 5),
        ("count", 5.0, 5),
        ("count", 2**31 - 1, 2**31 - 1),
        ("ratio", "0.5", 0.5),
        ("ratio", 1, 1.0),
        ("ratio", "1e-3", 0.001),
        ("ratio", -1, -1.0),
        *[("flag", value, True) for value in (True, "true", "True", "1", 1, "yes")],
        *[("flag", value, False) for value in (False, "false", "FALSE", "0", 0, "no")],
        ("choice", "beam", "beam"),
    ],
)
def test_parse(name, value, expected):
    parsed = BY_NAME[name].parse(value)
    assert (parsed, type(parsed)) == (expected, type(expected))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        *[("text", value, "expected a text") for value in (None, [], {}, True, "\udcff")],
        *[
            ("count", value, "expected a whole number")
            for value in ("x", "2.5", 2.5, None, True, [], "", math.inf, math.nan, "inf")
        ],
        ("count", 0, "expected at least 1, got 0"),
        ("count", 2**31, "expected at most 2147483647"),
        ("count", "9" * 5000, "expected a whole number"),
        *[
            ("ratio", value, "expected a number")
            for value in ("x", None, True, "nan", "inf", math.inf, math.nan, "1e999")
        ],
        ("ratio", -2, "expected at least -1"),
        *[("flag", value, "expected True or False") for value in ("maybe", 2, None, "", [])],
        ("choice", "greddy", "unknown value `greddy`"),
    ],
)
def test_parse_refuses(name, value, message):
    with pytest.raises(UsageError, match=message) as caught:
        BY_NAME[name].parse(value)
    assert (caught.value.slug, caught.value.where) == ("option.invalid", f"option `{name}`")
    assert caught.value.hint


def test_a_wrong_choice_is_answered_with_the_nearest():
    with pytest.raises(UsageError) as caught:
        BY_NAME["choice"].parse("greddy")
    assert caught.value.hint == "did you mean `greedy`? known: greedy, beam"


def test_options_are_parsed():
    given = {"count": "5", "old": 1, "later": "false"}
    assert KIND.parse_options(given) == {"count": 5, "old": 1.0, "later": False}
    assert KIND.without_effect(given) == ["old"]


def test_an_unknown_option_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="unknown option of test `cuont`") as caught:
        KIND.parse_options({"cuont": 5})
    assert caught.value.slug == "option.unknown"
    assert "did you mean `count`?" in caught.value.hint


@pytest.mark.parametrize("given", [{"later": True}, {"later": "1"}, {"later.text": "x"}])
def test_what_is_planned_is_refused(given):
    with pytest.raises(UsageError, match="not available yet: something great") as caught:
        KIND.parse_options(given)
    assert caught.value.slug == "option.planned"


def test_values_and_where_they_came_from():
    values = KIND.values({"count": 5, "old": 1.0, "later": False})
    values.derive("ratio", 0.5, "of the model")
    assert (values["count"], values["ratio"], values["text"]) == (5, 0.5, "a")
    assert (values.integer("count"), values.text("ratio")) == (5, "0.5")
    assert values.provenance() == (
        OptionValue("choice", "greedy", "default"),
        OptionValue("count", 5, "given"),
        OptionValue("flag", True, "default"),
        OptionValue("later", False, "no-effect"),
        OptionValue("old", 1.0, "no-effect"),
        OptionValue("ratio", 0.5, "derived"),
        OptionValue("text", "a", "default"),
    )


def test_a_derived_value_may_be_given_and_not_contradicted():
    values = OptionValues(BY_NAME, {"ratio": 0.5})
    values.derive("ratio", 0.5, "of the model")
    assert [v.origin for v in values.provenance() if v.name == "ratio"] == ["given"]
    with pytest.raises(UsageError, match=r"`0\.5` contradicts the model: it is 20\.0") as caught:
        values.derive("ratio", 20.0, "of the model")
    assert (caught.value.slug, caught.value.where) == ("option.contradicts-model", "option `ratio`")


@pytest.mark.parametrize("name", ["asr", "asr-1.3_b", "0"])
def test_a_name_is_accepted(name):
    require_name(name)


@pytest.mark.parametrize("name", ["", ".x", "-x", "a/b", "../x", "a b", "ä", "a\n", "\udcff"])
def test_a_name_is_refused(name):
    with pytest.raises(UsageError, match="cannot be named") as caught:
        require_name(name)
    assert str(caught.value).isprintable()


# The registry


def test_an_unknown_pipeline_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="unknown pipeline `speech_recogniton`") as caught:
        find_pipeline("speech_recogniton")
    assert "did you mean `speech_recognition`?" in caught.value.hint


@pytest.mark.parametrize("name", pipeline_names())
def test_every_pipeline_declares_itself_well(name):
    kind = find_pipeline(name)
    assert kind.name == name
    names = [option.name for option in kind.options]
    assert len(set(names)) == len(names)
    assert kind.model_names("x")[0] == "x"
    assert len(set(kind.model_names("x"))) == len(kind.model_names("x"))
    for option in kind.options:
        assert option.help
        assert option.default is None or option.parse(option.default) == option.default
        assert not option.choices or option.default in (None, *option.choices)


def test_a_file_without_a_pipeline_is_named():
    with pytest.raises(JarvisError, match="PIPELINE must be a PipelineKind, got nothing"):
        load_entry("jarvis_rules.pipelines", "pipeline", "PIPELINE", PipelineKind)
