"""What a command needs to run actions: the store, the file digests, an executor."""

from __future__ import annotations

import contextlib
import fcntl
import sys
from collections.abc import Iterator
from pathlib import Path

from jarvis_rules.core.cache_directory import cache_directory
from jarvis_rules.core.events import EventSink
from jarvis_rules.errors import UsageError
from jarvis_rules.execution.execution_log import ExecutionLog
from jarvis_rules.execution.executor import Executor
from jarvis_rules.execution.file_digests import FileDigests
from jarvis_rules.execution.process import install_signal_handlers
from jarvis_rules.execution.store import UNFINISHED, Store

MAX_SIZE_VARIABLE = "JARVIS_CACHE_MAX_SIZE"
DEFAULT_MAX_SIZE = "20G"


@contextlib.contextmanager
def open_executor(
    events: EventSink | None = None,
    log: ExecutionLog | None = None,
    *,
    require_cached: bool = False,
    check_determinism: bool = False,
) -> Iterator[Executor]:
    """Yield an executor over the user's cache directory (`JARVIS_CACHE`, else XDG's).

    Ctrl-C and SIGTERM end the tools that it runs. UsageError, ToolchainError: `JARVIS_SANDBOX`
    asks for what is unknown or impossible here, or the cache directory cannot be used.
    """
    root = cache_directory()
    store, digests = Store(root), FileDigests(root / "file-digests.sqlite")
    install_signal_handlers()
    try:
        yield Executor(
            store,
            digests,
            log,
            events,
            require_cached=require_cached,
            check_determinism=check_determinism,
        )
    finally:
        digests.close()
        store.close()


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
