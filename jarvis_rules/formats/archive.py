"""Reading `.ejrvs` and `.jmir`: a gzip'd tar, `manifest.yaml` first, encrypted or not.

Nothing is unpacked: members are read where they lie, and every one is checked against the digest
that the manifest gives. `docs/reference/archive-format.md` is the specification. Archives of
NVIDIA's own tools are read as far as they are public (`eff.py`).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from jarvis_rules.core.digest import Digest, DigestWriter, Sink
from jarvis_rules.core.secret import Secret
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats import eff
from jarvis_rules.formats.archive_manifest import (
    ARCHIVE_VERSION,
    MAC,
    MANIFEST,
    MAX_MANIFEST_SIZE,
    ArchiveManifest,
    ManifestYamlError,
    content_digest,
    load_yaml,
)
from jarvis_rules.formats.schema import validate
from jarvis_rules.formats.stored_gzip import StoredBlocks
from jarvis_rules.formats.tar import TarArchive, TarMember, open_tar, quoted

if TYPE_CHECKING:
    from jarvis_rules.formats.sealed_archive import SealedArchive

__all__ = ["MANIFEST", "Archive", "ArchiveManifest", "ArchiveMember", "open_archive"]

_NAMES_SHOWN = 20
_PIECE = 1 << 20


class Archive:
    """An open archive: its manifest, and its members by name."""

    def __init__(self, path: Path, tar: TarArchive, key: Secret | None = None) -> None:
        self.path = path
        self._tar = tar
        self._members = {member.name: member for member in tar.members}
        document = self._read_manifest()
        foreign = eff.eff_manifest(document)
        self.manifest = foreign or self._checked(document)
        self._sealed: SealedArchive | None = None
        if foreign is not None:
            self._find_foreign(foreign, key)
        else:
            self._check_members()
            self._open_encryption(key)

    # Opening

    def _read_manifest(self) -> Any:
        if MANIFEST not in self._members:
            raise IntegrityError(
                f"no member `{MANIFEST}`, so this is not an `.ejrvs` or `.jmir` archive",
                slug="archive.missing-manifest",
                where=str(self.path),
                hint="make it with `nemo2jarvis` or `jarvis-build`",
            )
        size = self._members[MANIFEST].size
        if size > MAX_MANIFEST_SIZE:
            raise self._error(f"`{MANIFEST}` has {size} bytes", "manifest-size")
        try:
            return load_yaml(bytes(self._tar.view(self._members[MANIFEST])))
        except ManifestYamlError as error:
            raise self._error(f"`{MANIFEST}` is {error}", "manifest-yaml") from None

    def _checked(self, document: Any) -> ArchiveManifest:
        """Return the manifest of a document that says it is one of ours."""
        kind = document.get("metadata", {}).get("archive_format") if _is_map(document) else None
        if kind not in ("ejrvs", "jmir"):
            shown = quoted(str(kind))
            raise self._error(
                f"archive_format is {shown}, expected `ejrvs` or `jmir`", "unknown-format"
            )
        version = document["metadata"].get("archive_version")
        if isinstance(version, int) and version > ARCHIVE_VERSION:
            raise IntegrityError(
                f"archive_version is {version}, this program reads up to {ARCHIVE_VERSION}",
                slug="archive.version",
                where=str(self.path),
                hint="update jarvis-rules, or make the archive again with this version",
            )
        validate(document, f"{kind}-manifest", f"{self.path}!{MANIFEST}")
        return ArchiveManifest.from_document(document)

    def _find_foreign(self, manifest: ArchiveManifest, key: Secret | None) -> None:
        """Find the members of an EFF archive under the names that its manifest gives them."""
        if key is not None:
            eff.require_open(manifest, str(self.path))
            raise self._not_encrypted()
        for name in manifest.files:
            place = eff.eff_member(name, self._members)
            if place is None:
                raise self._error(
                    f"the manifest lists {quoted(name)}, which is not there", "missing"
                )
            self._members[name] = self._members[place]

    def _check_members(self) -> None:
        manifest = self.manifest
        listed = {*manifest.files, MANIFEST, *((MAC,) if manifest.encryption else ())}
        if missing := sorted(listed - set(self._members)):
            shown = quoted(missing[0])
            raise self._error(f"the manifest lists {shown}, which is not there", "missing")
        if extra := sorted(set(self._members) - listed):
            raise self._error(f"member {quoted(extra[0])} is not in the manifest", "unlisted")
        for name, properties in manifest.files.items():
            if properties["encrypted"] != (manifest.encryption is not None):
                raise self._error(
                    "either all members are encrypted and the manifest says how, or none is; "
                    f"{quoted(name)} is not like that",
                    "mixed-encryption",
                )
            found = self._members[name].size
            if manifest.encryption is None and properties["size"] != found:
                raise self._error(
                    f"member {quoted(name)} has {found} bytes, "
                    f"the manifest says {properties['size']}",
                    "member-size",
                )
        if content_digest(manifest.kind, manifest.roles(), manifest.metadata) != (
            manifest.content_digest
        ):
            raise self._error(
                "content_digest does not match the members' digests and the metadata",
                "content-digest",
            )

    def _open_encryption(self, key: Secret | None) -> None:
        encryption = self.manifest.encryption
        if encryption is None:
            if key is not None:
                raise self._not_encrypted()
            return
        from jarvis_rules.formats.sealed_archive import SealedArchive

        self._sealed = SealedArchive(self.path, self._tar, self.manifest, key)

    def _not_encrypted(self) -> IntegrityError:
        return IntegrityError(
            "a key was given, and the archive is not encrypted",
            slug="encryption.not-encrypted",
            where=str(self.path),
            hint="leave the key out, if you expected a plain archive; else this is not the file "
            "that you were given the key for",
        )

    # Reading

    def _member(self, name: str) -> TarMember:
        member = self._members.get(name)
        if member is None:
            raise self._missing(name)
        return member

    def _missing(self, name: str) -> IntegrityError:
        known = sorted({MANIFEST, *self.manifest.files})
        more = ", …" if len(known) > _NAMES_SHOWN else ""
        listed = ", ".join(map(quoted, known[:_NAMES_SHOWN])) + more
        return self._error(f"no member {quoted(name)}; there are {listed}", "missing")

    def _error(self, message: str, slug: str) -> IntegrityError:
        return IntegrityError(
            message,
            slug=f"archive.{slug}",
            where=str(self.path),
            hint="the archive is damaged or was not made by these tools: make it again",
        )

    def require_key(self) -> None:
        """Raise IntegrityError `encryption.missing-key` where nothing can be read without one."""
        if self._sealed is not None:
            self._sealed.require_key()

    def digest(self, member: str) -> Digest:
        """Return the digest of a member's content, as the manifest gives it.

        That of an EFF archive gives none: it is computed. IntegrityError if not listed.
        """
        properties = self.manifest.files.get(member)
        if properties is None:
            raise self._missing(member)
        if self.manifest.kind == eff.KIND:
            writer = DigestWriter()
            for piece in self._pieces(member):
                writer.write(piece)
            return writer.digest()
        return Digest(properties["sha256"], properties["size"])

    def _pieces(self, name: str) -> Iterator[bytes | memoryview]:
        """Yield the content in pieces, decrypted; authenticated only where it was encrypted."""
        member = self._member(name)
        if self._sealed is not None and name != MANIFEST:
            yield from self._sealed.pieces(name)
        elif eff.is_encrypted(self.manifest.files.get(name, {})):
            raise eff.nvidia_encrypted(str(self.path), quoted(name))
        else:
            for piece in self._tar.pieces(member.offset, member.offset + member.size):
                for start in range(0, len(piece), _PIECE):
                    yield piece[start : start + _PIECE]

    @contextlib.contextmanager
    def open(self, member: str) -> Iterator[BinaryIO]:
        """Yield a stream of a member's bytes, not yet verified against its digest."""
        self._member(member)
        yield io.BufferedReader(_PieceReader(self._pieces(member)), _PIECE)

    def copy_to(self, member: str, sink: Sink) -> None:
        """Write a member to `sink`; IntegrityError in the end where it fails its digest."""
        expected, writer = self.digest(member), DigestWriter()
        for piece in self._pieces(member):
            writer.write(piece)
            sink.write(piece)
        if writer.digest() != expected:
            raise self._error(f"member {quoted(member)} does not match its digest", "member-digest")

    def read(self, member: str) -> bytes:
        """Return a member's bytes, verified against its digest."""
        out = io.BytesIO()
        self.copy_to(member, out)
        return out.getvalue()

    def extract(self, member: str, target: Path) -> None:
        """Write a member to `target`, verified against its digest."""
        self._member(member)
        try:
            with target.open("wb") as out:
                self.copy_to(member, out)
        except BaseException:
            target.unlink(missing_ok=True)
            raise

    def source(self, member: str) -> ArchiveMember:
        """Return a member for another archive to take over."""
        self.digest(member)
        return ArchiveMember(self, member)

    def blocks(self, name: str) -> StoredBlocks | None:
        """Return where a member lies, if in whole blocks of stored gzip and not encrypted."""
        member, stored = self._member(name), self._tar.stored
        crc32 = self.manifest.files.get(name, {}).get("crc32")
        if stored is None or crc32 is None or self._sealed is not None:
            return None
        place = stored.whole_blocks(member.offset, member.offset + member.size)
        return None if place is None else StoredBlocks(stored.file, *place, int(crc32, 16))


