"""Registries are folders: one file is one entry, which it exposes as a named constant.

No entry are files whose name begins with `_`, and the one that defines what an entry is: it is
named like the folder, in the singular (`pipelines/pipeline.py`).
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterable
from typing import TypeVar

from jarvis_rules.errors import JarvisError, UsageError, did_you_mean

T = TypeVar("T")


@functools.cache
def entry_names(package: str) -> tuple[str, ...]:
    """Return the names of the entries of a folder, sorted; nothing but the package is imported."""
    path = importlib.import_module(package).__path__
    base = package.rpartition(".")[2].removesuffix("s")
    names = (module.name for module in pkgutil.iter_modules(path))
    return tuple(sorted(name for name in names if name != base and not name.startswith("_")))


@functools.cache
def entry_modules(package: str) -> tuple[str, ...]:
    """Return the dotted module names of the entries of a folder."""
    return tuple(f"{package}.{name}" for name in entry_names(package))


def load_entry(package: str, name: str, constant: str, kind: type[T]) -> T:
    """Return the entry `name`; JarvisError where its file exposes none or something else."""
    module = importlib.import_module(f"{package}.{name}")
    entry = getattr(module, constant, None)
    if not isinstance(entry, kind):
        got = "nothing" if entry is None else type(entry).__name__
        raise JarvisError(
            f"{constant} must be a {kind.__name__}, got {got}",
            slug="registry.invalid-entry",
            where=f"{package.rpartition('.')[2]}/{name}.py",
            hint=f"a file of this folder exposes one `{constant}: {kind.__name__}`",
        )
    return entry


def require_known(what: str, name: str, known: Iterable[str], slug: str) -> None:
    """Raise UsageError with a suggestion where `name` is not among `known`."""
    names = sorted(known)
    if name not in names:
        suggestion = did_you_mean(name, names)
        raise UsageError(
            f"unknown {what} `{name}`",
            slug=slug,
            hint=f"{suggestion + ' ' if suggestion else ''}known: {', '.join(names)}",
        )
