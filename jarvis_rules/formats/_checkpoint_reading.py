"""What all parts of the checkpoint reader share: its refusals, and reads within bounds."""

from __future__ import annotations

import struct
from typing import Any

from jarvis_rules.errors import IntegrityError

Bytes = bytes | memoryview

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


def refused(name: str, message: str) -> IntegrityError:
    """Return the refusal of a checkpoint, `where` still to be filled in."""
    hint = _HINTS.get(name, _FETCH_AGAIN)
    return IntegrityError(message, slug=f"checkpoint.{name}", hint=hint)


def unpack(layout: str, data: Bytes, at: int) -> tuple[Any, ...]:
    """Return the fields at an offset; IntegrityError `checkpoint.truncated` beyond the end."""
    if at + struct.calcsize(layout) > len(data):
        raise refused("truncated", f"the checkpoint breaks off: byte {at} is beyond its end")
    return struct.unpack_from(layout, data, at)
