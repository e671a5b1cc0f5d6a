"""What a hostile file is, what its reader says to it, and what a scan finds in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A hostile file: `slug` is the reader's, empty where it reads the file unharmed.

    `rules` are the scan's findings of its own, beside `reader.refuses`.
    """

    name: str
    attack: str
    slug: str
    rules: tuple[str, ...]
    make: Callable[[], bytes]


def case(name: str, attack: str, slug: str, rules: str, make: Callable[[], bytes]) -> Case:
    """Return a case; `rules` are separated by spaces."""
    return Case(name, attack, slug, tuple(rules.split()), make)
