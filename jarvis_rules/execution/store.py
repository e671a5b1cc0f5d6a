"""The content store (CAS) and the action cache (AC): plain files under the cache directory.

`cas/ab/<sha256>` holds a blob, read-only; `ac/ab/<key>.json` an action result. Every write goes
to a temporary name first and is renamed when it is complete, so readers never see half a blob,
and any number of processes may write at once. Blobs are verified whenever they are read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from jarvis_rules.core.action import ActionResult
from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import Digest, digest_bytes, digest_file, digest_stream
from jarvis_rules.errors import IntegrityError, ToolchainError

# Marks a file in an output folder that a killed build left behind.
UNFINISHED = ".jarvis-unfinished"


_LOCK_DIGITS = 3


class BlobMissingError(IntegrityError):
    """A blob is not in the store, or was damaged and has been removed."""

    def __init__(self, digest: Digest) -> None:
        super().__init__(
            f"the stored content {digest} is missing, or was damaged and has been removed",
            slug="store.damaged",
            hint="build again: it will be made anew",
        )


class Store:
    """The local content store and action cache under `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._cas = root / "cas"
        self._ac = root / "ac"
        self._tmp = root / "tmp"
        self.has_grown = False
        try:
            root.mkdir(parents=True, exist_ok=True)
            self._is_shared = is_shared(root)
            for folder in (self._cas, self._ac, self._tmp, root / "toolchains"):
                self.make_folder(folder)
            self._remove_abandoned()
            self._session = self._open_session()
        except OSError as error:
            raise ToolchainError(
                f"cannot be used as the cache folder: {error.strerror}",
                slug="cache.unusable",
                where=str(root),
                hint="set `JARVIS_CACHE` to a folder that you may write to",
            ) from None

    def make_folder(self, folder: Path) -> None:
        """Make a folder of the store, for the group too where the store is the group's."""
        if not folder.is_dir():
            folder.mkdir(exist_ok=True)
            if self._is_shared:
                folder.chmod(0o2775)

    def _open_session(self) -> Path:
        """Make this process's scratch folder, marked as in use by a lock that dies with it."""
        while True:
            lock = self._tmp / f"{secrets.token_hex(8)}.lock"
            self._session_lock = lock.open("w")
            fcntl.flock(self._session_lock, fcntl.LOCK_EX)
            # Another process may have taken the file for abandoned before it was locked.
            if lock.exists():
                session = lock.with_suffix("")
                session.mkdir()
                return session

    def _remove_abandoned(self) -> None:
        """Remove the scratch folders of processes that are gone."""
        for lock in self._tmp.glob("*.lock"):
            with contextlib.suppress(OSError), lock.open("r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
                lock.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove this process's scratch folder."""
        shutil.rmtree(self._session, ignore_errors=True)
        self._session.with_suffix(".lock").unlink(missing_ok=True)
        self._session_lock.close()

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a private folder on the store's file system, removed afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self._session))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def path(self, digest: Digest) -> Path:
        """Return where the blob of `digest` is or would be."""
        return self._cas / digest.sha256[:2] / digest.sha256

    def has(self, digest: Digest) -> bool:
        """Return whether a blob of that name and size is present; its bytes are not checked."""
        try:
            return self.path(digest).stat().st_size == digest.size
        except FileNotFoundError:
            return False

    def put_bytes(self, data: bytes) -> Digest:
        """Store `data` and return its digest."""
        digest = digest_bytes(data)
        try:
            self.verify(digest)
        except BlobMissingError:
            with self.scratch() as folder:
                file = folder / "blob"
                file.write_bytes(data)
                self._adopt(file, digest)
        return digest

    def put_stream(self, stream: BinaryIO) -> Digest:
        """Store what is left of `stream` and return its digest."""
        with self.scratch() as folder:
            file = folder / "blob"
            with file.open("wb") as out:
                digest = digest_stream(stream, out)
            self._adopt(file, digest)
        return digest

    def put_file(self, path: Path) -> Digest:
        """Store a copy of the file at `path` and return the digest of what was stored."""
        with path.open("rb") as stream:
            return self.put_stream(stream)

    def _adopt(self, file: Path, digest: Digest) -> None:
        target = self.path(digest)
        self.make_folder(target.parent)
        self.has_grown = True
        _sync(file)
        file.chmod(0o444)
        file.replace(target)

    def read(self, digest: Digest) -> bytes:
        """Return a verified blob; BlobMissingError where it is absent or damaged."""
        try:
            data = self.path(digest).read_bytes()
        except FileNotFoundError:
            raise BlobMissingError(digest) from None
        if digest_bytes(data) != digest:
            self._discard(digest)
        return data

    def verify(self, digest: Digest) -> None:
        """Check a blob's bytes; BlobMissingError where it is absent or damaged."""
        try:
            found = digest_file(self.path(digest))
        except FileNotFoundError:
            raise BlobMissingError(digest) from None
        if found != digest:
            self._discard(digest)

    def copy_to(self, digest: Digest, target: Path) -> os.stat_result:
        """Write a verified copy of a blob to `target`, atomically, and return what `stat` says.

        BlobMissingError where the blob is absent or damaged; `target` is then left as it was.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}.", suffix=UNFINISHED, dir=target.parent
        )
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as out:
                try:
                    with self.path(digest).open("rb") as blob:
                        found = digest_stream(blob, out)
                except FileNotFoundError:
                    raise BlobMissingError(digest) from None
                if found != digest:
                    self._discard(digest)
                out.flush()
                os.fsync(out.fileno())
            temporary.chmod(0o644)
            written = temporary.stat()
            temporary.replace(target)
            return written
        finally:
            temporary.unlink(missing_ok=True)

    def _discard(self, digest: Digest) -> None:
        """Remove a blob whose bytes are not what its name says."""
        self.path(digest).unlink(missing_ok=True)
        raise BlobMissingError(digest)

    def result(self, key: Digest) -> ActionResult | None:
        """Return the cached result of an action, if there is one and all its blobs are present."""
        path = self._ac / key.sha256[:2] / f"{key.sha256}.json"
        try:
            result = load_result(path.read_bytes(), key)
        except FileNotFoundError:
            return None
        except ValueError:
            path.unlink(missing_ok=True)
            return None
        if not all(self.has(digest) for digest in result.outputs.values()):
            return None
        # The time of last use, which collection goes by.
        with contextlib.suppress(OSError):
            os.utime(path)
        return result

    def put_result(self, key: Digest, result: ActionResult) -> ActionResult:
        """Store the result of an action and return the one that counts: the first writer's.

        Not every tool gives the same bytes twice, and what others have built upon must stay.
        """
        first = self.result(key)
        if first is not None:
            return first
        for digest in result.outputs.values():
            if not self.has(digest):
                raise IntegrityError(
                    f"blob {digest} of an action's result is not in the store",
                    slug="store.incomplete-result",
                    where=str(self.root),
                )
        path = self._ac / key.sha256[:2] / f"{key.sha256}.json"
        self.make_folder(path.parent)
        with self.scratch() as folder:
            file = folder / "result"
            file.write_bytes(dump_result(result, key))
            # Whoever uses a result stamps it with the time.
            file.chmod(0o664 if self._is_shared else 0o644)
            _sync(file)
            file.replace(path)
        return result

    @contextlib.contextmanager
    def lock(self, key: Digest) -> Iterator[None]:
        """Hold the right to execute the action of `key`, against all processes and threads.

        Keys share a fixed number of lock files, so that none must ever be removed.
        """
        folder = self.root / "locks"
        self.make_folder(folder)
        path = folder / key.sha256[:_LOCK_DIGITS]
        with path.open("a") as handle:
            if self._is_shared and path.stat().st_uid == os.getuid():
                path.chmod(0o664)
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def forget(self, key: Digest) -> None:
        """Remove the cached result of an action."""
        (self._ac / key.sha256[:2] / f"{key.sha256}.json").unlink(missing_ok=True)


def private_root(root: Path) -> Path:
    """Return where a store keeps what no other user may see."""
    return root / f"private-{os.getuid()}"


def open_private_store(root: Path) -> Store:
    """Return the store, of this user alone, for what encrypted archives hold."""
    folder = private_root(root)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ToolchainError(
            "is open to others, and what encrypted archives hold is kept there",
            slug="cache.not-private",
            where=str(folder),
            hint=f"`chmod 700 {folder}`, or remove it",
        )
    return Store(folder)


def is_shared(root: Path) -> bool:
    """Return whether the folder of a store is its group's: several users build with it."""
    return bool(root.stat().st_mode & stat.S_IWGRP)


def dump_result(result: ActionResult, key: Digest) -> bytes:
    """Return an entry of the action cache: the result, under a digest of it and of its key."""
    document = result.to_json()
    return dump_canonical_json({"result": document, "seal": _seal(document, key)})


def load_result(data: bytes, key: Digest) -> ActionResult:
    """Return the result of an entry; ValueError where any bit of it is not as it was written."""
    document = json.loads(data)
    if not isinstance(document, dict) or document.keys() != {"result", "seal"}:
        raise ValueError("not an entry of the action cache")
    if document["seal"] != _seal(document["result"], key):
        raise ValueError("the entry does not match its seal")
    return ActionResult.from_json(document["result"])


def _seal(document: Any, key: Digest) -> str:
    return digest_bytes(key.sha256.encode() + dump_canonical_json(document)).sha256


def _sync(file: Path) -> None:
    with file.open("rb") as stream:
        os.fsync(stream.fileno())
