"""Files that somebody names: only regular ones are opened, one wording for what is none."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import IO

from jarvis_rules.errors import UsageError, did_you_mean


def open_regular(path: Path) -> IO[bytes]:
    """Open a file that is none of the kinds that block or never end; `UsageError` otherwise."""
    # Opening a named pipe would wait for a writer, so the type is asked first.
    if not stat.S_ISREG(path.stat().st_mode):
        kind = "a folder" if path.is_dir() else "not a regular file"
        raise UsageError(f"expected a file, got {kind}", slug="file.unreadable", where=str(path))
    return path.open("rb")


def require_regular(path: Path, *, otherwise: str | None = None, among: str = "*") -> None:
    """Raise UsageError where no regular file can be opened; the hints are those of `missing`."""
    try:
        open_regular(path).close()
    except (FileNotFoundError, NotADirectoryError):
        raise missing(path, otherwise=otherwise, among=among) from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> UsageError:
    """Return the error for a path that the system does not let us read."""
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return missing(path)
    reason = error.strerror or str(error)
    return UsageError(f"cannot be read: {reason}", slug="file.unreadable", where=str(path))


def missing(path: Path, *, otherwise: str | None = None, among: str = "*") -> UsageError:
    """Return the error for a path where nothing is.

    Its hint is the nearest names that match the glob `among`, or else `otherwise`.
    """
    hint = did_you_mean(path.name, [entry.name for entry in path.parent.glob(among)]) or otherwise
    if hint is None and path.parent.is_dir():
        hint = f"nothing in `{path.parent}` has a similar name"
    elif hint is None:
        hint = f"the folder `{path.parent}` does not exist either"
    return UsageError("no such file", slug="file.missing", hint=hint, where=str(path))
