"""What stands in the tar around a member's content: one form for one name and size."""

from __future__ import annotations

import tarfile

END = bytes(2 * tarfile.BLOCKSIZE)


def member_header(name: str, size: int) -> bytes:
    """Return what stands before a member: its header, with a pax header before it if needed."""
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8")


def padding(size: int) -> bytes:
    """Return the zeros that stand after a member."""
    return bytes(-size % tarfile.BLOCKSIZE)
