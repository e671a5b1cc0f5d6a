"""What exporting a checkpoint gives, and what of the checkpoint has no part in it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters._config import Key, shorten
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters.exporter import (
    Exporter,
    SourceModel,
    export_and_account,
    find_exporter,
)

_OTHER = "builds no module; at most other keys refer to it"
_LARGEST_FILE = 1 << 20
_LONGEST = 80


def account_for_export(source: SourceModel) -> dict[str, Any]:
    """Return what exporting `source` gives; graphs are built, but not written.

    `family` is null where none reads the class. `refusal` is null, or the `message`, `slug` and
    `hint` of the error that the export ends in; there is nothing else then. `facts`; `graphs`:
    `name`, `inputs` and `outputs` with `name`, `dtype` and `shape`, and the number
    `full_precision_nodes`; `assets`: `name` and `size`; `ignored_keys`: `key` (dotted, with `[]`
    for the entries of a list), `value` as short text and `reason`; `unused_weights`: `pattern`,
    `count` and `reason`.
    """
    report: dict[str, Any] = {"family": None, "refusal": None, "facts": {}}
    report |= {"graphs": [], "assets": [], "ignored_keys": [], "unused_weights": []}
    try:
        exporter = find_exporter(source.target, source.config)
        report["family"] = exporter.family
        model, unused = export_and_account(source)
    except JarvisError as error:
        report["refusal"] = {"message": str(error), "slug": error.slug, "hint": error.hint}
        return report
    return {
        **report,
        "facts": dict(model.facts),
        "graphs": [
            {
                "name": name,
                **describe_graph(graph),
                "full_precision_nodes": len(graph.full_precision_nodes),
            }
            for name, graph in model.graphs.items()
        ],
        "assets": [{"name": name, "size": len(data)} for name, data in model.assets.items()],
        "ignored_keys": list_ignored_keys(exporter, source.config, source.artifact),
        "unused_weights": [
            {"pattern": declared.pattern, "count": len(names), "reason": declared.reason}
            for declared, names in unused.items()
            if names
        ],
    }


def list_ignored_keys(
    exporter: Exporter, config: Mapping[str, Any], artifact: Callable[[str], bytes]
) -> list[dict[str, str]]:
    """Return the keys of an exported configuration that the family ignores, in its order.

    Several entries of a list are one place, with every value that is there.
    """
    forms: dict[str, list[Sequence[Key]]] = {}
    for place, keys in exporter.sections.items():
        forms.setdefault(place.partition(" (")[0], []).append(keys)
    found: dict[tuple[str, str], dict[str, None]] = {}
    for place, candidates in forms.items():
        for mapping in _find_mappings(config, place, artifact):
            known = _choose_form(candidates, mapping)
            for name, value in mapping.items():
                reason = _reason(known.get(name), is_top=not place)
                if reason:
                    key = f"{place}.{name}" if place else str(name)
                    found.setdefault((key, reason), {})[shorten(value)] = None
    return [
        {"key": key, "value": _join(values), "reason": reason}
        for (key, reason), values in found.items()
    ]


def _find_mappings(
    config: Mapping[str, Any], place: str, artifact: Callable[[str], bytes]
) -> Iterator[Mapping[str, Any]]:
    """Yield what is at `place`; a name of a file stands for the JSON object in it."""
    values: list[Any] = [config]
    for part in place.split(".") if place else ():
        name = part.removesuffix("[]")
        values = [v[name] for v in values if isinstance(v, Mapping) and name in v]
        if part.endswith("[]"):
            values = [entry for v in values if isinstance(v, list | tuple) for entry in v]
    for value in values:
        mapping = _load_object(value, artifact) if isinstance(value, str) else value
        if isinstance(mapping, Mapping):
            yield mapping


def _load_object(reference: str, artifact: Callable[[str], bytes]) -> object:
    try:
        data = artifact(reference)
        return json.loads(data) if len(data) <= _LARGEST_FILE else None
    except (JarvisError, ValueError, RecursionError):
        # Some other text; the export has read what it needs.
        return None


def _choose_form(candidates: Sequence[Sequence[Key]], mapping: Mapping[str, Any]) -> dict[str, Key]:
    """Return the keys by name, of the form that knows most of `mapping`."""
    by_name = [{key.name: key for key in keys} for keys in candidates]
    return max(by_name, key=lambda known: len(known.keys() & mapping.keys()))


def _reason(key: Key | None, *, is_top: bool) -> str:
    if key is None:
        return _OTHER if is_top else ""
    return key.reason if key.treatment == "ignored" else ""


def _join(values: Mapping[str, None]) -> str:
    text = ", ".join(values)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
