"""Delivering outputs: from the store to where the user wants them, atomically and complete.

A tree's manifest is removed first and written last, so a delivery that was interrupted never
looks finished. Copies, never links: what happens to `out/` must not reach the store.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from jarvis_rules.core.action import ActionResult, Output
from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import Digest
from jarvis_rules.errors import IntegrityError
from jarvis_rules.execution.file_digests import FileDigests
from jarvis_rules.execution.store import Store

# Python writes it beside a model that a server has loaded.
_UNLISTED = "__pycache__"


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the outputs of an action go: the file, the folder of its tree, the action's record."""

    file: Path
    tree: Path | None = None
    record: Path | None = None


def listed_files(manifest: Path) -> dict[str, Digest]:
    """Return the files that the manifest at `manifest` lists, relative to its tree.

    IntegrityError where it is not a manifest or a name leaves the tree.
    """
    try:
        document = json.loads(manifest.read_bytes())
        files = {str(n): Digest.from_json(d) for n, d in document["files"].items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise IntegrityError(
            f"not a manifest of files: {error}", slug="manifest.invalid", where=str(manifest)
        ) from None
    for name in files:
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts:
            raise IntegrityError(
                f"file name `{name}` leaves the tree", slug="manifest.path", where=str(manifest)
            )
    return files


def deliver(
    store: Store,
    digests: FileDigests,
    output: Output,
    result: ActionResult,
    destination: Destination,
    record: Mapping[str, Any],
) -> None:
    """Write the files of `result` to `destination`; files that are already right stay untouched.

    Files that an earlier delivery put there and this one no longer lists are removed.
    BlobMissingError where the store has lost one.
    """
    before = _delivered_before(output, destination)
    if destination.record is not None:
        destination.record.unlink(missing_ok=True)
    if destination.tree is not None:
        destination.file.unlink(missing_ok=True)
    for path, digest in _expected(output, result.outputs, destination):
        if not _is(digests, path, digest):
            store.copy_to(digest, path)
            digests.record(path, digest)
    if destination.tree is not None and output.tree is not None:
        kept = {path for path, _ in _expected(output, result.outputs, destination)}
        strays = {*_strays(output, result.outputs, destination.tree), *(before - kept)}
        for path in strays:
            path.unlink(missing_ok=True)
            _remove_empty(path.parent, destination.tree)
    store.copy_to(result.outputs[output.file], destination.file)
    digests.record(destination.file, result.outputs[output.file])
    if destination.record is not None:
        digest = store.put_bytes(dump_readable_json(dict(record)))
        store.copy_to(digest, destination.record)


def is_intact(digests: FileDigests, output: Output, destination: Destination) -> bool:
    """Return whether the delivered files are, to the byte, what the action's record says."""
    if destination.record is None:
        return False
    try:
        document = json.loads(destination.record.read_bytes())
        outputs = {str(n): Digest.from_json(d) for n, d in document["outputs"].items()}
        expected = [*_expected(output, outputs, destination)]
        if not _is(digests, destination.file, outputs[output.file]):
            return False
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False
    if not all(_is(digests, path, digest) for path, digest in expected):
        return False
    return destination.tree is None or not any(_strays(output, outputs, destination.tree))


def find_conflict(
    digests: FileDigests, output: Output, result: ActionResult, tree: Path
) -> Path | None:
    """Return a file of the tree's existing top folders that a delivery would change or remove."""
    expected = list(_expected(output, result.outputs, Destination(tree, tree)))
    for path, digest in expected:
        if (tree / path.relative_to(tree).parts[0]).exists() and not _is(digests, path, digest):
            return path
    return next(_strays(output, result.outputs, tree), None)


def delivered_paths(destination: Destination) -> list[Path]:
    """Return what a delivery left beside its file: the record and the tree's own top folders."""
    paths = [] if destination.record is None else [destination.record]
    if destination.tree is not None and destination.file.is_file():
        tops = {name.partition("/")[0] for name in listed_files(destination.file)}
        paths += [destination.tree / top for top in sorted(tops)]
    return paths


def _delivered_before(output: Output, destination: Destination) -> set[Path]:
    """Return the files of the tree that an earlier delivery to the same place left."""
    if destination.tree is None or output.tree is None:
        return set()
    try:
        names = set(listed_files(destination.file))
    except IntegrityError:
        names = set()
    if destination.record is not None:
        # SCons removes a target before it is built: the action's record outlives the manifest.
        try:
            outputs = json.loads(destination.record.read_bytes())["outputs"]
            prefix = f"{output.tree}/"
            names |= {n.removeprefix(prefix) for n in outputs if n.startswith(prefix)}
        except (OSError, ValueError, KeyError, TypeError):
            pass
    return {destination.tree / name for name in names if ".." not in name.split("/")}


def _expected(
    output: Output, outputs: Mapping[str, Digest], destination: Destination
) -> Iterator[tuple[Path, Digest]]:
    """Yield the files of the tree and their digests."""
    if output.tree is None or destination.tree is None:
        return
    prefix = f"{output.tree}/"
    for name, digest in outputs.items():
        if name.startswith(prefix):
            yield destination.tree / name.removeprefix(prefix), digest


def _strays(output: Output, outputs: Mapping[str, Digest], tree: Path) -> Iterator[Path]:
    """Yield the files in the tree's own top folders that the manifest does not list."""
    prefix = f"{output.tree}/"
    names = {name.removeprefix(prefix) for name in outputs if name.startswith(prefix)}
    for top in sorted({name.partition("/")[0] for name in names if "/" in name}):
        for folder, folders, files in os.walk(tree / top):
            folders[:] = [name for name in folders if name != _UNLISTED]
            for name in files:
                path = Path(folder, name)
                if path.relative_to(tree).as_posix() not in names:
                    yield path


def _is(digests: FileDigests, path: Path, digest: Digest) -> bool:
    try:
        return path.stat().st_size == digest.size and digests.sha256(path) == digest
    except OSError:
        return False


def _remove_empty(folder: Path, stop: Path) -> None:
    while folder != stop and folder.is_dir() and {p.name for p in folder.iterdir()} <= {_UNLISTED}:
        shutil.rmtree(folder)
        folder = folder.parent
