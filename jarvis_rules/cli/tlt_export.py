"""What `tlt <task> export` and `tlt <task> download_specs` do."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_rules import __version__
from jarvis_rules.cli import tlt_spec
from jarvis_rules.cli.command import print_note
from jarvis_rules.cli.tlt_mounts import Mounts, read_mounts
from jarvis_rules.cli.tlt_tasks import Task, require_fit
from jarvis_rules.errors import UsageError

if TYPE_CHECKING:
    from jarvis_rules.formats.key_source import Key

SPEC = "export.yaml"
RESOLVED_SPEC = "export.resolved.yaml"
_MODELS = (".nemo", ".tlt")


class _Talk:
    """What is said on stderr, kept for the log."""

    def __init__(self, command: str) -> None:
        self.lines = [f"{command} (jarvis-rules {__version__})"]

    def note(self, text: str) -> None:
        print_note(text)
        self.lines.append(f"note: {text}")

    def say(self, text: str) -> None:
        print(text, file=sys.stderr)  # noqa: T201
        self.lines.append(text)

    def write(self, log: Path) -> None:
        _write(log, "\n".join([*self.lines, ""]))


def export(program: str, task: Task, arguments: argparse.Namespace) -> Path:
    """Write the archive of a checkpoint, the resolved spec and the log; return the archive.

    Nothing is written before the archive is made. UsageError for arguments, a spec or a mounts
    file that are wrong, and for a model that the task does not export; else what exporting raises.
    """
    command = f"{program} {task.name} export"
    if arguments.gpus is not None and not re.fullmatch("0*[1-9][0-9]*", arguments.gpus):
        message = f"`-g` is `{arguments.gpus}`, expected a number of GPUs"
        raise UsageError(message, slug="usage", hint="leave it out: exporting needs no GPU")
    talk = _Talk(command)
    mounts = _read_mounts(program, talk)
    fields = _with_suffix(_resolve(command, arguments, mounts, talk), talk)
    results = _locate(mounts, fields.results, talk)
    archive = _archive(fields.export_to, results, mounts, talk)
    model = _locate(mounts, fields.restore_from, talk, is_input=True)
    _require_model(program, task, model)
    key = _read_key(fields.encryption_key, mounts, talk)
    for folder in (results, archive.parent):
        _require_writable(folder)
    outcome = _run(model, archive, key)
    talk.lines += [f"{outcome} NemoExport {archive.name}", "Spec file:"]
    spec = fields.dump()
    talk.lines += [f"    {line}" for line in spec.splitlines()]
    _write(results / RESOLVED_SPEC, f"# What `{command}` ran with.\n{spec}")
    talk.say(f"Experiment logs saved to '{results}'")
    talk.say(f"Exported model to '{archive}'")
    talk.write(results / "export.log")
    return archive


def download_specs(program: str, task: Task, arguments: argparse.Namespace) -> Path:
    """Write the default spec of a task, and the log; return the spec.

    UsageError `tlt.spec-exists` where a file of its name has other content.
    """
    talk = _Talk(f"{program} {task.name} download_specs")
    mounts = _read_mounts(program, talk)
    folder = _locate(mounts, arguments.output_specs_dir, talk)
    results = _locate(mounts, arguments.results_dir, talk)
    spec = folder / SPEC
    text = tlt_spec.default_spec(program, task.name, task.summary, task.models())
    _require_writable(folder)
    _require_writable(results)
    if not os.path.lexists(spec):
        _write(spec, text)
        talk.say(f"wrote '{spec}'")
    elif _holds(spec, text):
        talk.note(f"`{spec}` is there already")
    else:
        raise UsageError(
            "exists, and differs from the default spec",
            slug="tlt.spec-exists",
            where=str(spec),
            hint="move it away, or name another folder with `-o`",
        )
    talk.write(results / "download_specs.log")
    return spec


def _read_mounts(program: str, talk: _Talk) -> Mounts:
    mounts = read_mounts(program)
    if mounts.without_effect:
        names = " and ".join(f"`{name}`" for name in mounts.without_effect)
        verb = "has" if len(mounts.without_effect) == 1 else "have"
        talk.note(f"{names} of `{mounts.name}` {verb} no effect: nothing runs in Docker")
    return mounts


def _locate(mounts: Mounts, name: str, talk: _Talk, *, is_input: bool = False) -> Path:
    """Return where a path is on this machine, and say so where that is elsewhere."""
    path = mounts.locate(name)
    if path != Path(name):
        talk.note(f"`{name}` is `{path}` by `{mounts.name}`")
    elif is_input and path.is_absolute() and not os.path.exists(path.parent):  # noqa: PTH110
        talk.note(f"no mount of `{mounts.name}` covers `{name}`")
    return path


def _resolve(
    command: str, arguments: argparse.Namespace, mounts: Mounts, talk: _Talk
) -> tlt_spec.Fields:
    given = [
        tlt_spec.Given("`-m`", {"restore_from": arguments.resume_model_weights}),
        tlt_spec.Given("`-k`", {tlt_spec.KEY: arguments.key}),
        tlt_spec.Given("`-r`", {tlt_spec.RESULTS: arguments.results_dir}),
        tlt_spec.Given(f"`{command}`", {tlt_spec.TASK_NAME: "export"}),
        tlt_spec.parse_overrides(arguments.overrides),
    ]
    if arguments.experiment_spec_file is not None:
        path = _locate(mounts, arguments.experiment_spec_file, talk, is_input=True)
        given.append(tlt_spec.read_spec(path))
    fields, contests = tlt_spec.resolve(given)
    for contest in contests:
        talk.note(contest)
    return fields


def _with_suffix(fields: tlt_spec.Fields, talk: _Talk) -> tlt_spec.Fields:
    """Return the fields with a name for the archive that ends as it must.

    TAO's `.riva` becomes `.ejrvs`, which is what is written. UsageError `file.suffix` for others.
    """
    name = fields.export_to
    if name.endswith(".riva"):
        name = f"{name.removesuffix('.riva')}.ejrvs"
        talk.note(f"`{fields.export_to}` becomes `{name}`")
        return replace(fields, export_to=name)
    suffix = Path(name).suffix
    allowed = sorted({".ejrvs", tlt_spec.FORMATS[fields.export_format]})
    if suffix not in allowed:
        fix = f"`export_to={name.removesuffix(suffix) or 'model'}.ejrvs`"
        raise UsageError(
            f"`export_to` is `{name}`, expected a name that ends in "
            + " or ".join(f"`{suffix}`" for suffix in allowed),
            slug="file.suffix",
            hint=f"`export_format=ONNX`, or {fix}" if suffix == ".eonnx" else fix,
        )
    return fields


def _archive(name: str, results: Path, mounts: Mounts, talk: _Talk) -> Path:
    archive = _locate(mounts, name, talk) if name.startswith("/") else results / name
    if archive.is_dir():
        raise UsageError(
            "is a folder, and the archive is a file",
            slug="file.unwritable",
            where=str(archive),
            hint="name a file with `export_to=NAME.ejrvs`",
        )
    return archive


def _require_model(program: str, task: Task, model: Path) -> None:
    """Open the checkpoint, and refuse one that the task does not export."""
    from jarvis_rules.formats.eff import refuse_etlt
    from jarvis_rules.formats.nemo import open_nemo

    if model.suffix == ".etlt":
        refuse_etlt(model)
    if model.suffix not in _MODELS:
        raise UsageError(
            "expected a `.nemo` or `.tlt` checkpoint",
            slug="file.suffix",
            where=str(model),
            hint="name a file that TLT, or NeMo's `model.save_to`, wrote",
        )
    with open_nemo(model) as checkpoint:
        require_fit(task, checkpoint.target, checkpoint.config, str(model), program)


def _read_key(text: str | None, mounts: Mounts, talk: _Talk) -> Key | None:
    """Return the key to encrypt the archive with, its file located like every path."""
    from jarvis_rules.formats.key_source import read_key

    if text is None:
        return None
    if text.startswith("file:"):
        text = f"file:{_locate(mounts, text.removeprefix('file:'), talk, is_input=True)}"
    elif text.startswith("/") and os.path.exists(mounts.locate(text)):  # noqa: PTH110
        text = str(mounts.locate(text))  # which is refused: a key must not be a file's name
    key = read_key(text, tlt_spec.KEY)
    if key.warning is not None:
        talk.note(key.warning)
    return key


def _require_writable(folder: Path) -> None:
    existing = next(f for f in (folder, *folder.parents) if os.path.lexists(f))
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(
            f"cannot be written to: `{existing}` "
            + ("is read-only" if existing.is_dir() else "is not a folder"),
            slug="file.unwritable",
            where=str(folder),
            hint="name a folder that you may write to",
        )


def _run(model: Path, archive: Path, key: Key | None) -> str:
    """Bring about the archive; return whether that was `executed` or `cached`."""
    from jarvis_rules.execution.delivery import Destination
    from jarvis_rules.execution.workspace import open_executor
    from jarvis_rules.reporting.console import Console
    from jarvis_rules.rules.rules import export_model

    info = export_model(model, archive, key=key)
    with Console() as console, open_executor(console) as executor:
        return executor.run(info.action.spec, Destination(archive)).outcome


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        temporary.replace(path)
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror}",
            slug="file.unwritable",
            where=str(path),
            hint="check the folder's permissions and the free space of its disk",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
