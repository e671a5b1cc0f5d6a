"""Whether an `.ejrvs` complies with the schema of its NeMo class."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from jarvis_rules.errors import JarvisError, did_you_mean
from jarvis_rules.formats.archive import Archive, ArchiveManifest
from jarvis_rules.formats.archive_schema import ArchiveSchema, normalised_class
from jarvis_rules.formats.nemo import artifact_name, load_config
from jarvis_rules.formats.tar import quoted

WEIGHTS_MEMBER = "model_weights.safetensors"
_RELEASE = re.compile(r"\d+(\.\d+)*")


def check_archive(archive: Archive, schema: ArchiveSchema) -> list[str]:
    """Return in what the archive does not comply, each naming the member and the key."""
    manifest = archive.manifest
    faults = [
        fault
        for name, expected in schema.metadata.items()
        if (fault := _metadata_fault(manifest, schema, name, expected))
    ]
    for name, properties in schema.files.items():
        faults += _file_faults(manifest, name, properties)
    for name, leaves in schema.content.items():
        faults += _content_faults(archive, name, leaves)
    return faults


def _metadata_fault(
    manifest: ArchiveManifest, schema: ArchiveSchema, name: str, expected: str | bool | None
) -> str | None:
    metadata = manifest.metadata
    match name:
        case "obj_cls":
            got = normalised_class(metadata["obj_cls"])
            return None if got == schema.obj_cls else f"the class is `{got}`, not `{expected}`"
        case "min_nemo_version":
            return _version_fault(schema, metadata.get("nemo_version"))
        case "encryption":
            encrypted = any(file["encrypted"] for file in manifest.files.values())
            return _encryption_fault("the archive", encrypted, expected)
        case "autocast":
            return None
    if name not in metadata:
        return f"manifest.yaml has no metadata `{name}`"
    got = metadata[name]
    same = got is expected if isinstance(got, bool) else expected is None or str(got) == expected
    return None if same else f"manifest.yaml says `{name}`: {quoted(str(got))}, not `{expected}`"


def _version_fault(schema: ArchiveSchema, version: object) -> str | None:
    """Return the fault of a checkpoint of an older NeMo; that of an unknown one passes."""
    found = _RELEASE.match(str(version)) if version else None
    minimum = schema.min_nemo_version
    if found is None or minimum is None or _release(found[0]) >= _release(minimum):
        return None
    return f"the checkpoint is of NeMo {quoted(str(version))}, older than {minimum}"


def _release(text: str) -> tuple[int, ...]:
    numbers = [int(part[:9]) for part in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _file_faults(
    manifest: ArchiveManifest, name: str, properties: Mapping[str, str | bool | None]
) -> list[str]:
    if PurePosixPath(name).suffix.lower() in (".ckpt", ".pt") and name not in manifest.files:
        # Where the old tool kept a pickle, the same weights lie as safetensors.
        found = WEIGHTS_MEMBER if WEIGHTS_MEMBER in manifest.files else None
    else:
        found = next((n for n in (name, f"artifacts/{name}") if n in manifest.files), None)
    if found is None:
        near = did_you_mean(name, manifest.files)
        return [f"no member `{name}`{'; ' + near if near else ''}"]
    file, faults = manifest.files[found], []
    for key, expected in properties.items():
        fault = None
        if key == "onnx" and isinstance(expected, bool):
            is_graph = found in manifest.metadata["graphs"]
            if is_graph is not expected:
                fault = f"`{found}` is {'an' if is_graph else 'no'} ONNX graph"
        elif key in ("encrypted", "encryption"):
            fault = _encryption_fault(f"`{found}`", file["encrypted"], expected)
        if fault is not None:
            faults.append(fault)
    return faults


def _encryption_fault(what: str, encrypted: bool, expected: str | bool | None) -> str | None:
    if not isinstance(expected, bool) or encrypted is expected:
        return None
    return f"{what} is encrypted" if encrypted else f"{what} is not encrypted: give a `--key`"


def _content_faults(archive: Archive, name: str, leaves: Mapping[str, bool]) -> list[str]:
    if name not in archive.manifest.files:
        return [] if not leaves else [f"no member `{name}`, so no `{next(iter(leaves))}`"]
    if not leaves:
        return []
    where = f"{archive.path}!{name}"
    try:
        document = load_config(archive.read(name), where)
    except JarvisError as error:
        return [f"{name}: {error.message}"]
    faults = []
    for leaf, names_file in leaves.items():
        found, value = _look_up(document, leaf)
        if not found:
            near = did_you_mean(leaf, _dotted_keys(document))
            faults.append(f"{name} has no `{leaf}`{'; ' + near if near else ''}")
        elif names_file and not _names_member(archive.manifest, document, value):
            shown = "nothing" if value is None else quoted(str(value))
            faults.append(f"{name}: `{leaf}` names {shown}, which is not in the archive")
    return faults


def _names_member(manifest: ArchiveManifest, document: Any, value: object) -> bool:
    """Return whether the archive holds the file that a value of the configuration names.

    Members have stable names, the configuration those of its checkpoint; `conf_path` of a member
    says which key it came from.
    """
    if not isinstance(value, str) or not value:
        return False
    name = artifact_name(value)
    if {name, f"artifacts/{name}"} & manifest.files.keys():
        return True
    places = [file["conf_path"] for file in manifest.files.values() if "conf_path" in file]
    return any(_look_up(document, str(place)) == (True, value) for place in places)


def _look_up(document: Any, dotted: str) -> tuple[bool, Any]:
    for key in dotted.split("."):
        if not isinstance(document, Mapping) or key not in document:
            return False, None
        document = document[key]
    return True, document


def _dotted_keys(document: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the keys that may be suggested: those that print safely."""
    keys = []
    for key, value in document.items():
        if not str(key).isprintable():
            continue
        keys.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            keys += _dotted_keys(value, f"{prefix}{key}.")
    return keys
