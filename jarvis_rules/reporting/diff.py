"""What differs between two checkpoints, archives, pipelines or repositories.

Two things are equal where their contents are: how an archive is packed or encrypted, and the
names of the files, are none of it. The document is described by `schemas/diff.schema.json`; it
depends on nothing but the two contents.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from jarvis_rules.core.digest import DigestWriter
from jarvis_rules.errors import UsageError
from jarvis_rules.formats.archive import Archive, open_archive
from jarvis_rules.formats.compliance import WEIGHTS_MEMBER
from jarvis_rules.formats.jmir import read_pipeline
from jarvis_rules.formats.nemo import CONFIG, WEIGHTS, NemoArchive, load_config, open_nemo
from jarvis_rules.formats.tar import quoted
from jarvis_rules.reporting.diff_repositories import add_repository_changes
from jarvis_rules.reporting.graph_files import graph_members, open_graph
from jarvis_rules.reporting.safetensors_files import open_safetensors
from jarvis_rules.reporting.subject import Subject, reading
from jarvis_rules.reporting.tensor_changes import Weights, add_weight_changes
from jarvis_rules.reporting.value_changes import Tally, add_changes, kind_of_change, short_json

VERSION = 1
# How a content is packed, and what follows from it: no difference of its own.
_PACKING = ("archive_format", "archive_version", "content_digest", "encryption", "facts")
_PROPERTIES = ("role", "sha256", "size")


@dataclass(slots=True)
class Differences:
    """All that differs, by kind, and remarks on how it was compared."""

    members: Tally = field(default_factory=Tally)
    values: Tally = field(default_factory=Tally)
    weights: Tally = field(default_factory=Tally)
    notes: list[str] = field(default_factory=list)
    complete: bool = True


def diff_subjects(before: Subject, after: Subject) -> dict[str, Any]:
    """Return the document on what differs: see the schema `diff`.

    UsageError where the two are of different formats, IntegrityError where one is damaged.
    """
    if before.format != after.format:
        raise UsageError(
            f"`{before.path}` is a {before.format}, `{after.path}` a {after.format}",
            slug="diff.formats",
            hint="compare two of one format: export the checkpoint, or build the pipeline, first",
        )
    found = Differences()
    with reading(before):
        match before.format:
            case "nemo":
                _diff_checkpoints(before, after, found)
            case "ejrvs" | "jmir":
                _diff_archives(before, after, found)
            case "repository":
                add_repository_changes(before.path, after.path, found.members, found.values)
    return {
        "version": VERSION,
        "format": before.format,
        "a": str(before.path),
        "b": str(after.path),
        "equal": not (found.members.count or found.values.count or found.weights.count),
        "complete": found.complete,
        "members": found.members.to_json(),
        "values": found.values.to_json(),
        "weights": found.weights.to_json(),
        "notes": found.notes,
    }


def _add_members(
    tally: Tally, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
) -> None:
    for name in sorted({*before, *after}):
        one, other = before.get(name), after.get(name)
        if one == other:
            tally.same += 1
        else:
            change = kind_of_change(one, other)
            tally.add(change, {"name": name, "change": change, "from": one, "to": other})


# --- checkpoints ------------------------------------------------------------------------------


def _diff_checkpoints(before: Subject, after: Subject, found: Differences) -> None:
    with open_nemo(before.path) as one, open_nemo(after.path) as other:
        mine, theirs = _checkpoint_members(one), _checkpoint_members(other)
        _add_members(found.members, mine, theirs)
        add_changes(found.values, "config", one.config, other.config)
        if mine[WEIGHTS] == theirs[WEIGHTS]:
            found.weights.same += len(one.state_dict())
        else:
            add_weight_changes(found.weights, None, one.state_dict(), other.state_dict())


def _checkpoint_members(archive: NemoArchive) -> dict[str, dict[str, Any]]:
    roles = {CONFIG: "config", WEIGHTS: "weights"}
    return {
        member.name: {
            "role": roles.get(member.name, "artifact"),
            **archive.digest(member).to_json(),
        }
        for member in archive.members
    }


# --- archives ---------------------------------------------------------------------------------


def _diff_archives(before: Subject, after: Subject, found: Differences) -> None:
    with (
        open_archive(before.path, before.format, key=before.key) as one,
        open_archive(after.path, after.format, key=after.key) as other,
    ):
        mine, theirs = (_archive_members(archive) for archive in (one, other))
        _add_members(found.members, mine, theirs)
        metadata, others = one.manifest.metadata, other.manifest.metadata
        rest = (_without(values, _PACKING) for values in (metadata, others))
        add_changes(found.values, "metadata", *rest)
        add_changes(found.values, "facts", metadata.get("facts"), others.get("facts"))
        _note_encryption(one, other, found)
        closed = [s.path for s, a in ((before, one), (after, other)) if _is_closed(s, a)]
        if closed:
            found.complete = False
            found.notes.append(
                f"not read without a key, the manifests alone were compared: "
                f"{', '.join(quoted(str(path)) for path in closed)}"
            )
            return
        _verify_members(one)
        _verify_members(other)
        if before.format == "jmir":
            _add_pipelines(one, other, found)
        else:
            add_changes(found.values, "config", _config(one), _config(other))
        _add_graphs(one, other, found)


def _archive_members(archive: Archive) -> dict[str, dict[str, Any]]:
    return {
        name: {key: properties[key] for key in _PROPERTIES}
        for name, properties in archive.manifest.files.items()
    }


def _without(values: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _is_closed(subject: Subject, archive: Archive) -> bool:
    return archive.manifest.encryption is not None and subject.key is None


def _note_encryption(one: Archive, other: Archive, found: Differences) -> None:
    sealed = [archive.manifest.encryption is not None for archive in (one, other)]
    if sealed[0] != sealed[1]:
        which = one if sealed[0] else other
        found.notes.append(f"only {quoted(str(which.path))} is encrypted, which is no difference")


def _verify_members(archive: Archive) -> None:
    """Read everything: two archives are not equal because their manifests say so."""
    for name in archive.manifest.files:
        archive.copy_to(name, DigestWriter())


def _config(archive: Archive) -> dict[str, Any]:
    if CONFIG not in archive.manifest.files:
        return {}
    return load_config(archive.read(CONFIG), f"{archive.path}!{CONFIG}")


def _add_pipelines(one: Archive, other: Archive, found: Differences) -> None:
    """Add what differs between two pipeline documents; options as `value (origin)`."""
    mine, theirs = (read_pipeline(archive).to_json() for archive in (one, other))
    before, after = _options(mine), _options(theirs)
    for name in sorted({*before, *after}):
        was, now = before.get(name), after.get(name)
        if was == now:
            found.values.same += 1
            continue
        change = kind_of_change(was, now)
        document = {"section": "options", "name": name, "change": change, "from": was, "to": now}
        found.values.add(change, document)
    # By name: one module more must not make all that follow another.
    for tree in (mine, theirs):
        tree["modules"] = {module["name"]: module for module in tree["modules"]}
        tree["edges"] = {f"{source} → {target}": True for source, target in tree["edges"]}
    add_changes(found.values, "pipeline", mine, theirs)


def _options(pipeline: dict[str, Any]) -> dict[str, str]:
    return {
        option["name"]: f"{short_json(option['value'])} ({option['origin']})"
        for option in pipeline.pop("options")
    }


# --- graphs -----------------------------------------------------------------------------------


def _add_graphs(one: Archive, other: Archive, found: Differences) -> None:
    mine, theirs = (set(graph_members(a.manifest.files)) for a in (one, other))
    for member in sorted(mine | theirs):
        with contextlib.ExitStack() as stack:
            before = stack.enter_context(open_graph(one, member)) if member in mine else None
            after = stack.enter_context(open_graph(other, member)) if member in theirs else None
            described = [None if g is None else g.describe() for g in (before, after)]
            weights: list[Weights] = [{} if g is None else g.weights for g in (before, after)]
            if None in described:
                name = kind_of_change(before, after)
                found.notes.append(f"the graph {quoted(member)} was {name}")
            elif described[0] != described[1]:
                add_changes(found.values, f"graph {member}", *described)
                found.notes.append(
                    f"the graph {quoted(member)} has another structure: weights are matched by "
                    "their names, which count them, and may be others than they seem"
                )
            add_weight_changes(found.weights, member, *weights)
    if any(WEIGHTS_MEMBER in archive.manifest.files for archive in (one, other)):
        with open_safetensors(one) as before_weights, open_safetensors(other) as after_weights:
            add_weight_changes(found.weights, WEIGHTS_MEMBER, before_weights, after_weights)
