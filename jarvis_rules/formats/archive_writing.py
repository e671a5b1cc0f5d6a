"""Writing `.ejrvs` and `.jmir`: the same members give the same bytes, encrypted or not.

No times, owners or modes of this machine in the tar, and gzip of stored blocks only, because
weights hardly compress and because bytes must not depend on a zlib.
`docs/reference/archive-format.md` is the specification.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jarvis_rules.core.digest import CHUNK, Digest, DigestWriter, Sink
from jarvis_rules.core.secret import Secret
from jarvis_rules.errors import IntegrityError, JarvisBug
from jarvis_rules.formats.archive_manifest import (
    ARCHIVE_VERSION,
    MAC,
    MANIFEST,
    ArchiveManifest,
    content_digest,
    dump_yaml,
)
from jarvis_rules.formats.member_frame import END, member_header, padding
from jarvis_rules.formats.schema import validate
from jarvis_rules.formats.stored_gzip import StoredBlocks, StoredGzipWriter, combine_crc

if TYPE_CHECKING:
    from jarvis_rules.formats.encryption import ArchiveCipher


class MemberSource(Protocol):
    """A member of an open archive, which another archive takes over as it is."""

    @property
    def digest(self) -> Digest:
        """The digest of the content, as its archive's manifest gives it."""

    def copy_to(self, sink: Sink) -> None:
        """Write the content, verified against the digest, to `sink`."""

    def blocks(self) -> StoredBlocks | None:
        """Return where the content lies, if in whole blocks of stored gzip and not encrypted."""


@dataclass(frozen=True, slots=True)
class Member:
    """A member to write: its content is `data`, the file at `path`, or what `write` writes.

    `write` is called twice, since the digests of all members stand before the first. A `source`
    is a member of another archive. `conf_path` is the key of the configuration that names it.
    """

    name: str
    role: str
    description: str
    data: bytes = b""
    path: Path | None = None
    write: Callable[[Sink], object] | None = None
    source: MemberSource | None = None
    conf_path: str | None = None

    def copy_to(self, sink: Sink) -> None:
        """Write the content to `sink`."""
        if self.source is not None:
            self.source.copy_to(sink)
        elif self.write is not None:
            self.write(sink)
        elif self.path is not None:
            with self.path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    sink.write(chunk)
        else:
            sink.write(self.data)


@dataclass(slots=True)
class _Checksums:
    """Takes a content in and keeps its digest and its CRC-32."""

    crc32: int = 0
    _digest: DigestWriter = field(default_factory=DigestWriter)

    def write(self, data: bytes | memoryview) -> None:
        self.crc32 = zlib.crc32(data, self.crc32)
        self._digest.write(data)

    def digest(self) -> Digest:
        return self._digest.digest()


@dataclass(frozen=True, slots=True)
class _Content:
    """A member with its digest, and its CRC-32 and blocks as far as they are of use."""

    member: Member
    digest: Digest
    crc32: int | None = None
    blocks: StoredBlocks | None = None


def write_archive(
    path: Path,
    kind: str,
    metadata: Mapping[str, Any],
    members: Iterable[Member],
    key: Secret | None = None,
) -> ArchiveManifest:
    """Write an archive of `kind` (`ejrvs` or `jmir`) to `path` and return its manifest.

    Members are written in the order of their names, whatever the order given. `metadata` holds
    what describes the content; format, version and digests are added here. With a `key` every
    member is encrypted. Where this fails, nothing is left at `path`.
    """
    ordered = sorted(members, key=lambda member: member.name)
    if len({MANIFEST, MAC, *(member.name for member in ordered)}) != 2 + len(ordered):
        raise JarvisBug(f"two members of one name: {[member.name for member in ordered]}")
    contents = [_content(member, plain=key is None) for member in ordered]
    roles = {content.member.name: (content.member.role, content.digest) for content in contents}
    digest = content_digest(kind, roles, metadata)
    cipher = None if key is None else _cipher(key, digest)
    document = {
        "metadata": {
            **metadata,
            "archive_format": kind,
            "archive_version": ARCHIVE_VERSION,
            "content_digest": digest,
        },
        "files": {content.member.name: _properties(content, cipher) for content in contents},
    }
    if cipher is not None:
        document["metadata"]["encryption"] = cipher.description()
    validate(document, f"{kind}-manifest", str(path))
    manifest = dump_yaml(document)
    with _removed_on_failure(path), path.open("wb", buffering=CHUNK) as out:
        stream = StoredGzipWriter(out)
        _write_bytes(stream, MANIFEST, manifest)
        if cipher is not None:
            _write_bytes(stream, MAC, cipher.manifest_mac(manifest))
        for content in contents:
            if cipher is not None:
                _write_sealed(stream, content, cipher)
            else:
                _write_plain(stream, content)
        stream.write(END)
        stream.close()
    return ArchiveManifest.from_document(document)


