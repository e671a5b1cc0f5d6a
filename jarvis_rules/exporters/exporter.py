"""What an exporter is, what it reads and gives, and how the one for a NeMo class is found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jarvis_rules.core.registry import entry_names, load_entry
from jarvis_rules.errors import JarvisError, did_you_mean
from jarvis_rules.exporters._config import Key, refuse
from jarvis_rules.onnx_graph.graph import Graph

_PACKAGE = "jarvis_rules.exporters"
_NAMED_AT_MOST = 8


@dataclass(frozen=True, slots=True)
class SourceModel:
    """A checkpoint as exporters read it: configuration, arrays by state-dict name, artifacts."""

    target: str
    config: Mapping[str, Any]
    weights: Mapping[str, np.ndarray]
    artifact: Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class ExportedModel:
    """Graphs and assets by member name, and the facts (JSON-able) that serving needs."""

    family: str
    graphs: Mapping[str, Graph]
    assets: Mapping[str, bytes]
    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class UnusedWeight:
    """Weights that inference does not need: a glob over state-dict names, and why."""

    pattern: str
    reason: str


@dataclass(frozen=True, slots=True)
class Exporter:
    """One model family: the dotted NeMo classes that it reads and the function that does it.

    `encoders` are the values of `encoder._target_` that it reads, where families share a class.
    `sections` are the keys that it knows, by dotted place in the configuration: what `jarvis-rules
    families` shows. `""` is the top, `[]` the entries of a list, a name in parentheses behind the
    place one of several forms; a place may hold the name of a JSON file in the checkpoint.
    """

    family: str
    classes: tuple[str, ...]
    unused: tuple[UnusedWeight, ...]
    export: Callable[[SourceModel], ExportedModel]
    encoders: tuple[str, ...] = ()
    sections: Mapping[str, tuple[Key, ...]] = field(default_factory=dict)


def list_exporters(package: str = _PACKAGE) -> tuple[Exporter, ...]:
    """Return every exporter of the folder, by file name.

    A file whose name starts with `_` is a part that families share. Raises JarvisError
    `registry.invalid-entry` for a file without a proper `EXPORTER`, `registry.duplicate-class`
    where two files claim one class.
    """
    return tuple(_load(package).values())


def find_exporter(
    target: str, config: Mapping[str, Any] | None = None, package: str = _PACKAGE
) -> Exporter:
    """Return the exporter of the NeMo class `target` (dotted, as in `model_config.yaml`).

    `config` decides where families share the class. Raises JarvisError `export.unknown-class`,
    `export.unsupported-config` for an encoder that no family reads, and what `list_exporters`
    raises.
    """
    exporters = _load(package).values()
    claiming = [exporter for exporter in exporters if target in exporter.classes]
    if not claiming:
        # Dotted paths are alike from the left, so only the class name tells what was meant.
        by_name = {known.rpartition(".")[2] for e in exporters for known in e.classes}
        near = did_you_mean(target.rpartition(".")[2], by_name)
        classes = sorted({name for exporter in exporters for name in exporter.classes})
        known = ", ".join(f"`{name}`" for name in classes)
        raise JarvisError(
            f"no exporter reads the class `{target}`",
            slug="export.unknown-class",
            hint=f"{near + ' ' if near else ''}supported: {known}",
        )
    encoder = (config or {}).get("encoder")
    if len(claiming) > 1 and not isinstance(encoder, Mapping):
        refuse("encoder", encoder, "a mapping")
    chosen = encoder.get("_target_") if isinstance(encoder, Mapping) else None
    fitting = claiming if len(claiming) == 1 else [e for e in claiming if chosen in e.encoders]
    if not fitting:
        names = ", ".join(f"`{name}`" for e in claiming for name in e.encoders)
        refuse("encoder._target_", chosen, f"one of {names}")
    return fitting[0]


def export_model(source: SourceModel) -> ExportedModel:
    """Return graphs, assets and facts of `source`; raises what `export_and_account` raises."""
    return export_and_account(source)[0]


def export_and_account(
    source: SourceModel,
) -> tuple[ExportedModel, dict[UnusedWeight, list[str]]]:
    """Return the model, and the names of the weights that it leaves out, by declaration.

    Every weight must be accounted for. Raises JarvisError `export.unknown-class`,
    `export.unused-weight` (naming weights that are neither read nor declared unused) and what the
    family raises.
    """
    exporter = find_exporter(source.target, source.config)
    weights = _Recorder(source.weights)
    model = exporter.export(replace(source, weights=weights))
    unused: dict[UnusedWeight, list[str]] = {declared: [] for declared in exporter.unused}
    left: list[str] = []
    for name in (name for name in source.weights if name not in weights.read):
        declared = next((u for u in unused if fnmatchcase(name, u.pattern)), None)
        (left if declared is None else unused[declared]).append(name)
    if left:
        named = ", ".join(f"`{name}`" for name in sorted(left)[:_NAMED_AT_MOST])
        more = f" and {len(left) - _NAMED_AT_MOST} more" if len(left) > _NAMED_AT_MOST else ""
        raise JarvisError(
            f"the checkpoint holds weights that the `{exporter.family}` graph does not use: "
            f"{named}{more}",
            slug="export.unused-weight",
            hint="this is a variant that the exporter does not know; leaving them out would "
            "change its results",
        )
    return model, unused


class _Recorder(Mapping[str, np.ndarray]):
    """A view of the weights that remembers which were read; looking for a name is not reading."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        value = self._weights[name]
        self.read.add(name)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._weights

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


@functools.cache
def _load(package: str) -> dict[str, Exporter]:
    """Return the exporters by file name, no two of which may read the same models."""
    exporters = {
        name: load_entry(package, name, "EXPORTER", Exporter) for name in entry_names(package)
    }
    files: dict[tuple[str, str], str] = {}
    for name, exporter in exporters.items():
        for target in exporter.classes:
            for encoder in exporter.encoders or ("",):
                taken = [
                    file
                    for (known, other), file in files.items()
                    if known == target and (not encoder or other in ("", encoder))
                ]
                if taken:
                    raise JarvisError(
                        f"the class `{target}` is claimed by `{taken[0]}.py` too",
                        slug="registry.duplicate-class",
                        where=f"{package.rpartition('.')[2]}/{name}.py",
                        hint="families that share a class tell their models apart by `encoders`",
                    )
                files[target, encoder] = name
    return exporters
