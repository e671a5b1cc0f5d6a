"""Restricted reader of torch checkpoints: tensors only, no code runs, nothing is unpickled."""

from __future__ import annotations

import io
from collections.abc import Mapping

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats._checkpoint_reading import Bytes, refused
from jarvis_rules.formats._pickle_machine import PickleMachine
from jarvis_rules.formats.state_dict import Array, StateDict
from jarvis_rules.formats.tar import quoted
from jarvis_rules.formats.torch_legacy import read_legacy
from jarvis_rules.formats.torch_pickle import MAX_PICKLE_SIZE
from jarvis_rules.formats.torch_zip import TorchZip


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
        return _read_zip(view) if bytes(view[:4]) == b"PK\3\4" else read_legacy(view)
    except IntegrityError as error:
        raise error.at(where) from None


def _read_zip(data: memoryview) -> Mapping[str, Array]:
    archive = TorchZip(data)
    roots = [n[:-9] for n in archive.entries if n.endswith("/data.pkl") and n.count("/") == 1]
    if len(roots) != 1:
        raise refused("not-a-zip", f"expected one `…/data.pkl` in the zip, got {len(roots)}")
    order = f"{roots[0]}/byteorder"  # absent before torch 2.1
    order = bytes(archive.read(order)).decode("latin-1") if order in archive.entries else "little"
    if order not in ("little", "big"):
        raise refused("unsupported", f"unknown byte order {quoted(order)}")
    name = f"{roots[0]}/data.pkl"
    if (size := archive.entries[name].size) > MAX_PICKLE_SIZE:
        raise refused("limit", f"`data.pkl` has {size} bytes, at most {MAX_PICKLE_SIZE}")
    stream = io.BytesIO(archive.read(name))
    value = PickleMachine().run(stream)
    if rest := size - stream.tell():
        raise refused("pickle", f"{rest} bytes follow the pickle in `data.pkl`")
    return StateDict(data, value, lambda key: archive.read(f"{roots[0]}/data/{key}"), order)
