"""Sample inputs of a graph, the same on every machine: what an engine is checked with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.engine_inputs import EngineInput, Extent

if TYPE_CHECKING:
    import numpy as np

_DTYPES = {
    "FP32": "float32", "FP16": "float16", "INT64": "int64", "INT32": "int32", "BOOL": "bool",
}  # fmt: skip
_SEED = 2021
# A check takes a moment, so that everyone can afford it: few items, none as long as may be.
_ITEMS, _LONGEST = 3, 96
# Each item ends this much before the one above it.
_STEP = 7


def make_samples(inputs: Sequence[EngineInput]) -> dict[str, np.ndarray]:
    """Return a ragged batch: an item of the full length, others shorter, zeros past their end.

    Its sizes are typical ones, bounded. JarvisError where a description contradicts itself.
    """
    import numpy as np

    # PCG64's stream is the same on every machine and for every release of numpy.
    bits = np.random.Generator(np.random.PCG64(_SEED))
    sizes = {
        value.name: [_size(dim, axis) for axis, dim in enumerate(value.dims)] for value in inputs
    }
    samples: dict[str, np.ndarray] = {}
    for value in inputs:
        shape = sizes[value.name]
        samples[value.name] = _fill(value, shape, sizes, bits).astype(_DTYPES[value.dtype])
    return samples


def valid_shares(inputs: Sequence[EngineInput]) -> list[float]:
    """Return how much of each item of the samples is its own; the rest is padding."""
    sizes = [[_size(dim, axis) for axis, dim in enumerate(value.dims)] for value in inputs]
    longest = [shape[-1] for shape in sizes if len(shape) > 1]
    items = max((shape[0] for shape in sizes if shape), default=0)
    return [
        min((_lengths(size, items)[item] / size for size in longest), default=1.0)
        for item in range(items)
    ]


def _lengths(longest: int, items: int) -> list[int]:
    return [max(1, longest - _STEP * item) for item in range(items)]


def _size(dim: Extent, axis: int) -> int:
    if dim.is_fixed:
        return dim.typical
    return max(dim.least, min(dim.most, dim.typical, _LONGEST if axis else _ITEMS))


def _fill(
    value: EngineInput, shape: list[int], sizes: dict[str, list[int]], bits: Any
) -> np.ndarray:
    import numpy as np

    items = shape[0]
    kind = value.sample["kind"]
    if kind == "lengths":
        other = sizes.get(value.sample["input"], [])
        if len(other) <= value.sample["axis"]:
            raise JarvisError(
                f"the lengths `{value.name}` are those of `{value.sample['input']}`, axis "
                f"{value.sample['axis']}, which is not there",
                slug="engine.inputs",
                hint="make the pipeline again with `jarvis-build`",
            )
        return np.array(_lengths(other[value.sample["axis"]], items)).reshape(shape)
    last = np.array(_lengths(shape[-1], items)) if len(shape) > 1 else None
    valid = (
        np.ones(shape, bool)
        if last is None
        else np.arange(shape[-1]) < last.reshape([items] + [1] * (len(shape) - 1))
    )
    drawn: np.ndarray = np.ones(shape)
    if kind == "integers":
        drawn = np.floor(bits.random(shape) * value.sample["below"])
    elif kind == "normal":
        # A sum of uniforms: normal enough, and exact everywhere, which a logarithm is not.
        drawn = bits.random((12, *shape)).sum(axis=0) - 6
    masked: np.ndarray = drawn * valid
    return masked
