"""Errors that end in one clear message, a hint, a stable slug and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

EXIT_OK = 0
EXIT_BUILD = 1
EXIT_USAGE = 2
EXIT_INTEGRITY = 3
EXIT_TOOLCHAIN = 4
EXIT_BUG = 70
EXIT_INTERRUPTED = 130


class JarvisError(Exception):
    """A fault of the input or the machine, never of this program.

    `message` says what is wrong with expected against got, `where` names the file, member or
    option, `hint` the command or edit that fixes it, `slug` is stable and documented in
    `docs/reference/errors.md`.
    """

    exit_code = EXIT_BUILD

    def __init__(
        self, message: str, *, slug: str, hint: str | None = None, where: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.slug = slug
        self.hint = hint
        self.where = where

    def __str__(self) -> str:
        return f"{self.where}: {self.message}" if self.where else self.message

    def render(self) -> str:
        """Return the text for stderr: `error: … [slug]`, and `hint: …` after a blank line."""
        text = f"error: {self} [{self.slug}]"
        return f"{text}\n\nhint: {self.hint}" if self.hint else text

    def to_json(self) -> dict[str, str | None]:
        """Return what another process makes this error of again: `error_from_json`."""
        return {
            "class": type(self).__name__,
            "message": self.message,
            "slug": self.slug,
            "hint": self.hint,
            "where": self.where,
        }

    def at(self, where: str) -> JarvisError:
        """Return this error with `where` filled in when it is not yet known."""
        if self.where is None:
            self.where = where
        return self


class UsageError(JarvisError):
    """The command line, a SConscript or an option is wrong."""

    exit_code = EXIT_USAGE


class IntegrityError(JarvisError):
    """A file is not what it must be: damaged, hostile, or not matching its digest or key."""

    exit_code = EXIT_INTEGRITY


class ToolchainError(JarvisError):
    """A tool, environment or GPU that the work needs is missing on this machine."""

    exit_code = EXIT_TOOLCHAIN


class JarvisBug(Exception):  # noqa: N818  (a bug, told apart from every error)
    """A state that only a fault of this program can produce."""

    exit_code = EXIT_BUG


ERROR_CLASSES: dict[str, type[JarvisError]] = {
    kind.__name__: kind for kind in (JarvisError, UsageError, IntegrityError, ToolchainError)
}


def error_from_json(document: Mapping[str, Any]) -> JarvisError:
    """Return the error that another process reported with `to_json`."""
    kind = ERROR_CLASSES.get(document["class"], JarvisError)
    return kind(
        document["message"],
        slug=document["slug"],
        hint=document["hint"],
        where=document["where"],
    )


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """Return a sentence with the nearest known names, or None where nothing is near."""
    near = difflib.get_close_matches(name.lower(), {k.lower(): k for k in known}, n=3, cutoff=0.6)
    if not near:
        return None
    original = {k.lower(): k for k in known}
    return "did you mean " + " or ".join(f"`{original[n]}`" for n in near) + "?"
