"""What the core knows of a key to encrypted archives: that it is one, and its fingerprint."""

from __future__ import annotations

from typing import Protocol


class Secret(Protocol):
    """A key to encrypted archives."""

    @property
    def fingerprint(self) -> str:
        """What tells it from others and may be published: it stands in requests and records."""

    def reveal(self) -> bytes:
        """Return its bytes."""
