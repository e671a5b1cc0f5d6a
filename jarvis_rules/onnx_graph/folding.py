"""Folding of normalisations into weights, with bytes that do not depend on the CPU.

Elementwise IEEE operations in float64, rounded once to float32. No sums, no BLAS: their order of
addition follows the vector width of the machine.
"""

from __future__ import annotations

import numpy as np


def fold_batch_norm(
    weight: np.ndarray,
    *,
    gain: np.ndarray,
    shift: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    eps: float,
    bias: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias (float32) of a layer followed by an inference batch norm.

    `weight` is [O, …]; `bias` of the layer, `gain`, `shift`, `mean`, `variance` are [O]. A variance
    below `-eps` gives NaN; finding that is the caller's duty, who knows the tensor's name.
    Source: torch `BatchNorm1d` in eval mode.
    """
    with np.errstate(all="ignore"):
        scale = _wide(gain) / np.sqrt(_wide(variance) + np.float64(eps))
        column = scale.reshape(-1, *([1] * (weight.ndim - 1)))
        folded = (_wide(weight) * column).astype(np.float32)
        centre = -_wide(mean) if bias is None else _wide(bias) - _wide(mean)
        return folded, (centre * scale + _wide(shift)).astype(np.float32)


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
