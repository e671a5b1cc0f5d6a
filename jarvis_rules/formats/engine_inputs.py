"""What lies beside each graph of a `.jmir`: the inputs that it takes, and precision hints.

Shape profiles and the samples of the numeric check are made of the first, the precision step
honours the second. `docs/reference/jmir-format.md` is the specification.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.formats.schema import validate

INPUTS_MEMBER = "inputs.json"
HINTS_MEMBER = "precision_hints.json"
Scalar = str | int | float | bool | None
"""The value of an option."""


@dataclass(frozen=True, slots=True)
class Extent:
    """The sizes that a dimension takes: least, typical, most; all equal where it is fixed."""

    least: int
    typical: int
    most: int

    @property
    def is_fixed(self) -> bool:
        """Whether there is one size only."""
        return self.least == self.most


@dataclass(frozen=True, slots=True)
class EngineInput:
    """A graph input with its batch dimension first.

    `sample` says what it holds: `{"kind": "normal"}`; `{"kind": "integers", "below": N}`;
    `{"kind": "lengths", "input": NAME, "axis": A}` (of the items of another input);
    `{"kind": "mask"}` (ones, then zeros past an item's length).
    """

    name: str
    dtype: str
    dims: tuple[Extent, ...]
    sample: Mapping[str, Any] = field(default_factory=lambda: {"kind": "normal"})

    @property
    def is_dynamic(self) -> bool:
        """Whether any dimension takes more than one size."""
        return not all(extent.is_fixed for extent in self.dims)


def dump_engine_inputs(inputs: Iterable[EngineInput]) -> bytes:
    """Return the document's bytes."""
    document = {
        "version": 1,
        "inputs": [
            {
                "name": value.name,
                "dtype": value.dtype,
                "dims": [[dim.least, dim.typical, dim.most] for dim in value.dims],
                "sample": dict(value.sample),
            }
            for value in inputs
        ],
    }
    validate(document, "engine-inputs", INPUTS_MEMBER)
    return dump_readable_json(document)


def load_engine_inputs(data: bytes, where: str) -> tuple[EngineInput, ...]:
    """Return the inputs that a document describes; IntegrityError where it does not follow."""
    document = json.loads(data)
    validate(document, "engine-inputs", where)
    return tuple(
        EngineInput(
            value["name"],
            value["dtype"],
            tuple(Extent(*dim) for dim in value["dims"]),
            value["sample"],
        )
        for value in document["inputs"]
    )


def dump_precision_hints(full_precision: Iterable[str]) -> bytes:
    """Return the document that names the nodes which stay float32."""
    document = {"version": 1, "full_precision": list(full_precision)}
    validate(document, "precision-hints", HINTS_MEMBER)
    return dump_readable_json(document)


def load_precision_hints(data: bytes, where: str) -> tuple[str, ...]:
    """Return the names of the nodes that stay float32; IntegrityError for another document."""
    document = json.loads(data)
    validate(document, "precision-hints", where)
    return tuple(document["full_precision"])
