"""Folding of normalisations into weights, with bytes that do not depend on the CPU.

Elementwise IEEE operations in float64, rounded once to float32. No BLAS and no numpy sums: their
order of addition follows the vector width of the machine. Where a sum is needed, its order is ours.
"""

from __future__ import annotations

import numpy as np

from jarvis_rules.errors import IntegrityError


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


def fold_weight_norm(direction: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Return the weight (float32) `gain * direction / norm` of a weight-normalised layer.

    `direction` is [O, …], `gain` has O values, the norm is taken over all axes but 0: also for a
    transposed convolution, where axis 0 is the input channel. A direction of zeros gives NaN;
    finding that is the caller's duty. Source: torch `weight_norm` with its default `dim=0`.
    """
    rows = _wide(direction).reshape(len(direction), -1)
    with np.errstate(all="ignore"):
        # An accumulation goes from left to right; numpy's sum goes in pairs, CPU by CPU.
        norm = np.sqrt(np.add.accumulate(rows * rows, axis=1)[:, -1:])
        folded = rows * (_wide(gain).reshape(-1, 1) / norm)
        return folded.reshape(direction.shape).astype(np.float32)


def invert_matrix(matrix: np.ndarray, name: str) -> np.ndarray:
    """Return the inverse (float64) of the square `matrix`, whose weight is called `name`.

    Gauss-Jordan elimination with partial pivoting in float64, one row operation after the other;
    meant for the small matrices of invertible convolutions. Raises IntegrityError
    `export.invalid-weight` where a pivot is zero within the rounding of float64.
    """
    size = len(matrix)
    table = np.concatenate([_wide(matrix), np.eye(size)], axis=1)
    smallest = size * np.finfo(np.float64).eps * np.abs(table[:, :size]).max(initial=0.0)
    for column in range(size):
        pivot = column + int(np.argmax(np.abs(table[column:, column])))
        if not abs(table[pivot, column]) > smallest:
            raise IntegrityError(
                f"the weight `{name}` [{size}, {size}] has no inverse: its first {column + 1} "
                "columns depend on each other",
                slug="export.invalid-weight",
                hint="the file is damaged, or the training diverged; fetch it again",
            )
        table[[column, pivot]] = table[[pivot, column]]
        table[column] /= table[column, column]
        factors = table[:, column].copy()
        factors[column] = 0.0
        table -= factors[:, None] * table[column]
    return table[:, size:]


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)
