"""Checking documents against the JSON schemas of the public formats."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from jarvis_rules.errors import IntegrityError

PACKAGE_DATA = ("schemas/*.json",)


@functools.cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator

    text = (Path(__file__).parent / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    return Draft202012Validator(json.loads(text))


def validate(document: Any, schema: str, where: str) -> None:
    """Check `document` against `schemas/<schema>.schema.json`; IntegrityError names the worst fault."""
    from jsonschema.exceptions import best_match

    fault = best_match(_validator(schema).iter_errors(document))
    if fault is not None:
        location = "/".join(str(part) for part in fault.absolute_path) or "the document"
        message = fault.message if len(fault.message) < 300 else fault.message[:300] + "…"
        raise IntegrityError(
            f"`{location}` does not follow the schema `{schema}`: {message}",
            slug="schema.invalid",
            where=where,
            hint="the file was damaged, or made by a version of these tools that knows another format",
        )
