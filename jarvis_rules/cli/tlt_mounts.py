"""`~/.tlt_mounts.json`: the paths that commands name, and where they are on this machine.

The launcher of TLT ran everything in Docker, with folders of the machine mounted at other places.
Nothing runs in Docker here, so a mount is a rule for reading paths: what lies below `destination`
lies below `source`.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jarvis_rules.errors import UsageError, did_you_mean

_FILES = {"tlt": (".tlt_mounts.json", ".tao_mounts.json")}
_FILES["tao"] = _FILES["tlt"][::-1]
_SECTIONS = {"Mounts": list, "Envs": list, "DockerOptions": dict}
_SAMPLE = '`{"Mounts": [{"source": "~/tlt/data", "destination": "/data"}]}`'


@dataclass(frozen=True, slots=True)
class Mount:
    """One rule: paths below `destination` are paths below `source`."""

    source: Path
    destination: PurePosixPath


@dataclass(frozen=True, slots=True)
class Mounts:
    """The rules of one file, and the names of its sections that have no effect."""

    file: Path | None = None
    mounts: tuple[Mount, ...] = ()
    without_effect: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The file as people know it."""
        return f"~/{self.file.name if self.file else _FILES['tlt'][0]}"

    def locate(self, name: str) -> Path:
        """Return where `name` is on this machine: the rule with the longest destination counts.

        A relative path is relative to the current folder, an absolute one that no rule covers is
        itself. UsageError `tlt.mount-source` where the source of the rule is missing.
        """
        path = PurePosixPath(posixpath.normpath(name))
        covering = [mount for mount in self.mounts if path.is_relative_to(mount.destination)]
        if not covering:
            return Path(name)
        mount = max(covering, key=lambda mount: len(mount.destination.parts))
        if not mount.source.is_dir():
            raise UsageError(
                f"`{name}` lies in the mount `{mount.destination}`, whose source `{mount.source}` "
                "is not a folder",
                slug="tlt.mount-source",
                where=self.name,
                hint=f"make the folder: `mkdir -p {mount.source}`; or correct the file",
            )
        return mount.source / path.relative_to(mount.destination)


def read_mounts(program: str) -> Mounts:
    """Return the rules of the user's mounts file, none where there is no file.

    `tlt` reads `~/.tlt_mounts.json`, or `~/.tao_mounts.json` where that is the only one; `tao` the
    other way round. UsageError `tlt.mounts` where the file is not what it must be.
    """
    files = [Path.home() / name for name in _FILES[program]]
    file = next((file for file in files if file.exists()), None)
    if file is None:
        return Mounts()
    document = _document(file)
    if unknown := document.keys() - _SECTIONS:
        near = did_you_mean(min(unknown), _SECTIONS)
        raise _refused(file, f"unknown section `{min(unknown)}`", near or _known(_SECTIONS))
    for name, kind in _SECTIONS.items():
        if not isinstance(document.get(name, kind()), kind):
            what = "a list" if kind is list else "an object"
            raise _refused(file, f"`{name}` must be {what}")
    mounts = tuple(_mount(file, i, entry) for i, entry in enumerate(document.get("Mounts", [])))
    destinations = [mount.destination for mount in mounts]
    for destination in destinations:
        if destinations.count(destination) > 1:
            raise _refused(file, f"two mounts have the destination `{destination}`")
    others = tuple(name for name in ("Envs", "DockerOptions") if document.get(name))
    return Mounts(file, mounts, others)


def _document(file: Path) -> Mapping[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(file, f"cannot be read: {error.strerror}", "check its permissions") from None
    except json.JSONDecodeError as error:
        raise _refused(file, f"not JSON: {error.msg} on line {error.lineno}") from None
    except (ValueError, RecursionError):
        raise _refused(file, "not JSON: not UTF-8, or nested too deep") from None
    if not isinstance(document, dict):
        raise _refused(file, "expected an object with `Mounts`")
    return document


def _mount(file: Path, index: int, entry: Any) -> Mount:
    where = f"entry {index + 1} of `Mounts`"
    if not isinstance(entry, dict):
        raise _refused(file, f"{where} must be an object with `source` and `destination`")
    if unknown := entry.keys() - {"source", "destination"}:
        near = did_you_mean(min(unknown), ("source", "destination"))
        raise _refused(file, f"{where} has the unknown key `{min(unknown)}`", near)
    for name in ("source", "destination"):
        if not isinstance(entry.get(name), str) or not entry[name]:
            raise _refused(file, f"{where} has no text `{name}`")
    destination = PurePosixPath(posixpath.normpath(entry["destination"]))
    if not destination.is_absolute():
        raise _refused(file, f"{where}: the destination `{destination}` must begin with `/`")
    try:
        source = Path(entry["source"]).expanduser()
    except RuntimeError:
        raise _refused(file, f"{where}: `{entry['source']}` names no user's folder") from None
    return Mount(source, destination)


def _known(names: Mapping[str, Any]) -> str:
    return "known: " + ", ".join(f"`{name}`" for name in names)


def _refused(file: Path, message: str, hint: str | None = None) -> UsageError:
    return UsageError(
        message, slug="tlt.mounts", where=f"~/{file.name}", hint=hint or f"it looks like {_SAMPLE}"
    )
