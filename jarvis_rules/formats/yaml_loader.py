"""The loader that readers of untrusted YAML start from: fast, and limited in nodes and nesting."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from yaml.composer import Composer
from yaml.nodes import Node

MAX_DEPTH = 64
MAX_NODES = 200_000  # a second or two; more than the labels of a large vocabulary

if TYPE_CHECKING:
    _Loader = yaml.SafeLoader
elif yaml.__with_libyaml__:

    class _Loader(Composer, yaml.CSafeLoader):
        """libyaml's scanner with the composer in Python, where nodes and nesting can be counted."""

        def __init__(self, text):  # noqa: ANN001, ANN204
            yaml.CSafeLoader.__init__(self, text)
            Composer.__init__(self)

else:
    _Loader = yaml.SafeLoader


class LimitedLoader(_Loader):
    """Composes the nodes of one document, up to the limits."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.nodes = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node; a MarkedYAMLError where it is one too many, or too deep."""
        self.depth += 1
        self.nodes += 1
        if self.depth > MAX_DEPTH:
            raise self.problem(f"nested more than {MAX_DEPTH} deep")
        if self.nodes > MAX_NODES:
            raise self.problem(f"more than {MAX_NODES} values")
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def problem(self, text: str) -> yaml.MarkedYAMLError:
        """Return the error for what stands before the next event."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return yaml.MarkedYAMLError(problem=text, problem_mark=mark)
