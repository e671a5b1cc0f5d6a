"""Which shape profile of an engine takes an input, and how arrays are filled to it and cut."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

REQUIRES = ("numpy",)

Shape = tuple[int, ...]
Growing = Mapping[str, Sequence[bool]]
"""Which dims of every input may be filled with zeros, by name."""


class Profile(NamedTuple):
    """The least and the most dims of every input, by name; the batch comes first."""

    number: int
    least: Mapping[str, Shape]
    most: Mapping[str, Shape]

    @property
    def largest_batch(self) -> int:
        """The most rows that it takes."""
        return min((shape[0] for shape in self.most.values() if shape), default=1)

    def filled(self, shapes: Mapping[str, Shape], growing: Growing) -> dict[str, Shape] | None:
        """Return the shapes that inputs must be filled to, None where it does not take them."""
        found = {
            name: tuple(
                max(size, least) if grows else size
                for size, least, grows in zip(shape, self.least[name], growing[name], strict=True)
            )
            for name, shape in shapes.items()
        }
        fits = all(
            least <= size <= most
            for name, shape in found.items()
            for size, least, most in zip(shape, self.least[name], self.most[name], strict=True)
        )
        return found if fits else None


def choose_profile(
    profiles: Sequence[Profile], shapes: Mapping[str, Shape], growing: Growing
) -> tuple[int, dict[str, Shape]]:
    """Return the profile that computes least for inputs of these shapes, and the filled shapes.

    Of those that compute the same it is the one with the smallest maximum. ValueError, with the
    tensor, its shape and what every profile takes, where none does.
    """
    best: tuple[tuple[int, int, int], dict[str, Shape]] | None = None
    for profile in profiles:
        filled = profile.filled(shapes, growing)
        if filled is not None:
            cost = (_volume(filled), _volume(profile.most), profile.number)
            if best is None or cost < best[0]:
                best = cost, filled
    if best is None:
        raise ValueError(_refusal(profiles, shapes, growing))
    (_, _, number), filled = best
    return number, filled


def fill(array: NDArray[Any], shape: Shape) -> NDArray[Any]:
    """Return an array of that shape: the given one, then zeros."""
    if array.shape == shape:
        return array
    result = np.zeros(shape, array.dtype)
    result[tuple(slice(size) for size in array.shape)] = array
    return result


def cut_batch(name: str, array: NDArray[Any], rows: int, computed: int) -> NDArray[Any]:
    """Return the first `rows` of an output that was computed for `computed` rows.

    RuntimeError where the output has another number of them.
    """
    if rows == computed:
        return array
    if array.shape[:1] != (computed,):
        raise RuntimeError(
            f"output `{name}` has shape {list(array.shape)}, expected {computed} rows"
        )
    return array[:rows]


def _volume(shapes: Mapping[str, Shape]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _refusal(profiles: Sequence[Profile], shapes: Mapping[str, Shape], growing: Growing) -> str:
    """Name the first input that no profile takes, else all: each has one, but none takes all."""
    for name, shape in shapes.items():
        if all(profile.filled({name: shape}, growing) is None for profile in profiles):
            ranges = " or ".join(_range(profile, name, growing) for profile in profiles)
            return f"input `{name}` has shape {list(shape)}, the engine takes {ranges}"
    given = ", ".join(f"`{name}` {list(shape)}" for name, shape in shapes.items())
    ranges = "; or ".join(
        ", ".join(f"`{name}` {_range(profile, name, growing)}" for name in shapes)
        for profile in profiles
    )
    return f"no profile of the engine takes inputs of these shapes: {given}; it takes {ranges}"


def _range(profile: Profile, name: str, growing: Growing) -> str:
    """Return the sizes that are taken, filled or not."""
    sizes = []
    for least, most, grows in zip(
        profile.least[name], profile.most[name], growing[name], strict=True
    ):
        low = min(least, 1) if grows else least
        sizes.append(str(low) if low == most else f"{low}..{most}")
    return f"[{', '.join(sizes)}]"
