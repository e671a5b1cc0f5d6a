"""Typed options on command lines, in the spellings that argparse and the old tools took."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

from jarvis_rules.pipelines.pipeline import Effect, Option

GROUPS: dict[Effect, str] = {
    "used": "options",
    "no-effect": "accepted, without effect",
    "planned": "known, not available yet",
}
_DEST = "option."
_TRUTH_VALUES = ("true", "false")


def add_options(
    parser: argparse.ArgumentParser, options: Iterable[Option], *, show_none: bool = False
) -> None:
    """Add `--NAME` for each option, grouped by its effect; values stay texts."""
    groups: dict[Effect, Any] = {}
    for option in options:
        if option.effect not in groups:
            groups[option.effect] = parser.add_argument_group(GROUPS[option.effect])
        is_shown = show_none or option.default is not None
        default = f" (default: {option.default})" if is_shown else ""
        groups[option.effect].add_argument(
            f"--{option.name}",
            dest=f"{_DEST}{option.name}",
            default=argparse.SUPPRESS,
            help=f"{option.help}{default}".replace("%", "%%"),
            metavar=option.type.__name__.upper(),
            **({"nargs": "?", "const": True} if option.type is bool else {}),
        )


def given_options(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the values of the options that were given."""
    return {
        name.removeprefix(_DEST): value
        for name, value in vars(arguments).items()
        if name.startswith(_DEST)
    }


def bind_flags(
    parser: argparse.ArgumentParser, words: Sequence[str], options: Iterable[Option]
) -> list[str]:
    """Return the words with a value for every flag, so that none takes a file name for its own.

    `--flag`, `--flag=False` and `--flag False` are spellings of a truth value, and so are those of
    a prefix that fits no other option of the parser.
    """
    flags = {f"--{option.name}" for option in options if option.type is bool}
    names = list(parser._option_string_actions)
    bound: list[str] = []
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            return [*bound, word, *left]
        if _full_name(word, names) in flags:
            is_value = bool(left) and left[0].lower() in _TRUTH_VALUES
            word = f"{word}={left.pop(0) if is_value else True}"
        bound.append(word)
    return bound


def _full_name(word: str, names: Sequence[str]) -> str:
    fitting = [name for name in names if name.startswith(word)] if word[:2] == "--" else []
    return fitting[0] if len(fitting) == 1 and word not in names else word
