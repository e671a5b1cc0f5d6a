"""Schemas: what an `.ejrvs` of one NeMo class must hold, as YAML files of nemo2jarvis' form.

Three sections, each of them optional: `metadata`, `file_properties` and `file_content`, or, as
later releases spell the last two, `artifact_properties` and `artifact_content`. Each is a list of
names, or of mappings from a name to what is asked of it. `docs/reference/archive-schemas.md` is
the specification.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node

from jarvis_rules.errors import UsageError, did_you_mean
from jarvis_rules.formats.input_file import require_regular
from jarvis_rules.formats.nemo import refuse_duplicates
from jarvis_rules.formats.tar import quoted

PACKAGE_DATA = ("archive_schemas/*.yaml",)

_FOLDER = Path(__file__).parent / "archive_schemas"
_MAX_SIZE = 1 << 20
_MAX_DEPTH = 16
_SECTIONS = {
    "metadata": "metadata",
    "file_properties": "files",
    "artifact_properties": "files",
    "file_content": "content",
    "artifact_content": "content",
}
# They tell how to export, or people what it is: nothing that can be checked.
_DIRECTIONS = frozenset(
    {"autocast", "binary", "description", "export_subnet", "max_dim", "torch", "trtllm"}
)
_CHECKED = frozenset({"encrypted", "encryption", "onnx"})
_PROPERTIES = _CHECKED | _DIRECTIONS
_FORMATS = {".onnx": "ONNX", ".ts": "TS", ".ckpt": "CKPT", ".pt": "CKPT"}
_YAML_SUFFIXES = (".yaml", ".yml")
_RELEASE = re.compile(r"\d+(\.\d+)*")
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_TAG}{name}" for name in ("str", "bool", "null", "seq", "map")}


@dataclass(frozen=True, slots=True)
class ArchiveSchema:
    """What an archive must hold.

    `files` maps a member to the properties it must have; `content` maps a YAML member to the
    dotted keys that it must have, each with whether its value must name a file of the archive.
    Numbers are texts: the version 1.10 is not 1.1.
    """

    where: str
    metadata: Mapping[str, str | bool | None] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, str | bool | None]] = field(default_factory=dict)
    content: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)

    @property
    def obj_cls(self) -> str | None:
        """The NeMo class that the schema is for, without the modules below `models`."""
        name = self.metadata.get("obj_cls")
        return normalised_class(name) if isinstance(name, str) else None

    @property
    def min_nemo_version(self) -> str | None:
        """The oldest NeMo whose checkpoints will do, or None."""
        version = self.metadata.get("min_nemo_version")
        return version if isinstance(version, str) else None

    @property
    def format(self) -> str | None:
        """The export format that the graphs' suffixes ask for; None where there is no graph.

        UsageError where they ask for several.
        """
        formats = {
            _FORMATS[suffix]
            for name in self.files
            if (suffix := PurePosixPath(name).suffix.lower()) in _FORMATS
        }
        if len(formats) > 1:
            raise UsageError(
                f"the schema asks for several formats: {', '.join(sorted(formats))}",
                slug="schema.formats",
                where=self.where,
                hint="say which one: `--format ONNX`",
            )
        return formats.pop() if formats else None


def normalised_class(name: str) -> str:
    """Return the dotted class without the modules between `models` and the class itself."""
    package, found, rest = name.partition(".models.")
    return f"{package}.models.{rest.rpartition('.')[2]}" if found else name


def read_schema(path: Path) -> ArchiveSchema:
    """Return the schema in the file `path`; UsageError where it is none."""
    hint = "leave `--schema` out: the schema of the model's class is known"
    require_regular(path, otherwise=hint, among="*.y*ml")
    return load_schema(path.read_bytes(), str(path))


def load_schema(data: bytes, where: str) -> ArchiveSchema:
    """Return the schema that `data` holds; UsageError naming the line or the key otherwise."""
    if len(data) > _MAX_SIZE:
        raise _refused(f"{len(data)} bytes, at most {_MAX_SIZE}", where)
    try:
        document = yaml.load(data.decode(), Loader=_SchemaLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        line = f" on line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise _refused(f"not plain YAML: {error.problem}{line}", where) from None
    except (yaml.YAMLError, ValueError) as error:
        reason = ascii(str(error).partition("\n")[0])[1:-1]
        raise _refused(f"not YAML: {reason}", where) from None
    if not isinstance(document, dict):
        raise _refused("expected the sections `metadata`, `file_properties`, …", where)
    sections: dict[str, list[tuple[str, Any]]] = {}
    for name, value in document.items():
        _require_known("section", name, _SECTIONS, where)
        if _SECTIONS[name] in sections:
            other = next(n for n in document if n != name and _SECTIONS[n] == _SECTIONS[name])
            raise _refused(f"`{other}` and `{name}` are two names of one section", where)
        sections[_SECTIONS[name]] = _entries(value, name, where)
    schema = ArchiveSchema(
        where,
        {name: _scalar(value, name, where) for name, value in sections.get("metadata", [])},
        {name: _properties(value, name, where) for name, value in sections.get("files", [])},
        {name: _leaves(value, name, where) for name, value in sections.get("content", [])},
    )
    version = schema.metadata.get("min_nemo_version")
    if version is not None and not _RELEASE.fullmatch(str(version)):
        raise _refused(f"`min_nemo_version` must be a version, got `{version}`", where)
    return schema


def _entries(value: Any, place: str, where: str) -> list[tuple[str, Any]]:
    """Return names and what is asked of them: of a list of both, of a mapping, or of nothing."""
    entries: list[tuple[str, Any]] = []
    for entry in [value] if isinstance(value, dict) else value or []:
        if isinstance(entry, str):
            entries.append((entry, None))
        elif isinstance(entry, dict):
            entries += entry.items()
        else:
            raise _refused(f"`{place}` must be a list of names", where)
    if isinstance(value, str | bool):
        raise _refused(f"`{place}` must be a list of names", where)
    # A schema of NVIDIA's names a key twice, which does no harm where nothing differs.
    if twice := [n for n, v in entries if any(n == other and v != w for other, w in entries)]:
        raise _refused(f"`{place}` has two different `{twice[0]}`", where)
    return entries


def _properties(value: Any, name: str, where: str) -> dict[str, str | bool | None]:
    if value is not None and not isinstance(value, dict):
        raise _refused(f"the properties of `{name}` must be a mapping", where)
    for key in value or {}:
        _require_known(f"property of `{name}`", key, _PROPERTIES, where)
    return {key: _scalar(entry, key, where) for key, entry in (value or {}).items()}


def _leaves(value: Any, name: str, where: str) -> dict[str, bool]:
    if PurePosixPath(name).suffix not in _YAML_SUFFIXES:
        raise _refused(f"the content of `{name}` cannot be checked: it is no YAML file", where)
    leaves = {}
    for leaf, names_file in _entries(value, name, where):
        if names_file not in (None, True, False):
            message = f"`{leaf}` of `{name}` takes `True` (its value names a file) or nothing"
            raise _refused(message, where)
        leaves[leaf] = bool(names_file)
    return leaves


def _scalar(value: Any, name: str, where: str) -> str | bool | None:
    if isinstance(value, dict | list):
        raise _refused(f"`{name}` must be a plain value", where)
    return None if value is None else value if isinstance(value, bool) else str(value)


def _require_known(what: str, name: str, known: Iterable[str], where: str) -> None:
    if name not in known:
        near = did_you_mean(name, known)
        raise UsageError(
            f"unknown {what}: {quoted(name)}",
            slug="schema.unknown-key",
            where=where,
            hint=f"{near + ' ' if near else ''}known: {', '.join(sorted(known))}",
        )


def _refused(message: str, where: str) -> UsageError:
    return UsageError(
        message,
        slug="schema.unreadable",
        where=where,
        hint="`docs/reference/archive-schemas.md` describes a schema",
    )


@functools.cache
def packaged_schemas() -> tuple[ArchiveSchema, ...]:
    """Return the schemas that come with this package, by file name."""
    return tuple(map(read_schema, sorted(_FOLDER.glob("*.yaml"))))


def find_schema(obj_cls: str, schemas: Sequence[ArchiveSchema]) -> ArchiveSchema | None:
    """Return the one of `schemas` that is for the NeMo class; UsageError where two are."""
    name = normalised_class(obj_cls)
    fitting = [schema for schema in schemas if schema.obj_cls == name]
    if len(fitting) > 1:
        raise UsageError(
            f"a second schema of the class `{name}`; the other is {fitting[0].where}",
            slug="schema.duplicate-class",
            where=fitting[1].where,
            hint="remove one of them, or say which with `--schema`",
        )
    return fitting[0] if fitting else None


class _SchemaLoader(yaml.SafeLoader):
    """Builds texts, booleans, lists and mappings; a number stays the text that was written."""

    depth = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node of a plain type that is not nested too deep."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(AliasEvent):
            raise yaml.MarkedYAMLError(problem="an alias", problem_mark=mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            problem = f"nested more than {_MAX_DEPTH} deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is not None and node.tag not in _PLAIN_TAGS:
            problem = f"the tag {quoted(node.tag)}"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        if isinstance(node, MappingNode):
            refuse_duplicates(node)
            if any(key.tag != f"{_TAG}str" for key, _ in node.value):
                raise yaml.MarkedYAMLError(problem="a key that is no text", problem_mark=mark)
        return node


_SchemaLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag in _PLAIN_TAGS]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
