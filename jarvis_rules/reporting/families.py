"""What the exporters can read, from the very tables that they check a configuration with."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from jarvis_rules.exporters.exporter import Exporter, list_exporters


def describe_families() -> list[dict[str, Any]]:
    """Return every model family, sorted by name."""
    return [describe_family(exporter) for exporter in list_exporters()]


def describe_family(exporter: Exporter) -> dict[str, Any]:
    """Return what a family reads, uses, ignores and leaves out.

    `family`, `summary`, `classes`, `encoders` (only where families share a class); `sections`:
    `place` in the configuration, where `""` is the top, and `keys`, each with `name`, `treatment`
    (`used`, `ignored`, `neutral`), `reason` and `values`, the only ones that a neutral key may
    have; `unused_weights`: `pattern`, a glob over names of weights, and `reason`.
    """
    purpose = sys.modules[exporter.export.__module__].__doc__ or ""
    return {
        "family": exporter.family,
        "summary": purpose.partition("\n")[0],
        "classes": list(exporter.classes),
        "encoders": list(exporter.encoders),
        "sections": [
            {
                "place": place,
                "keys": [
                    {
                        "name": key.name,
                        "treatment": key.treatment,
                        "reason": key.reason,
                        "values": list(key.values),
                    }
                    for key in keys
                ],
            }
            for place, keys in exporter.sections.items()
        ],
        "unused_weights": [
            {"pattern": unused.pattern, "reason": unused.reason} for unused in exporter.unused
        ],
    }


def group_sections(
    sections: Iterable[Mapping[str, Any]],
) -> list[tuple[list[str], list[tuple[list[str], str]]]]:
    """Return described sections as their places, and their keys by treatment.

    Places with the same keys are one entry. Keys are given as names and the treatment in words:
    used ones first, then those with few values, then those without effect.
    """
    places: dict[str, list[str]] = {}
    keys: dict[str, list[tuple[list[str], str]]] = {}
    for section in sections:
        same = json.dumps(section["keys"])
        places.setdefault(same, []).append(section["place"])
        keys.setdefault(same, _group_keys(section["keys"]))
    return [(places[same], keys[same]) for same in places]


def _group_keys(keys: Iterable[Mapping[str, Any]]) -> list[tuple[list[str], str]]:
    order = ("used", "neutral", "ignored")
    groups: dict[str, list[str]] = {}
    for key in sorted(keys, key=lambda key: order.index(key["treatment"])):
        groups.setdefault(_words(key), []).append(key["name"])
    return [(names, words) for words, names in groups.items()]


def _words(key: Mapping[str, Any]) -> str:
    treatment = key["treatment"]
    if treatment == "neutral":  # values as YAML has them
        treatment = "only " + " or ".join(json.dumps(value) for value in key["values"])
    return f"{treatment}: {key['reason']}" if key["reason"] else treatment
