"""Whether a model repository is what its manifests say, and what Triton will take."""

from __future__ import annotations

from pathlib import Path

from jarvis_rules.core.digest import Digest, digest_file
from jarvis_rules.execution.delivery import listed_files
from jarvis_rules.formats.tar import quoted
from jarvis_rules.reporting.repository_folder import (
    Folder,
    list_folder,
    list_manifests,
    read_manifest,
)
from jarvis_rules.reporting.verification import Problem, Verification
from jarvis_rules.triton.lint import lint_repository
from jarvis_rules.triton.publish import MANIFEST_SUFFIX

_LOCK = ".lock"  # what `jarvis-deploy` and releases leave in the folder
_BUILD = "build again: the repository repairs itself"


def verify_repository(found: Verification) -> None:
    """Add what is wrong with a repository to `found`: manifests, files, linter, in this order."""
    root = found.subject.path
    folder = list_folder(root)
    owners = _owners(root, found)
    for name in sorted(owners):
        _verify_file(name, owners[name], folder, found)
    _find_unlisted(owners, folder, found)
    if folder.others:
        found.skip(
            "what the linter checks",
            f"{len(folder.others)} entries are no plain files, which reading could wait for",
        )
        return
    for finding in lint_repository(root):
        found.add(Problem.of_finding(finding))


def _owners(root: Path, found: Verification) -> dict[str, Digest]:
    """Return every file that a manifest lists; of a file of two pipelines, what the first says."""
    owners: dict[str, Digest] = {}
    claims: dict[str, str] = {}
    for manifest in list_manifests(root):
        with found.listing("manifests", manifest.name):
            read_manifest(manifest)
            for name, digest in listed_files(manifest).items():
                if name in owners:
                    message = f"{quoted(name)} is claimed by {quoted(claims[name])} too"
                    found.add(Problem("repository.claimed-twice", manifest.name, message, _BUILD))
                claims.setdefault(name, manifest.name)
                owners.setdefault(name, digest)
    return owners


def _verify_file(name: str, expected: Digest, folder: Folder, found: Verification) -> None:
    if name in folder.others:
        message = "no plain file: a link to a folder or to nothing, a pipe or a device"
        found.add(Problem("repository.file-kind", name, message, _BUILD))
    elif name not in folder.files:
        message = "the manifest lists it, and it is not there"
        found.add(Problem("repository.file-missing", name, message, _BUILD))
    elif (actual := digest_file(folder.files[name])) != expected:
        message = f"it is {_shown(actual)}, the manifest says {_shown(expected)}"
        found.add(Problem("repository.file-changed", name, message, _BUILD))
    else:
        found.checked["files"] += 1


def _shown(digest: Digest) -> str:
    return f"{digest.sha256[:16]} ({digest.size} bytes)"


def _find_unlisted(owners: dict[str, Digest], folder: Folder, found: Verification) -> None:
    """List what no manifest knows: problems in our own folders, others' folders by their name."""
    ours = {name.partition("/")[0] for name in owners}
    foreign = set()
    for name in sorted({*folder.files, *folder.others} - owners.keys()):
        top, slash, _ = name.partition("/")
        if not slash and (name.endswith(MANIFEST_SUFFIX) or name == _LOCK):
            continue
        if slash and top not in ours:
            foreign.add(top)
        else:
            hint = "remove it: nothing of the pipelines needs it"
            found.add(Problem("repository.unlisted", name, "no manifest lists it", hint))
    for top in sorted(foreign):
        found.skip(f"the files of {quoted(top)}", "no manifest lists the folder")
