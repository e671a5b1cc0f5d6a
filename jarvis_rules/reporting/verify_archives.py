"""Whether an `.ejrvs` or `.jmir` is whole: digests, graphs, facts, and what it names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from jarvis_rules.core.digest import DigestWriter
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.archive import Archive, open_archive
from jarvis_rules.formats.archive_manifest import (
    MAC,
    MANIFEST,
    MAX_MANIFEST_SIZE,
    ManifestYamlError,
    load_yaml,
)
from jarvis_rules.formats.compliance import WEIGHTS_MEMBER
from jarvis_rules.formats.engine_inputs import (
    HINTS_MEMBER,
    INPUTS_MEMBER,
    load_engine_inputs,
    load_precision_hints,
)
from jarvis_rules.formats.jmir import (
    MAX_PIPELINE_SIZE,
    PIPELINE_MEMBER,
    Pipeline,
    read_pipeline,
)
from jarvis_rules.formats.nemo import CONFIG, check_finite, load_config
from jarvis_rules.formats.schema import validate
from jarvis_rules.formats.tar import TarArchive, TarMember, open_tar, quoted
from jarvis_rules.reporting.graph_files import GraphFile, check_graph, graph_members, open_graph
from jarvis_rules.reporting.safetensors_files import open_safetensors
from jarvis_rules.reporting.verification import Problem, Verification
from jarvis_rules.reporting.verify_pipelines import engine_faults, pipeline_faults

_AGAIN = "the archive is damaged or was not made by these tools: make it again"


def verify_archive(found: Verification) -> None:
    """Add what is wrong with an archive to `found`."""
    subject = found.subject
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(
                open_archive(subject.path, subject.format, key=subject.key)
            )
        except IntegrityError as error:
            refused = Problem.of_error(error, subject)
        else:
            _verify_open(archive, found)
            return
    # What the reader stops at may be one of several such problems: these are listed by member.
    with found.listing(), contextlib.suppress(ManifestYamlError):
        _compare_with_manifest(found)
    if refused.slug not in {problem.slug for problem in found.problems}:
        found.problems.insert(0, refused)


def _verify_open(archive: Archive, found: Verification) -> None:
    manifest = archive.manifest
    found.checked["manifests"] += 1
    if manifest.encryption is not None and found.subject.key is None:
        found.skip(
            f"the content of {len(manifest.files)} members",
            "encrypted, and no key was given: `FILE:KEY` verifies all of it. Without one it is "
            "known that the manifest is well-formed and that members have the sizes it says",
        )
        return
    sound = set()
    for name in manifest.files:
        with found.listing("members", name):
            archive.copy_to(name, DigestWriter())
            sound.add(name)
    if manifest.kind == "jmir":
        _verify_pipeline(archive, sound, found)
    else:
        _verify_model(archive, sound, found)


# --- models -----------------------------------------------------------------------------------


def _verify_model(archive: Archive, sound: set[str], found: Verification) -> None:
    metadata, files = archive.manifest.metadata, archive.manifest.files
    facts = metadata["facts"]
    for what, names in (
        ("the metadata", metadata["graphs"]),
        ("the fact `tokenizer_files`", facts.get("tokenizer_files")),
    ):
        for name in names if isinstance(names, list) else ():
            if name not in files:
                message = f"{what} names {quoted(str(name))}, which is not there"
                found.add(Problem("archive.missing", MANIFEST, message, _AGAIN))
    if CONFIG in sound:
        with found.listing("configurations", CONFIG):
            load_config(archive.read(CONFIG), f"{archive.path}!{CONFIG}")
    if WEIGHTS_MEMBER in sound:
        with found.listing(place=WEIGHTS_MEMBER), open_safetensors(archive) as tensors:
            for name in tensors:
                with found.listing("tensors", WEIGHTS_MEMBER):
                    check_finite({name: tensors[name]}, f"{archive.path}!{WEIGHTS_MEMBER}")
    for name in metadata["graphs"]:
        if name in sound:
            with found.listing("graphs", name), open_graph(archive, name) as graph:
                _verify_facts(graph, metadata, found)
                _verify_graph(graph, found)


def _verify_graph(graph: GraphFile, found: Verification) -> None:
    """Check the graph, and that each of its weights can be read."""
    for name in graph.weights:
        graph.weights[name]
        found.checked["weights"] += 1
    check_graph(graph)


def _verify_facts(graph: GraphFile, metadata: Mapping[str, Any], found: Verification) -> None:
    """Compare the graph's tensors and its float32 nodes with what the manifest says of them."""
    facts, nodes = metadata["facts"], {node.name for node in graph.model.graph.node}
    each = facts.get("graphs")
    told = each.get(graph.member) if isinstance(each, Mapping) else facts
    if isinstance(told, Mapping):
        for side, actual in zip(("inputs", "outputs"), graph.tensors(), strict=True):
            if side in told and told[side] != actual:
                message = (
                    f"the {side} of the graph are {_shown(actual)}, the facts say "
                    f"{_shown(told[side])}"
                )
                found.add(Problem("graph.tensors", graph.member, message, _AGAIN))
    for name in metadata.get("full_precision", {}).get(graph.member, ()):
        if name not in nodes:
            message = f"`full_precision` names the node {quoted(name)}, which the graph lacks"
            found.add(Problem("graph.full-precision", graph.member, message, _AGAIN))


