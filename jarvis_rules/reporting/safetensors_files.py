"""The weights of an open archive that has no graph."""

from __future__ import annotations

import contextlib
import mmap
import tempfile
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from jarvis_rules.formats.archive import Archive
from jarvis_rules.formats.compliance import WEIGHTS_MEMBER
from jarvis_rules.formats.safetensors_reading import read_safetensors

if TYPE_CHECKING:
    from jarvis_rules.formats.state_dict import Array


@contextlib.contextmanager
def open_safetensors(archive: Archive) -> Iterator[Mapping[str, Array]]:
    """Yield the weights of the archive by name, none where it has none.

    They are mapped from a temporary file. IntegrityError where they fail their digest or are no
    safetensors.
    """
    if WEIGHTS_MEMBER not in archive.manifest.files:
        yield {}
        return
    with tempfile.TemporaryFile() as file:
        archive.copy_to(WEIGHTS_MEMBER, file)
        file.flush()
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.tell() else b""
        yield read_safetensors(memoryview(data), f"{archive.path}!{WEIGHTS_MEMBER}")
