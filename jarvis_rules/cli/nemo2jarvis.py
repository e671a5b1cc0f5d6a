"""`nemo2jarvis`: a `.nemo` checkpoint → an `.ejrvs` archive."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_rules.cli.command import (
    ArgumentParser,
    add_version,
    parse_archive,
    parse_key,
    require_one_key,
    require_writable,
    run_command,
)
from jarvis_rules.cli.options import GROUPS, add_options, bind_flags, given_options
from jarvis_rules.cli.verbosity import Talk, parse_level
from jarvis_rules.errors import IntegrityError, UsageError, did_you_mean
from jarvis_rules.pipelines.pipeline import Option, parse_options, without_effect

if TYPE_CHECKING:
    from jarvis_rules.execution.executor import Executed, Executor
    from jarvis_rules.formats.key_source import Key

SCHEMAS_VARIABLE = "JARVIS_SCHEMAS"
_EXAMPLES = """\
examples:
  nemo2jarvis model.nemo                        writes model.ejrvs next to it
  nemo2jarvis --out build/asr.ejrvs model.nemo
  nemo2jarvis --key file:key.txt model.nemo     writes an encrypted model.ejrvs
  nemo2jarvis --validate model.nemo             fails where the archive lacks something
"""
_MODEL_SUFFIXES = (".ejrvs", ".enemo", ".nemo", ".riva", ".tlt")


def _no_effect(
    name: str, kind: type[str] | type[int] | type[bool], text: str, default: str | int | None = None
) -> Option:
    return Option(name, kind, default, f"no effect here: {text}", effect="no-effect")


# Those that nemo2riva added.
_LATER_OPTIONS = (
    _no_effect("autocast", bool, "precision is chosen where engines are built"),
    _no_effect("device", str, "no device takes part", "cuda"),
    _no_effect("max-batch", int, "graphs take batches of any size"),
    _no_effect("max-dim", int, "graphs take inputs of any length"),
    _no_effect("onnx-opset", int, "graphs are of opset 17", 16),
    Option("cache-support", bool, False, "graphs for streaming", effect="planned"),
    Option("export-subnet", str, None, "exporting a part of the model", effect="planned"),
)
_EXPORT_CONFIG = Option("export-config", str, None, "changing what NeMo exports", effect="planned")
_RUNTIME_CHECK = _no_effect("runtime-check", bool, "every graph runs once where engines are built")
_OPTIONS = (*_LATER_OPTIONS, _EXPORT_CONFIG, _RUNTIME_CHECK)
_MOST_FAULTS = 8


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="nemo2jarvis",
        description="Export a .nemo checkpoint to a Jarvis .ejrvs archive.",
        epilog=_EXAMPLES,
        allow_abbrev=True,
    )
    parser.add_argument("source", help="Source .nemo file")
    parser.add_argument(
        "--out", help="Location to write resulting Jarvis EFF input to (default: None)"
    )
    parser.add_argument(
        "--key", help="Encrypt the archive: env:NAME, file:PATH or the key (default: None)"
    )
    parser.add_argument(
        "--validate", action="store_true", help="Validate using schemas (default: False)"
    )
    parser.add_argument("--schema", help="Schema file to use for validation (default: None)")
    parser.add_argument(
        "--format",
        help="Force specific export format: ONNX|TS|CKPT (default: None); TS is not available",
    )
    parser.add_argument(
        "--verbose",
        help="Verbose level for logging, numeric or the name of one, as DEBUG (default: None)",
    )
    add_options(parser, _LATER_OPTIONS, show_none=True)
    parser.add_argument("--runtime-check", action="store_true", help=argparse.SUPPRESS)
    planned = next(g for g in parser._action_groups if g.title == GROUPS["planned"])
    planned.add_argument(
        "--export-config",
        metavar="KEY=VALUE",
        nargs="+",
        help=f"{_EXPORT_CONFIG.help} (default: None)",
    )
    add_version(parser)
    return parser


def _run(argv: Sequence[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(bind_flags(parser, argv, _LATER_OPTIONS))
    talk = Talk() if arguments.verbose is None else Talk(parse_level(arguments.verbose))
    _check_options(arguments, talk)
    source = _source(arguments.source)
    out, key = parse_archive(arguments.out or str(source))
    key = require_one_key(parse_key(arguments.key), key, str(out))
    archive = _archive(out, source)
    require_writable(archive)

    from jarvis_rules.execution.delivery import Destination
    from jarvis_rules.execution.store import BlobMissingError
    from jarvis_rules.execution.workspace import open_executor
    from jarvis_rules.rules.rules import export_model

    schemas = _find_schemas(arguments.schema)
    export_format = arguments.format or schemas.format(source)
    spec = export_model(source, archive, export_format.upper(), key=key).action.spec
    with talk.console() as console, open_executor(console) as executor:

        def export() -> Executed:
            executed = executor.run(spec)
            _validate(executor, executed, archive, schemas, arguments.validate, talk, key)
            return executed

        try:
            executed = export()
        except BlobMissingError:
            # The archive lay damaged in the store and is gone now, so it is made anew.
            executed = export()
        talk.describe(executed)
        executor.deliver(spec, executed, Destination(archive))
    print(archive)  # noqa: T201
    return 0


def _check_options(arguments: argparse.Namespace, talk: Talk) -> None:
    given = given_options(arguments)
    if arguments.runtime_check:
        given[_RUNTIME_CHECK.name] = True
    if arguments.export_config:
        given[_EXPORT_CONFIG.name] = " ".join(arguments.export_config)
    parse_options("option of nemo2jarvis", _OPTIONS, given)
    for name in without_effect(_OPTIONS, given):
        reason = next(option.help for option in _OPTIONS if option.name == name)
        talk.warn(f"option `--{name}` has {reason}")


def _source(text: str) -> Path:
    source, key = parse_archive(text)
    if not source.name:
        raise UsageError("no checkpoint given", slug="usage", hint="`nemo2jarvis model.nemo`")
    if key is not None or source.suffix == ".etlt":
        from jarvis_rules.formats.eff import refuse_nvidia

        refuse_nvidia(source)
    if key is not None:
        raise IntegrityError(
            "a key was given for the checkpoint, which is not encrypted",
            slug="encryption.not-encrypted",
            where=str(source),
            hint="the key that the archive is to be encrypted with is given with `--key`",
        )
    if source.suffix not in (".nemo", ".tlt"):
        near = did_you_mean(source.name, [path.name for path in source.parent.glob("*.nemo")])
        raise UsageError(
            "expected a `.nemo` checkpoint",
            slug="file.suffix",
            where=str(source),
            hint=near or "name a file that NeMo's `model.save_to` wrote",
        )
    return source


def _archive(out: Path, source: Path) -> Path:
    """Return the archive's path: the old tool forced the suffix too."""
    if out.is_dir():
        return out / f"{source.stem}.ejrvs"
    if out.suffix in _MODEL_SUFFIXES:
        return out.with_suffix(".ejrvs")
    return out.with_name(f"{out.name}.ejrvs")


