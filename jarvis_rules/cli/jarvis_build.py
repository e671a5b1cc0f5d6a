"""`jarvis-build`: `.ejrvs` archives → a `.jmir` pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jarvis_rules.cli.command import (
    ArgumentParser,
    add_version,
    parse_file_and_key,
    run_command,
)
from jarvis_rules.cli.options import add_options, bind_flags, given_options
from jarvis_rules.cli.verbosity import LEVELS, Talk
from jarvis_rules.errors import UsageError, did_you_mean
from jarvis_rules.pipelines.pipeline import PipelineKind, find_pipeline, pipeline_names

_EXAMPLES = """\
examples:
  jarvis-build speech_recognition asr.jmir model.ejrvs --name=asr_en --offline
  jarvis-build speech_recognition --help
"""
# Pipelines of Jarvis, for which there may be none here yet.
_OF_JARVIS = (
    "intent_slot",
    "punctuation",
    "qa",
    "speech_recognition",
    "speech_synthesis",
    "text_classification",
    "token_classification",
)
# Options without a value that may stand before the pipeline.
_FLAGS = ("--force", "--help", "--verbose", "--version")
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
    if first in _OF_JARVIS and first not in pipeline_names():
        raise UsageError(
            f"the pipeline `{first}` is not available yet",
            slug="pipeline.planned",
            hint=f"available: {', '.join(pipeline_names())}",
        )
    kind = find_pipeline(first)
    parser = _parser(kind)
    return _build(kind, parser.parse_args(bind_flags(parser, rest, kind.options)))


def _split_pipeline(argv: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the pipeline and everything else.

    The pipeline is the first word that names one, unless that looks like the value of an option;
    where no word does, it is the first that is no option.
    """
    words = [index for index, word in enumerate(argv) if not word.startswith("-")]
    named = [index for index in words if argv[index] in {*_OF_JARVIS, *pipeline_names()}]
    free = [index for index in named if index == 0 or not _takes_value(argv[index - 1])]
    for index in [*free, *named, *words]:
        return argv[index], [*argv[:index], *argv[index + 1 :]]
    return None, list(argv)


def _takes_value(word: str) -> bool:
    return word.startswith("--") and "=" not in word and word not in _FLAGS


def _parser(kind: PipelineKind) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"jarvis-build {kind.name}",
        description=f"Build a pipeline: {kind.help}.",
        epilog=_EXAMPLES,
        allow_abbrev=True,
    )
    parser.add_argument("out", metavar="OUT.jmir", help="the pipeline to write")
    parser.add_argument("sources", metavar="IN.ejrvs", nargs="+", help="exported models, in order")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite a differing output")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what the tools said")
    parser.add_argument(
        "--name",
        default=_DEFAULT_NAMES.get(kind.name, kind.name),
        help="name of the pipeline and prefix of its models (default: %(default)s)",
    )
    add_options(parser, kind.options)
    return parser


def _build(kind: PipelineKind, arguments: argparse.Namespace) -> int:
    from jarvis_rules.core.digest import digest_file
    from jarvis_rules.execution.delivery import Destination
    from jarvis_rules.execution.workspace import open_executor
    from jarvis_rules.rules.rules import build_pipeline

    talk = Talk(LEVELS["DEBUG"]) if arguments.verbose else Talk()
    given = given_options(arguments)
    jmir = parse_file_and_key(arguments.out, (".jmir",))
    _require_suffix(jmir, ".jmir", "the output")
    models = _models(kind, arguments.sources)
    _, action = build_pipeline(kind.name, arguments.name, models, given, jmir)
    for name in kind.without_effect(given):
        talk.note(f"option `--{name}` has no effect here")
    if kind.name == "speech_recognition" and not {"offline", "streaming"} & given.keys():
        talk.note("built for whole utterances (--offline): streaming is not available yet")
    with talk.console() as console, open_executor(console) as executor:
        executed = executor.run(action.spec)
        talk.describe(executor, executed)
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
