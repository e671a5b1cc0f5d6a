"""Checking documents against the JSON schemas of the public formats."""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jarvis_rules.errors import IntegrityError

PACKAGE_DATA = ("schemas/*.json",)
_MAX_FAULTS = 1000


@functools.cache
def _validator(name: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend

    text = (Path(__file__).parent / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    types = Draft202012Validator.TYPE_CHECKER.redefine("integer", _is_integer)
    validator: Any = extend  # no types of its own
    return validator(Draft202012Validator, {"pattern": _pattern}, None, types)(json.loads(text))


def _is_integer(_: Any, value: Any) -> bool:
    # To JSON 8.0 is an integer, to protobuf and to a digest it is not.
    return isinstance(value, int) and not isinstance(value, bool)


def _pattern(_: Any, pattern: str, value: Any, __: Any) -> Iterator[Any]:
    """Check a `pattern` as ECMAScript does: `$` is the end, never what precedes a last newline."""
    from jsonschema.exceptions import ValidationError

    if isinstance(value, str) and not re.search(pattern.replace("$", r"\Z"), value):
        yield ValidationError(f"{value!r} does not match {pattern!r}")


def validate(document: Any, schema: str, where: str) -> None:
    """Raise IntegrityError where `document` does not follow `schemas/<schema>.schema.json`."""
    from jsonschema.exceptions import best_match

    try:
        # A large document can have a fault in every place.
        fault = best_match(itertools.islice(_validator(schema).iter_errors(document), _MAX_FAULTS))
    except RecursionError:
        location, message = "the document", "it is nested too deep"
    else:
        if fault is None:
            return
        # The document may come from anywhere: nothing of it reaches a terminal unescaped.
        location = ascii("/".join(map(str, fault.absolute_path)))[1:-1] or "the document"
        message = fault.message if len(fault.message) < 300 else fault.message[:300] + "…"
    raise IntegrityError(
        f"`{location}` does not follow the schema `{schema}`: {message}",
        slug="schema.invalid",
        where=where,
        hint="the file was damaged, or made by a version that writes another format",
    )
