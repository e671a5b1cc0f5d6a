"""What every command shares: exit codes, error output, option syntax with suggestions."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jarvis_rules import __version__
from jarvis_rules.errors import (
    EXIT_BUG,
    EXIT_INTERRUPTED,
    EXIT_OK,
    JarvisError,
    UsageError,
    did_you_mean,
)

if TYPE_CHECKING:
    from jarvis_rules.formats.key_source import Key


class ArgumentParser(argparse.ArgumentParser):
    """argparse without abbreviations, with suggestions for what it does not know."""

    def __init__(self, **settings: Any) -> None:
        settings.setdefault("allow_abbrev", False)
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)
        self._is_intermixing = False

    def error(self, message: str) -> NoReturn:
        """Raise UsageError instead of printing and leaving."""
        hint = f"see `{self.prog} --help`"
        # "argument NAME: invalid choice: 'x' (choose from 'a', b)", quoted as the Python likes.
        found = re.fullmatch(r"argument (.+): invalid choice: '(.*)' \(choose from (.*)\)", message)
        if found is not None:
            what, got, listed = found.groups()
            known = [name.strip(" '") for name in listed.split(",")]
            what = what if what == "command" else f"value of {what}"
            message = f"unknown {what} `{got}`"
            suggestion = did_you_mean(got, known)
            listing = f"known: {', '.join(known)}; " if what != "command" else ""
            hint = f"{suggestion + ' ' if suggestion else ''}{listing}{hint}"
        raise UsageError(message, slug="usage", hint=hint)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, and refuse unknown options with the nearest known ones."""
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0]
            suggestion = did_you_mean(name, self.option_names(parsed)) if name[:1] == "-" else None
            what = "option" if name[:1] == "-" else "argument"
            raise UsageError(
                f"unknown {what} `{unknown[0]}`",
                slug="usage",
                hint=f"{suggestion + ' ' if suggestion else ''}see `{self.prog} --help`",
            )
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse with options between positionals, except where a command has commands of its own.

        argparse calls this for the chosen command of such a one.
        """
        # Before Python 3.12 the intermixed parsing is made of two of these.
        if self._subparsers is not None or self._is_intermixing:
            return super().parse_known_args(args, namespace)
        self._is_intermixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._is_intermixing = False

    def option_names(self, parsed: argparse.Namespace) -> list[str]:
        """Return the options in force, those of the chosen command included."""
        chosen = getattr(parsed, "parser", self)
        return [name for parser in (self, chosen) for name in parser._option_string_actions]


def add_version(parser: argparse.ArgumentParser) -> None:
    """Add `--version`."""
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")


def run_command(work: Callable[[Sequence[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors go to stderr, without a traceback."""
    try:
        code = work(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except JarvisError as error:
        print(error.render(), file=sys.stderr)  # noqa: T201
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)  # noqa: T201
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read stdout has seen enough; the interpreter must not complain when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception:
        traceback.print_exc()
        print("error: this is a fault of jarvis-rules, please report it [bug]", file=sys.stderr)  # noqa: T201
        return EXIT_BUG
    return code


def print_note(text: str) -> None:
    """Print a line of talk on stderr."""
    print(f"note: {text}", file=sys.stderr)  # noqa: T201


def require_writable(file: Path) -> None:
    """UsageError where `file` cannot be made: told before the work and not after it."""
    folder = file.parent
    while not os.path.lexists(folder):
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        what = "may not be written to" if folder.is_dir() else "is no folder"
        raise UsageError(
            f"cannot be written: `{folder}` {what}",
            slug="file.unwritable",
            where=str(file),
            hint="name another folder",
        )


def parse_archive(text: str) -> tuple[Path, Key | None]:
    """Return the path and the key of `FILE[:KEY]`; a key that is public is told.

    UsageError where there is a key that cannot be read.
    """
    from jarvis_rules.formats.key_source import parse_file_and_key

    path, key = parse_file_and_key(text)
    warn_of_key(key)
    return path, key


def parse_key(text: str | None) -> Key | None:
    """Return the key of `--key KEY`, if it was given; UsageError where it cannot be read."""
    from jarvis_rules.formats.key_source import read_key

    key = None if text is None else read_key(text)
    warn_of_key(key)
    return key


def require_one_key(first: Key | None, second: Key | None, where: str) -> Key | None:
    """Return the key that either of two places gives; UsageError where they give two."""
    if first is not None and second is not None and first != second:
        raise UsageError(
            "two different keys are given for one file",
            slug="key.contradiction",
            where=where,
            hint="give it once: behind the file, or with `--key`",
        )
    return first or second


def warn_of_key(key: Key | None) -> None:
    """Tell what the user must know of a key."""
    if key is not None and key.warning is not None:
        print_note(key.warning)
