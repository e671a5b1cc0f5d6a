"""What the executor tells whoever watches a build."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

Outcome = Literal["executed", "cached", "failed"]


@dataclass(frozen=True, slots=True)
class ActionStarted:
    """A tool is about to run."""

    mnemonic: str
    target: str


@dataclass(frozen=True, slots=True)
class ActionProgress:
    """A running tool is in this phase, `seconds` after it began; said again while that lasts."""

    mnemonic: str
    target: str
    phase: str
    seconds: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ActionCompared:
    """An action was run once more, and gave the same bytes."""

    mnemonic: str
    target: str


@dataclass(frozen=True, slots=True)
class ActionFinished:
    """An action has a result, or has failed."""

    mnemonic: str
    target: str
    outcome: Outcome
    seconds: float


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that whoever relies on the results must know."""

    text: str


Event = ActionStarted | ActionProgress | ActionCompared | ActionFinished | Notice


class EventSink(Protocol):
    """Receives events, from any thread."""

    def receive(self, event: Event) -> None:
        """Take one event."""


class NoEvents:
    """Ignores every event."""

    def receive(self, event: Event) -> None:
        """Ignore the event."""
