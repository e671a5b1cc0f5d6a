"""The console: one line per finished action on stderr, and live lines on a terminal."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from typing import Any, TextIO

from jarvis_rules.core.events import (
    ActionCompared,
    ActionFinished,
    ActionProgress,
    ActionStarted,
    Event,
    Notice,
)

LONG_SECONDS = 10.0
"""Without a terminal, an action that runs longer tells its phase, and no more often than that."""


class Console:
    """Prints events to `stream`; on a terminal, running actions are shown with phase and age.

    Meaning is never in colour alone, and `NO_COLOR` switches colour off. A quiet one leaves
    actions out.
    """

    def __init__(self, stream: TextIO | None = None, *, is_quiet: bool = False) -> None:
        self._stream = stream or sys.stderr
        self._is_quiet = is_quiet
        self._lock = threading.Lock()
        self._finished: list[ActionFinished] = []
        self._live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._progress: Any = None
        self._tasks: dict[tuple[str, str], Any] = {}
        self._told: dict[tuple[str, str], ActionProgress] = {}
        self._compared = 0

    def receive(self, event: Event) -> None:
        """Show one event."""
        with self._lock:
            match event:
                case ActionStarted():
                    self._start(event)
                case ActionProgress():
                    self._show_phase(event)
                case ActionCompared():
                    self._compared += 1
                case ActionFinished():
                    self._finish(event)
                case Notice(text=text):
                    self._print(f"note: {text}")

    def note(self, text: str) -> None:
        """Print a line that is neither progress nor result."""
        with self._lock:
            self._print(f"note: {text}")

    def __enter__(self) -> Console:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the live lines off the terminal."""
        with self._lock:
            self._stop()

    def summary(self, seconds: float) -> str:
        """Return what ends a build: what was built and cached, and what took longest.

        A line before it says how many actions were run twice and gave the same bytes, if any.
        """
        counts = Counter(event.outcome for event in self._finished)
        parts = [f"built {counts['executed']}", f"cached {counts['cached']}"]
        if counts["failed"]:
            parts.append(f"failed {counts['failed']}")
        text = f"{', '.join(parts)}, {seconds:.1f} s"
        executed = [event for event in self._finished if event.outcome == "executed"]
        if executed:
            slowest = max(executed, key=lambda event: event.seconds)
            text += f"; slowest {slowest.mnemonic} {slowest.target} {slowest.seconds:.1f} s"
        if self._compared:
            actions = "1 action" if self._compared == 1 else f"{self._compared} actions"
            text = f"compared {actions} twice: equal bytes\n{text}"
        return text

    def _start(self, event: ActionStarted) -> None:
        if not self._live or self._is_quiet:
            return
        if self._progress is None:
            self._progress = _live_lines(self._stream)
            self._progress.start()
        key = (event.mnemonic, event.target)
        if key in self._tasks:  # it runs twice, to be compared
            self._progress.reset(self._tasks[key], phase="")
            return
        text = f"{event.mnemonic} {event.target}"
        self._tasks[key] = self._progress.add_task(text, total=None, phase="")

    def _show_phase(self, event: ActionProgress) -> None:
        key = (event.mnemonic, event.target)
        if key in self._tasks:
            self._progress.update(self._tasks[key], phase=f"{event.phase} {event.detail}".rstrip())
        elif not self._live and not self._is_quiet and self._is_news(event, self._told.get(key)):
            self._told[key] = event
            self._print(
                f"running  {event.mnemonic} {event.target} {event.seconds:.1f} s: {event.phase}"
            )

    def _is_news(self, event: ActionProgress, told: ActionProgress | None) -> bool:
        if told is None:
            return event.seconds >= LONG_SECONDS
        return event.phase != told.phase and event.seconds - told.seconds >= LONG_SECONDS

    def _finish(self, event: ActionFinished) -> None:
        self._finished.append(event)
        self._told.pop((event.mnemonic, event.target), None)
        task = self._tasks.pop((event.mnemonic, event.target), None)
        if task is not None:
            self._progress.remove_task(task)
        if not self._is_quiet:
            self._print(f"{event.outcome:8} {event.mnemonic} {event.target} {event.seconds:.1f} s")
        if not self._tasks:
            self._stop()

    def _print(self, line: str) -> None:
        if self._progress is not None:
            # Nothing in a name is markup, and a long one is not cut into two.
            self._progress.console.print(
                line, markup=False, highlight=False, emoji=False, soft_wrap=True
            )
        else:
            print(line, file=self._stream, flush=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _live_lines(stream: TextIO) -> Any:
    """Return a display of tasks: name, phase and age, the first two cut where it is narrow."""
    from rich.console import Console as RichConsole
    from rich.progress import Progress, SpinnerColumn, Task, TextColumn
    from rich.table import Column
    from rich.text import Text

    class NameColumn(TextColumn):
        def __init__(self, text: str) -> None:
            # Of columns that are too wide rich makes those narrower that it believes to wrap.
            super().__init__(text, markup=False, table_column=Column(no_wrap=False))

        def render(self, task: Task) -> Text:
            text = super().render(task)
            text.no_wrap, text.overflow = True, "ellipsis"
            return text

    return Progress(
        SpinnerColumn(),
        NameColumn("{task.description}"),
        NameColumn("{task.fields[phase]}"),
        TextColumn("{task.elapsed:.0f} s"),
        console=RichConsole(file=stream),
        transient=True,
    )
