"""Weight-normalised layers in a checkpoint, whichever way torch has stored them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jarvis_rules.exporters._weights import require_finite, take_float32, take_weight
from jarvis_rules.onnx_graph.folding import fold_weight_norm

_FORMS = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def take_normed_weight(
    weights: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
    """Return the float32 weight of the layer `name`, its weight norm folded in.

    Three forms are read: `weight_g` and `weight_v`, torch's newer parametrisation, and the plain
    `weight` that is left after `remove_weight_norm`. Raises what `take_weight` raises.
    """
    for gain, direction in _FORMS:
        if f"{name}.{direction}" in weights or f"{name}.{gain}" in weights:
            break
    else:
        if f"{name}.weight" in weights:
            return take_float32(weights, f"{name}.weight", shape)
        gain, direction = _FORMS[0]
    size = (shape[0], *[1] * (len(shape) - 1))
    folded = fold_weight_norm(
        take_weight(weights, f"{name}.{direction}", shape),
        take_weight(weights, f"{name}.{gain}", size),
    )
    require_finite(f"`{name}.{direction}` with the gain `{name}.{gain}`", folded)
    return folded
