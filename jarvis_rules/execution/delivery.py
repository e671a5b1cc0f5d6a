"""Delivering outputs: from the store to where the user wants them, atomically and complete.

A tree's manifest is removed first and written last, so a delivery that was interrupted never
looks finished. Copies, never links: what happens to `out/` must not reach the store.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.action import ActionResult, Output, is_tree_path
from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import Digest
from jarvis_rules.errors import IntegrityError
from jarvis_rules.execution.file_digests import FileDigests, stamp_entries
from jarvis_rules.execution.store import UNFINISHED, Store

# Python writes it beside a model that a server has loaded.
_UNLISTED = "__pycache__"
# What reading a damaged JSON document may raise.
_NOT_A_DOCUMENT = (ValueError, KeyError, AttributeError, TypeError, RecursionError)


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
    hint = "build again: the target that makes it will be repaired"
    try:
        # Opening a named pipe would wait for a writer.
        if not stat.S_ISREG(manifest.stat().st_mode):
            raise ValueError("no regular file")
        document = json.loads(manifest.read_bytes())
        files = {str(n): Digest.from_json(d) for n, d in document["files"].items()}
    except (OSError, *_NOT_A_DOCUMENT) as error:
        raise IntegrityError(
            f"not a manifest of files: {error}",
            slug="manifest.invalid",
            where=str(manifest),
            hint=hint,
        ) from None
    folders = {parent for name in files for parent in _parents(name)}
    for name in files:
        if not is_tree_path(name) or name in folders:
            raise IntegrityError(
                f"file name {name!a} is no plain path inside the tree",
                slug="manifest.path",
                where=str(manifest),
                hint=hint,
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
    if destination.tree is not None:
        before = _delivered_before(output, destination)
        destination.file.unlink(missing_ok=True)
        # The record tells the next delivery what this one was to remove, should it be killed here.
        kept = {path for path, _ in _expected(output, result.outputs, destination)}
        for path in before - kept:
            _remove_file(path, destination.tree)
        for path in [*_strays(output, result.outputs, destination.tree)]:
            _remove_stray(path, destination.tree)
    if destination.record is not None:
        _keep_previous(destination.record, record)
    files = [*_expected(output, result.outputs, destination)]
    for path, digest in [*files, (destination.file, result.outputs[output.file])]:
        if not digests.matches(path, digest):
            digests.record(path, digest, store.copy_to(digest, path))
    if destination.record is not None:
        _write_record(destination.record, record)


def _write_record(path: Path, record: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as out:
            out.write(dump_readable_json(dict(record)))
            out.flush()
            os.fsync(out.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)


def _keep_previous(path: Path, record: Mapping[str, Any]) -> None:
    """Put the record of another action aside, for whoever asks what changed."""
    try:
        changed = json.loads(path.read_bytes())["key"] != record["key"]
    except (OSError, *_NOT_A_DOCUMENT):
        changed = False
    if changed:
        path.replace(previous_record(path))
    path.unlink(missing_ok=True)


def previous_record(path: Path) -> Path:
    """Return where the record of the action before the last lies."""
    return path.with_name(f"{path.name.removesuffix('.action.json')}.previous-action.json")


def is_intact(digests: FileDigests, output: Output, destination: Destination) -> bool:
    """Return whether the delivered files are, to the byte, what the action's record says.

    Files and folders that have not changed since that was last found are not looked into again.
    """
    if destination.record is None:
        return False
    name = destination.record / (output.tree or "")
    if digests.is_unchanged(name):
        return True
    try:
        before = stamp_entries([destination.record, destination.file], ())
        document = json.loads(destination.record.read_bytes())
        outputs = {str(n): Digest.from_json(d) for n, d in document["outputs"].items()}
        files = [*_expected(output, outputs, destination)]
        before |= stamp_entries(
            [path for path, _ in files],
            {folder for path, _ in files for folder in _folders(path, destination)},
        )
        files.append((destination.file, outputs[output.file]))
        if not all(digests.matches(path, digest) for path, digest in files):
            return False
        if destination.tree is not None and any(_strays(output, outputs, destination.tree)):
            return False
    except (OSError, *_NOT_A_DOCUMENT):
        return False
    digests.remember_set(name, before)
    return True


def _folders(path: Path, destination: Destination) -> Iterator[Path]:
    """Yield the folders of a file of the tree, which are the tree's own: not the tree itself."""
    folder = path.parent
    while folder != destination.tree:
        yield folder
        folder = folder.parent


def find_conflict(
    digests: FileDigests, output: Output, result: ActionResult, tree: Path
) -> Path | None:
    """Return a file of the tree's existing top folders that a delivery would change or remove."""
    for path, digest in _expected(output, result.outputs, Destination(tree, tree)):
        top = tree / path.relative_to(tree).parts[0]
        if os.path.lexists(top) and not digests.matches(path, digest):
            return path
    return next(_strays(output, result.outputs, tree), None)


def delivered_paths(destination: Destination) -> list[Path]:
    """Return what a delivery left beside its file: the record and the tree's own top folders."""
    record = destination.record
    paths = [] if record is None else [record, previous_record(record)]
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
        except (OSError, *_NOT_A_DOCUMENT):
            pass
    return {destination.tree / name for name in names if is_tree_path(name)}


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
    """Yield what is in the tree's own top folders and does not belong there.

    That is a file or folder that the manifest does not list, a link in the place of a folder, and
    a folder in the place of a file or the other way round.
    """
    prefix = f"{output.tree}/"
    names = {name.removeprefix(prefix) for name in outputs if name.startswith(prefix)}
    folders = {parent for name in names for parent in _parents(name)}
    pending = sorted(name for name in folders if "/" not in name)
    while pending:
        folder = pending.pop()
        path = tree / folder
        if path.is_symlink() or not path.is_dir():
            if os.path.lexists(path):
                yield path
            continue
        for entry in sorted(path.iterdir()):
            name = f"{folder}/{entry.name}"
            if name in folders:
                pending.append(name)
            elif entry.name != _UNLISTED and (name not in names or entry.is_dir()):
                yield entry


def _parents(name: str) -> Iterator[str]:
    """Yield the folders of a file name: `a` and `a/b` of `a/b/c`."""
    parts = name.split("/")
    return ("/".join(parts[:end]) for end in range(1, len(parts)))


def _remove_file(path: Path, tree: Path) -> None:
    """Remove a file that an earlier delivery left, if it is still in the tree."""
    # A folder of the tree may have become a link to somewhere else since.
    if path.parent.resolve().is_relative_to(tree.resolve()) and path.is_file():
        path.unlink()
        _remove_empty(path.parent, tree)


def _remove_stray(path: Path, tree: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    _remove_empty(path.parent, tree)


def _remove_empty(folder: Path, stop: Path) -> None:
    while folder != stop and folder.is_dir() and {p.name for p in folder.iterdir()} <= {_UNLISTED}:
        shutil.rmtree(folder)
        folder = folder.parent
