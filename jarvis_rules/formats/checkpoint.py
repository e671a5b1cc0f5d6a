"""Restricted reader of torch checkpoints: tensors only, no code runs, nothing is unpickled."""

from __future__ import annotations

import io
import math
import pickletools
import reprlib
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.tar import quoted, release_pages

Array = npt.NDArray[Any]
Bytes = bytes | memoryview

MAX_PICKLE_SIZE = 32 << 20
MAX_OPCODES = 2_000_000  # some 30 per tensor
MAX_INTEGER_BITS = 128
MAX_NAME_LENGTH = 1024  # of a function or class with its module
MAX_DIMENSIONS = 32
MAX_ENTRIES = 200_000
MAX_INFLATED_SIZE = 1 << 30  # torch stores its entries; only a re-packed file is compressed
MAX_RATIO = 32
RATIO_GRACE = 1 << 20
MAX_EXPANDED = 1 << 20  # values of a tensor that shows more than its storage has
MAX_SHARING = 64  # tensors may share storages (tied weights), but not without end

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_REBUILD = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
_PARAMETER = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_ORDERED_DICT = "collections.OrderedDict"
_STORAGES = {
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
KNOWN_CALLABLES = {*_REBUILD, *_PARAMETER, _ORDERED_DICT, *_STORAGES}

_FETCH_AGAIN = "fetch the file again and compare its checksum with the publisher's"
_SAVE_AGAIN = "save the plain state dict again with `torch.save(model.state_dict(), …)`"
_HINTS = {
    "would-execute": "nothing was run; do not open this file with `torch.load`, a checkpoint needs "
    "tensors only: ask its publisher for a plain state dict",
    "not-a-zip": "expected a checkpoint of `torch.save`; check that this is the right file",
    "not-a-state-dict": _SAVE_AGAIN,
    "unsupported": _SAVE_AGAIN,
    "crc": "the file is damaged, fetch it again; one saved with "
    "`torch.serialization.set_crc32_options(False)` has no checksums and must be saved again",
}


def read_checkpoint(data: Bytes, where: str) -> Mapping[str, Array]:
    """Return the state dict of a torch checkpoint: tensor name → read-only numpy array.

    Arrays keep torch's shape, order and dtype, little-endian; bfloat16 becomes float32. They are
    made when they are looked up: views of `data` (which they keep alive), except bfloat16, bool,
    big-endian and compressed entries. Where `data` is of a mapped file, each look-up gives back
    the memory of what was read before, so that one tensor after the other can be read of a file
    that is larger than the memory. The inner dict is returned of a Lightning checkpoint
    (`{"state_dict": …}`). The CRC-32 of every entry that is used is verified, now.
    Raises `IntegrityError`: `checkpoint.would-execute` names the first function that `torch.load`
    would run. Format: torch.save, zip (torch ≥ 1.6) or the legacy stream before it.
    """
    try:
        view = memoryview(data)
        return _read_zip(view) if bytes(view[:4]) == b"PK\3\4" else _read_legacy(view)
    except IntegrityError as error:
        raise error.at(where) from None


def _refused(name: str, message: str) -> IntegrityError:
    hint = _HINTS.get(name, _FETCH_AGAIN)
    return IntegrityError(message, slug=f"checkpoint.{name}", hint=hint)


# --- the two containers ---------------------------------------------------------------------


def _read_zip(data: memoryview) -> Mapping[str, Array]:
    archive = _Zip(data)
    roots = [n[:-9] for n in archive.entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise _refused("not-a-zip", f"expected one `…/data.pkl` in the zip, got {len(roots)}")
    order = f"{roots[0]}/byteorder"  # absent before torch 2.1
    order = bytes(archive.read(order)).decode("latin-1") if order in archive.entries else "little"
    if order not in ("little", "big"):
        raise _refused("unsupported", f"unknown byte order {quoted(order)}")
    name = f"{roots[0]}/data.pkl"
    if (size := archive.entries[name].size) > MAX_PICKLE_SIZE:
        raise _refused("limit", f"`data.pkl` has {size} bytes, at most {MAX_PICKLE_SIZE}")
    stream = io.BytesIO(archive.read(name))
    value = _Machine().run(stream)
    if rest := size - stream.tell():
        raise _refused("pickle", f"{rest} bytes follow the pickle in `data.pkl`")
    return _StateDict(data, value, lambda key: archive.read(f"{roots[0]}/data/{key}"), order)


def _read_legacy(data: memoryview) -> Mapping[str, Array]:
    stream, machine = io.BytesIO(data[:MAX_PICKLE_SIZE]), _Machine()
    try:
        magic = machine.run(stream)
    except IntegrityError as error:
        if error.slug == "checkpoint.would-execute":
            raise
        magic = None
    if magic != LEGACY_MAGIC:
        raise _refused("not-a-zip", "neither a zip nor a legacy checkpoint of torch")
    if (protocol := machine.run(stream)) != _LEGACY_PROTOCOL:
        raise _refused("unsupported", f"unknown legacy protocol {_short(protocol)}")
    machine.run(stream)  # the sizes and byte order of that machine; the file is little-endian
    value = machine.run(stream)
    keys = machine.run(stream)
    storages = _legacy_storages(data[stream.tell() :], keys, machine.storages)

    def storage(key: str) -> memoryview:
        if key not in storages:
            raise _refused("storage", f"storage {quoted(key)} is missing")
        return storages[key]

    return _StateDict(data, value, storage)


def _legacy_storages(
    data: memoryview, keys: object, known: Mapping[str, _Storage]
) -> dict[str, memoryview]:
    found: dict[str, memoryview] = {}
    at = 0
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in known or key in found:
            raise _refused("storage", f"storage {_short(key)} is unknown or listed twice")
        (count,) = _unpack("<q", data, at)
        size = known[key].size
        if count != known[key].count or at + 8 + size > len(data):
            message = f"storage {quoted(key)} should hold {known[key].count} values, "
            raise _refused("storage", message + f"got {count} in {len(data) - at - 8} bytes")
        found[key] = data[at + 8 : at + 8 + size]
        at += 8 + size
    if at != len(data):
        raise _refused("storage", f"{len(data) - at} bytes follow the last storage")
    return found


class _Zip:
    """A zip directory that leaves no two readers of different opinion."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.inflated = 0
        self.entries: dict[str, _Entry] = {}
        self.scan()

    def scan(self) -> None:
        """Fill `entries`; refuse duplicates, overlaps and what the local headers contradict."""
        count, size, start, stop = self.directory()
        if count > MAX_ENTRIES or start + size != stop:
            raise _refused("zip", f"the directory of {count} entries is not where the zip ends")
        at, taken = start, []
        for _ in range(count):
            name, entry, at = self.entry(at)
            if name in self.entries:
                raise _refused("zip-duplicate", f"the zip holds {quoted(name)} twice")
            self.entries[name] = entry
            taken.append((entry.header, entry.start + entry.packed, name))
        if at != stop:
            raise _refused(
                "zip", f"the directory has {stop - at} bytes too many for {count} entries"
            )
        taken.sort()
        for (_, end, name), (begin, _, other) in pairwise([*taken, (start, 0, "the directory")]):
            if end > begin:
                raise _refused("zip-overlap", f"{quoted(name)} overlaps {quoted(other)} in the zip")

    def directory(self) -> tuple[int, int, int, int]:
        """Return the directory's entry count, size, offset and the offset where it must end."""
        end = len(self.data) - 22
        magic, *small, comment = _unpack("<4s4H2IH", self.data, max(end, 0))
        if end < 0 or magic != b"PK\5\6" or comment:
            raise _refused("truncated", "the zip does not end with its directory")
        magic, stop = _unpack("<4s4xQ", self.data, end - 20) if end >= 20 else (b"", 0)
        if magic != b"PK\6\7":
            wide, stop = tuple(small), end
        else:
            magic, length = _unpack("<4sQ", self.data, stop)
            if magic != b"PK\6\6" or stop + 12 + length != end - 20:
                raise _refused("zip", "the zip64 directory is not where the zip ends")
            wide = _unpack("<2I4Q", self.data, stop + 16)
        saturated = (0xFFFF,) * 4 + (0xFFFFFFFF,) * 2
        agree = [a in (b, c) for a, b, c in zip(small, wide, saturated, strict=True)]
        if not all(agree) or any(wide[:2]):
            raise _refused("zip", "the two directories of the zip contradict each other")
        return wide[3], wide[4], wide[5], stop

    def entry(self, at: int) -> tuple[str, _Entry, int]:
        """Return one directory entry, checked against its local header, and where the next is."""
        magic, flags, method, crc, packed, size, name_size, extra_size, comment_size, header = (
            _unpack("<4s4x2H4x3I3H8xI", self.data, at)
        )
        raw = bytes(self.data[at + 46 : at + 46 + name_size])
        after = at + 46 + name_size + extra_size
        if packed == 0xFFFFFFFF or size == 0xFFFFFFFF or header == 0xFFFFFFFF:
            extra = bytes(self.data[at + 46 + name_size : after])
            size, packed, header = _zip64_fields(extra, size, packed, header)
        name = raw.decode("utf-8", "backslashreplace")
        local = _unpack("<4s2x2H4x3I2H", self.data, header)
        start = header + 30 + local[6] + local[7]
        local_name = bytes(self.data[header + 30 : header + 30 + local[6]])
        if magic != b"PK\1\2" or local[0] != b"PK\3\4" or local[2] != method or local_name != raw:
            other = quoted(local_name.decode("utf-8", "backslashreplace"))
            raise _refused("zip", f"its directory says {quoted(name)}, its data says {other}")
        if flags & 1 or local[1] & 1 or method not in (0, 8) or (method == 0 and packed != size):
            raise _refused("zip", f"{quoted(name)} is encrypted or compressed in an unknown way")
        # Of sizes behind the content, and of zip64, the local header need not know.
        unknown = (0, 0xFFFFFFFF) if local[1] & 8 else (0xFFFFFFFF,)
        sums = zip(local[3:6], (crc, packed, size), strict=True)
        if any(a != b and a not in unknown for a, b in sums):
            raise _refused("zip", f"the two headers of {quoted(name)} differ in size or CRC-32")
        entry = _Entry(header, start, packed, size, crc, method == 8)
        return name, entry, after + comment_size

    def read(self, name: str) -> Bytes:
        """Return the content of an entry: a view when stored, its CRC-32 verified."""
        if name not in self.entries:
            raise _refused("storage", f"{quoted(name)} is missing in the zip")
        entry = self.entries[name]
        content: Bytes = self.data[entry.start : entry.start + entry.packed]
        if entry.deflated:
            content = self.inflate(name, entry, content)
        if zlib.crc32(content) != entry.crc:
            raise _refused("crc", f"{quoted(name)} does not match its CRC-32")
        return content

    def inflate(self, name: str, entry: _Entry, packed: Bytes) -> bytes:
        """Return a decompressed entry, refused before it is when it claims too much."""
        self.inflated += entry.size
        is_bomb = entry.size > RATIO_GRACE and entry.size > MAX_RATIO * entry.packed
        if is_bomb or self.inflated > MAX_INFLATED_SIZE:
            message = f"{quoted(name)} inflates {entry.packed} bytes to {entry.size}"
            raise _refused("compression-bomb", message)
        decoder = zlib.decompressobj(-15)
        try:
            content = decoder.decompress(packed, entry.size + 1)
        except zlib.error as error:
            raise _refused("zip", f"{quoted(name)} is damaged: {error}") from None
        if len(content) != entry.size or not decoder.eof:
            raise _refused("zip", f"{quoted(name)} does not inflate to its {entry.size} bytes")
        return content


@dataclass(frozen=True, slots=True)
class _Entry:
    header: int
    start: int
    packed: int
    size: int
    crc: int
    deflated: bool


def _unpack(layout: str, data: Bytes, at: int) -> tuple[Any, ...]:
    if at + struct.calcsize(layout) > len(data):
        raise _refused("truncated", f"the checkpoint breaks off: byte {at} is beyond its end")
    return struct.unpack_from(layout, data, at)


def _zip64_fields(extra: bytes, *fields: int) -> list[int]:
    """Return the fields with each saturated one taken from the zip64 extra, in this order."""
    at = 0
    while at + 4 <= len(extra):
        kind, size = _unpack("<2H", extra, at)
        if kind == 1:
            body = extra[at + 4 : at + 4 + size]
            wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
            return [next(wide, f) if f == 0xFFFFFFFF else f for f in fields]
        at += 4 + size
    return list(fields)


# --- tensors --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Storage:
    kind: str
    key: str
    count: int

    @property
    def size(self) -> int:
        return self.count * np.dtype(_STORAGES[self.kind]).itemsize


@dataclass(frozen=True, slots=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _StateDict(Mapping[str, Array]):
    """The arrays of a state dict of records; sizes and strides count elements."""

    def __init__(
        self,
        data: memoryview,
        value: object,
        read: Callable[[str], Bytes],
        order: str = "little",
    ) -> None:
        self._data = data
        self._storages: dict[_Storage, Array] = {}
        self._tensors = dict(_named_tensors(value))
        total = 0
        for name, tensor in self._tensors.items():
            if tensor.storage not in self._storages:
                flat = _flat(tensor.storage, read(tensor.storage.key), order)
                self._storages[tensor.storage] = flat
                release_pages(data)
            total += _view(name, tensor, self._storages[tensor.storage]).nbytes
        if total > MAX_SHARING * sum(flat.nbytes for flat in self._storages.values()):
            raise _refused("limit", f"the tensors show their storages over {MAX_SHARING} times")

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


def _named_tensors(value: object) -> Iterator[tuple[str, _Tensor]]:
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict) or not value:
        raise _refused("not-a-state-dict", f"expected a dict of tensors, got {_short(value)}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, _Tensor):
            shown = quoted(name) if isinstance(name, str) else _short(name)
            message = f"expected a tensor under each name, got {_short(tensor)} under {shown}"
            raise _refused("not-a-state-dict", message)
        yield name, tensor


def _flat(storage: _Storage, data: Bytes, order: str) -> Array:
    if len(data) != storage.size:
        message = f"storage {quoted(storage.key)} should have {storage.size} bytes, got {len(data)}"
        raise _refused("storage", message)
    dtype = np.dtype(_STORAGES[storage.kind])
    return np.frombuffer(data, dtype if order == "little" else dtype.newbyteorder(">"))


def _view(name: str, tensor: _Tensor, flat: Array) -> Array:
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
            f"offset {tensor.offset}, size {_short(tensor.shape)}, stride {_short(tensor.strides)}"
        )
        raise _refused("tensor-bounds", message)
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


# --- the pickle machine ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Symbol:
    """A function or class by name only: it is never looked up, so never imported."""

    name: str


class _Machine:
    """A pickle interpreter that builds plain containers and tensor records, and nothing else."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, _Storage] = {}
        self.foreign: _Symbol | None = None
        self.budget = MAX_OPCODES

    def run(self, stream: io.BytesIO) -> object:
        """Run one pickle and return its value, leaving the stream behind it."""
        self.stack, self.marks, self.memo = [], [], {}
        try:
            for opcode, argument, _ in pickletools.genops(stream):
                self.spend(1)
                if opcode.name != "STOP":
                    self.step(opcode.name, argument)
            value = self.pop()
            self.refuse_import()
        except (ValueError, TypeError, LookupError) as error:
            self.refuse_import()
            raise _refused("pickle", f"the pickle is malformed: {error}") from None
        return value

    def refuse_import(self) -> None:
        """Refuse a function that was named and not called: its import runs code too."""
        if self.foreign:
            raise _refused("would-execute", f"loading it would import {quoted(self.foreign.name)}")

    def spend(self, steps: int) -> None:
        self.budget -= steps
        if self.budget < 0:
            raise _refused("limit", f"the pickle takes more than {MAX_OPCODES} steps")

    def step(self, name: str, argument: object) -> None:
        if name in _PUSHED:
            if isinstance(argument, int) and argument.bit_length() > MAX_INTEGER_BITS:
                raise ValueError(f"an integer has {argument.bit_length()} bits")
            self.stack.append(argument)
        elif name in _MADE:
            self.stack.append(_MADE[name]())
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise _refused("unsupported", f"the pickle uses `{name}`, which no state dict needs")

    def pop(self, count: int = 1) -> Any:
        if len(self.stack) - count < (self.marks[-1] if self.marks else 0):
            raise IndexError("it pops from an empty stack")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items[0] if count == 1 else tuple(items)

    def pop_mark(self) -> tuple[Any, ...]:
        start = self.marks.pop()
        items = tuple(self.stack[start:])
        del self.stack[start:]
        return items

    def put(self, index: int | None) -> None:
        if index is not None and index.bit_length() > 32:
            raise ValueError("a memo index has more than 32 bits")
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def append(self, items: Iterable[object]) -> None:
        if not isinstance(target := self.stack[-1], list):
            raise TypeError(f"it appends to {_short(target)}")
        target += items

    def store(self, items: Sequence[object]) -> None:
        if not isinstance(target := self.stack[-1], dict) or len(items) % 2:
            raise TypeError(f"it stores {len(items)} keys and values in {_short(target)}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # Text hashes are salted; tuples and long integers can be made to collide.
            is_short = isinstance(key, int) and key.bit_length() < 64
            if not isinstance(key, str | bytes | None) and not is_short:
                raise TypeError(f"it uses {_short(key)} as a key")
            target[key] = value

    def symbol(self, module: object, name: object) -> None:
        # Names that are made of names, or of long texts, would grow without bound.
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError(f"it imports {_short(name)} from {_short(module)}")
        if len(module) + len(name) > MAX_NAME_LENGTH:
            raise ValueError(f"it imports a name of {len(module) + len(name)} characters")
        symbol = _Symbol(f"{module}.{name}")
        if symbol.name not in KNOWN_CALLABLES:
            self.foreign = self.foreign or symbol
        self.stack.append(symbol)

    def reduce(self, function: object, arguments: object, *keywords: object) -> None:
        if not isinstance(arguments, tuple):
            raise TypeError(f"it calls {_short(function)} with {_short(arguments)}")
        self.spend(len(arguments))  # one long tuple can be the arguments of many calls
        self.call(function, *arguments, *filter(None, keywords))

    def call(self, function: object, *arguments: object) -> None:
        if not isinstance(function, _Symbol):
            raise TypeError(f"it calls {_short(function)}")
        if function.name == _ORDERED_DICT and len(arguments) < 2:
            self.ordered_dict(*arguments)
        elif function.name in _PARAMETER and arguments and isinstance(arguments[0], _Tensor):
            self.stack.append(arguments[0])
        elif function.name in _REBUILD and len(arguments) >= 4:
            self.stack.append(_tensor(*arguments[:4]))
        else:
            call = function.name + _short(arguments).replace(",)", ")")
            raise _refused("would-execute", f"loading it would call {quoted(call, 400)}")

    def ordered_dict(self, pairs: object = ()) -> None:
        if not isinstance(pairs, list | tuple):
            raise TypeError(f"it makes a dict of {_short(pairs)}")
        self.spend(len(pairs))
        self.stack.append({})
        for pair in pairs:
            self.store(pair if isinstance(pair, list | tuple) else [pair])

    def build(self, _: object) -> None:
        _, target = self.pop(), self.stack[-1]
        # The state of an OrderedDict is only `_metadata`, the versions of torch's modules.
        if not isinstance(target, dict):
            raise _refused("would-execute", f"loading it would set the state of {_short(target)}")

    def persistent(self, _: object) -> None:
        match identity := self.pop():
            case ("storage", _Symbol(kind), str(key), str(), int(count), *rest) if (
                kind in _STORAGES and 0 <= count < 1 << 48 and rest in ([], [None])
            ):
                self.storages[key] = _Storage(kind, key, count)
                self.stack.append(self.storages[key])
            case _:
                raise _refused("unsupported", f"unknown kind of storage {_short(identity)}")


def _tensor(storage: object, offset: object, shape: object, strides: object) -> _Tensor:
    if (
        isinstance(storage, _Storage)
        and _are_sizes(start := (offset,))
        and _are_sizes(shape)
        and _are_sizes(strides)
        and len(shape) == len(strides) <= MAX_DIMENSIONS
    ):
        return _Tensor(storage, start[0], shape, strides)
    shown = f"offset {_short(offset)}, size {_short(shape)}, stride {_short(strides)}"
    raise _refused("tensor-bounds", f"malformed tensor of {_short(storage)}: {shown}")


def _are_sizes(values: object) -> TypeGuard[tuple[int, ...]]:
    return isinstance(values, tuple) and all(type(v) is int and v >= 0 for v in values)


class _Short(reprlib.Repr):
    """A repr of bounded length and cost, whatever a hostile pickle has built."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxtuple = 3, 200, 8

    def repr_bytes(self, value: bytes, _: int) -> str:
        return repr(value[:40])

    def repr__Symbol(self, value: _Symbol, _: int) -> str:  # noqa: N802
        return quoted(value.name)[1:-1]

    def repr__Tensor(self, value: _Tensor, _: int) -> str:  # noqa: N802
        return f"tensor {self.repr(value.shape)}"

    def repr__Storage(self, value: _Storage, _: int) -> str:  # noqa: N802
        return f"{quoted(value.kind)[1:-1]} [{value.count}]"


_short = _Short().repr

_PUSHED = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_MADE: dict[str, Callable[[], object]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_Step = Callable[[_Machine, Any], object]
_STEPS: dict[str, _Step] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda *_: None),
    "MARK": lambda m, _: m.marks.append(len(m.stack)),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.pop_mark(),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, i: m.stack.append(m.memo[i])),
    "TUPLE": lambda m, _: m.stack.append(m.pop_mark()),
    "TUPLE1": lambda m, _: m.stack.append((m.pop(),)),
    "TUPLE2": lambda m, _: m.stack.append(m.pop(2)),
    "TUPLE3": lambda m, _: m.stack.append(m.pop(3)),
    "APPEND": lambda m, _: m.append([m.pop()]),
    "APPENDS": lambda m, _: m.append(m.pop_mark()),
    "SETITEM": lambda m, _: m.store(m.pop(2)),
    "SETITEMS": lambda m, _: m.store(m.pop_mark()),
    "GLOBAL": lambda m, argument: m.symbol(*argument.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.symbol(*m.pop(2)),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.reduce(*m.pop(2))),
    "NEWOBJ_EX": lambda m, _: m.reduce(*m.pop(3)),
    "INST": lambda m, argument: m.call(_Symbol(argument.replace(" ", ".", 1)), *m.pop_mark()),
    "OBJ": lambda m, _: m.call(*m.pop_mark()),
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.persistent,
}
