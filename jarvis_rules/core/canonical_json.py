"""Canonical JSON: one byte string for one value, whatever the order it was built in."""

from __future__ import annotations

import json
from typing import Any


def dump_canonical_json(value: Any) -> bytes:
    """Return UTF-8 JSON with sorted keys and no spaces; ValueError for NaN and infinities."""
    text = json.dumps(
        value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )
    return _encode(text)


def dump_readable_json(value: Any) -> bytes:
    """Return the same value for people: indented, keys sorted, a newline at the end."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, indent=2, allow_nan=False)
    return _encode(text) + b"\n"


def _encode(text: str) -> bytes:
    # What UTF-8 cannot hold, the bytes of a foreign file name, becomes JSON's own escape.
    return text.encode(errors="backslashreplace")