def _cipher(key: Secret, digest: str) -> ArchiveCipher:
    from jarvis_rules.formats.encryption import CHUNK_SIZE, ArchiveCipher

    return ArchiveCipher(key.reveal(), ARCHIVE_VERSION, digest, CHUNK_SIZE)


def _content(member: Member, plain: bool) -> _Content:
    if member.source is None:
        checksums = _Checksums() if plain else DigestWriter()
        member.copy_to(checksums)
        crc32 = checksums.crc32 if isinstance(checksums, _Checksums) else None
        return _Content(member, checksums.digest(), crc32)
    if not plain:
        return _Content(member, member.source.digest)
    blocks = member.source.blocks()
    if blocks is not None:
        return _Content(member, member.source.digest, blocks.crc32, blocks)
    checksums = _Checksums()
    member.copy_to(checksums)
    return _Content(member, member.source.digest, checksums.crc32)


def _properties(content: _Content, cipher: ArchiveCipher | None) -> dict[str, Any]:
    properties = {
        "description": content.member.description,
        "role": content.member.role,
        "binary": True,
        "encrypted": cipher is not None,
        **content.digest.to_json(),
    }
    if content.member.conf_path is not None:
        properties["conf_path"] = content.member.conf_path
    if cipher is None and content.crc32 is not None:
        properties["crc32"] = f"{content.crc32:08x}"
    return properties


@contextlib.contextmanager
def _removed_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _write_bytes(stream: StoredGzipWriter, name: str, data: bytes) -> None:
    stream.write(member_header(name, len(data)))
    stream.write(data)
    stream.write(padding(len(data)))


def _write_plain(stream: StoredGzipWriter, content: _Content) -> None:
    size, blocks = content.digest.size, content.blocks
    stream.write(member_header(content.member.name, size))
    # So the content's blocks are the same in every archive, and can be carried over.
    stream.align()
    if blocks is not None:
        stream.carry(blocks, size)
    else:
        before, crc = stream.size, combine_crc(stream.crc, content.crc32 or 0, size)
        content.member.copy_to(stream)
        if (stream.size - before, stream.crc) != (size, crc):
            raise _changed(content.member)
    stream.align()
    stream.write(padding(size))


def _write_sealed(stream: StoredGzipWriter, content: _Content, cipher: ArchiveCipher) -> None:
    member = content.member
    sealed = cipher.member(member.name, member.role, content.digest)
    stream.write(member_header(member.name, sealed.stored_size))
    written, sink = DigestWriter(), cipher.seal(sealed, stream)
    if member.source is not None:
        member.source.copy_to(sink)
    else:
        member.copy_to(_Both(written, sink))
        # The key is made from this digest: no other content may leave here under it.
        if written.digest() != content.digest:
            raise _changed(member)
    sink.finish()
    stream.write(padding(sealed.stored_size))


@dataclass(frozen=True, slots=True)
class _Both:
    """Gives a content to two sinks."""

    first: Sink
    second: Sink

    def write(self, data: bytes | memoryview) -> None:
        self.first.write(data)
        self.second.write(data)


def _changed(member: Member) -> IntegrityError:
    return IntegrityError(
        f"member `{member.name}` changed while it was written",
        slug="archive.member-changed",
        hint="build again when nothing writes to the file that it comes from",
    )
