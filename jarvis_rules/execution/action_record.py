"""The record of an action: what ran, or would have, as `*.action.json` tells it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.action import Action, ActionSpec, FileInput
from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.core.digest import Digest
from jarvis_rules.errors import JarvisError
from jarvis_rules.execution.process import LOG
from jarvis_rules.execution.store import Store


def action_record(
    spec: ActionSpec,
    action: Action,
    key: Digest,
    outputs: Mapping[str, Digest],
    sources: Mapping[str, str],
) -> dict[str, Any]:
    """Return the record; `sources` are the paths of inputs that are files, by staged name."""
    return {
        "version": 1,
        "mnemonic": spec.mnemonic,
        "target": spec.target,
        "key": key.sha256,
        "static_key": spec.static_key(),
        "argv": list(action.argv),
        "request": spec.full_request(),
        "environment": dict(action.environment),
        "platform": dict(action.platform),
        "timeout": action.timeout,
        "gpus": spec.resources.gpus,
        "toolchain": {
            "kind": spec.toolchain.kind,
            "name": spec.toolchain.name,
            "modules": dict(spec.toolchain.modules),
            "distributions": dict(spec.toolchain.distributions),
        },
        "sources": dict(sources),
        "inputs": {name: digest.to_json() for name, digest in action.inputs.items()},
        "outputs": {name: digest.to_json() for name, digest in outputs.items()},
    }


def relative_sources(spec: ActionSpec) -> dict[str, str]:
    """Return where the inputs that are files came from, by staged name.

    Absolute paths are left out: the record lies beside artifacts, which may travel.
    """
    return {
        name: str(source.path)
        for name, source in spec.inputs.items()
        if isinstance(source, FileInput) and not source.path.is_absolute()
    }


def keep_failure(store: Store, record: Mapping[str, Any], folder: Path, error: JarvisError) -> None:
    """Keep the log and the record of an action that failed, and tell how to replay it."""
    logs = store.root / "logs"
    store.make_folder(logs)
    name = f"{record['mnemonic']}-{record['key'][:16]}"
    file = logs / f"{name}.action.json"
    file.write_bytes(dump_readable_json(record))
    log = logs / f"{name}.log"
    if (folder / LOG).is_file():
        shutil.copyfile(folder / LOG, log)
    # A tool that says what is wrong with its input needs no replay; a crash does.
    if error.slug in ("action.crashed", "action.timeout"):
        error.message += (
            f"\nwhole log: {log}\nreplay: jarvis-rules run-action --keep-sandbox {file}"
        )


def not_cached(spec: ActionSpec, action: Action, record: Path | None) -> JarvisError:
    """Return the error for an action that had to be cached, with what differs from last time.

    `record` is where the last time's is.
    """
    reason = "it was never made here"
    if record is not None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            from jarvis_rules.execution.action_difference import differences

            before = json.loads(record.read_bytes())
            after = action_record(spec, action, action.key(), {}, {})
            changes = [change.render() for change in differences(before, after)]
            reason = "; ".join(changes) or "the cache has lost it"
    return JarvisError(
        f"{action.description} is not cached, and everything must be: {reason}",
        slug="action.not-cached",
        hint="build it where the cache is filled, or leave `--require-cached` out",
    )
