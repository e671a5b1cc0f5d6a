"""How much the commands of Jarvis say on stderr: `--verbose LEVEL`, or `-v`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jarvis_rules.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from jarvis_rules.execution.executor import Executed
    from jarvis_rules.reporting.console import Console

# Those of Python's logging, which the old tools took.
LEVELS = {
    "NOTSET": 0,
    "DEBUG": 10,
    "INFO": 20,
    "WARN": 30,
    "WARNING": 30,
    "ERROR": 40,
    "FATAL": 50,
    "CRITICAL": 50,
}


def parse_level(text: str) -> int:
    """Return the level that a number or a name means; UsageError for anything else."""
    if text.isascii() and text.isdigit():
        return int(text[:9])
    if text.upper() not in LEVELS:
        near = did_you_mean(text, LEVELS)
        raise UsageError(
            f"`--verbose` takes a number or the name of a level, got `{text}`",
            slug="usage",
            hint=f"{near + ' ' if near else ''}known: {', '.join(LEVELS)}",
        )
    return LEVELS[text.upper()]


@dataclass(frozen=True, slots=True)
class Talk:
    """Prints what is at least as important as `level`; errors are always printed, elsewhere."""

    level: int = LEVELS["INFO"]

    def warn(self, text: str) -> None:
        """Print what the user should look into."""
        self._print("WARNING", f"warning: {text}")

    def note(self, text: str) -> None:
        """Print what the user may want to know."""
        self._print("INFO", f"note: {text}")

    def detail(self, text: str) -> None:
        """Print what helps to find out what went on."""
        self._print("DEBUG", f"debug: {text}")

    def describe(self, executed: Executed) -> None:
        """Print the key of an action and what its tool said."""
        if self.level <= LEVELS["DEBUG"]:
            action = executed.action.description
            self.detail(f"{action}: {executed.outcome}, action key {executed.key}")
            log = executed.store.read(executed.result.log).decode(errors="replace")
            for line in log.splitlines():
                self.detail(f"{action}: {line}")

    def console(self) -> Console:
        """Return the console for a build, which only tells what matters at this level."""
        from jarvis_rules.reporting.console import Console

        return Console(is_quiet=self.level > LEVELS["INFO"])

    def _print(self, level: str, line: str) -> None:
        if self.level <= LEVELS[level]:
            print(line, file=sys.stderr)  # noqa: T201
