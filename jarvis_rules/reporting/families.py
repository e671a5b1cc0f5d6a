"""What the exporters can read, from the very tables that they check a configuration with."""

from __future__ import annotations

import sys
from collections.abc import Mapping
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


def group_keys(section: Mapping[str, Any]) -> list[tuple[list[str], str, list[Any], str]]:
    """Return the keys of a described section as names, treatment, values and reason.

    Keys of one treatment and reason are one entry: used ones first, then neutral, then ignored.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    neutral = []
    for key in section["keys"]:
        if key["treatment"] == "neutral":
            neutral.append(([key["name"]], "neutral", key["values"], key["reason"]))
        else:
            groups.setdefault((key["treatment"], key["reason"]), []).append(key["name"])
    both = [(names, treatment, [], reason) for (treatment, reason), names in groups.items()]
    return [
        *(group for group in both if group[1] == "used"),
        *neutral,
        *(group for group in both if group[1] == "ignored"),
    ]
