"""Safe reading of `.nemo` files: NeMo's tar of a configuration, weights and artifacts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml
from yaml.events import AliasEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from jarvis_rules.core.digest import Digest, DigestWriter
from jarvis_rules.errors import IntegrityError, did_you_mean
from jarvis_rules.formats import eff
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.state_dict import Array
from jarvis_rules.formats.tar import TarArchive, TarMember, open_tar, quoted, release_pages
from jarvis_rules.formats.yaml_loader import MAX_DEPTH, LimitedLoader

CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.ckpt"
MAX_CONFIG_SIZE = 4 << 20
MAX_CONFIG_NODES = 1_000_000  # counted as if every alias were written out
MAX_NUMBER_LENGTH = 64
MAX_ARTIFACT_SIZE = 1 << 30

_NAMES_SHOWN = 20
_PIECE = 8 << 20
_TAG = "tag:yaml.org,2002:"
_NUMBERS = (f"{_TAG}int", f"{_TAG}float")
_ALLOWED_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_TARGET = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_ARTIFACT_HASH = re.compile(r"[0-9a-f]{32}_")


class NemoArchive:
    """An open `.nemo`; a context manager. Arrays of `state_dict` stay valid after it is closed."""

    path: Path
    members: tuple[TarMember, ...]
    config: dict[str, Any]
    target: str
    nemo_version: str | None

    def __init__(self, archive: TarArchive) -> None:
        self.path = archive.path
        self.members = _nemo_members(archive)
        self._archive = archive
        self._member(WEIGHTS, "missing-weights")
        config = self._member(CONFIG, "missing-config")
        where = f"{self.path}!{CONFIG}"
        if config.size > MAX_CONFIG_SIZE:
            message = f"the configuration has {config.size} bytes, at most {MAX_CONFIG_SIZE}"
            raise _refused("config-size", message, where)
        self.config = modernised(load_config(bytes(archive.view(config)), where))
        self.target = _target(self.config, where)
        version = self.config.get("nemo_version")
        self.nemo_version = None if version is None else str(version)

    def artifact(self, reference: str) -> bytes:
        """Return the artifact that a value of the configuration names.

        `reference` is `nemo:<hash>_<name>`, a bare name, or the path it had where it was trained
        (NeMo 1.0): a member of this name, else the one member `<hash>_<name>` of the base name.
        Raises `IntegrityError` where no member or more than one fits.
        """
        name = PurePosixPath(reference.removeprefix("nemo:")).name
        candidates = [m for m in self.members if m.name not in (CONFIG, WEIGHTS)]
        tests: tuple[Callable[[str], bool], ...] = (
            lambda member: member == reference.removeprefix("nemo:"),
            lambda member: PurePosixPath(member).name == name,
            lambda member: _ARTIFACT_HASH.sub("", PurePosixPath(member).name, count=1) == name,
        )
        fits = next(filter(None, ([m for m in candidates if t(m.name)] for t in tests)), [])
        if not fits:
            near = did_you_mean(name, [_ARTIFACT_HASH.sub("", m.name) for m in candidates])
            message = f"no member for the artifact {quoted(reference)}{self._listing()}"
            raise _refused("missing-artifact", message, str(self.path), near)
        if len(fits) > 1:
            message = f"{quoted(reference)} could be {_listed(m.name for m in fits)}"
            raise _refused("ambiguous-artifact", message, str(self.path))
        if fits[0].size > MAX_ARTIFACT_SIZE:
            message = f"the artifact has {fits[0].size} bytes, at most {MAX_ARTIFACT_SIZE}"
            raise _refused("artifact-size", message, f"{self.path}!{fits[0].name}")
        return bytes(self._archive.view(fits[0]))

    def state_dict(self) -> Mapping[str, Array]:
        """Return the weights: parameter name → read-only array, checked to be finite.

        Shapes and dtypes are torch's, bfloat16 becomes float32. Arrays are made when they are
        looked up; see `read_checkpoint`.
        """
        where = f"{self.path}!{WEIGHTS}"
        member = self._member(WEIGHTS, "missing-weights")
        tensors = read_checkpoint(self._archive.view(member), where)
        check_finite(tensors, where)
        return tensors

    def digest(self, member: TarMember) -> Digest:
        """Return the digest of a member's bytes, which are read a piece at a time."""
        writer, view = DigestWriter(), self._archive.view(member)
        for at in range(0, member.size, _PIECE):
            writer.write(view[at : at + _PIECE])
            release_pages(view)
        return writer.digest()

    def close(self) -> None:
        """Release the archive."""
        self._archive.close()

    def __enter__(self) -> NemoArchive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _member(self, name: str, slug: str) -> TarMember:
        if member := next((m for m in self.members if m.name == name), None):
            return member
        nested = [m.name for m in self.members if m.name.endswith(f"/{CONFIG}")]
        hint = (
            f"NeMo reads the top of the archive only; pack it without the folder "
            f"{quoted(nested[0].removesuffix(f'/{CONFIG}'))}"
            if nested
            else None
        )
        raise _refused(slug, f"no member `{name}`{self._listing()}", str(self.path), hint)

    def _listing(self) -> str:
        return f"; there are {_listed(m.name for m in self.members)}" if self.members else ""


