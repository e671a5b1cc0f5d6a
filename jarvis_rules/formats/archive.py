"""The container of `.ejrvs` and `.jmir`: a gzip'd tar, `manifest.yaml` first.

The layout is that of NVIDIA's EFF archives as far as it is public (`metadata` and `files` in
`manifest.yaml`). Bytes are deterministic: no times, owners or modes of this machine in the tar,
and gzip made of stored blocks only, because weights hardly compress and because bytes must not
depend on a zlib. `docs/reference/archive-format.md` is the specification.
"""

from __future__ import annotations

import contextlib
import io
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node

from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import CHUNK, Digest, DigestWriter, Sink, digest_bytes, digest_file
from jarvis_rules.errors import IntegrityError, JarvisBug
from jarvis_rules.formats.schema import validate
from jarvis_rules.formats.tar import TarArchive, open_tar, quoted

MANIFEST = "manifest.yaml"
ARCHIVE_VERSION = 1
_MANIFEST_LIMIT = 16 << 20
_MANIFEST_DEPTH = 64
_NAMES_SHOWN = 20
_STORED_BLOCK = 0xFFFF
# ID, deflate, no flags, no time, no extra flags, unknown operating system (RFC 1952).
_GZIP_HEADER = bytes([0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 255])


@dataclass(frozen=True, slots=True)
class Member:
    """A member to write: its content is `data`, the file at `path`, or what `write` writes.

    `write` is called twice, since the digests of all members stand before the first.
    """

    name: str
    role: str
    description: str
    data: bytes = b""
    path: Path | None = None
    write: Callable[[Sink], object] | None = None

    def copy_to(self, sink: Sink) -> None:
        """Write the content to `sink`."""
        if self.write is not None:
            self.write(sink)
        elif self.path is not None:
            with self.path.open("rb") as source:
                while chunk := source.read(CHUNK):
                    sink.write(chunk)
        else:
            sink.write(self.data)

    def digest(self) -> Digest:
        """Return the digest of the content."""
        writer = DigestWriter()
        self.copy_to(writer)
        return writer.digest()


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
    """What is in an archive: `metadata`, and the properties of every member by name."""

    kind: str
    version: int
    content_digest: str
    metadata: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]


def content_digest(kind: str, members: Mapping[str, tuple[str, Digest]]) -> str:
    """Return the digest over an archive's kind, version, and members' roles and digests."""
    document = {
        "kind": kind,
        "version": ARCHIVE_VERSION,
        "members": {name: [role, *_pair(digest)] for name, (role, digest) in members.items()},
    }
    return digest_bytes(dump_canonical_json(document)).sha256


def _pair(digest: Digest) -> tuple[str, int]:
    return digest.sha256, digest.size


def write_archive(
    path: Path, kind: str, metadata: Mapping[str, Any], members: Iterable[Member]
) -> ArchiveManifest:
    """Write an archive of `kind` (`ejrvs` or `jmir`) to `path` and return its manifest.

    Members are written in the order of their names, whatever the order given. `metadata` holds
    what describes the content; format, version and digests are added here.
    """
    ordered = sorted(members, key=lambda member: member.name)
    if len({MANIFEST, *(member.name for member in ordered)}) != 1 + len(ordered):
        raise JarvisBug(f"two members of one name: {[member.name for member in ordered]}")
    digests = {member.name: member.digest() for member in ordered}
    roles = {member.name: (member.role, digests[member.name]) for member in ordered}
    document: dict[str, Any] = {
        "metadata": {
            **metadata,
            "archive_format": kind,
            "archive_version": ARCHIVE_VERSION,
            "content_digest": content_digest(kind, roles),
        },
        "files": {
            member.name: {
                "description": member.description,
                "role": member.role,
                "binary": True,
                "encrypted": False,
                **digests[member.name].to_json(),
            }
            for member in ordered
        },
    }
    validate(document, f"{kind}-manifest", str(path))
    manifest = Member(MANIFEST, "manifest", "", data=dump_yaml(document))
    with path.open("wb", buffering=CHUNK) as out:
        stream = _StoredGzip(out)
        for member in (manifest, *ordered):
            digest = digests.get(member.name) or member.digest()
            _write_member(stream, member, digest)
        stream.write(bytes(2 * tarfile.BLOCKSIZE))
        stream.close()
    return _manifest(document)


