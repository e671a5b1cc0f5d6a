"""What differs between two tensors: norms, the largest difference, how many values.

Numbers for people: float64, a piece at a time, in an order that does not depend on the machine's
threads. Whether two tensors are the same is decided by their bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from jarvis_rules.reporting.value_changes import Tally, kind_of_change

if TYPE_CHECKING:
    from jarvis_rules.formats.state_dict import Array

_PIECE = 1 << 20


class Weights(Protocol):
    """Tensors by name, each made when it is looked up."""

    def __getitem__(self, name: str, /) -> Array:
        """Return the tensor of that name."""

    def __iter__(self) -> Iterator[str]:
        """Yield the names."""

    def __len__(self) -> int:
        """Return the number of tensors."""


def add_weight_changes(tally: Tally, graph: str | None, before: Weights, after: Weights) -> None:
    """Add every tensor that differs to `tally`, two of them in memory at a time.

    `graph` is the member that the tensors are of, None for the one state dict of a checkpoint.
    """
    mine, theirs = set(before), set(after)
    for name in sorted(mine | theirs):
        one = before[name] if name in mine else None
        other = after[name] if name in theirs else None
        if one is not None and other is not None and is_same(one, other):
            tally.same += 1
            continue
        change = {"graph": graph, "name": name, **describe_change(one, other)}
        tally.add(kind_of_change(one, other), change)


def describe_change(before: Array | None, after: Array | None) -> dict[str, Any]:
    """Return `change`, and `from`, `to` and `difference` as far as there are any.

    `from` and `to` have `dtype`, `shape` and `norm`; `difference`, of tensors of one shape, has
    `norm`, `largest` and `values`, how many are not what they were. Norms are L2.
    """
    difference = None
    if before is not None and after is not None and before.shape == after.shape:
        difference = _difference(before, after)
    return {
        "change": kind_of_change(before, after),
        "from": None if before is None else _describe(before),
        "to": None if after is None else _describe(after),
        "difference": difference,
    }


def is_same(one: Array, other: Array) -> bool:
    """Return whether dtype, shape and every bit are the same."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype.kind == "O":
        return bool((one == other).all())
    pieces = zip(_pieces(one), _pieces(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pieces)


def _describe(array: Array) -> dict[str, Any]:
    return {
        "dtype": dtype_name(array),
        "shape": list(array.shape),
        "norm": None if array.dtype.kind == "O" else _norm(map(_numbers, _pieces(array))),
    }


def dtype_name(array: Array) -> str:
    """Return the name of the tensor's type."""
    return "string" if array.dtype.kind == "O" else array.dtype.name


def _difference(before: Array, after: Array) -> dict[str, Any]:
    import numpy as np

    if "O" in (before.dtype.kind, after.dtype.kind):
        changed = int(np.count_nonzero(before != after))
        return {"norm": None, "largest": None, "values": changed}
    squares, largest, values = [0.0], 0.0, 0
    for one, other in zip(_pieces(before), _pieces(after), strict=True):
        a, b = _numbers(one), _numbers(other)
        changed_bits = _changed(one, other) if one.dtype == other.dtype else a != b
        with np.errstate(all="ignore"):
            gap = np.where(changed_bits, b - a, 0.0)
        squares.append(_sum_of_squares(gap))
        largest = _maximum(largest, gap)
        values += int(np.count_nonzero(changed_bits))
    return {"norm": math.sqrt(sum(squares)), "largest": largest, "values": values}


def _maximum(largest: float, gap: Array) -> float:
    import numpy as np

    # A NaN stays one.
    return float(np.maximum(largest, np.abs(gap).max(initial=0.0)))


def _changed(one: Array, other: Array) -> Array:
    """Return of each value whether any bit of it differs."""
    import numpy as np

    width = one.dtype.itemsize
    bytes_of = (array.view(np.uint8).reshape(-1, width) for array in (one, other))
    a, b = bytes_of
    return np.asarray((a != b).any(axis=1))


def _pieces(array: Array) -> Iterator[Array]:
    """Yield the values in order, about a million at a time."""
    import numpy as np

    flat = np.ascontiguousarray(array).reshape(-1)
    for at in range(0, flat.size, _PIECE):
        yield flat[at : at + _PIECE]


def _numbers(piece: Array) -> Array:
    import numpy as np

    if piece.dtype.kind == "c":
        piece = np.abs(piece)
    with np.errstate(all="ignore"):  # of a signalling NaN
        return piece.astype(np.float64)


def _norm(pieces: Iterable[Array]) -> float:
    return math.sqrt(sum(map(_sum_of_squares, pieces)))


def _sum_of_squares(piece: Array) -> float:
    import numpy as np

    with np.errstate(all="ignore"):
        return float(np.sum(piece * piece))
