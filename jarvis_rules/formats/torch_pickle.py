"""What the pickle of a state dict may hold: tensors over storages, and the calls that make them."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np

from jarvis_rules.formats._checkpoint_reading import refused
from jarvis_rules.formats.tar import quoted

MAX_PICKLE_SIZE = 32 << 20
MAX_OPCODES = 2_000_000  # some 30 per tensor
MAX_INTEGER_BITS = 128
MAX_NAME_LENGTH = 1024  # of a function or class with its module
MAX_DIMENSIONS = 32

REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
ORDERED_DICT = "collections.OrderedDict"
STORAGES = {
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.BFloat16Storage": "<u2",
    "torch.LongStorage": "<i8",
    "torch.IntStorage": "<i4",
    "torch.ShortStorage": "<i2",
    "torch.CharStorage": "<i1",
    "torch.ByteStorage": "<u1",
    "torch.BoolStorage": "<u1",
}
KNOWN_CALLABLES = {*REBUILD, *PARAMETER, ORDERED_DICT, *STORAGES}


@dataclass(frozen=True, slots=True)
class Symbol:
    """A function or class by name only: it is never looked up, so never imported."""

    name: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A flat run of `count` values; `kind` is a key of `STORAGES`."""

    kind: str
    key: str
    count: int

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.count * np.dtype(STORAGES[self.kind]).itemsize


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count its values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def make_tensor(storage: object, offset: object, shape: object, strides: object) -> Tensor:
    """Return the tensor; IntegrityError `checkpoint.tensor-bounds` where its parts are none."""
    if (
        isinstance(storage, Storage)
        and _are_sizes(start := (offset,))
        and _are_sizes(shape)
        and _are_sizes(strides)
        and len(shape) == len(strides) <= MAX_DIMENSIONS
    ):
        return Tensor(storage, start[0], shape, strides)
    shown = f"offset {short(offset)}, size {short(shape)}, stride {short(strides)}"
    raise refused("tensor-bounds", f"malformed tensor of {short(storage)}: {shown}")


def _are_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(type(v) is int and v >= 0 for v in values)


class _Short(reprlib.Repr):
    """A repr of bounded length and cost, whatever a hostile pickle has built."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxtuple = 3, 200, 8

    def repr_bytes(self, value: bytes, _: int) -> str:
        return repr(value[:40])

    def repr_Symbol(self, value: Symbol, _: int) -> str:  # noqa: N802
        return quoted(value.name)[1:-1]

    def repr_Tensor(self, value: Tensor, _: int) -> str:  # noqa: N802
        return f"tensor {self.repr(value.shape)}"

    def repr_Storage(self, value: Storage, _: int) -> str:  # noqa: N802
        return f"{quoted(value.kind)[1:-1]} [{value.count}]"


short = _Short().repr
"""Return a repr that is short whatever it is of."""
