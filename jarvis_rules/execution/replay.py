"""Running the action of a record again, to see what it does."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.action import INPUTS, OUTPUTS, REQUEST, Action, Output
from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import Digest, digest_file
from jarvis_rules.core.secret import Secret
from jarvis_rules.errors import IntegrityError, JarvisError, UsageError
from jarvis_rules.execution.executor import Executor
from jarvis_rules.execution.process import LOG
from jarvis_rules.execution.sandbox import written_files
from jarvis_rules.execution.store import BlobMissingError
from jarvis_rules.execution.tool_run import copy_source, link_blob, run_tool


@dataclass(frozen=True, slots=True)
class Replayed:
    """What came of a replay: outputs by name, those that differ, the log, the kept folder."""

    outputs: Mapping[str, Digest]
    differing: tuple[str, ...]
    log: str
    folder: Path | None
    error: JarvisError | None


def replay(executor: Executor, record: Path, keep: bool, keys: Sequence[Secret] = ()) -> Replayed:
    """Run the action of `record` in a folder of its own, which is left behind where `keep`.

    UsageError where the record cannot be read, IntegrityError where the content of an input is
    neither in the store nor at its old place, or where the action had a key that is not in `keys`.
    """
    document = _load(record)
    given = _find_keys(document, keys, record)
    folder = Path(tempfile.mkdtemp(prefix="jarvis-action-"))
    error = None
    try:
        action = _action(document)
        _stage(executor, document, folder)
        try:
            names, gpus = document.get("sources", {}), document.get("gpus", 0)
            run_tool(executor.sandbox, action, folder, names, keys=given, gpus=gpus)
        except JarvisError as fault:
            error = fault
        root = folder / OUTPUTS
        files = sorted(written_files(root))
        outputs = {path.relative_to(root).as_posix(): digest_file(path) for path in files}
        recorded = {name: Digest.from_json(d) for name, d in document["outputs"].items()}
        names = sorted(outputs.keys() | recorded.keys())
        differing = [name for name in names if outputs.get(name) != recorded.get(name)]
        log = folder / LOG
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        return Replayed(outputs, tuple(differing), text, folder if keep else None, error)
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _load(record: Path) -> dict[str, Any]:
    try:
        document = json.loads(record.read_bytes())
        _action(document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"not the record of an action: {error}",
            slug="replay.record",
            where=str(record),
            hint="records lie beside what was built (`X.action.json`), and in the cache's `logs`",
        ) from None
    return dict(document)


def _find_keys(
    document: Mapping[str, Any], keys: Sequence[Secret], record: Path
) -> dict[str, Secret]:
    """Return the keys that the tool had, by the names that it knows them by."""
    wanted = document["request"].get("keys", {}).get("fingerprints", {})
    known = {key.fingerprint: key for key in keys}
    missing = [name for name, fingerprint in wanted.items() if fingerprint not in known]
    if missing:
        raise IntegrityError(
            f"the action had the key `{missing[0]}`, and no key with its fingerprint was given",
            slug="replay.key",
            where=str(record),
            hint="`--key KEY`, once for each key; KEY is `env:NAME`, `file:PATH` or the key itself",
        )
    return {name: known[fingerprint] for name, fingerprint in wanted.items()}


def _action(document: Mapping[str, Any]) -> Action:
    return Action(
        mnemonic=document["mnemonic"],
        argv=tuple(document["argv"]),
        inputs={name: Digest.from_json(d) for name, d in document["inputs"].items()},
        output=Output("unused"),
        environment=document["environment"],
        platform=document["platform"],
        timeout=document["timeout"],
        description=f"{document['mnemonic']} {document['target']}",
    )


def _stage(executor: Executor, document: Mapping[str, Any], folder: Path) -> None:
    for name in (INPUTS, OUTPUTS):
        (folder / name).mkdir()
    (folder / REQUEST).write_bytes(dump_canonical_json(document["request"]))
    for name, digest in _action(document).inputs.items():
        if name == REQUEST:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = Path(document.get("sources", {}).get(name.removeprefix(f"{INPUTS}/"), ""))
        try:
            store = executor.find_blob(digest)
            link_blob(store.path(digest), target)
        except BlobMissingError:
            if not source.is_file() or digest_file(source) != digest:
                raise IntegrityError(
                    f"the content of {name} is neither in the cache nor at {source}",
                    slug="replay.input",
                    where=str(executor.store.root),
                    hint="build the target again, then replay its new record",
                ) from None
            copy_source(source, target)
