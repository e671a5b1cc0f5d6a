"""The tensors of a state dict as numpy arrays over their storages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from jarvis_rules.formats._checkpoint_reading import Bytes, refused
from jarvis_rules.formats.tar import quoted, release_pages
from jarvis_rules.formats.torch_pickle import STORAGES, Storage, Tensor, short

Array = npt.NDArray[Any]

MAX_EXPANDED = 1 << 20  # values of a tensor that shows more than its storage has
MAX_SHARING = 64  # tensors may share storages (tied weights), but not without end


class StateDict(Mapping[str, Array]):
    """The arrays of a state dict of records; sizes and strides count elements."""

    def __init__(
        self,
        data: memoryview,
        value: object,
        read: Callable[[str], Bytes],
        order: str = "little",
    ) -> None:
        self._data = data
        self._storages: dict[Storage, Array] = {}
        self._tensors = dict(_named_tensors(value))
        total = 0
        for name, tensor in self._tensors.items():
            if tensor.storage not in self._storages:
                flat = _flat(tensor.storage, read(tensor.storage.key), order)
                self._storages[tensor.storage] = flat
                release_pages(data)
            total += _view(name, tensor, self._storages[tensor.storage]).nbytes
        if total > MAX_SHARING * sum(flat.nbytes for flat in self._storages.values()):
            raise refused("limit", f"the tensors show their storages over {MAX_SHARING} times")

    def __getitem__(self, name: str) -> Array:
        tensor = self._tensors[name]
        release_pages(self._data)
        view = _view(name, tensor, self._storages[tensor.storage])
        array = np.asarray(_plain(view, tensor.storage.kind))
        array.flags.writeable = False
        return array

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _named_tensors(value: object) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise refused("not-a-state-dict", f"expected a dict of tensors, got {short(value)}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            shown = quoted(name) if isinstance(name, str) else short(name)
            message = f"expected a tensor under each name, got {short(tensor)} under {shown}"
            raise refused("not-a-state-dict", message)
        yield name, tensor


def _flat(storage: Storage, data: Bytes, order: str) -> Array:
    if len(data) != storage.size:
        message = f"storage {quoted(storage.key)} should have {storage.size} bytes, got {len(data)}"
        raise refused("storage", message)
    dtype = np.dtype(STORAGES[storage.kind])
    return np.frombuffer(data, dtype if order == "little" else dtype.newbyteorder(">"))


def _view(name: str, tensor: Tensor, flat: Array) -> Array:
    count = math.prod(tensor.shape)
    # The stride along an axis of one is arbitrary, and may be too long for numpy.
    strides = [s if n > 1 else 1 for n, s in zip(tensor.shape, tensor.strides, strict=True)]
    last = tensor.offset + sum((n - 1) * s for n, s in zip(tensor.shape, strides, strict=True))
    # A stride of 0 makes petabytes of a byte; what torch expands in a model is a small buffer.
    if (
        count > max(flat.size, MAX_EXPANDED)
        or (count and last >= flat.size)
        or max(tensor.shape, default=0) >> 31
    ):
        message = (
            f"tensor {quoted(name)} reaches beyond its storage of {flat.size} values: "
            f"offset {tensor.offset}, size {short(tensor.shape)}, stride {short(tensor.strides)}"
        )
        raise refused("tensor-bounds", message)
    if not count:
        return np.broadcast_to(np.empty((), flat.dtype), tensor.shape)
    width = flat.itemsize
    steps = [stride * width for stride in strides]
    view: Array = np.ndarray(tensor.shape, flat.dtype, flat, tensor.offset * width, steps)
    return view


def _plain(view: Array, kind: str) -> Any:
    """Return a view of a storage as what torch shows: a type of numpy's, little-endian."""
    if kind == "torch.BFloat16Storage":
        return np.left_shift(view, 16, dtype="<u4").view("<f4")
    if kind == "torch.BoolStorage":
        return view != 0
    return view.astype(view.dtype.newbyteorder("<"), copy=False)
