"""Digests of files on disk, memoised by (size, mtime_ns, ctime_ns, inode) in one SQLite database.

A multi-GB model that did not change costs one `stat`. A file that was written so shortly before it
was looked at that a further write could leave the same stamp is not memoised. Beside single files
it remembers sets of files and folders that were found right together. The database is a memo and
nothing else: a damaged one is replaced, one that cannot be asked is done without.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jarvis_rules.core.digest import Digest, digest_file, digest_large_file, xxh3_file
from jarvis_rules.errors import ToolchainError

_SCHEMA = """
create table if not exists digests (
    path blob primary key, stamp text not null, sha256 text, xxh3 text
) without rowid;
create table if not exists sets (path blob primary key, stamps blob not null) without rowid
"""
# The kernel's timer tick is at most 10 ms; some file systems keep whole seconds, FAT even two.
_TICK_NS, _COARSE_TICK_NS = 20_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000
# Both digests of a file this large are computed when one is asked for: most need the other too.
_LARGE = 64 << 20


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file does.

    `racy` tells that the stamp was taken within one tick of the file's last change: a further
    write could leave this very stamp.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    racy: bool = field(compare=False, default=False)

    @classmethod
    def of(cls, path: Path | str) -> FileStamp:
        """Return the stamp of the regular file at `path`; OSError where there is none."""
        status = os.stat(path)  # noqa: PTH116  (thousands of times in a build with nothing to do)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(status.st_mode):
            # Opening a named pipe would wait for a writer, reading a device may never end.
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return cls.of_status(status)

    @classmethod
    def of_status(cls, status: os.stat_result) -> FileStamp:
        """Return the stamp of what has this status."""
        times = status.st_mtime_ns, status.st_ctime_ns
        tick = _COARSE_TICK_NS if not any(t % _SECOND_NS for t in times) else _TICK_NS
        racy = time.time_ns() - status.st_ctime_ns < tick
        return cls(status.st_size, *times, status.st_ino, racy)

    def text(self) -> str:
        """Return the stamp as the database keeps it."""
        return f"{self.size} {self.mtime_ns} {self.ctime_ns} {self.inode}"


class FileDigests:
    """The digest of any file, from memory when its stamp has not changed. Thread-safe."""

    def __init__(self, database: Path) -> None:
        self._lock = threading.Lock()
        self._connection = _open(database)
        self._rows: dict[bytes, tuple[str, str | None, str | None]] = {}
        self._sets: dict[bytes, bytes] = {}

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._connection.close()

    def preload(self, folder: Path) -> None:
        """Read what is known of the files under `folder` at once, before many are asked for."""
        start = _key(folder) + b"/"
        with contextlib.suppress(sqlite3.DatabaseError), self._lock:
            rows = self._connection.execute(
                "select path, stamp, sha256, xxh3 from digests where path >= ? and path < ?",
                (start, start[:-1] + b"0"),
            )
            self._rows |= {path: (stamp, sha256, xxh3) for path, stamp, sha256, xxh3 in rows}
            self._sets |= self._connection.execute(
                "select path, stamps from sets where path >= ? and path < ?",
                (start, start[:-1] + b"0"),
            )

    def matches(self, path: Path, digest: Digest) -> bool:
        """Return whether there is a file at `path` with the content of `digest`."""
        try:
            stamp = FileStamp.of(path)
            if stamp.size != digest.size:
                return False
            known = self._recall(path, stamp, "sha256")
            return (known or self.sha256(path).sha256) == digest.sha256
        except OSError:
            return False

    def sha256(self, path: Path) -> Digest:
        """Return the SHA-256 digest of the file at `path`; OSError where it cannot be read."""
        stamp = FileStamp.of(path)
        known = self._recall(path, stamp, "sha256")
        if known is not None:
            return Digest(known, stamp.size)
        if stamp.size >= _LARGE:
            return self._digest_large(path, stamp)[0]
        digest = digest_file(path)
        if not stamp.racy and FileStamp.of(path) == stamp:
            self._remember(path, stamp, "sha256", digest.sha256)
        return digest

    def xxh3(self, path: Path | str) -> str:
        """Return the xxh3-128 of the file at `path`; OSError where it cannot be read."""
        stamp = FileStamp.of(path)
        known = self._recall(path, stamp, "xxh3")
        if known is not None:
            return known
        if stamp.size >= _LARGE:
            return self._digest_large(Path(path), stamp)[1]
        digest = xxh3_file(Path(path))
        if not stamp.racy and FileStamp.of(path) == stamp:
            self._remember(path, stamp, "xxh3", digest)
        return digest

    def _digest_large(self, path: Path, stamp: FileStamp) -> tuple[Digest, str]:
        digest, xxh3 = digest_large_file(path)
        if not stamp.racy and FileStamp.of(path) == stamp:
            self._remember(path, stamp, "sha256", digest.sha256)
            self._remember(path, stamp, "xxh3", xxh3)
        return digest, xxh3

    def record(self, path: Path, digest: Digest, written: os.stat_result) -> None:
        """Remember what was just written to `path`, to spare reading it again.

        `written` tells the file that was written: another one, which another process has put in
        its place meanwhile, is not remembered.
        """
        stamp = FileStamp.of(path)
        if (stamp.inode, stamp.size, stamp.mtime_ns) == (
            written.st_ino,
            written.st_size,
            written.st_mtime_ns,
        ):
            self._remember(path, stamp, "sha256", digest.sha256)

    def is_unchanged(self, name: Path) -> bool:
        """Return whether all that `remember_set` was told of under `name` is as it was then."""
        key = _key(name)
        known = self._sets.get(key)
        if known is None:
            row = self._ask("select stamps from sets where path=?", (key,))
            known = b"" if row is None else row[0]
        lines = known.split(b"\0\0")
        try:
            return lines != [b""] and all(
                stamp == _text(_entry_status(path)).encode()
                for path, _, stamp in (line.partition(b"\0") for line in lines)
            )
        except OSError:
            return False

    def remember_set(self, name: Path, stamps: Mapping[bytes, FileStamp]) -> None:
        """Remember that files and folders, which had these stamps before, were found right.

        Nothing is remembered where one of them may have changed without its stamp's doing so.
        """
        if not any(stamp.racy for stamp in stamps.values()):
            lines = (path + b"\0" + stamp.text().encode() for path, stamp in stamps.items())
            self._sets.pop(_key(name), None)
            self._ask(
                "insert or replace into sets (path, stamps) values (?,?)",
                (_key(name), b"\0\0".join(lines)),
            )

    def _recall(self, path: Path | str, stamp: FileStamp, column: str) -> str | None:
        held = self._rows.get(_key(path))
        if held is not None and held[0] == stamp.text():
            return held[1] if column == "sha256" else held[2]
        row = self._ask(
            f"select {column} from digests where path=? and stamp=?",  # noqa: S608  (two literal names)
            (_key(path), stamp.text()),
        )
        return None if row is None else row[0]

    def _remember(self, path: Path | str, stamp: FileStamp, column: str, value: str) -> None:
        other = {"sha256": "xxh3", "xxh3": "sha256"}[column]
        self._rows.pop(_key(path), None)
        self._ask(
            f"insert into digests (path, stamp, {column}) values (?,?,?) on conflict (path) "  # noqa: S608
            f"do update set {other}=case when stamp=excluded.stamp then {other} end, "
            f"{column}=excluded.{column}, stamp=excluded.stamp",
            (_key(path), stamp.text(), value),
        )

    def _ask(self, statement: str, values: tuple[Any, ...]) -> Any:
        try:
            with self._lock, self._connection:
                return self._connection.execute(statement, values).fetchone()
        except sqlite3.DatabaseError:
            return None


def stamp_entries(files: Iterable[Path], folders: Iterable[Path]) -> dict[bytes, FileStamp]:
    """Return the stamps for `remember_set`; OSError where a file or a folder is missing."""
    # Absolute: what is remembered must hold in any current folder.
    names = [*map(_key, files), *(_key(folder) + b"/" for folder in sorted(folders))]
    return {name: FileStamp.of_status(_entry_status(name)) for name in names}


def _entry_status(path: bytes) -> os.stat_result:
    """Return the status of a file or, of `folder/`, of the folder itself."""
    # A link in the place of a folder is no folder.
    return os.lstat(path[:-1]) if path.endswith(b"/") else os.stat(path)  # noqa: PTH116


def _text(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _key(path: Path | str) -> bytes:
    # A relative path means another file once the current folder is another.
    text = os.fspath(path)
    return _absolute_key(text) if text.startswith("/") else _absolute_key.__wrapped__(text)


@functools.lru_cache(maxsize=1 << 16)
def _absolute_key(path: str) -> bytes:
    # A file name is bytes and need not be UTF-8. No symbolic link is resolved.
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100


def _open(database: Path) -> sqlite3.Connection:
    """Open the database, a new one in the place of a damaged one."""
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with database.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                return _connect(database)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError:
                for suffix in ("", "-wal", "-shm"):
                    Path(f"{database}{suffix}").unlink(missing_ok=True)
                return _connect(database)
    except (OSError, sqlite3.DatabaseError) as error:
        raise ToolchainError(
            f"cannot be opened: {error}",
            slug="cache.unusable",
            where=str(database),
            hint="set `JARVIS_CACHE` to a folder that you may write to",
        ) from None


def _connect(database: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(database, check_same_thread=False, timeout=60)
    try:
        connection.execute("pragma journal_mode=wal")
        connection.execute("pragma synchronous=off")
        with connection:
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
        if connection.execute("pragma quick_check(1)").fetchone() != ("ok",):
            raise sqlite3.DatabaseError("damaged")
    except BaseException:
        connection.close()
        raise
    return connection
