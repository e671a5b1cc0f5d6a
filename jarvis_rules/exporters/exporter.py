"""What an exporter is, what it reads and gives, and how the one for a NeMo class is found."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from jarvis_rules.core.registry import entry_names, load_entry
from jarvis_rules.errors import JarvisError, did_you_mean
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
    """Graphs and assets by member name, and the facts (JSON-able) that serving needs.

    Graphs refer to arrays of the source, which must stay readable until they are written.
    """

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
    """One model family: the dotted NeMo classes that it reads and the function that does it."""

    family: str
    classes: tuple[str, ...]
    unused: tuple[UnusedWeight, ...]
    export: Callable[[SourceModel], ExportedModel]


def list_exporters(package: str = _PACKAGE) -> tuple[Exporter, ...]:
    """Return every exporter of the folder, by file name.

    A file whose name starts with `_` is a part that families share. Raises JarvisError
    `registry.invalid-entry` for a file without a proper `EXPORTER`, `registry.duplicate-class`
    where two files claim one class.
    """
    return tuple(_claims(package)[0].values())


def find_exporter(target: str, package: str = _PACKAGE) -> Exporter:
    """Return the exporter of the NeMo class `target` (dotted, as in `model_config.yaml`).

    Raises JarvisError `export.unknown-class`, and what `list_exporters` raises.
    """
    exporters, files = _claims(package)
    if target in files:
        return exporters[files[target]]
    # Dotted paths are alike from the left, so only the class name tells what was meant.
    by_name = {known.rpartition(".")[2]: known for known in files}
    near = did_you_mean(target.rpartition(".")[2], by_name)
    known = ", ".join(f"`{name}`" for name in sorted(files))
    raise JarvisError(
        f"no exporter reads the class `{target}`",
        slug="export.unknown-class",
        hint=f"{near + ' ' if near else ''}supported: {known}",
    )


def export_model(source: SourceModel) -> ExportedModel:
    """Return graphs, assets and facts of `source`, every weight of which must be accounted for.

    Raises JarvisError `export.unknown-class`, `export.unused-weight` (naming weights that are
    neither read nor declared unused) and what the family raises.
    """
    exporter = find_exporter(source.target)
    weights = _Recorder(source.weights)
    model = exporter.export(replace(source, weights=weights))
    left = [
        name
        for name in source.weights
        if name not in weights.read
        and not any(fnmatchcase(name, u.pattern) for u in exporter.unused)
    ]
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
    return model


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
def _claims(package: str) -> tuple[dict[str, Exporter], dict[str, str]]:
    """Return the exporters by file name and the file that claims each class."""
    exporters = {
        name: load_entry(package, name, "EXPORTER", Exporter) for name in entry_names(package)
    }
    files: dict[str, str] = {}
    for name, exporter in exporters.items():
        for target in exporter.classes:
            if target in files:
                raise JarvisError(
                    f"the class `{target}` is claimed by `{files[target]}.py` too",
                    slug="registry.duplicate-class",
                    where=f"{package.rpartition('.')[2]}/{name}.py",
                    hint="a class belongs to one family",
                )
            files[target] = name
    return exporters, files
