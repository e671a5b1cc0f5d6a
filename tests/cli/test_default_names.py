"""What `jarvis-build` names a pipeline without `--name`: after the public listings of Jarvis."""

from __future__ import annotations

import pytest

from jarvis_rules.cli.jarvis_build import _default_name
from jarvis_rules.pipelines.pipeline import find_pipeline


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("speech_recognition", {"language_code": "de-DE"}, "jarvis-asr"),
        ("qa", {}, "jarvis_qa"),
        ("token_classification", {}, "jarvis_ner"),
        ("token_classification", {"domain_name": "news"}, "jarvis_ner_news"),
        ("text_classification", {"domain_name": "reviews"}, "jarvis_text_classification_reviews"),
        ("intent_slot", {}, "jarvis_intent"),
        ("intent_slot", {"domain_name": "weather"}, "jarvis_intent_weather"),
        ("punctuation", {}, "jarvis-punctuation-en-US"),
        ("punctuation", {"language_code": "de-DE"}, "jarvis-punctuation-de-DE"),
        ("intent_slot", None, "jarvis_intent_<domain_name>"),
    ],
)
def test_default_name(kind, given, expected):
    assert _default_name(find_pipeline(kind), given) == expected
