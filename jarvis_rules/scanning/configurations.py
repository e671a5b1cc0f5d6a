"""Looks through the YAML of a configuration: tags, duplicate keys, and what NeMo would call."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import yaml
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from jarvis_rules.formats.tar import quoted
from jarvis_rules.scanning.report import Findings

MAX_SIZE = 4 << 20
MAX_EVENTS = 200_000
MAX_DEPTH = 1000

_TAG = "tag:yaml.org,2002:"
_PLAIN = {None, "!", *(_TAG + n for n in ("str", "int", "float", "bool", "null", "seq", "map"))}
# NeMo imports and calls what these keys name (`hydra.utils.instantiate`, `import_class_by_path`).
_TARGETS = ("_target_", "target", "cls")
_ROOTS = {
    *("nemo", "nemo_text_processing", "torch", "torchaudio", "torchvision", "torchmetrics"),
    *("pytorch_lightning", "lightning", "omegaconf", "transformers", "megatron", "apex"),
}
_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader


@dataclass(slots=True)
class _Frame:
    """An open mapping or sequence; `key` is the key whose value comes next."""

    is_mapping: bool
    key: str | None = None
    seen: set[str] = field(default_factory=set)


def scan_configuration(data: bytes, where: str, findings: Findings) -> bool:
    """Add what is found in a YAML document, event by event: nothing is built of it.

    Return whether its end was reached.
    """
    if len(data) > MAX_SIZE:
        message = f"{len(data)} bytes, at most {MAX_SIZE} are looked at"
        findings.add("yaml.limit", where, message)
        return False
    scan = _Scan(where, findings)
    try:
        for count, event in enumerate(yaml.parse(data.decode(), Loader=_LOADER)):
            if count == MAX_EVENTS or len(scan.frames) > MAX_DEPTH:
                limit = f"{MAX_EVENTS} values, {MAX_DEPTH} deep"
                findings.add("yaml.limit", where, f"more than {limit}", line=_line(event))
                return False
            scan.follow(event)
        return True
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = quoted(str(error.problem or error.context))
        findings.add("yaml.malformed", where, reason, line=mark.line + 1 if mark else None)
    except (yaml.YAMLError, ValueError) as error:
        findings.add("yaml.malformed", where, quoted(str(error).partition("\n")[0]))
    return False


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


class _Scan:
    """Follows the events of a document."""

    def __init__(self, where: str, findings: Findings) -> None:
        self.where = where
        self.findings = findings
        self.frames: list[_Frame] = []

    def follow(self, event: Any) -> None:
        """Follow one event."""
        if isinstance(event, CollectionEndEvent):
            self.frames.pop()
            return
        if not isinstance(event, ScalarEvent | AliasEvent | MappingStartEvent | SequenceStartEvent):
            return
        tag = getattr(event, "tag", None)
        if tag not in _PLAIN:
            shown = quoted(str(tag).replace(_TAG, "!!"))
            message = f"the tag {shown} is not one of plain values"
            self.findings.add("yaml.tag", self.where, message, line=_line(event))
        frame = self.frames[-1] if self.frames else None
        if frame and frame.is_mapping:
            self.follow_pair(frame, event)
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            self.frames.append(_Frame(isinstance(event, MappingStartEvent)))

    def follow_pair(self, frame: _Frame, event: Any) -> None:
        """Follow a key of a mapping, or its value."""
        text = str(event.value) if isinstance(event, ScalarEvent) else None
        if frame.key is not None:
            if frame.key in _TARGETS and text is not None:
                self.check_target(frame.key, text, _line(event))
            frame.key = None
            return
        frame.key = text or ""
        if text is not None and text in frame.seen:
            message = f"the key {quoted(text)} is given twice"
            self.findings.add("yaml.duplicate-key", self.where, message, line=_line(event))
        frame.seen.add(frame.key)

    def check_target(self, key: str, target: str, line: int) -> None:
        """Report what NeMo or Hydra would import and call, unless it is a class of a model."""
        root, _, rest = target.partition(".")
        name = target.rpartition(".")[2]
        if not rest:  # no path to import
            return
        message = f"`{key}` makes NeMo call {quoted(target)}"
        if root in sys.stdlib_module_names or (root in _ROOTS and not name[:1].isupper()):
            self.findings.add("config.target", self.where, message, line=line)
        elif root not in _ROOTS:
            self.findings.add("config.unknown-target", self.where, message, line=line)
