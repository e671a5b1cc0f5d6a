"""What a command is asked to look into: a checkpoint, an archive or a repository, and its key."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.input_file import missing, unreadable
from jarvis_rules.formats.key_source import Key, parse_file_and_key
from jarvis_rules.triton.publish import MANIFEST_SUFFIX

Format = Literal["nemo", "ejrvs", "jmir", "repository"]
_SUFFIXES: dict[str, Format] = {
    ".nemo": "nemo",
    ".tlt": "nemo",
    ".ejrvs": "ejrvs",
    ".jmir": "jmir",
}


@dataclass(frozen=True, slots=True)
class Subject:
    """A file or a repository's folder, what it must be, and the key where one was given."""

    path: Path
    format: Format
    key: Key | None = None


def find_subject(text: str) -> Subject:
    """Return what `FILE`, `FILE:KEY` or the folder of a repository names.

    UsageError for a path that is missing or of no known format, and for a key that opens nothing.
    """
    path, key = parse_file_and_key(text, tuple(_SUFFIXES))
    if path.is_dir():
        require_repository(path)
        return Subject(path, "repository")
    if not path.exists():
        raise missing(path)
    if path.suffix not in _SUFFIXES:
        raise UsageError(
            f"the suffix `{path.suffix}` is of no format that can be looked into",
            slug="file.suffix",
            where=str(path),
            hint=f"known: {', '.join(_SUFFIXES)}, and folders of model repositories",
        )
    found = _SUFFIXES[path.suffix]
    if key is not None and found == "nemo":
        raise UsageError(
            "a key was given, and no checkpoint is encrypted in a way that a key would open",
            slug="key.checkpoint",
            where=str(path),
            hint=f"leave the key out: `{path}`",
        )
    return Subject(path, found, key)


def require_repository(path: Path) -> None:
    """Raise UsageError where a folder has no manifest of ours."""
    if not any(path.glob(f"*{MANIFEST_SUFFIX}")):
        raise UsageError(
            f"no `*{MANIFEST_SUFFIX}` here, so this is no repository of these tools",
            slug="repository.none",
            where=str(path),
            hint="`scons deploy` makes one at out/<gpu>/models",
        )


@contextlib.contextmanager
def reading(subject: Subject) -> Iterator[None]:
    """Turn what the system refuses into UsageError, which names the file."""
    try:
        yield
    except OSError as error:
        raise unreadable(Path(error.filename or subject.path), error) from error
