"""Whether a checkpoint, an archive, a pipeline or a repository is whole: everything is read.

The first problem is not the last: what can be read beside it is verified too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.nemo import (
    WEIGHTS,
    NemoArchive,
    artifact_name,
    check_finite,
    open_nemo,
)
from jarvis_rules.formats.tar import TarMember, open_tar, quoted
from jarvis_rules.reporting.subject import Subject, reading
from jarvis_rules.reporting.verification import Problem, Verification
from jarvis_rules.reporting.verify_archives import verify_archive
from jarvis_rules.reporting.verify_repositories import verify_repository

VERSION = 1
_REFERENCE = "nemo:"


def verify_subjects(subjects: Sequence[Subject]) -> list[Verification]:
    """Return what verifying each of the subjects came to."""
    return [verify_subject(subject) for subject in subjects]


def verify_document(found: Sequence[Verification]) -> dict[str, Any]:
    """Return the document on verified subjects: see the schema `verify`."""
    return {
        "version": VERSION,
        "sound": all(verification.is_sound for verification in found),
        "results": [verification.to_json() for verification in found],
    }


def verify_subject(subject: Subject) -> Verification:
    """Read everything and return what is wrong; UsageError where it cannot be read at all."""
    found = Verification(subject)
    with reading(subject):
        match subject.format:
            case "nemo":
                _verify_checkpoint(found)
            case "ejrvs" | "jmir":
                verify_archive(found)
            case "repository":
                verify_repository(found)
    return found


def _verify_checkpoint(found: Verification) -> None:
    path = found.subject.path
    try:
        archive = open_nemo(path)
    except IntegrityError as error:
        found.add(Problem.of_error(error, found.subject))
        _verify_weights_alone(found)
        return
    with archive:
        found.checked["members"] += len(archive.members)
        found.checked["configurations"] += 1
        _verify_references(archive, found)
    _verify_weights_alone(found)


def _verify_weights_alone(found: Verification) -> None:
    """Verify the weights of a checkpoint whose configuration may not be readable."""
    path = found.subject.path
    where = f"{path}!{WEIGHTS}"
    with found.listing(), open_tar(path, "nemo") as tar:
        member: TarMember | None = tar.find(WEIGHTS)
        if member is None:  # which `open_nemo` has said
            return
        tensors = read_checkpoint(tar.view(member), where)
        for name in tensors:
            with found.listing("tensors"):
                check_finite({name: tensors[name]}, where)


def _verify_references(archive: NemoArchive, found: Verification) -> None:
    """Look for the artifacts that the configuration names as members of this archive."""
    members = {artifact_name(member.name) for member in archive.members}
    for value in sorted(set(_references(archive.config))):
        if artifact_name(value) in members:
            found.checked["artifacts"] += 1
            continue
        message = f"no member for the artifact {quoted(value)} that the configuration names"
        hint = "the archive is incomplete; save it again with NeMo's `model.save_to`"
        found.add(Problem("nemo.missing-artifact", "model_config.yaml", message, hint))


def _references(config: Mapping[str, Any]) -> Iterator[str]:
    pending: list[Any] = [config]
    while pending:
        match pending.pop():
            case str(text) if text.startswith(_REFERENCE):
                yield text
            case dict(section):
                pending += section.values()
            case list(entries):
                pending += entries
