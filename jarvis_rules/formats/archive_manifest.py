"""`manifest.yaml` of `.ejrvs` and `.jmir`: what it says, its digest of the content, its bytes.

`docs/reference/archive-format.md` is the specification.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node

from jarvis_rules.core.digest import Digest, digest_bytes
from jarvis_rules.formats.tar import quoted
from jarvis_rules.formats.yaml_loader import LimitedLoader

MANIFEST = "manifest.yaml"
MAC = "manifest.mac"
ARCHIVE_VERSION = 1
MAX_MANIFEST_SIZE = 8 << 20
# What results depend on: everything else in `metadata` is for people or follows from these.
CONTENT_METADATA = (
    "engine_choices", "facts", "family", "full_precision", "graphs", "kind", "name", "obj_cls",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ArchiveManifest:
    """What is in an archive: `metadata`, and the properties of every member by name."""

    kind: str
    version: int
    content_digest: str
    metadata: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    @property
    def encryption(self) -> Mapping[str, Any] | None:
        """Scheme, chunk size and key id of an encrypted archive, else None."""
        found: Mapping[str, Any] | None = self.metadata.get("encryption")
        return found

    def roles(self) -> dict[str, tuple[str, Digest]]:
        """Return role and content digest of every member."""
        return {
            name: (properties["role"], Digest(properties["sha256"], properties["size"]))
            for name, properties in self.files.items()
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> ArchiveManifest:
        """Return the manifest of a document that follows its schema."""
        metadata = dict(document["metadata"])
        return cls(
            kind=metadata["archive_format"],
            version=metadata["archive_version"],
            content_digest=metadata["content_digest"],
            metadata=metadata,
            files=document["files"],
        )


def content_digest(
    kind: str, members: Mapping[str, tuple[str, Digest]], metadata: Mapping[str, Any]
) -> str:
    """Return the digest over all of an archive that results depend on.

    Kind, version, names, roles and digests of the members, and `CONTENT_METADATA`.
    """
    document = {
        "kind": kind,
        "version": ARCHIVE_VERSION,
        "members": {
            name: [role, digest.sha256, digest.size] for name, (role, digest) in members.items()
        },
        "metadata": {name: metadata[name] for name in CONTENT_METADATA if name in metadata},
    }
    # As canonical JSON, but for facts that JSON has no number for: `Infinity`, `NaN`.
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return digest_bytes(text.encode(errors="backslashreplace")).sha256


def load_yaml(data: bytes) -> Any:
    """Return the plain values of a manifest; ManifestYamlError for anything else."""
    try:
        return yaml.load(data.decode(), Loader=_ManifestLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = f" on line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ManifestYamlError(f"not plain YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        reason = ascii(str(error).partition("\n")[0])[1:-1]
        raise ManifestYamlError(f"not YAML: {reason}") from None


class ManifestYamlError(ValueError):
    """A manifest is not the YAML of plain values."""


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


class _ManifestLoader(LimitedLoader):
    """Builds plain values, and refuses what a manifest has no use for.

    An alias can expand without bound, a tag can name a type, and of two equal keys one is lost.
    """

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node that is of a plain type."""
        if self.check_event(AliasEvent):
            raise self.problem("an alias")
        node = super().compose_node(parent, index)
        if node is not None and node.tag not in _PLAIN_TAGS:
            raise self.problem(f"the tag {quoted(node.tag)}")
        if isinstance(node, MappingNode):
            keys = [key.value for key, _ in node.value if key.tag == f"{_TAG}str"]
            if len(keys) != len(node.value) or len({*keys}) != len(keys):
                raise self.problem("a key that is no text, or the same key twice")
        return node


_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
# A date is text here; the writer quotes it, others may not.
_ManifestLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag != f"{_TAG}timestamp"]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
