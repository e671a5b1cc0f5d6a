"""Reading a configuration: what messages show of it, and what the tables of keys promise."""

import re

import pytest

from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters import _config
from jarvis_rules.exporters._config import Section, refuse, refuse_contradiction, shorten
from jarvis_rules.exporters.exporter import export_model, find_exporter

from .exporter_testing import MODELS, source

RECORDED = sorted(
    path.relative_to(MODELS).with_suffix("").as_posix() for path in MODELS.rglob("*.nemo")
)
LONG = ["label"] * 10_000, "x" * 10_000, {str(i): "y" * 100 for i in range(100)}, 10**300


@pytest.mark.parametrize("value", LONG, ids=lambda value: type(value).__name__)
def test_messages_are_short_whatever_the_values(value):
    assert len(shorten(value)) <= 80
    with pytest.raises(JarvisError) as error:
        refuse("a.b", value, "something else")
    assert len(error.value.message) < 200
    with pytest.raises(JarvisError) as error:
        refuse_contradiction("a.b", value, "`c`", value)
    assert error.value.message.count(shorten(value)) == 2
    assert len(error.value.message) < 300


def test_short_values_are_shown_whole():
    with pytest.raises(JarvisError) as error:
        refuse_contradiction("decoder.num_classes", 28, "`labels`", ["a", None])
    message = "the configuration has `decoder.num_classes: 28`, but `labels` says ['a', None]"
    assert error.value.message == message


@pytest.mark.parametrize("name", RECORDED)
def test_sections_are_the_tables_that_a_configuration_is_checked_with(name, monkeypatch):
    """`jarvis-rules families` shows no other keys than those which decide."""
    check, checked = Section.check, []

    def record(section: Section, keys: tuple[_config.Key, ...]) -> None:
        checked.append((re.sub(r"\[\d+\]", "[]", section.where), tuple(keys)))
        check(section, keys)

    monkeypatch.setattr(Section, "check", record)
    model = source(name)
    export_model(model)
    sections = find_exporter(model.target, model.config).sections
    for where, keys in checked:
        tables = [table for place, table in sections.items() if place.partition(" (")[0] == where]
        assert any(all(key in table for key in keys) for table in tables), where
