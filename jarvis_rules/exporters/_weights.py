"""Taking weights out of a checkpoint, checked against what the configuration implies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jarvis_rules.errors import IntegrityError

_HINT = "the file is damaged, or its weights belong to another configuration; fetch it again"


def take_weight(weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the floating-point array `name`, in its own type; its values are not looked at.

    Raises IntegrityError `export.missing-weight`, `export.wrong-shape` (expected against got) and
    `export.invalid-weight` (not floating point).
    """
    if name not in weights:
        raise IntegrityError(
            f"the weight `{name}` {_text(shape)} is missing",
            slug="export.missing-weight",
            hint=_HINT,
        )
    array = weights[name]
    if array.shape != shape:
        raise IntegrityError(
            f"the weight `{name}` must be {_text(shape)} after the configuration, "
            f"but is {_text(array.shape)}",
            slug="export.wrong-shape",
            hint=_HINT,
        )
    if array.dtype.kind != "f":
        raise IntegrityError(
            f"the weight `{name}` must be floating point, but is {array.dtype}",
            slug="export.invalid-weight",
            hint=_HINT,
        )
    return array


def take_float32(
    weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Return `take_weight` as finite float32, without a copy where it is that already."""
    array = take_weight(weights, name, shape)
    with np.errstate(over="ignore"):
        single = array.astype(np.float32, copy=False)
    require_finite(f"the weight `{name}`", single)
    return single


def require_finite(what: str, array: np.ndarray) -> None:
    """Raise IntegrityError `export.invalid-weight` where `array` holds a NaN or an infinity."""
    finite = np.isfinite(array)
    if not finite.all():
        raise IntegrityError(
            f"{what} holds {array.size - int(finite.sum())} of {array.size} values that are NaN "
            "or infinite in float32",
            slug="export.invalid-weight",
            hint=_HINT,
        )


def _text(shape: tuple[int, ...]) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
