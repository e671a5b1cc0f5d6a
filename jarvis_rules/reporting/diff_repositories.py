"""What differs between two model repositories: files, fields of `config.pbtxt`, manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jarvis_rules.core.digest import digest_file
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.tar import quoted
from jarvis_rules.reporting.repository_folder import list_folder, list_manifests, read_manifest
from jarvis_rules.reporting.value_changes import Tally, add_changes, kind_of_change
from jarvis_rules.triton.model_folder import CONFIG, LintFinding, read_model
from jarvis_rules.triton.publish import MANIFEST_SUFFIX

_HINT = "`jarvis-rules verify` lists all that is wrong with the repository"


def add_repository_changes(before: Path, after: Path, members: Tally, values: Tally) -> None:
    """Add changed files to `members`, and changed fields of configurations to `values`.

    Everything that lies there is compared, whether a manifest lists it or not. IntegrityError
    where a manifest, a configuration or the kind of a file is not what it must be.
    """
    mine, theirs = _files(before), _files(after)
    for name in sorted({*mine, *theirs}):
        one, other = mine.get(name), theirs.get(name)
        if one == other:
            members.same += 1
        else:
            change = kind_of_change(one, other)
            members.add(change, {"name": name, "change": change, "from": one, "to": other})
    manifests = [_manifests(root) for root in (before, after)]
    for name in sorted({*manifests[0], *manifests[1]}):
        add_changes(values, f"pipeline {name}", *(found.get(name, {}) for found in manifests))
    for model in sorted({_model(name) for name in {*mine, *theirs} if _is_config(name)}):
        add_changes(values, f"model {model}", *(_config(root, model) for root in (before, after)))


def _files(root: Path) -> dict[str, dict[str, Any]]:
    folder = list_folder(root)
    for name, path in folder.others.items():
        message = f"{quoted(name)} is no plain file"
        raise IntegrityError(message, slug="repository.file-kind", where=str(path), hint=_HINT)
    return {name: _properties(name, path) for name, path in folder.files.items()}


def _properties(name: str, path: Path) -> dict[str, Any]:
    role = (
        "manifest" if name.endswith(MANIFEST_SUFFIX) else "config" if _is_config(name) else "file"
    )
    return {"role": role, **digest_file(path).to_json()}


def _is_config(name: str) -> bool:
    return name.count("/") == 1 and name.endswith(f"/{CONFIG}")


def _model(name: str) -> str:
    return name.partition("/")[0]


def _manifests(root: Path) -> dict[str, dict[str, Any]]:
    """Return each manifest without the files: those that lie there are compared themselves."""
    found = {}
    for path in list_manifests(root):
        document = read_manifest(path)
        del document["files"]
        found[path.name.removesuffix(MANIFEST_SUFFIX)] = document
    return found


def _config(root: Path, model: str) -> dict[str, Any]:
    """Return the fields of a model's configuration, none where it has none."""
    from google.protobuf import json_format

    if not (root / model / CONFIG).is_file():
        return {}
    found = read_model(root / model)
    if isinstance(found, LintFinding):
        raise IntegrityError(
            found.message, slug="repository.config", where=str(root / model), hint=found.hint
        )
    fields: dict[str, Any] = json_format.MessageToDict(
        found.config, preserving_proto_field_name=True
    )
    return fields
