"""The console: one line per finished action on stderr, and live lines on a terminal."""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from typing import Any, TextIO

from jarvis_rules.core.events import ActionFinished, ActionStarted, Event, Notice


class Console:
    """Prints events to `stream`; on a terminal, running actions are shown with their age.

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

    def receive(self, event: Event) -> None:
        """Show one event."""
        with self._lock:
            match event:
                case ActionStarted():
                    self._start(event)
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
        """Return the line that ends a build: what was built and cached, and what took longest."""
        counts = Counter(event.outcome for event in self._finished)
        parts = [f"built {counts['executed']}", f"cached {counts['cached']}"]
        if counts["failed"]:
            parts.append(f"failed {counts['failed']}")
        text = f"{', '.join(parts)}, {seconds:.1f} s"
        executed = [event for event in self._finished if event.outcome == "executed"]
        if executed:
            slowest = max(executed, key=lambda event: event.seconds)
            text += f"; slowest {slowest.mnemonic} {slowest.target} {slowest.seconds:.1f} s"
        return text

    def _start(self, event: ActionStarted) -> None:
        if not self._live or self._is_quiet:
            return
        if self._progress is None:
            from rich.console import Console as RichConsole
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=RichConsole(file=self._stream),
                transient=True,
            )
            self._progress.start()
        key = (event.mnemonic, event.target)
        # Square brackets are rich's markup.
        text = f"{event.mnemonic} {event.target}".replace("[", r"\[")
        self._tasks[key] = self._progress.add_task(text, total=None)

    def _finish(self, event: ActionFinished) -> None:
        self._finished.append(event)
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
