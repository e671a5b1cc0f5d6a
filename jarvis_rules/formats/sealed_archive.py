"""The members of an encrypted archive: checked, opened, and what is wrong with them told apart."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jarvis_rules.core.secret import Secret
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.archive_manifest import MAC, MANIFEST, ArchiveManifest
from jarvis_rules.formats.encryption import (
    MAX_MAC_SIZE,
    SCHEME,
    ArchiveCipher,
    ChunkError,
    SealedMember,
)
from jarvis_rules.formats.member_frame import END, member_header, padding
from jarvis_rules.formats.tar import TarArchive, quoted

_ASK = "ask whoever made the archive for it again, and check how it got here"
# Attempts that go into telling reordered chunks from changed ones, when a chunk is refused.
_MAX_ATTEMPTS = 4096


class SealedArchive:
    """The encrypted members of an archive; with a key, that and the manifest are checked first.

    The container must be what the writer makes, to the byte: nothing in it can be changed unseen.
    """

    def __init__(
        self, path: Path, tar: TarArchive, manifest: ArchiveManifest, key: Secret | None
    ) -> None:
        self._path = path
        self._tar = tar
        self._places = {member.name: member for member in tar.members}
        encryption = manifest.encryption or {}
        if encryption["scheme"] != SCHEME:
            message = f"the encryption is {quoted(encryption['scheme'])}, this program knows "
            raise self._error("scheme", f"{message}`{SCHEME}`", "update jarvis-rules")
        self._members = {
            name: SealedMember(name, role, digest, encryption["chunk_size"])
            for name, (role, digest) in manifest.roles().items()
        }
        self._cipher = None if key is None else self._checked_cipher(manifest, key)
        self._check_sizes()
        self._check_container()

    def _checked_cipher(self, manifest: ArchiveManifest, key: Secret) -> ArchiveCipher:
        encryption = manifest.encryption or {}
        cipher = ArchiveCipher(
            key.reveal(), manifest.version, manifest.content_digest, encryption["chunk_size"]
        )
        if not cipher.has_key_id(encryption["key_id"]):
            raise self._error(
                "wrong-key",
                "the key is not the one that the archive was encrypted with",
                "check the key; a key file may end in one line break, which is no part of it",
            )
        text = bytes(self._tar.view(self._places[MANIFEST]))
        mac = self._ciphertext(MAC, 0, MAX_MAC_SIZE)
        if not cipher.is_mac(mac, text):
            raise self._error(
                "manifest", f"`{MANIFEST}` was changed after the archive was encrypted", _ASK
            )
        return cipher

    def _check_sizes(self) -> None:
        for name, member in self._members.items():
            found = self._places[name].size
            if found == member.stored_size:
                continue
            if other := self._other_owner(name, 0):
                raise self._exchanged(name, other)
            shown = f"the encrypted member {quoted(name)} has {found} bytes, expected "
            is_short = found < member.stored_size
            what = "its end is missing" if is_short else "something was added"
            raise self._error(
                "truncated" if is_short else "extended",
                f"{shown}{member.stored_size}: {what}",
                _ASK,
            )

    def _check_container(self) -> None:
        """Refuse a container that the writer would not have made."""
        stored = self._tar.stored
        names = [MANIFEST, MAC, *sorted(self._members)]
        at, faults = 0, stored is None or [m.name for m in self._tar.members] != names
        for name in names if not faults else ():
            place = self._places[name]
            header = member_header(name, place.size)
            end = at + len(header) + place.size
            gap = padding(place.size)
            faults |= self._bytes(at, at + len(header)) != header
            faults |= self._bytes(end, end + len(gap)) != gap
            at = end + len(gap)
        if stored is None or faults or stored[at:] != END:
            raise self._error(
                "container",
                "an encrypted archive must be as its writer made it, and this one was packed anew "
                "or damaged outside of its members",
                "copy encrypted archives as they are, never unpack and pack them",
            )

    def _bytes(self, start: int, end: int) -> bytes:
        return b"".join(self._tar.pieces(start, end))

    def require_key(self) -> ArchiveCipher:
        """Return the cipher; IntegrityError `encryption.missing-key` where no key was given."""
        if self._cipher is None:
            raise self._error(
                "missing-key",
                "the archive is encrypted, and no key was given",
                "give it behind the file, `FILE:KEY`; KEY is `env:NAME`, `file:PATH` or the key",
            )
        return self._cipher

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield the content of a member in pieces, each authenticated before it is yielded."""
        cipher = self.require_key()
        try:
            yield from cipher.open_chunks(
                self._members[name], lambda start, end: self._ciphertext(name, start, end)
            )
        except ChunkError as error:
            raise self._diagnosed(name, error.index) from None

    def _ciphertext(self, name: str, start: int, end: int) -> bytes:
        place = self._places[name]
        return self._bytes(place.offset + start, place.offset + min(end, place.size))

    # What is wrong

    def _diagnosed(self, name: str, index: int) -> IntegrityError:
        """Return the error for a chunk that was refused, after finding out where it belongs."""
        if owner := self._other_owner(name, index):
            return self._exchanged(name, owner)
        member, cipher = self._members[name], self._cipher
        chunk = self._ciphertext(name, *member.span(index))
        near = sorted(range(member.chunks), key=lambda other: abs(other - index))[:_MAX_ATTEMPTS]
        for other in near:
            if cipher is not None and cipher.is_chunk(member, other, chunk):
                message = f"chunk {index} of {quoted(name)} is chunk {other}: they were reordered"
                return self._error("reordered", message, _ASK)
        return self._error(
            "damaged",
            f"chunk {index} of {quoted(name)} is not what was encrypted: bytes of it were changed",
            _ASK,
        )

    def _other_owner(self, name: str, index: int) -> str | None:
        """Return the member that the chunk in this place was sealed for, if it is another one."""
        for other, member in self._members.items():
            if other == name or self._cipher is None or index >= member.chunks:
                continue
            chunk = self._ciphertext(name, *member.span(index))
            if self._cipher.is_chunk(member, index, chunk):
                return other
        return None

    def _exchanged(self, name: str, other: str) -> IntegrityError:
        message = f"what lies at {quoted(name)} is the content of {quoted(other)}: exchanged"
        return self._error("exchanged", message, _ASK)

    def _error(self, slug: str, message: str, hint: str) -> IntegrityError:
        return IntegrityError(message, slug=f"encryption.{slug}", where=str(self._path), hint=hint)