def _write_member(stream: _StoredGzip, member: Member, digest: Digest) -> None:
    info = tarfile.TarInfo(member.name)
    info.size, info.mode, info.mtime = digest.size, 0o644, 0
    stream.write(info.tobuf(format=tarfile.PAX_FORMAT, encoding="utf-8"))
    before = stream.size
    member.copy_to(stream)
    if stream.size - before != digest.size:
        raise IntegrityError(
            f"member `{member.name}` changed while it was written", slug="archive.member-changed"
        )
    stream.write(bytes(-digest.size % tarfile.BLOCKSIZE))


def dump_yaml(document: Any) -> bytes:
    """Return YAML of one form for one value: keys sorted, no folding, no aliases."""
    text = yaml.dump(
        document, Dumper=_ManifestDumper, allow_unicode=True, width=1 << 30, sort_keys=True
    )
    return text.encode()


class _ManifestDumper(yaml.SafeDumper):
    """Writes what `_ManifestLoader` reads."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Write a value that occurs twice twice."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> Node:
    # Unless it is escaped, YAML folds a line break of Unicode's into a space.
    style = '"' if any(c in text for c in "\x85\u2028\u2029") else None
    return dumper.represent_scalar(f"{_TAG}str", text, style=style)


_ManifestDumper.add_representer(str, _represent_text)


class _ManifestLoader(yaml.SafeLoader):
    """Builds plain values, and refuses what a manifest has no use for.

    An alias can expand without bound, a tag can name a type, and of two equal keys one is lost.
    """

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node that is of a plain type and not nested too deep."""
        if self.check_event(AliasEvent):
            raise self.problem("an alias")
        self.depth += 1
        if self.depth > _MANIFEST_DEPTH:
            raise self.problem(f"nested more than {_MANIFEST_DEPTH} deep")
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag not in _PLAIN_TAGS:
            raise self.problem(f"the tag {quoted(node.tag)}")
        if isinstance(node, MappingNode):
            keys = [key.value for key, _ in node.value if key.tag == f"{_TAG}str"]
            if len(keys) != len(node.value) or len({*keys}) != len(keys):
                raise self.problem("a key that is no text, or the same key twice")
        return node

    def problem(self, text: str) -> yaml.MarkedYAMLError:
        """Return the error for what stands before the next event."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        return yaml.MarkedYAMLError(problem=text, problem_mark=mark)


_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
# A date is text here; the writer quotes it, others may not.
_ManifestLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != f"{_TAG}timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _StoredGzip:
    """Writes a gzip stream of stored deflate blocks, each as long as the format allows."""

    def __init__(self, out: BinaryIO) -> None:
        self.size = 0
        self._out = out
        self._pending = bytearray()
        self._crc = 0
        out.write(_GZIP_HEADER)

    def write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self.size += len(data)
        view, at = memoryview(data), 0
        # The last block carries the final flag, so one is always held back.
        while len(self._pending) + len(view) - at > _STORED_BLOCK:
            end = at + _STORED_BLOCK - len(self._pending)
            self._block(self._pending, view[at:end], final=False)
            self._pending, at = bytearray(), end
        self._pending += view[at:]

    def _block(self, *parts: bytearray | memoryview, final: bool) -> None:
        size = sum(map(len, parts))
        self._out.write(struct.pack("<BHH", final, size, size ^ 0xFFFF))
        for part in parts:
            self._out.write(part)

    def close(self) -> None:
        self._block(self._pending, final=True)
        self._out.write(struct.pack("<II", self._crc, self.size & 0xFFFFFFFF))


class Archive:
    """An open archive: its manifest, and its members by name."""

    def __init__(self, path: Path, tar: TarArchive) -> None:
        self.path = path
        self._tar = tar
        self._sizes = {member.name: member.size for member in tar.members}
        self.manifest = self._read_manifest()
        self._check_members()

    def _read_manifest(self) -> ArchiveManifest:
        if MANIFEST not in self._sizes:
            raise IntegrityError(
                f"no member `{MANIFEST}`, so this is not an `.ejrvs` or `.jmir` archive",
                slug="archive.missing-manifest",
                where=str(self.path),
                hint="make it with `nemo2jarvis` or `jarvis-build`",
            )
        if self._sizes[MANIFEST] > _MANIFEST_LIMIT:
            raise self._error(f"`{MANIFEST}` has {self._sizes[MANIFEST]} bytes", "manifest-size")
        try:
            document = yaml.load(bytes(self._view(MANIFEST)), Loader=_ManifestLoader)  # noqa: S506
        except yaml.MarkedYAMLError as error:
            line = f" on line {error.problem_mark.line + 1}" if error.problem_mark else ""
            message = f"`{MANIFEST}` is not plain YAML: {error.problem}{line}"
            raise self._error(message, "manifest-yaml") from None
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
            reason = ascii(str(error).partition("\n")[0])[1:-1]
            raise self._error(f"`{MANIFEST}` is not YAML: {reason}", "manifest-yaml") from None
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
        return _manifest(document)

    def _check_members(self) -> None:
        listed = set(self.manifest.files) | {MANIFEST}
        if missing := sorted(listed - set(self._sizes)):
            shown = quoted(missing[0])
            raise self._error(f"the manifest lists {shown}, which is not there", "missing")
        if extra := sorted(set(self._sizes) - listed):
            raise self._error(f"member {quoted(extra[0])} is not in the manifest", "unlisted")
        for name, properties in self.manifest.files.items():
            if properties["encrypted"]:
                raise IntegrityError(
                    f"member `{name}` is encrypted, and encrypted archives are not available yet",
                    slug="archive.encrypted",
                    where=str(self.path),
                    hint="export the model again without a key",
                )
            if properties["size"] != self._sizes[name]:
                raise self._error(
                    f"member `{name}` has {self._sizes[name]} bytes, "
                    f"the manifest says {properties['size']}",
                    "member-size",
                )
        roles = {
            n: (p["role"], Digest(p["sha256"], p["size"])) for n, p in self.manifest.files.items()
        }
        if content_digest(self.manifest.kind, roles) != self.manifest.content_digest:
            raise self._error(
                "content_digest does not match the members' digests", "content-digest"
            )

    def _view(self, name: str) -> memoryview:
        member = self._tar.find(name)
        if member is None:
            raise self._missing(name)
        return self._tar.view(member)

    def _missing(self, name: str) -> IntegrityError:
        known = sorted(self._sizes)
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

    def digest(self, member: str) -> Digest:
        """Return the digest that the manifest gives for a member; IntegrityError if not listed."""
        properties = self.manifest.files.get(member)
        if properties is None:
            raise self._missing(member)
        return Digest(properties["sha256"], properties["size"])

    @contextlib.contextmanager
    def open(self, member: str) -> Iterator[BinaryIO]:
        """Yield a stream of a member's bytes, not yet verified against its digest."""
        with self._view(member) as view:
            yield io.BufferedReader(_ViewReader(view), CHUNK)

    def read(self, member: str) -> bytes:
        """Return a member's bytes, verified against its digest."""
        expected = self.digest(member)
        with self.open(member) as stream:
            data = stream.read()
        if digest_bytes(data) != expected:
            raise self._error(f"member `{member}` does not match its digest", "member-digest")
        return data

    def extract(self, member: str, target: Path) -> None:
        """Write a member to `target`, verified against its digest."""
        expected = self.digest(member)
        with self.open(member) as stream, target.open("wb") as out:
            while chunk := stream.read(CHUNK):
                out.write(chunk)
        if digest_file(target) != expected:
            target.unlink()
            raise self._error(f"member `{member}` does not match its digest", "member-digest")


class _ViewReader(io.RawIOBase):
    """Reads a memory view as a stream, without copying it whole."""

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._at = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        piece = self._view[self._at : self._at + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _is_map(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("metadata", {}), dict)


def _manifest(document: Mapping[str, Any]) -> ArchiveManifest:
    metadata = dict(document["metadata"])
    return ArchiveManifest(
        kind=metadata["archive_format"],
        version=metadata["archive_version"],
        content_digest=metadata["content_digest"],
        metadata=metadata,
        files=document["files"],
    )


@contextlib.contextmanager
def open_archive(path: Path, kind: str | None = None) -> Iterator[Archive]:
    """Open the archive at `path` for reading; `kind` is the format it must have.

    UsageError where the file is missing, IntegrityError where it is not a well-formed archive.
    """
    with open_tar(path, "archive") as tar:
        archive = Archive(path, tar)
        if kind is not None and archive.manifest.kind != kind:
            raise IntegrityError(
                f"this is a `.{archive.manifest.kind}` archive, expected `.{kind}`",
                slug="archive.wrong-kind",
                where=str(path),
                hint="`nemo2jarvis` makes `.ejrvs`, `jarvis-build` makes `.jmir`",
            )
        yield archive
