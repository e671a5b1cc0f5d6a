"""Providers: what a rule hands on. Which file will exist, never what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jarvis_rules.core.action import ActionSpec
from jarvis_rules.core.secret import Secret
from jarvis_rules.execution.delivery import Destination
from jarvis_rules.formats.jmir import EngineChoices


@dataclass(frozen=True, slots=True)
class DeclaredAction:
    """An action, where its outputs go, and the files that must exist before it can run."""

    spec: ActionSpec
    destination: Destination
    sources: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model: the `.ejrvs` that NemoExport makes, or one that was given."""

    archive: Path
    action: DeclaredAction


@dataclass(frozen=True, slots=True)
class PipelineInfo:
    """A pipeline: its `.jmir` and that one's key, its kind, the name that it is served under.

    `choices` are what it asks of its engines.
    """

    name: str
    kind: str
    jmir: Path
    key: Secret | None = field(default=None, repr=False)
    choices: EngineChoices = field(default_factory=EngineChoices)


@dataclass(frozen=True, slots=True)
class FolderInfo:
    """A manifest and the folder of the files that it lists, which an action makes."""

    manifest: Path
    folder: Path
    action: DeclaredAction


@dataclass(frozen=True, slots=True)
class CheckInfo:
    """The report of a numeric check: its action fails where the check does."""

    report: Path
    action: DeclaredAction
