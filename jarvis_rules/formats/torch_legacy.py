"""The container of torch before 1.6: five pickles one behind the other, then the storages."""

from __future__ import annotations

import io
from collections.abc import Mapping

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats._checkpoint_reading import refused, unpack
from jarvis_rules.formats._pickle_machine import PickleMachine
from jarvis_rules.formats.state_dict import Array, StateDict
from jarvis_rules.formats.tar import quoted
from jarvis_rules.formats.torch_pickle import MAX_PICKLE_SIZE, Storage, short

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001


def read_legacy(data: memoryview) -> Mapping[str, Array]:
    """Return the state dict of such a file; IntegrityError as `read_checkpoint`."""
    stream, machine = io.BytesIO(data[:MAX_PICKLE_SIZE]), PickleMachine()
    try:
        magic = machine.run(stream)
    except IntegrityError as error:
        if error.slug == "checkpoint.would-execute":
            raise
        magic = None
    if magic != LEGACY_MAGIC:
        raise refused("not-a-zip", "neither a zip nor a legacy checkpoint of torch")
    if (protocol := machine.run(stream)) != _LEGACY_PROTOCOL:
        raise refused("unsupported", f"unknown legacy protocol {short(protocol)}")
    machine.run(stream)  # the sizes and byte order of that machine; the file is little-endian
    value = machine.run(stream)
    keys = machine.run(stream)
    storages = _legacy_storages(data[stream.tell() :], keys, machine.storages)

    def storage(key: str) -> memoryview:
        if key not in storages:
            raise refused("storage", f"storage {quoted(key)} is missing")
        return storages[key]

    return StateDict(data, value, storage)


def _legacy_storages(
    data: memoryview, keys: object, known: Mapping[str, Storage]
) -> dict[str, memoryview]:
    found: dict[str, memoryview] = {}
    at = 0
    for key in keys if isinstance(keys, list) else []:
        if not isinstance(key, str) or key not in known or key in found:
            raise refused("storage", f"storage {short(key)} is unknown or listed twice")
        (count,) = unpack("<q", data, at)
        size = known[key].size
        if count != known[key].count or at + 8 + size > len(data):
            message = f"storage {quoted(key)} should hold {known[key].count} values, "
            raise refused("storage", message + f"got {count} in {len(data) - at - 8} bytes")
        found[key] = data[at + 8 : at + 8 + size]
        at += 8 + size
    if at != len(data):
        raise refused("storage", f"{len(data) - at} bytes follow the last storage")
    return found
