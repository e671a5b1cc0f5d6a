"""The folder of a model repository: its manifests, and every file in it, none of them followed."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.input_file import open_regular
from jarvis_rules.formats.schema import validate
from jarvis_rules.formats.tar import quoted
from jarvis_rules.triton.publish import MANIFEST_SUFFIX

MAX_MANIFEST_SIZE = 64 << 20
# Python writes it beside a model that a server has loaded.
_UNLISTED = "__pycache__"
_HINT = "build again: the target that makes it will be repaired"


@dataclass(frozen=True, slots=True)
class Folder:
    """What is in a repository by its name relative to it: plain files, and everything else."""

    files: dict[str, Path]
    others: dict[str, Path]


def list_manifests(root: Path) -> list[Path]:
    """Return the manifests of a repository's pipelines, in order."""
    return sorted(root.glob(f"*{MANIFEST_SUFFIX}"))


def list_folder(root: Path) -> Folder:
    """Return what is below `root`; links to folders, pipes and devices are among the others."""
    found = Folder({}, {})
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name != _UNLISTED)
        for name in sorted([*files, *folders]):
            path = Path(folder, name)
            if path.is_dir() and not path.is_symlink():
                continue
            kind = found.files if path.is_file() else found.others
            kind[path.relative_to(root).as_posix()] = path
    return found


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the document of a pipeline's manifest; IntegrityError where it is damaged."""
    with open_regular(path) as file:
        data = file.read(MAX_MANIFEST_SIZE + 1)
    try:
        if len(data) > MAX_MANIFEST_SIZE:
            raise ValueError(f"more than {MAX_MANIFEST_SIZE} bytes")
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(
            f"not a manifest of files: {quoted(str(error))[1:-1]}",
            slug="manifest.invalid",
            where=str(path),
            hint=_HINT,
        ) from None
    validate(document, "repository", str(path))
    manifest: dict[str, Any] = document
    return manifest
