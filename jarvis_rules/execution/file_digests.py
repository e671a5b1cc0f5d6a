"""Digests of files on disk, memoised by (size, mtime_ns, ctime_ns, inode) in one SQLite database.

A multi-GB model that did not change costs one `stat`. A file whose stamp lies within the file
system's clock granularity of now is not memoised: an edit in the same tick would be invisible.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from jarvis_rules.core.digest import Digest, digest_file, xxh3_file

_SCHEMA = """
create table if not exists files (
    path text primary key, size integer, mtime_ns integer, ctime_ns integer, inode integer,
    sha256 text, xxh3 text
) without rowid
"""
# Coarser than the kernel's timer tick (at most 10 ms) and than common network file systems' stamps.
_RACY_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file does."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileStamp:
        """Return the stamp of the file at `path`; OSError where there is none."""
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    def is_racy(self) -> bool:
        """Return whether a further write could leave this very stamp."""
        return time.time_ns() - max(self.mtime_ns, self.ctime_ns) < _RACY_NS


class FileDigests:
    """The digest of any file, from memory when its stamp has not changed. Thread-safe."""

    def __init__(self, database: Path) -> None:
        database.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(database, check_same_thread=False, timeout=60)
        self._connection.execute("pragma journal_mode=wal")
        self._connection.execute("pragma synchronous=off")
        with self._connection:
            self._connection.execute(_SCHEMA)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    def sha256(self, path: Path) -> Digest:
        """Return the SHA-256 digest of the file at `path`; OSError where it cannot be read."""
        stamp, row = self._lookup(path)
        if row is not None and row[0]:
            return Digest(row[0], stamp.size)
        digest = digest_file(path)
        self._remember(path, stamp, "sha256", digest.sha256)
        return digest

    def xxh3(self, path: Path) -> str:
        """Return the xxh3-128 of the file at `path`; OSError where it cannot be read."""
        stamp, row = self._lookup(path)
        if row is not None and row[1]:
            return str(row[1])
        digest = xxh3_file(path)
        self._remember(path, stamp, "xxh3", digest)
        return digest

    def record(self, path: Path, digest: Digest) -> None:
        """Remember what was just written to `path`, to spare reading it again."""
        self._remember(path, FileStamp.of(path), "sha256", digest.sha256, settled=True)

    def _lookup(self, path: Path) -> tuple[FileStamp, tuple[str | None, str | None] | None]:
        stamp = FileStamp.of(path)
        query = (
            "select sha256, xxh3 from files where path=? and size=? and mtime_ns=? "
            "and ctime_ns=? and inode=?"
        )
        key = (os.path.abspath(path), stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode)  # noqa: PTH100  (no symlinks resolved)
        with self._lock:
            return stamp, self._connection.execute(query, key).fetchone()

    def _remember(
        self, path: Path, stamp: FileStamp, column: str, value: str, settled: bool = False
    ) -> None:
        if FileStamp.of(path) != stamp or (stamp.is_racy() and not settled):
            return
        name = os.path.abspath(path)  # noqa: PTH100
        row = (name, stamp.size, stamp.mtime_ns, stamp.ctime_ns, stamp.inode)
        with self._lock, self._connection:
            self._connection.execute(
                "insert into files (path, size, mtime_ns, ctime_ns, inode) values (?,?,?,?,?) "
                "on conflict (path) do update set size=excluded.size, mtime_ns=excluded.mtime_ns, "
                "ctime_ns=excluded.ctime_ns, inode=excluded.inode, sha256=null, xxh3=null "
                "where size!=excluded.size or mtime_ns!=excluded.mtime_ns "
                "or ctime_ns!=excluded.ctime_ns or inode!=excluded.inode",
                row,
            )
            self._connection.execute(f"update files set {column}=? where path=?", (value, name))  # noqa: S608  (two literal names)