@dataclass(frozen=True, slots=True)
class ArchiveMember:
    """A member of an open archive."""

    archive: Archive
    name: str

    @property
    def digest(self) -> Digest:
        """The digest of the content, as its archive's manifest gives it."""
        return self.archive.digest(self.name)

    def copy_to(self, sink: Sink) -> None:
        """Write the content, verified against the digest, to `sink`."""
        self.archive.copy_to(self.name, sink)

    def blocks(self) -> StoredBlocks | None:
        """Return where the content lies, if in whole blocks of stored gzip and not encrypted."""
        return self.archive.blocks(self.name)


class _PieceReader(io.RawIOBase):
    """Reads pieces as a stream."""

    def __init__(self, pieces: Iterator[bytes | memoryview]) -> None:
        self._pieces = pieces
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._left = memoryview(piece)
        count = min(len(self._left), len(buffer))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


def _is_map(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("metadata", {}), dict)


@contextlib.contextmanager
def open_archive(
    path: Path, kind: str | None = None, *, key: Secret | None = None
) -> Iterator[Archive]:
    """Open the archive at `path` for reading; `kind` is the format it must have.

    Of an encrypted archive only the manifest can be read without its `key`. UsageError where the
    file is missing, IntegrityError where it is not a well-formed archive or `key` not its key.
    """
    with open_tar(path, "archive", in_blocks=True) as tar:
        archive = Archive(path, tar, key)
        if kind is not None and archive.manifest.kind == eff.KIND:
            eff.require_open(archive.manifest, str(path))
            raise IntegrityError(
                f"this is an archive of NVIDIA's tools: it lacks what an `.{kind}` of these tools "
                "says of its model",
                slug="archive.foreign",
                where=str(path),
                hint="export the `.nemo` that it was made from: `nemo2jarvis model.nemo`",
            )
        if kind is not None and archive.manifest.kind != kind:
            raise IntegrityError(
                f"this is a `.{archive.manifest.kind}` archive, expected `.{kind}`",
                slug="archive.wrong-kind",
                where=str(path),
                hint="`nemo2jarvis` makes `.ejrvs`, `jarvis-build` makes `.jmir`",
            )
        yield archive
