"""What differs between two trees of plain values: dotted paths, from what to what, shortened."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

ChangeKind = Literal["added", "removed", "changed"]
MAX_LISTED = 10_000
"""Changes of one kind that are listed; the others are counted."""

_ABSENT = object()
_LONGEST_VALUE = 200
_LONGEST_KEY = 80
_LONGEST_PATH = 400


@dataclass(frozen=True, slots=True)
class ValueChange:
    """A leaf of a tree that is not what it was, as short JSON; None where it is absent."""

    section: str
    name: str
    before: str | None
    after: str | None

    @property
    def change(self) -> ChangeKind:
        """What became of the leaf."""
        return kind_of_change(self.before, self.after)

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "section": self.section,
            "name": self.name,
            "change": self.change,
            "from": self.before,
            "to": self.after,
        }


def kind_of_change(before: object, after: object) -> ChangeKind:
    """Return what became of something that is None where it is absent."""
    return "added" if before is None else "removed" if after is None else "changed"


@dataclass(slots=True)
class Tally:
    """Changes of one kind of thing, counted, and the first of them listed."""

    same: int = 0
    added: int = 0
    removed: int = 0
    changed: int = 0
    listed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, change: ChangeKind, document: dict[str, Any]) -> None:
        """Count a change, and list it while there is room."""
        match change:
            case "added":
                self.added += 1
            case "removed":
                self.removed += 1
            case "changed":
                self.changed += 1
        if len(self.listed) < MAX_LISTED:
            self.listed.append(document)

    @property
    def count(self) -> int:
        """The number of changes."""
        return self.added + self.removed + self.changed

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "same": self.same,
            "added": self.added,
            "removed": self.removed,
            "changed": self.changed,
            "left_out": self.count - len(self.listed),
            "changes": self.listed,
        }


def add_changes(tally: Tally, section: str, before: Any, after: Any) -> None:
    """Add every leaf that differs between two trees to `tally`."""
    for change in value_changes(section, before, after):
        if change is None:
            tally.same += 1
        else:
            tally.add(change.change, change.to_json())


def value_changes(section: str, before: Any, after: Any) -> Iterator[ValueChange | None]:
    """Yield each leaf's change, or None for a leaf that is the same, in the order of the paths.

    Maps and lists are walked; an empty one is a leaf. Values of two types differ, as 1 and true.
    """
    # Aliases make deep trees of a short text: the walk must not depend on Python's own stack.
    pending: list[tuple[str, Any, Any]] = [("", before, after)]
    while pending:
        path, one, other = pending.pop()
        mine, theirs = _children(one), _children(other)
        if not mine and not theirs:
            yield None if _same(one, other) else ValueChange(section, path, *_texts(one, other))
            continue
        # An empty tree has no path to be shown under.
        if path and not mine and one is not _ABSENT:
            yield ValueChange(section, path, *_texts(one, _ABSENT))
        if path and not theirs and other is not _ABSENT:
            yield ValueChange(section, path, *_texts(_ABSENT, other))
        keys = sorted({**mine, **theirs}, key=_order, reverse=True)
        pending += [
            (_joined(path, key), mine.get(key, _ABSENT), theirs.get(key, _ABSENT)) for key in keys
        ]


def _children(value: Any) -> Mapping[Any, Any]:
    """Return what stands in a map, or in a list under `_Index`; nothing of a leaf."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list | tuple):
        return {_Index(index): entry for index, entry in enumerate(value)}
    return {}


class _Index(int):
    """The place of an entry in a list, which is no key of a map."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Index) and int(self) == int(other)

    def __hash__(self) -> int:
        return int(self)


def _order(key: Any) -> tuple[bool, int, str]:
    is_index = isinstance(key, _Index)
    return is_index, int(key) if is_index else 0, str(key)


def _joined(path: str, key: Any) -> str:
    text = str(key)
    text = text if len(text) <= _LONGEST_KEY else text[: _LONGEST_KEY - 1] + "…"
    step = f"[{text}]" if isinstance(key, _Index) else f".{text}" if path else text
    joined = path + step
    return joined if len(joined) <= _LONGEST_PATH else "…" + joined[1 - _LONGEST_PATH :]


def _same(one: Any, other: Any) -> bool:
    # A number that is not one is the same as itself here.
    return type(one) is type(other) and (one == other or repr(one) == repr(other))


def _texts(one: Any, other: Any) -> tuple[str | None, str | None]:
    return (
        None if one is _ABSENT else short_json(one),
        None if other is _ABSENT else short_json(other),
    )


def short_json(value: Any) -> str:
    """Return a leaf as JSON of bounded length."""
    if isinstance(value, str):
        value = value[:_LONGEST_VALUE]
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 1] + "…"
