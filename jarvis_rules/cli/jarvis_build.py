"""`jarvis-build`: `.ejrvs` archives → a `.jmir` pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jarvis_rules.cli.command import (
    ArgumentParser,
    add_version,
    parse_file_and_key,
    print_note,
    run_command,
)
from jarvis_rules.errors import UsageError, did_you_mean
from jarvis_rules.pipelines.pipeline import Option, PipelineKind, find_pipeline, pipeline_names

_EXAMPLES = """\
examples:
  jarvis-build speech_recognition asr.jmir model.ejrvs --name=asr_en --offline
  jarvis-build speech_recognition --help
"""
# What the old tool named a pipeline that was built without --name.
_DEFAULT_NAMES = {"speech_recognition": "jarvis-asr"}


def _run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="jarvis-build",
        description="Compose exported models and options into a pipeline (.jmir).",
        epilog=_EXAMPLES,
        add_help=False,
    )
    parser.add_argument("pipeline", nargs="?", help=f"one of: {', '.join(pipeline_names())}")
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    add_version(parser)
    first, rest = _split_pipeline(argv)
    if first is None:
        parsed, _ = parser.parse_known_args(argv)
        if parsed.help:
            parser.print_help()
            return 0
        raise UsageError(
            "no pipeline given",
            slug="usage",
            hint=f"`jarvis-build PIPELINE OUT.jmir IN.ejrvs`; known: {', '.join(pipeline_names())}",
        )
    kind = find_pipeline(first)
    return _build(kind, _parser(kind).parse_args(rest))


def _split_pipeline(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the pipeline, which is the first word that is no option, and everything else."""
    for index, word in enumerate(argv):
        if not word.startswith("-"):
            return word, [*argv[:index], *argv[index + 1 :]]
    return None, list(argv)


def _parser(kind: PipelineKind) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"jarvis-build {kind.name}",
        description=f"Build a pipeline: {kind.help}.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("out", metavar="OUT.jmir", help="the pipeline to write")
    parser.add_argument("sources", metavar="IN.ejrvs", nargs="+", help="exported models, in order")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite a differing output")
    parser.add_argument("-v", "--verbose", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "--name",
        default=_DEFAULT_NAMES.get(kind.name, kind.name),
        help="name of the pipeline and prefix of its models (default: %(default)s)",
    )
    groups = {
        "used": parser.add_argument_group("options"),
        "no-effect": parser.add_argument_group("accepted, without effect"),
        "planned": parser.add_argument_group("known, not available yet"),
    }
    for option in kind.options:
        _add_option(groups[option.effect], option)
    return parser


def _add_option(group: Any, option: Option) -> None:
    default = "" if option.default is None else f" (default: {option.default})"
    settings: dict[str, Any] = {
        "dest": f"option.{option.name}",
        "default": argparse.SUPPRESS,
        "help": f"{option.help}{default}".replace("%", "%%"),
        "metavar": option.type.__name__.upper(),
    }
    if option.type is bool:
        settings |= {"nargs": "?", "const": True}
    group.add_argument(f"--{option.name}", **settings)


def _build(kind: PipelineKind, arguments: argparse.Namespace) -> int:
    from jarvis_rules.core.digest import digest_file
    from jarvis_rules.execution.delivery import Destination
    from jarvis_rules.execution.workspace import open_executor
    from jarvis_rules.reporting.console import Console
    from jarvis_rules.rules.rules import build_pipeline

    given = {
        name.removeprefix("option."): value
        for name, value in vars(arguments).items()
        if name.startswith("option.")
    }
    jmir = parse_file_and_key(arguments.out, (".jmir",))
    _require_suffix(jmir, ".jmir", "the output")
    models = _models(kind, arguments.sources)
    _, action = build_pipeline(kind.name, arguments.name, models, given, jmir)
    for name in kind.without_effect(given):
        print_note(f"option `--{name}` has no effect here")
    if kind.name == "speech_recognition" and not {"offline", "streaming"} & given.keys():
        print_note("built for whole utterances (--offline): streaming is not available yet")
    with Console() as console, open_executor(console) as executor:
        executed = executor.run(action.spec)
        digest = executed.result.outputs[action.spec.output.file]
        if jmir.is_dir():
            raise UsageError(
                "is a folder, and the pipeline is a file",
                slug="file.unwritable",
                where=str(jmir),
                hint="name a file that ends in `.jmir`",
            )
        if jmir.exists() and not arguments.force and digest_file(jmir) != digest:
            raise UsageError(
                "exists, and what would be written differs",
                slug="build.exists",
                where=str(jmir),
                hint="overwrite it with `-f`, or choose another name",
            )
        executor.deliver(action.spec, executed, Destination(jmir))
    print(jmir)  # noqa: T201
    return 0


def _models(kind: PipelineKind, sources: Sequence[str]) -> dict[str, Path]:
    paths = [parse_file_and_key(source, (".ejrvs", ".nemo", ".riva")) for source in sources]
    slots = [slot.name for slot in kind.slots]
    if len(paths) != len(slots):
        raise UsageError(
            f"{kind.name} takes {len(slots)} models ({', '.join(slots)}), got {len(paths)}",
            slug="pipeline.models",
            hint=f"`jarvis-build {kind.name} OUT.jmir {' '.join('IN.ejrvs' for _ in slots)}`",
        )
    for path in paths:
        _require_suffix(path, ".ejrvs", "a model")
        if not path.is_file():
            names = [entry.name for entry in path.parent.glob("*.ejrvs")]
            raise UsageError(
                "there is no such file",
                slug="file.missing",
                where=str(path),
                hint=did_you_mean(path.name, names) or "make it with `nemo2jarvis model.nemo`",
            )
    return dict(zip(slots, paths, strict=True))


def _require_suffix(path: Path, suffix: str, what: str) -> None:
    if path.suffix != suffix:
        hint = "export it first: `nemo2jarvis model.nemo`" if path.suffix == ".nemo" else None
        raise UsageError(
            f"{what} must be a `{suffix}` file",
            slug="file.suffix",
            where=str(path),
            hint=hint or f"the order is OUT.jmir, then IN.ejrvs; rename it to `*{suffix}`",
        )


def main() -> None:
    """Run the command."""
    sys.exit(run_command(_run))
