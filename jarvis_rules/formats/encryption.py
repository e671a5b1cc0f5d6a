"""Authenticated encryption of an archive's members. Pure: bytes in, bytes out, no files.

scrypt makes one secret of the key and the archive's content digest, HKDF one AES-256 key for each
member, and AES-GCM seals the member in chunks after STREAM: the nonce is the chunk's number and
whether it is the last. Nothing is random, so the same content and key give the same bytes; no
pair of key and nonce ever seals two plaintexts, because the member's digest goes into its key.
`docs/reference/encryption-format.md` is the specification, `docs/adr/0013-encryption.md` says why.
"""

from __future__ import annotations

import functools
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import Digest, Sink, digest_bytes
from jarvis_rules.errors import JarvisBug

SCHEME = "scrypt-hkdf-aes256gcm-stream"
CHUNK_SIZE = 1 << 20
TAG_SIZE = 16
MAX_MAC_SIZE = 128
# 32 MiB and about 0.1 s for each guess: fixed by the scheme, so that no archive can ask for more.
SCRYPT_N, SCRYPT_R, SCRYPT_P = 1 << 15, 8, 1
_KEY_SIZE = 32
_KEY_ID_SIZE = 16


@functools.lru_cache(maxsize=32)
def _scrypt(key: bytes, salt: bytes, length: int) -> bytes:
    return Scrypt(salt=salt, length=length, n=SCRYPT_N, r=SCRYPT_R, p=SCRYPT_P).derive(key)


def _salt(purpose: str, version: int, content_digest: str) -> bytes:
    document = {"content_digest": content_digest, "purpose": purpose, "version": version}
    return bytes.fromhex(digest_bytes(dump_canonical_json(document)).sha256)


@dataclass(frozen=True, slots=True)
class SealedMember:
    """What a member's key is made from, besides the archive's secret; `digest` is the content's."""

    name: str
    role: str
    digest: Digest
    chunk_size: int

    @property
    def chunks(self) -> int:
        """The number of chunks; an empty member has one, which is empty."""
        return max(1, -(-self.digest.size // self.chunk_size))

    @property
    def stored_size(self) -> int:
        """The size of the ciphertext."""
        return self.digest.size + self.chunks * TAG_SIZE

    def span(self, index: int) -> tuple[int, int]:
        """Return where the ciphertext of a chunk begins and ends."""
        start = index * (self.chunk_size + TAG_SIZE)
        return start, min(start + self.chunk_size + TAG_SIZE, self.stored_size)


class ArchiveCipher:
    """What one key seals and opens in one archive."""

    def __init__(self, key: bytes, version: int, content_digest: str, chunk_size: int) -> None:
        self._chunk_size = chunk_size
        self._secret = _scrypt(key, _salt("secret", version, content_digest), _KEY_SIZE)
        # By a scrypt of its own: what is published is no function of the secret.
        salt = _salt("key id", version, content_digest)
        self.key_id = _scrypt(key, salt, _KEY_ID_SIZE).hex()

    def __repr__(self) -> str:
        return f"ArchiveCipher(key_id={self.key_id})"

    def description(self) -> dict[str, Any]:
        """Return what the manifest says of the encryption."""
        return {"scheme": SCHEME, "chunk_size": self._chunk_size, "key_id": self.key_id}

    def member(self, name: str, role: str, digest: Digest) -> SealedMember:
        """Return the member of this name, role and content for this archive."""
        return SealedMember(name, role, digest, self._chunk_size)

    def has_key_id(self, key_id: str) -> bool:
        """Return whether the key is the one that `key_id` was made from."""
        return hmac.compare_digest(self.key_id, key_id)

    def manifest_mac(self, manifest: bytes) -> bytes:
        """Return the content of `manifest.mac`: HMAC-SHA-256 over the manifest's bytes, in hex."""
        key = self._expand({"purpose": "manifest"})
        return hmac.new(key, manifest, "sha256").hexdigest().encode() + b"\n"

    def is_mac(self, mac: bytes, manifest: bytes) -> bool:
        """Return whether `mac` is the content of `manifest.mac` for this manifest."""
        return hmac.compare_digest(mac, self.manifest_mac(manifest))

    def seal(self, member: SealedMember, out: Sink) -> SealingSink:
        """Return a sink that writes the ciphertext of what it is given to `out`."""
        return SealingSink(self._aead(member), member, out)

    def open_chunks(
        self, member: SealedMember, stored: Callable[[int, int], bytes]
    ) -> Iterator[bytes]:
        """Yield the plaintext of each chunk; `stored` returns a range of the ciphertext.

        Every chunk is authenticated before it is yielded. ChunkError where one is not what was
        sealed at its place.
        """
        aead = self._aead(member)
        for index in range(member.chunks):
            try:
                nonce = _nonce(index, index == member.chunks - 1)
                yield aead.decrypt(nonce, stored(*member.span(index)), None)
            except InvalidTag:
                raise ChunkError(index) from None

    def is_chunk(self, member: SealedMember, index: int, data: bytes) -> bool:
        """Return whether `data` is what was sealed as chunk `index` of a member."""
        try:
            self._aead(member).decrypt(_nonce(index, index == member.chunks - 1), data, None)
        except InvalidTag:
            return False
        return True

    def _aead(self, member: SealedMember) -> AESGCM:
        return AESGCM(
            self._expand(
                {
                    "purpose": "member",
                    "name": member.name,
                    "role": member.role,
                    "chunk_size": member.chunk_size,
                    **member.digest.to_json(),
                }
            )
        )

    def _expand(self, info: Mapping[str, Any]) -> bytes:
        # The secret is uniform already: HKDF's first step, which makes it so, is left out.
        expand = HKDFExpand(hashes.SHA256(), _KEY_SIZE, dump_canonical_json(dict(info)))
        return expand.derive(self._secret)


class ChunkError(Exception):
    """A chunk is not what was sealed at its place."""

    def __init__(self, index: int) -> None:
        super().__init__(f"chunk {index}")
        self.index = index


class SealingSink:
    """Writes the ciphertext of what it is given, chunk by chunk; `finish` must be called.

    The content must have the digest that the member's key was made from: whoever writes it checks
    that and throws the ciphertext away where it has not.
    """

    def __init__(self, aead: AESGCM, member: SealedMember, out: Sink) -> None:
        self._aead = aead
        self._member = member
        self._out = out
        self._pending = bytearray()
        self._index = 0

    def write(self, data: bytes | memoryview) -> None:
        """Take plaintext in."""
        size, view = self._member.chunk_size, memoryview(data)
        while len(self._pending) + len(view) >= size:
            taken = size - len(self._pending)
            # The usual piece is a chunk: it is sealed where it lies.
            self._seal(bytes(self._pending) + view[:taken] if self._pending else view[:taken])
            self._pending, view = bytearray(), view[taken:]
        self._pending += view

    def finish(self) -> None:
        """Seal what is left; JarvisBug where that is not all of the member."""
        if self._pending or not self._member.digest.size:
            self._seal(bytes(self._pending))
        if self._index != self._member.chunks:
            raise JarvisBug(f"{self._index} chunks of {self._member.chunks} were sealed")

    def _seal(self, chunk: bytes | memoryview) -> None:
        last = self._index == self._member.chunks - 1
        self._out.write(self._aead.encrypt(_nonce(self._index, last), chunk, None))
        self._index += 1


def _nonce(index: int, last: bool) -> bytes:
    return index.to_bytes(11, "big") + bytes([last])