@dataclass(frozen=True, slots=True)
class _Schemas:
    """The schema that `--schema` names, or those of the user's folder."""

    paths: tuple[Path, ...]
    is_chosen: bool

    def format(self, source: Path) -> str:
        """Return the export format that the schema for the checkpoint asks for."""
        if not self.paths:
            # Those that come with this package all ask for it.
            return "ONNX"
        from jarvis_rules.formats.archive_schema import find_schema, read_schema
        from jarvis_rules.formats.nemo import open_nemo

        schemas = [read_schema(path) for path in self.paths]
        if self.is_chosen:
            return schemas[0].format or "ONNX"
        with open_nemo(source) as checkpoint:
            found = find_schema(checkpoint.target, schemas)
        return (found and found.format) or "ONNX"

    def name(self, chosen: int | str) -> str:
        """Return what people call the schema that a report names."""
        return str(self.paths[chosen]) if isinstance(chosen, int) else chosen


def _find_schemas(chosen: str | None) -> _Schemas:
    if chosen is not None:
        return _Schemas((Path(chosen),), is_chosen=True)
    folder = os.environ.get(SCHEMAS_VARIABLE)
    if folder is not None and not Path(folder).is_dir():
        raise UsageError(
            f"`{SCHEMAS_VARIABLE}` must name a folder of schemas",
            slug="schema.folder",
            where=folder,
            hint="make the folder, or unset the variable",
        )
    base = os.environ.get("XDG_CONFIG_HOME", "")
    config = Path(base) if base.startswith("/") else Path.home() / ".config"
    place = Path(folder) if folder else config / "jarvis-rules" / "schemas"
    return _Schemas(tuple(sorted(place.glob("*.yaml"))), is_chosen=False)


def _validate(
    executor: Executor,
    executed: Executed,
    archive: Path,
    schemas: _Schemas,
    must_comply: bool,
    talk: Talk,
    key: Key | None,
) -> None:
    """Warn, or raise IntegrityError, where the exported archive does not comply."""
    from jarvis_rules.rules.rules import validate_archive

    digest = executed.result.outputs["model.ejrvs"]
    spec = validate_archive(
        digest, archive.name, schemas.paths, is_chosen=schemas.is_chosen, key=key
    )
    checked = executor.run(spec)
    talk.describe(checked)
    report = json.loads(checked.store.read(checked.result.outputs[spec.output.file]))
    if report["schema"] is None:
        message, hint = "there is no schema for the model's class", "name one: `--schema FILE`"
    else:
        schema = schemas.name(report["schema"])
        talk.detail(f"schema {schema}")
        if not report["faults"]:
            return
        message = f"does not comply with the schema {schema}: {_listed(report['faults'])}"
        hint = "export a checkpoint that has it, or leave `--validate` out for a warning"
    if must_comply:
        raise IntegrityError(message, slug="schema.not-compliant", where=str(archive), hint=hint)
    talk.warn(f"{archive}: {message}")


def _listed(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - _MOST_FAULTS} more" if len(faults) > _MOST_FAULTS else ""
    return "; ".join(faults[:_MOST_FAULTS]) + more


def main() -> None:
    """Run the command."""
    sys.exit(run_command(_run))