def open_nemo(path: Path) -> NemoArchive:
    """Open a `.nemo` (tar, or tar.gz before NeMo 1.7) or a `.tlt`, and read its configuration.

    Nothing is extracted and nothing in it is run. Raises `UsageError` where the file cannot be
    read, `IntegrityError` where it is damaged, hostile or incomplete.
    """
    archive = open_tar(path, "nemo")
    try:
        return NemoArchive(archive)
    except BaseException:
        archive.close()
        raise


def artifact_name(reference: str) -> str:
    """Return the file name that a value of the configuration means, without NeMo's hash."""
    name = PurePosixPath(reference.removeprefix("nemo:")).name
    return _ARTIFACT_HASH.sub("", name, count=1)


def _nemo_members(archive: TarArchive) -> tuple[TarMember, ...]:
    """Return the members under the names that NeMo's `save_to` gives them.

    TLT wrote the same files as an EFF archive: beside a manifest, and of late in a folder. Raises
    `IntegrityError` `encryption.nvidia` where one is encrypted.
    """
    listed = eff.find_eff(archive)
    if listed is None:
        return archive.members
    eff.require_open(listed, str(archive.path))
    members = {member.name: member for member in archive.members}
    places = {name: eff.eff_member(name, members) for name in listed.files}
    return tuple(replace(members[place], name=name) for name, place in places.items() if place)


def check_finite(tensors: Mapping[str, Array], where: str) -> None:
    """Refuse a NaN or an infinity in any float tensor, naming the tensor and the index."""
    for name, tensor in tensors.items():
        if tensor.dtype.kind != "f":
            continue
        finite = np.isfinite(tensor)
        if not finite.all():
            index = np.unravel_index(int(np.argmin(finite)), tensor.shape)
            kind, what = ("nan", "NaN") if np.isnan(tensor[index]) else ("inf", "an infinity")
            bad = finite.size - int(np.count_nonzero(finite))
            message = f"tensor {quoted(name)} holds {what} at {[int(i) for i in index]}"
            message += f" ({bad} of {finite.size} values are not finite)"
            hint = "training diverged or the file is damaged; take an earlier checkpoint"
            raise IntegrityError(message, slug=f"checkpoint.{kind}", hint=hint, where=where)


def load_config(data: bytes, where: str) -> dict[str, Any]:
    """Return a NeMo configuration, a YAML 1.1 mapping with text keys, as plain values.

    Scalars resolve as in OmegaConf, which NeMo reads it with: `1e-5` is a number and a date is
    text. Tags other than those of plain values, duplicate keys, and aliases that recurse or that
    expand beyond `MAX_CONFIG_NODES` are an `IntegrityError` naming the line.
    """
    try:
        config = yaml.load(data.decode(), Loader=_ConfigLoader)  # noqa: S506
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" on line {mark.line + 1}" if mark else ""
        raise _refused("yaml", f"{error.problem or error.context}{line}", where) from None
    except (yaml.YAMLError, ValueError, LookupError, OverflowError) as error:
        reason = (str(error) or "not readable").splitlines()[0]
        raise _refused("yaml", reason, where) from None
    if not isinstance(config, dict) or not all(isinstance(key, str) for key in config):
        raise _refused("yaml", "expected a mapping of names to values", where)
    return config


