"""Content digests: SHA-256 across machines and trust boundaries, xxh3-128 for local changes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import xxhash

CHUNK = 1 << 20
_LARGE_CHUNK = 8 << 20


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A REAPI digest: lower-case SHA-256 hex and the size in bytes."""

    sha256: str
    size: int

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form that manifests and logs use."""
        return {"sha256": self.sha256, "size": self.size}

    @classmethod
    def from_json(cls, document: Any) -> Digest:
        """Return the digest that `to_json` wrote; ValueError for anything else."""
        match document:
            case {"sha256": str(sha256), "size": int(size)} if len(sha256) == 64 and size >= 0:
                if not set(sha256) <= set("0123456789abcdef"):
                    raise ValueError(f"not a lower-case SHA-256: {sha256!r}")
                return cls(sha256, size)
        raise ValueError(f"not a digest: {document!r}")

    def __str__(self) -> str:
        return f"{self.sha256}/{self.size}"


class Sink(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Take `data` in."""


class DigestWriter:
    """A stream that keeps nothing of what is written to it but its digest."""

    def __init__(self) -> None:
        self._state = hashlib.sha256()
        self._size = 0

    def write(self, data: bytes | memoryview) -> None:
        """Take `data` in."""
        self._state.update(data)
        self._size += len(data)

    def digest(self) -> Digest:
        """Return the digest of all that was written."""
        return Digest(self._state.hexdigest(), self._size)


def digest_bytes(data: bytes) -> Digest:
    """Return the digest of `data`."""
    return Digest(hashlib.sha256(data).hexdigest(), len(data))


def digest_stream(stream: BinaryIO, copy_to: BinaryIO | None = None) -> Digest:
    """Return the digest of what is left of `stream`, written to `copy_to` on the way."""
    state, size = hashlib.sha256(), 0
    while chunk := stream.read(CHUNK):
        state.update(chunk)
        size += len(chunk)
        if copy_to is not None:
            copy_to.write(chunk)
    return Digest(state.hexdigest(), size)


def digest_file(path: Path) -> Digest:
    """Return the digest of the file at `path`; OSError where it cannot be read."""
    with path.open("rb") as stream:
        return digest_stream(stream)


def digest_large_file(path: Path) -> tuple[Digest, str]:
    """Return the SHA-256 digest and the xxh3-128 hex of a file that is read once, in two threads.

    SHA-256 of one chunk is computed while the next one is read. OSError where it cannot be read.
    """
    from concurrent.futures import ThreadPoolExecutor

    slow, fast, size = hashlib.sha256(), xxhash.xxh3_128(), 0
    with path.open("rb", buffering=0) as stream, ThreadPoolExecutor(1) as worker:
        pending = None
        while chunk := stream.read(_LARGE_CHUNK):
            fast.update(chunk)
            size += len(chunk)
            if pending is not None:
                pending.result()
            pending = worker.submit(slow.update, chunk)
    return Digest(slow.hexdigest(), size), fast.hexdigest()


def xxh3_file(path: Path) -> str:
    """Return the xxh3-128 hex of the file at `path`: for change detection on one machine only."""
    state = xxhash.xxh3_128()
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            state.update(chunk)
    return state.hexdigest()
