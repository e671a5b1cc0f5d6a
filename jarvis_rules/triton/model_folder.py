"""A model's folder as Triton reads it: name, `config.pbtxt`, backend, versions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.jmir import CALLS
from jarvis_rules.triton.model_config import ENGINE_FILE

VERSION = re.compile(r"0|[1-9][0-9]*")
"""Triton ignores version folders with other names, leading zeros among them."""

CONFIG = "config.pbtxt"
ONNX_PLATFORM = "onnxruntime_onnx"
PYTHON_FILE = "model.py"
ONNX_FILE = "model.onnx"
MODEL_FILES = {
    "python": PYTHON_FILE,
    "onnxruntime": ONNX_FILE,
    "tensorrt": "model.plan",
}
PLATFORM_BACKENDS = {ONNX_PLATFORM: "onnxruntime", "tensorrt_plan": "tensorrt"}


@dataclass(frozen=True, slots=True, order=True)
class LintFinding:
    """One fault: its stable slug, the model's folder, what is wrong and what mends it."""

    slug: str
    model: str
    message: str
    hint: str

    def render(self) -> str:
        """Return the finding as one line."""
        return f"{self.model}: {self.message} [{self.slug}]"


@dataclass(frozen=True, slots=True)
class Model:
    """A model's folder and its parsed `ModelConfig`."""

    path: Path
    config: Any

    @property
    def name(self) -> str:
        """The folder's name, which is what Triton calls the model."""
        return self.path.name

    @property
    def is_ensemble(self) -> bool:
        """Whether it wires other models instead of running something."""
        return bool(self.config.platform == "ensemble")

    @property
    def backend(self) -> str:
        """The backend, also where only a `platform` is written."""
        return self.config.backend or PLATFORM_BACKENDS.get(self.config.platform, "")

    @property
    def calls(self) -> str:
        """The model that a Python model of ours calls by itself, empty where there is none."""
        return self._parameter(CALLS)

    @property
    def engine_file(self) -> str:
        """The engine that a Python model of ours runs, empty where there is none."""
        return self._parameter(ENGINE_FILE) if self.backend == "python" else ""

    @property
    def file_name(self) -> str:
        """The file that a version folder must hold, empty where the backend needs none."""
        return self.config.default_model_filename or MODEL_FILES.get(self.backend, "")

    @property
    def versions(self) -> list[Path]:
        """The version folders, lowest first."""
        found = [p for p in self.path.iterdir() if p.is_dir() and VERSION.fullmatch(p.name)]
        return sorted(found, key=lambda path: int(path.name))

    def _parameter(self, key: str) -> str:
        parameters = self.config.parameters
        return str(parameters[key].string_value) if key in parameters else ""


def model_folders(root: Path) -> list[Path]:
    """Return the folders in a repository, each of which Triton takes for a model.

    Raises `JarvisError` `repository.missing` when `root` is not a folder.
    """
    if not root.is_dir():
        raise JarvisError(
            "not a folder, expected a model repository",
            slug="repository.missing",
            where=str(root),
            hint="name the folder that holds one folder per model, each with a `config.pbtxt`",
        )
    return sorted(entry for entry in root.iterdir() if entry.is_dir())


def read_models(root: Path) -> dict[str, Model]:
    """Return the models of a repository whose configuration can be read, by folder name.

    Raises `JarvisError` `repository.missing` when `root` is not a folder.
    """
    found = [read_model(folder) for folder in model_folders(root)]
    return {model.name: model for model in found if isinstance(model, Model)}


def read_model(folder: Path) -> Model | LintFinding:
    """Return the model in `folder`, or what keeps Triton from taking it for one."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    path = folder / CONFIG
    if not path.is_file():
        return _no_config(folder)
    try:
        text = path.read_text(encoding="utf-8")
        config = text_format.Parse(text, model_config_pb2.ModelConfig())
    except (text_format.ParseError, UnicodeDecodeError) as fault:
        return LintFinding(
            "config.parse",
            folder.name,
            f"`{CONFIG}` is not a Triton ModelConfig: {str(fault).rstrip('.')}",
            f"correct `{path}` at that line and column",
        )
    return Model(folder, config)


def _no_config(folder: Path) -> LintFinding:
    looks_like_model = not folder.name.startswith(".") and any(
        VERSION.fullmatch(entry.name) for entry in folder.iterdir()
    )
    if looks_like_model:
        return LintFinding(
            "config.missing", folder.name, f"no `{CONFIG}`", "build the repository again"
        )
    return LintFinding(
        "repository.stray-directory",
        folder.name,
        "not a model: Triton takes every folder here for one, hidden ones too",
        f"move `{folder}` out of the repository",
    )