def modernised(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as NeMo itself reads it, whatever Hydra it was written for.

    A whole training configuration is its `model`; `cls` becomes `_target_` where that is absent,
    and the `params` of a section are moved into it (Hydra 0.x, in the betas of NeMo 1.0).
    Source: NeMo `SaveRestoreConnector.load_config_and_state_dict`, `maybe_update_config_version`.
    """
    model = config.get("model")
    return _modernised(model if isinstance(model, dict) else config)


def _modernised(section: dict[str, Any]) -> dict[str, Any]:
    section = dict(section)
    if "cls" in section and "_target_" not in section:
        section["_target_"] = section.pop("cls")
    if isinstance(section.get("params"), dict):
        section |= section.pop("params")
    return {
        name: _modernised(value) if isinstance(value, dict) else value
        for name, value in section.items()
    }


def _target(config: dict[str, Any], where: str) -> str:
    target = config.get("target")
    if not isinstance(target, str) or not _TARGET.fullmatch(target):
        shown = "nothing" if target is None else quoted(str(target))
        message = f"the key `target` must name the model's class, got {shown}"
        raise _refused("target", message, where)
    return target


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - _NAMES_SHOWN} more" if len(ordered) > _NAMES_SHOWN else ""
    return ", ".join(map(quoted, ordered[:_NAMES_SHOWN])) + more


_HINTS = {
    "missing-config": "expected a file of NeMo's `model.save_to`; a `.ckpt` alone is not enough",
    "missing-weights": "expected a file of NeMo's `model.save_to`; large sharded models are not "
    "supported",
    "target": "a file of NeMo's `model.save_to` has it; add `target: nemo.collections.…`",
    "yaml": "expected the plain YAML of NeMo's `model.save_to`; fetch the file again, or repair it",
    "missing-artifact": "the archive is incomplete; save it again with NeMo's `model.save_to`",
    "ambiguous-artifact": "write the full member name into the configuration",
}


def _refused(name: str, message: str, where: str, hint: str | None = None) -> IntegrityError:
    hint = hint or _HINTS.get(name, "this is no file of NeMo's `model.save_to`")
    return IntegrityError(message, slug=f"nemo.{name}", hint=hint, where=where)


class _ConfigLoader(LimitedLoader):
    """Builds plain values and refuses what a configuration has no use for."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.extents: dict[Node, tuple[int, int]] = {}  # expanded count of nodes, and depth

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """Compose one node, its nesting and size counted through aliases."""
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(AliasEvent)
        node = super().compose_node(parent, index)
        if is_alias and node not in self.extents:
            raise _problem("an alias holds itself", mark)
        if node is not None and not is_alias:
            self.extents[node] = self.checked_extent(node)
        return node

    def checked_extent(self, node: Node) -> tuple[int, int]:
        """Return how many nodes a new node expands to and how deep it is, if it is allowed."""
        is_merge = isinstance(node, ScalarNode) and node.tag == f"{_TAG}merge"
        if node.tag not in _ALLOWED_TAGS and not is_merge:
            tag = quoted(node.tag.replace(_TAG, "!!"))
            raise _problem(f"the tag {tag} is not one of plain values", node.start_mark)
        if isinstance(node, ScalarNode):
            if node.tag in _NUMBERS and len(node.value) > MAX_NUMBER_LENGTH:
                raise _problem(f"a number has {len(node.value)} characters", node.start_mark)
            return 1, 1
        if isinstance(node, MappingNode):
            refuse_duplicates(node)
            children = [child for pair in node.value for child in pair]
        else:
            children = node.value if isinstance(node, SequenceNode) else []
        extents = [self.extents[child] for child in children]
        count = 1 + sum(count for count, _ in extents)
        depth = 1 + max((depth for _, depth in extents), default=0)
        if count > MAX_CONFIG_NODES or depth > MAX_DEPTH:
            raise _problem(f"aliases expand to {count} values, {depth} deep", node.start_mark)
        return count, depth


def refuse_duplicates(node: MappingNode) -> None:
    """Refuse a mapping with two equal keys, or with keys that are not short scalars."""
    seen: set[tuple[str, str]] = set()
    for key, _ in node.value:
        # Long numbers can be made to collide in a hash table, text cannot.
        is_long = key.tag in _NUMBERS and len(key.value) > 18
        if not isinstance(key, ScalarNode) or is_long:
            raise _problem("a key is neither text nor a short number", key.start_mark)
        if (key.tag, key.value) in seen:
            raise _problem(f"the key {quoted(key.value)} is given twice", key.start_mark)
        seen.add((key.tag, key.value))


def _problem(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _omegaconf_resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    as_text = (f"{_TAG}timestamp", f"{_TAG}value")
    resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag not in as_text]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    # YAML 1.1 asks for a dot and a signed exponent.
    exponent = re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+")
    for first in "-+.0123456789":
        resolvers[first] = [*resolvers.get(first, []), (f"{_TAG}float", exponent)]
    return resolvers


_ConfigLoader.yaml_implicit_resolvers = _omegaconf_resolvers()
