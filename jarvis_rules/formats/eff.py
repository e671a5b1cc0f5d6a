"""Archives of NVIDIA's own tools, as far as their format, EFF, is public.

A tar, mostly in gzip, with a `manifest.yaml` of two maps: `metadata`, and `files` or `artifacts`
(name to properties). Members lie flat (Jarvis 1.3) or under `artifacts/` (EFF 0.5 and newer).
There are no digests. How a member is encrypted is not public: such archives are recognised and
refused. Source: the public parts of nemo2riva and of NeMo's EFF integration.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.formats.archive_manifest import (
    MANIFEST,
    MAX_MANIFEST_SIZE,
    ArchiveManifest,
    ManifestYamlError,
    load_yaml,
)
from jarvis_rules.formats.tar import TarArchive, open_tar, quoted

KIND = "eff"
FOLDER = "artifacts/"
_LISTS = ("files", "artifacts")
_NODE_NAME = re.compile(rb"[\x21-\x7e]+")
_MAX_NODE_NAME = 256


def eff_manifest(document: Any) -> ArchiveManifest | None:
    """Return the manifest of an EFF archive, or None where the document is of something else.

    It has version 0 and no content digest. Each file keeps its properties as they stand there.
    """
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        return None
    metadata = document["metadata"]
    found = [document[name] for name in _LISTS if _is_listing(document.get(name))]
    if "archive_format" in metadata or not found:
        return None
    files = {name: dict(properties or {}) for name, properties in found[0].items()}
    return ArchiveManifest(KIND, 0, "", metadata, files)


def _is_listing(value: Any) -> bool:
    return isinstance(value, dict) and all(
        properties is None or isinstance(properties, dict) for properties in value.values()
    )


def eff_member(name: str, present: Collection[str]) -> str | None:
    """Return the member of the tar that holds the file of this name, or None."""
    return next((path for path in (name, FOLDER + name) if path in present), None)


def is_encrypted(properties: Mapping[str, Any]) -> bool:
    """Return whether a file's properties say that it is encrypted.

    EFF before 0.5 says so with a boolean; later versions name a cipher.
    """
    return any(properties.get(key) for key in ("encrypted", "encryption"))


def require_open(manifest: ArchiveManifest, where: str) -> None:
    """Raise IntegrityError `encryption.nvidia` where any file of an EFF archive is encrypted."""
    sealed = sorted(name for name, properties in manifest.files.items() if is_encrypted(properties))
    if sealed or manifest.metadata.get("encryption"):
        raise nvidia_encrypted(where, quoted(sealed[0]) if sealed else "the archive")


def nvidia_encrypted(where: str, what: str) -> IntegrityError:
    """Return the error for a file that only NVIDIA's tools can open."""
    return IntegrityError(
        f"{what} is encrypted by NVIDIA's tools, whose cipher and key derivation are not public: "
        "no open tool can read it, with the key or without",
        slug="encryption.nvidia",
        where=where,
        hint="give the `.nemo` that it was made from, or export it again without a key with the "
        "tool that made it (`tlt … export` without `-k`)",
    )


def find_eff(tar: TarArchive) -> ArchiveManifest | None:
    """Return the manifest of a tar that is an EFF archive, else None."""
    member = tar.find(MANIFEST)
    if member is None or member.size > MAX_MANIFEST_SIZE:
        return None
    try:
        return eff_manifest(load_yaml(bytes(tar.view(member))))
    except ManifestYamlError:
        return None


def refuse_nvidia(path: Path) -> None:
    """Raise IntegrityError `encryption.nvidia` where the file is encrypted by NVIDIA's tools.

    Nothing is said of a file that cannot be read: whoever opens it next does.
    """
    refuse_etlt(path)
    try:
        tar = open_tar(path, "archive", in_blocks=True)
    except JarvisError:
        return
    with tar:
        manifest = find_eff(tar)
        if manifest is not None:
            require_open(manifest, str(path))


def refuse_etlt(path: Path) -> None:
    """Raise IntegrityError `encryption.nvidia` where the file has the head of an `.etlt`.

    That is the length of a node's name in four bytes, little-endian, and the name; the rest is
    ciphertext. Nothing is said of a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4 + _MAX_NODE_NAME)
    except OSError:
        return
    length = int.from_bytes(head[:4], "little")
    name = head[4 : 4 + length]
    if 0 < length <= _MAX_NODE_NAME and len(name) == length and _NODE_NAME.fullmatch(name):
        raise nvidia_encrypted(str(path), "an `.etlt` model")
