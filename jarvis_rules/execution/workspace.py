"""What a command needs to run actions: the store, the file digests, an executor."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from jarvis_rules.core.cache_directory import cache_directory
from jarvis_rules.core.events import EventSink, Notice
from jarvis_rules.errors import UsageError
from jarvis_rules.execution.execution_log import ExecutionLog
from jarvis_rules.execution.executor import Executor
from jarvis_rules.execution.file_digests import FileDigests
from jarvis_rules.execution.process import install_signal_handlers
from jarvis_rules.execution.store import UNFINISHED, Store, is_shared, private_root

MAX_SIZE_VARIABLE = "JARVIS_CACHE_MAX_SIZE"


@contextlib.contextmanager
def open_executor(
    events: EventSink | None = None,
    log: ExecutionLog | None = None,
    *,
    require_cached: bool = False,
    check_determinism: bool = False,
) -> Iterator[Executor]:
    """Yield an executor over the user's cache directory (`JARVIS_CACHE`, else XDG's).

    Ctrl-C and SIGTERM end the tools that it runs. A cache that has grown is shrunk to the user's
    cap in the end. UsageError, ToolchainError: `JARVIS_SANDBOX` or `JARVIS_CACHE_MAX_SIZE` asks for
    what is unknown or impossible here, or the cache directory cannot be used.
    """
    if os.environ.get(MAX_SIZE_VARIABLE):
        from jarvis_rules.execution.collection import max_size

        max_size()  # a bad one is told before an hour of building, not after
    root = cache_directory()
    store = Store(root)
    digests = FileDigests(_database(root))
    install_signal_handlers()
    executor = Executor(
        store,
        digests,
        log,
        events,
        require_cached=require_cached,
        check_determinism=check_determinism,
    )
    try:
        yield executor
        if store.has_grown:
            _collect(root, events)
        if private_root(root).is_dir():
            _collect(private_root(root), events)
    finally:
        executor.close()
        digests.close()
        store.close()


def _collect(root: Path, events: EventSink | None) -> None:
    from jarvis_rules.execution.collection import collect_if_due, max_size

    # Of a cache that several share, others' files may be out of reach.
    with contextlib.suppress(OSError):
        collected = collect_if_due(root, max_size())
        if collected is not None and collected.results and events is not None:
            size = f"{collected.blob_bytes / (1 << 20):.0f} MiB"
            events.receive(
                Notice(
                    f"cache: removed {collected.results} results, {size}, that were not used for "
                    f"longest ({MAX_SIZE_VARIABLE}, see `jarvis-rules cache --help`)"
                )
            )


def _database(root: Path) -> Path:
    """Return the database of file digests: everyone's own, where several share the cache."""
    return root / (
        f"file-digests-{os.getuid()}.sqlite" if is_shared(root) else "file-digests.sqlite"
    )


@contextlib.contextmanager
def lock_tree(folder: Path) -> Iterator[None]:
    """Hold the one lock of an output folder, waiting for another build to end.

    Unfinished files that a killed build left behind are removed. UsageError where the folder
    cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise UsageError(
            f"cannot be the output folder: {error.strerror}",
            slug="file.unwritable",
            where=str(folder),
            hint="name a folder that you may write to",
        ) from None
    with lock as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another build holds {folder}, waiting", file=sys.stderr)  # noqa: T201
            fcntl.flock(handle, fcntl.LOCK_EX)
        handle.seek(0)
        if handle.read(1):
            for left in folder.rglob(f".*{UNFINISHED}"):
                left.unlink(missing_ok=True)
        # What stands in the lock file tells the next build that this one was killed.
        handle.write("building\n")
        handle.flush()
        try:
            yield
        finally:
            handle.truncate(0)
