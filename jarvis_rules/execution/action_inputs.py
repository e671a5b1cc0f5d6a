"""The inputs of an action: their digests before it runs, their bytes where its tool finds them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_rules.core.action import (
    INPUTS,
    OUTPUTS,
    REQUEST,
    ActionSpec,
    FileInput,
    MemberInput,
    StoredInput,
    TreeInput,
)
from jarvis_rules.core.digest import Digest, digest_file
from jarvis_rules.errors import IntegrityError
from jarvis_rules.execution.delivery import listed_files
from jarvis_rules.execution.file_digests import FileDigests, FileStamp
from jarvis_rules.execution.store import BlobMissingError, Store
from jarvis_rules.formats.input_file import unreadable

if TYPE_CHECKING:
    from jarvis_rules.formats.archive import Archive

GRAPH_SUFFIX = ".onnx"
WEIGHTS_SUFFIX = ".onnx.data"


@dataclass(slots=True)
class ResolvedInputs:
    """Input digests, and for each input file where its bytes are: on disk, in an archive, a blob.

    `names` is what people call an input, where the tool only knows the staged path. `members` are
    the members of archives: their names in there, and the inputs that brought them. A cancellation
    after `began` (monotonic) counts, although the tool may still wait for its turn.
    """

    digests: dict[str, Digest] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    stamps: dict[Path, FileStamp] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    members: dict[str, tuple[str, MemberInput]] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    def require_unchanged(self) -> None:
        """Raise IntegrityError where a file is not the one that was read."""
        for path, stamp in self.stamps.items():
            if not _has_stamp(path, stamp):
                raise input_changed(path)


class InputResolver:
    """Finds the inputs of actions; members of archives that are not encrypted go into `store`."""

    def __init__(self, store: Store, digests: FileDigests) -> None:
        self._store = store
        self._digests = digests

    def resolve(self, spec: ActionSpec) -> ResolvedInputs:
        """Return the digest of every input; JarvisError where one is missing or bad."""
        resolved = ResolvedInputs()
        for name, source in spec.inputs.items():
            match source:
                case FileInput(path=path):
                    self._resolve_file(resolved, name, path)
                case MemberInput():
                    self._resolve_member(resolved, name, source)
                case TreeInput(manifest=manifest, directory=directory):
                    for file, digest in listed_files(manifest).items():
                        self._resolve_file(resolved, f"{name}/{file}", directory / file, digest)
                case StoredInput(digest=digest):
                    resolved.digests[name] = digest
        return resolved

    def _resolve_file(
        self, resolved: ResolvedInputs, name: str, path: Path, expected: Digest | None = None
    ) -> None:
        try:
            resolved.stamps.setdefault(path, FileStamp.of(path))
            digest = self._digests.sha256(path)
        except OSError as error:
            raise unreadable(path, error) from None
        if expected is not None and digest != expected:
            raise IntegrityError(
                f"digest is {digest}, its manifest says {expected}",
                slug="action.input-changed",
                where=str(path),
                hint="build again: the target that makes it will be repaired",
            )
        resolved.digests[name] = digest
        resolved.paths[name] = path
        resolved.names[name] = str(path)

    def _resolve_member(self, resolved: ResolvedInputs, name: str, source: MemberInput) -> None:
        """Resolve a member to the digest that its archive's manifest gives.

        It is in the store then, unless it is encrypted: its plaintext only goes where its action
        sees it.
        """
        from jarvis_rules.formats.archive import open_archive

        with open_archive(source.path, key=source.key) as archive:
            for staged, member in _with_weights(name, source.member, archive):
                if archive.manifest.encryption is None:
                    self._store_member(archive, member)
                else:
                    archive.require_key()
                resolved.digests[staged] = archive.digest(member)
                resolved.members[staged] = member, source
                resolved.names[staged] = f"{source.path}!{member}"

    def _store_member(self, archive: Archive, member: str) -> None:
        digest = archive.digest(member)
        if self._store.has(digest):
            return
        with archive.open(member) as stream:
            found = self._store.put_stream(stream)
        if found != digest:
            raise IntegrityError(
                f"digest is {found}, the manifest says {digest}",
                slug="archive.member-digest",
                where=f"{archive.path}!{member}",
                hint="the archive is damaged: make it again",
            )

    def stage(self, spec: ActionSpec, resolved: ResolvedInputs, folder: Path, blobs: Store) -> None:
        """Put request and inputs where the tool finds them; `blobs` is the store of blob inputs."""
        from jarvis_rules.execution.tool_run import copy_source, link_blob

        (folder / OUTPUTS).mkdir()
        (folder / INPUTS).mkdir()
        (folder / REQUEST).write_bytes(spec.request_bytes())
        for name, digest in resolved.digests.items():
            target = folder / INPUTS / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in resolved.paths:
                path = resolved.paths[name]
                copy_source(path, target)
                # A file that had just been written can change without a trace in its stamp.
                if target.stat().st_size != digest.size or (
                    resolved.stamps[path].racy and digest_file(target) != digest
                ):
                    raise input_changed(path)
            elif name in resolved.members:
                self._stage_member(*resolved.members[name], digest, target)
            else:
                blobs.verify(digest)
                link_blob(blobs.path(digest), target)

    def _stage_member(self, member: str, source: MemberInput, digest: Digest, target: Path) -> None:
        from jarvis_rules.execution.tool_run import link_blob
        from jarvis_rules.formats.archive import open_archive

        if source.key is None:
            try:
                self._store.verify(digest)
                link_blob(self._store.path(digest), target)
                return
            except BlobMissingError:
                pass
        with open_archive(source.path, key=source.key) as archive:
            if archive.digest(member) != digest:
                raise input_changed(source.path)
            archive.extract(member, target)


def _with_weights(name: str, member: str, archive: Archive) -> Iterator[tuple[str, str]]:
    """Yield the staged name and the name of a member, and of a graph's weights beside it."""
    yield name, member
    if not member.endswith(GRAPH_SUFFIX):
        return
    folder, staged = (text[: text.rfind("/") + 1] for text in (member, name))
    for other in archive.manifest.files:
        file = other.removeprefix(folder)
        if other.startswith(folder) and "/" not in file and file.endswith(WEIGHTS_SUFFIX):
            yield f"{staged}{file}", other


def _has_stamp(path: Path, stamp: FileStamp) -> bool:
    try:
        return FileStamp.of(path) == stamp
    except OSError:
        return False


def input_changed(path: Path) -> IntegrityError:
    """Return the error for a file that changed while an action read it."""
    return IntegrityError(
        "the file changed while the action that reads it ran",
        slug="action.input-changed",
        where=str(path),
        hint="build again when nothing writes to it",
    )
