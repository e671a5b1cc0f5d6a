"""What read commands print: JSON, pairs and tables, and nothing that a terminal would obey."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_NUMERIC = ("bytes", "weights", "kept float32")


def print_json(document: Mapping[str, Any]) -> None:
    """Print a document; numbers that JSON has no form of (`inf`, `nan`) become text."""
    text = json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False)
    # Of what is not printable JSON escapes the first 32 only; inside strings all may be escaped.
    print("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))  # noqa: T201


def print_pairs(pairs: Mapping[str, Any]) -> None:
    """Print a name and a value on each line, the values below one another."""
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{printable(name):{width}}  {printable(value)}")  # noqa: T201


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, gap: bool = True) -> None:
    """Print a table, behind an empty line if there is a `gap`; nothing where there are no rows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        side: Any = "right" if column in _NUMERIC else "left"
        table.add_column(column, overflow="fold", justify=side)
    for row in rows:
        table.add_row(*map(printable, row))
    if not table.row_count:
        return
    console = _console()
    with console.capture() as captured:
        console.print(table)
    lines = (line.rstrip() for line in captured.get().splitlines())
    print(*([""] if gap else []), *lines, sep="\n")  # noqa: T201


def print_marked(before: str, word: str, style: str, after: str) -> None:
    """Print a line in which one word has a style where a terminal shows it."""
    from rich.text import Text

    line = Text(printable(before))
    line.append(word, style=style)
    line.append(printable(after))
    console = _console()
    with console.capture() as captured:
        console.print(line, soft_wrap=True)
    print(captured.get(), end="")  # noqa: T201


def _console() -> Any:
    """Return what renders for stdout: in colour for terminals only, unless `NO_COLOR` is set."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    return Console(
        # A pipe has no width: nothing may be folded for whoever reads it.
        width=None if is_terminal else 1000,
        color_system="auto" if is_terminal and not os.environ.get("NO_COLOR") else None,
        markup=False,
        highlight=False,
        emoji=False,
    )


def printable(value: object) -> str:
    """Return `value` as text in which escape sequences and line ends are spelled out."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)
    )


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {_finite(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value
