"""Why an action ran: the difference between its record and the one before it, in field terms."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.execution.action_difference import Change, differences, leaves
from jarvis_rules.execution.delivery import listed_files, previous_record
from jarvis_rules.triton.publish import MANIFEST_SUFFIX

RECORD_SUFFIX = ".action.json"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a target was made when it was last made, and what it depends on."""

    target: str
    mnemonic: str
    key: str
    outcome: str
    reason: str
    changes: tuple[Change, ...]
    depends_on: Mapping[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "target": self.target,
            "mnemonic": self.mnemonic,
            "key": self.key,
            "outcome": self.outcome,
            "reason": self.reason,
            "changes": [
                {"field": change.field, "before": change.before, "after": change.after}
                for change in self.changes
            ],
            "depends_on": {name: list(values) for name, values in self.depends_on.items()},
        }


def find_record(path: Path) -> Path | None:
    """Return the record of the action that made `path`, a target or a file that one lists.

    None where there is no record. IntegrityError where a manifest beside the file is damaged.
    """
    path = path.absolute()
    own = _record_of(path)
    if own is not None:
        return own
    for tree in path.parents:
        for manifest in _manifests_of(tree):
            if path.relative_to(tree).as_posix() in listed_files(manifest):
                return _record_of(manifest)
    return None


def _record_of(target: Path) -> Path | None:
    # The record of a repository's manifest lies outside the folder that is served.
    for folder in (target.parent, target.parent.parent):
        record = folder / f"{target.name}{RECORD_SUFFIX}"
        if record.is_file():
            return record
    return None


def _manifests_of(tree: Path) -> Iterator[Path]:
    """Yield what lists the files of a folder: a repository, or the tree of engines or graphs."""
    yield from sorted(tree.glob(f"*{MANIFEST_SUFFIX}"))
    beside = tree.parent.parent / f"{tree.name}.{tree.parent.name}.json"
    if tree.parent.name in ("engines", "graphs") and beside.is_file():
        yield beside


def explain(target: str, record: Path, last_build: list[dict[str, Any]]) -> Explanation:
    """Explain the target whose record lies at `record`, given the lines of the last build.

    OSError or ValueError where the record cannot be read.
    """
    after = _load(record)
    previous = previous_record(record)
    before = _load(previous) if previous.is_file() else None
    lines = [line for line in last_build if line.get("key") == after["key"]]
    lines = [line for line in lines if line.get("target") == after["target"]]
    outcome = lines[-1]["outcome"] if lines else "up to date"
    changes = tuple(differences(before, after)) if before is not None else ()
    return Explanation(
        target=target,
        mnemonic=after["mnemonic"],
        key=after["key"],
        outcome=outcome,
        reason=_reason(outcome, before, changes),
        changes=changes,
        depends_on=_dependencies(after),
    )


def _load(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_bytes())
    if not isinstance(document, dict) or "key" not in document:
        raise ValueError(f"{path} is no record of an action")
    return document


def _reason(outcome: str, before: Mapping[str, Any] | None, changes: tuple[Change, ...]) -> str:
    if outcome == "up to date":
        return "nothing that it depends on has changed: the last build did not touch it"
    source = "run" if outcome == "executed" else "taken from the cache"
    if before is None and outcome == "cached":
        return "taken from the cache, where its key was found: it was made before, or elsewhere"
    if before is None:
        return f"{source}, since it was never made here before"
    if changes:
        return f"{source}, since {len(changes)} of its parts changed"
    return f"{source}, since an output was missing or had been changed"


def _dependencies(record: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """Return what would make the action run again if it changed."""
    toolchain = record["toolchain"]
    return {
        "inputs": tuple(sorted(name for name in record["inputs"] if name.startswith("inputs/"))),
        "request": tuple(sorted(leaves("request", record["request"]))),
        "platform": tuple(sorted(set(record["platform"]) - {"toolchain"})),
        "toolchain modules": tuple(sorted(toolchain["modules"])),
        "toolchain distributions": tuple(sorted(toolchain["distributions"])),
    }
