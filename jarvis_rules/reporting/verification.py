"""What verifying a file or a repository came to: counts, problems, and what was not looked at."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.reporting.subject import Subject
from jarvis_rules.triton.model_folder import LintFinding

MAX_PROBLEMS = 100
"""Problems of one path that are listed; the others are counted."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong: a slug of `errors.md`, the member or file, what, and what helps."""

    slug: str
    place: str
    message: str
    hint: str | None = None

    @classmethod
    def of_error(cls, error: JarvisError, subject: Subject, place: str = "") -> Problem:
        """Return the problem that an error of a reader tells of."""
        where = (error.where or "").removeprefix(str(subject.path)).lstrip("!/")
        return cls(error.slug, place or where, error.message, error.hint)

    @classmethod
    def of_finding(cls, finding: LintFinding) -> Problem:
        """Return the problem that the linter of repositories found."""
        return cls(finding.slug, finding.model, finding.message, finding.hint)

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "slug": self.slug,
            "place": self.place,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(slots=True)
class Verification:
    """All that was found out about one path."""

    subject: Subject
    problems: list[Problem] = field(default_factory=list)
    left_out: int = 0
    checked: Counter[str] = field(default_factory=Counter)
    not_checked: list[tuple[str, str]] = field(default_factory=list)

    def add(self, problem: Problem) -> None:
        """List a problem, or count it when there are very many."""
        if problem in self.problems:
            return
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)
        else:
            self.left_out += 1

    def skip(self, what: str, reason: str) -> None:
        """Say what was not checked, and why."""
        self.not_checked.append((what, reason))

    @contextlib.contextmanager
    def listing(self, what: str | None = None, place: str = "") -> Iterator[None]:
        """List the error that the block ends in; count `what` where it ends well.

        A UsageError is not about the content, and goes on.
        """
        try:
            yield
        except UsageError:
            raise
        except JarvisError as error:
            self.add(Problem.of_error(error, self.subject, place))
        else:
            if what is not None:
                self.checked[what] += 1

    @property
    def is_sound(self) -> bool:
        """Whether nothing was wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "path": str(self.subject.path),
            "format": self.subject.format,
            "sound": self.is_sound,
            "checked": {what: n for what, n in sorted(self.checked.items()) if n},
            "problems": [problem.to_json() for problem in self.problems],
            "left_out": self.left_out,
            "not_checked": [{"what": what, "reason": reason} for what, reason in self.not_checked],
        }