def _shown(tensors: Any) -> str:
    if not isinstance(tensors, Sequence) or not all(isinstance(t, Mapping) for t in tensors):
        return quoted(str(tensors))
    return quoted(
        ", ".join(f"{t.get('name')} {t.get('dtype')} {t.get('shape')}" for t in tensors), 300
    )


# --- pipelines --------------------------------------------------------------------------------


def _verify_pipeline(archive: Archive, sound: set[str], found: Verification) -> None:
    pipeline: Pipeline | None
    refused = None
    try:
        pipeline = read_pipeline(archive)
    except IntegrityError as error:
        refused, pipeline = Problem.of_error(error, found.subject), _unchecked_pipeline(archive)
    faults = [] if pipeline is None else [*pipeline_faults(pipeline, archive.manifest.files)]
    # The reader stops at the first of those that are listed here.
    if refused is not None and refused.slug not in {fault.slug for fault in faults}:
        faults.insert(0, refused)
    for fault in faults:
        found.add(fault)
    found.checked["pipelines"] += not faults
    for name in graph_members(archive.manifest.files):
        if name in sound:
            with found.listing("graphs", name), open_graph(archive, name) as graph:
                for problem in engine_faults(pipeline, graph) if pipeline else ():
                    found.add(problem)
                _verify_beside(archive, graph, found)
                _verify_graph(graph, found)


def _verify_beside(archive: Archive, graph: GraphFile, found: Verification) -> None:
    """Check what lies beside a graph: the sizes of its inputs and its precision hints."""
    folder = PurePosixPath(graph.member).parent
    inputs, hints = (str(folder / name) for name in (INPUTS_MEMBER, HINTS_MEMBER))
    if {inputs, hints} - archive.manifest.files.keys():
        return  # the pipeline's own faults name it
    described = {value.name for value in load_engine_inputs(archive.read(inputs), inputs)}
    actual = {str(tensor["name"]) for tensor in graph.tensors()[0]}
    if described != actual:
        names = [", ".join(map(quoted, sorted(side))) for side in (described, actual)]
        message = f"describes the inputs {names[0]}, the graph has {names[1]}"
        found.add(Problem("graph.tensors", inputs, message, _AGAIN))
    nodes = {node.name for node in graph.model.graph.node}
    for name in load_precision_hints(archive.read(hints), hints):
        if name not in nodes:
            message = f"names the node {quoted(name)}, which the graph lacks"
            found.add(Problem("graph.full-precision", hints, message, _AGAIN))


def _unchecked_pipeline(archive: Archive) -> Pipeline | None:
    """Return a pipeline that follows the schema and is wrong in another way, else None."""
    with contextlib.suppress(IntegrityError, ValueError, RecursionError):
        if archive.digest(PIPELINE_MEMBER).size <= MAX_PIPELINE_SIZE:
            document = json.loads(archive.read(PIPELINE_MEMBER))
            validate(document, "pipeline", PIPELINE_MEMBER)
            return Pipeline.from_json(document)
    return None


# --- archives that the reader refuses -----------------------------------------------------------


def _compare_with_manifest(found: Verification) -> None:
    """Compare every member with what the manifest lists, whatever else is wrong."""
    with open_tar(found.subject.path, "archive", in_blocks=True) as tar:
        members = {member.name: member for member in tar.members}
        place = members.pop(MANIFEST, None)
        if place is None or place.size > MAX_MANIFEST_SIZE:
            return
        document = load_yaml(bytes(tar.view(place)))
        files = document.get("files") if isinstance(document, dict) else None
        if not isinstance(files, dict):
            return
        if MAC not in files:
            members.pop(MAC, None)
        for name in sorted(files.keys() - members.keys()):
            message = f"the manifest lists {quoted(name)}, which is not there"
            found.add(Problem("archive.missing", name, message, _AGAIN))
        for name in sorted(members.keys() - files.keys()):
            message = f"member {quoted(name)} is not in the manifest"
            found.add(Problem("archive.unlisted", name, message, _AGAIN))
        for name in sorted(members.keys() & files.keys()):
            _compare_member(tar, members[name], files[name], found)


def _compare_member(tar: TarArchive, member: TarMember, listed: Any, found: Verification) -> None:
    match listed:
        case {"sha256": str(digest), "size": int(size), "encrypted": False}:
            pass
        case _:
            return
    if size != member.size:
        message = f"{member.size} bytes, the manifest says {size}"
        found.add(Problem("archive.member-size", member.name, message, _AGAIN))
        return
    writer = DigestWriter()
    for piece in tar.pieces(member.offset, member.offset + member.size):
        writer.write(piece)
    if writer.digest().sha256 != digest:
        message = f"its SHA-256 is {writer.digest().sha256}, the manifest says {quoted(digest)}"
        found.add(Problem("archive.member-digest", member.name, message, _AGAIN))
    else:
        found.checked["members"] += 1
