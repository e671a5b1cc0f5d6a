"""Looking after a store: how large it is, what is damaged, and what has not been used for longest.

Collection works on action results, least recently used first, and then removes the blobs that no
result names. A build that loses a blob to it finds a miss and makes it again, so no lock is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.action import ActionResult
from jarvis_rules.core.digest import Digest, digest_file
from jarvis_rules.errors import UsageError
from jarvis_rules.execution.store import is_shared, load_result, private_root

DEFAULT_MAX_SIZE = "20G"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MARK = "collected"

# A blob that was stored so recently may belong to an action that is still running.
GRACE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class CacheSize:
    """What a store holds; sizes in bytes."""

    blobs: int
    blob_bytes: int
    results: int
    log_bytes: int

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection removed; sizes in bytes."""

    results: int
    blobs: int
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What a check found: blobs and results looked at, and the damaged ones, which are removed."""

    blobs: int
    results: int
    damaged: tuple[str, ...]


def store_roots(root: Path) -> tuple[Path, ...]:
    """Return the store under `root`, and this user's private one inside it where there is one."""
    private = private_root(root)
    return (root, private) if private.is_dir() else (root,)


def parse_size(text: str) -> int:
    """Return the bytes of `500M`, `20G` or a plain number; UsageError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if match is None:
        raise UsageError(
            f"expected a size such as 500M or 20G, got `{text}`",
            slug="cache.size",
            hint="units are K, M, G and T, in powers of 1024",
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def max_size() -> int:
    """Return how many bytes of blobs the user wants to keep; UsageError for a bad size."""
    return parse_size(os.environ.get("JARVIS_CACHE_MAX_SIZE") or DEFAULT_MAX_SIZE)


def collect_if_due(root: Path, max_bytes: int) -> Collected | None:
    """Collect, unless that was done within `GRACE_SECONDS` or is being done; None then."""
    mark = root / _MARK
    with contextlib.suppress(FileNotFoundError):
        if time.time() - mark.stat().st_mtime < GRACE_SECONDS:
            return None
    with mark.open("a") as handle:
        if is_shared(root) and mark.stat().st_uid == os.getuid():
            mark.chmod(0o664)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        collected = collect(root, max_bytes)
        os.utime(mark)
    return collected


def measure(root: Path) -> CacheSize:
    """Return the size of the store under `root`."""
    sizes = [size for _, size, _ in _files(root / "cas")]
    return CacheSize(
        blobs=len(sizes),
        blob_bytes=sum(sizes),
        results=sum(1 for _ in _files(root / "ac")),
        log_bytes=sum(size for _, size, _ in _files(root / "logs")),
    )


def collect(root: Path, max_bytes: int, now: float | None = None) -> Collected:
    """Remove least recently used results, and blobs that none names, until blobs fit `max_bytes`.

    Blobs without a result go first, except those younger than `GRACE_SECONDS`.
    """
    moment = time.time() if now is None else now
    blobs = {path.name: (path, size, used) for path, size, used in _files(root / "cas")}
    results = sorted(_files(root / "ac"), key=lambda entry: entry[2], reverse=True)
    kept, total, removed = set[str](), 0, 0
    for path, _, used in results:
        names = _names(path)
        fresh = names - kept
        size = sum(blobs[name][1] for name in fresh if name in blobs)
        # A result in use keeps its blobs, whatever the cap: it is being delivered.
        if total + size > max_bytes and moment - used > GRACE_SECONDS:
            path.unlink(missing_ok=True)
            removed += 1
            continue
        kept |= names
        total += size
    gone = [
        (path, size)
        for name, (path, size, used) in blobs.items()
        if name not in kept and moment - used > GRACE_SECONDS
    ]
    for path, _ in gone:
        path.unlink(missing_ok=True)
    return Collected(removed, len(gone), sum(size for _, size in gone))


def verify(root: Path) -> Verified:
    """Read every blob and result; remove what is damaged, so that it is made again."""
    damaged: list[str] = []
    blobs = list(_files(root / "cas"))
    for path, _, _ in blobs:
        with contextlib.suppress(FileNotFoundError):
            if digest_file(path).sha256 != path.name:
                path.unlink()
                damaged.append(f"blob {path.name}")
    results = list(_files(root / "ac"))
    for path, _, _ in results:
        result = _read(path)
        if result is None or not all(
            (root / "cas" / digest.sha256[:2] / digest.sha256).is_file()
            for digest in result.outputs.values()
        ):
            path.unlink(missing_ok=True)
            damaged.append(f"result {path.stem}")
    return Verified(len(blobs), len(results), tuple(sorted(damaged)))


def clear(root: Path) -> None:
    """Remove every blob, result and log; a serving environment stays."""
    for name in ("cas", "ac", "logs"):
        shutil.rmtree(root / name, ignore_errors=True)
    for path in root.glob("file-digests.sqlite*"):
        path.unlink(missing_ok=True)


def _files(folder: Path) -> Iterator[tuple[Path, int, float]]:
    """Yield path, size and time of last use of every file two levels down or directly there."""
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            if path.is_file():
                yield path, status.st_size, status.st_mtime


def _read(path: Path) -> ActionResult | None:
    try:
        return load_result(path.read_bytes(), Digest(path.stem, 0))
    except (OSError, ValueError):
        return None


def _names(path: Path) -> set[str]:
    result = _read(path)
    if result is None:
        return set()
    return {digest.sha256 for digest in (*result.outputs.values(), result.log)}
