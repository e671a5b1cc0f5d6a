"""What differs between two records of an action, in the terms of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Change:
    """One field of an action that is not what it was."""

    field: str
    before: str
    after: str

    def render(self) -> str:
        """Return the change as a line."""
        return f"{self.field}: {self.before} → {self.after}"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Yield the fields in which two records of an action differ, leaf by leaf."""
    parts = ("request", "inputs", "environment", "platform", "argv", "timeout", "toolchain")
    for part in parts:
        old, new = leaves(part, before.get(part)), leaves(part, after.get(part))
        for name in sorted(old.keys() | new.keys()):
            # The request is an input too, and the fingerprint sums up what is listed under it.
            if name in ("inputs.request.json", "platform.toolchain"):
                continue
            one, other = old.get(name, _ABSENT), new.get(name, _ABSENT)
            if one != other:
                yield Change(name, one, other)


def leaves(name: str, value: Any) -> dict[str, str]:
    """Return the leaves of a record's field by dotted name, as people read them."""
    if isinstance(value, dict) and set(value) == {"sha256", "size"}:
        return {name: f"{value['sha256'][:16]} ({value['size']} bytes)"}
    if isinstance(value, dict):
        return {
            path: text
            for key, item in value.items()
            for path, text in leaves(f"{name}.{key}", item).items()
        }
    if isinstance(value, str) and len(value) == 64:
        return {name: value[:16]}
    return {name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}
