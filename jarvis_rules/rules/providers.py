"""Providers: what a rule hands on. Which file will exist, never what is in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from jarvis_rules.core.action import ActionSpec
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.secret import Secret
from jarvis_rules.execution.delivery import Destination


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
    """A pipeline: its `.jmir` and that one's key, its kind, the name that it is served under."""

    name: str
    kind: str
    jmir: Path
    key: Secret | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class EnginesInfo:
    """The engines of a pipeline for one GPU target: the manifest, and the folder of the files."""

    manifest: Path
    folder: Path
    gpu: GpuTarget
    note: str | None
    action: DeclaredAction


@dataclass(frozen=True, slots=True)
class RepositoryInfo:
    """The Triton models of a pipeline: the manifest, and the model repository that holds them."""

    manifest: Path
    models: Path
    action: DeclaredAction
