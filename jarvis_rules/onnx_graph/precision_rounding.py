"""Float32 constants rounded to 16 bits while they are read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jarvis_rules.onnx_graph.wire import StoredConstant

if TYPE_CHECKING:
    import numpy as np

LARGEST: Mapping[str, float] = {"float16": 65504.0, "bfloat16": (2 - 2**-7) * 2.0**127}
SMALLEST_NORMAL: Mapping[str, float] = {"float16": 2.0**-14, "bfloat16": 2.0**-126}


@dataclass(slots=True)
class Rounding:
    """What the type could not hold: values clipped, the largest of them, and values lost near 0.

    `zeroed` became zero, `subnormal` have fewer bits than others. Infinity and NaN stay.
    """

    clipped: int = 0
    largest: float = 0.0
    zeroed: int = 0
    subnormal: int = 0


class RoundedConstant:
    """A float32 constant as `dtype`, rounded to nearest even, clipped to the largest number."""

    def __init__(self, source: StoredConstant, dtype: str) -> None:
        self.source = source
        self.dtype = dtype
        self.shape = source.shape
        self.nbytes = source.nbytes // 2
        self.rounding = Rounding()
        """Counted whenever `blocks` was read to its end."""

    def blocks(self) -> Iterator[bytes]:
        """Yield the bytes in blocks of bounded size."""
        import numpy as np

        counted, largest = Rounding(), np.float32(LARGEST[self.dtype])
        for block in self.source.blocks():
            values = np.frombuffer(block, "<f4")
            magnitudes = np.abs(values)
            beyond = np.isfinite(values) & (magnitudes > largest)
            if beyond.any():
                counted.clipped += int(beyond.sum())
                counted.largest = max(counted.largest, float(magnitudes[beyond].max()))
                values = np.where(beyond, np.copysign(largest, values), values)
            data, zero = _ROUND[self.dtype](values)
            lost = int((zero & (magnitudes > 0)).sum())
            tiny = (magnitudes > 0) & (magnitudes < np.float32(SMALLEST_NORMAL[self.dtype]))
            counted.zeroed += lost
            counted.subnormal += int(tiny.sum()) - lost
            yield data
        self.rounding = counted


def _to_float16(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    rounded = values.astype("<f2")
    return rounded.tobytes(), rounded == 0


def _to_bfloat16(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Drop the lower half of the bits, after half a unit, or just less on even numbers, was added.

    numpy has no such type.
    """
    import numpy as np

    bits = values.view("<u4")
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16
    rounded = np.where(np.isnan(values), (bits >> 16) | np.uint32(0x40), rounded)
    return rounded.astype("<u2").tobytes(), rounded & np.uint32(0x7FFF) == 0


_ROUND: Mapping[str, Callable[[np.ndarray], tuple[bytes, np.ndarray]]] = {
    "float16": _to_float16,
    "bfloat16": _to_bfloat16,
}
