"""`jarvis-build`: `.ejrvs` archives → a `.jmir` pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
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
from jarvis_rules.cli.options import add_options, bind_flags, given_options
from jarvis_rules.cli.verbosity import LEVELS, Talk
from jarvis_rules.errors import UsageError
from jarvis_rules.formats.input_file import require_regular
from jarvis_rules.pipelines.pipeline import PipelineKind, find_pipeline, pipeline_names

if TYPE_CHECKING:
    from jarvis_rules.formats.key_source import Key

_EXAMPLES = """\
examples:
  jarvis-build speech_recognition asr.jmir model.ejrvs --name=asr_en --offline
  jarvis-build speech_recognition asr.jmir:env:KEY model.ejrvs:file:key.txt
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
# What the old tool named a pipeline that was built without --name, after the public listings; an
# option that is empty leaves out what stands before it.
_DEFAULT_NAMES = {
    "speech_recognition": ("jarvis-asr", "", ""),
    "qa": ("jarvis_qa", "", ""),
    "token_classification": ("jarvis_ner", "_", "domain_name"),
    "text_classification": ("jarvis_text_classification", "_", "domain_name"),
    "intent_slot": ("jarvis_intent", "_", "domain_name"),
    "punctuation": ("jarvis-punctuation", "-", "language_code"),
}


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
    parser.add_argument("--key", help="encrypt OUT.jmir, as OUT.jmir:KEY does")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what the tools said")
    parser.add_argument(
        "--name",
        help="name of the pipeline and prefix of its models "
        f"(default: {_default_name(kind, None)})",
    )
    add_options(parser, kind.options)
    return parser


def _default_name(kind: PipelineKind, given: Mapping[str, object] | None) -> str:
    """Return the name of a pipeline with these options; without options a pattern of it."""
    name, separator, option = _DEFAULT_NAMES.get(kind.name, (kind.name, "", ""))
    if not option:
        return name
    if given is None:
        return f"{name}{separator}<{option}>"
    value = kind.values(kind.parse_options(given)).text(option)
    return f"{name}{separator}{value}" if value else name


def _build(kind: PipelineKind, arguments: argparse.Namespace) -> int:
    from jarvis_rules.core.digest import digest_file
    from jarvis_rules.execution.delivery import Destination
    from jarvis_rules.execution.workspace import open_executor
    from jarvis_rules.rules.rules import build_pipeline

    talk = Talk(LEVELS["DEBUG"]) if arguments.verbose else Talk()
    given = given_options(arguments)
    jmir, key = parse_archive(arguments.out)
    key = require_one_key(parse_key(arguments.key), key, str(jmir))
    _require_suffix(jmir, ".jmir", "the output")
    require_writable(jmir)
    models, model_keys = _models(kind, arguments.sources)
    name = arguments.name or _default_name(kind, given)
    _, action = build_pipeline(kind.name, name, models, given, jmir, key=key, model_keys=model_keys)
    if action.spec.confidential:
        talk.warn(f"an encrypted model goes into `{jmir}`, which is not: `{jmir}:KEY` encrypts it")
    for name in kind.without_effect(given):
        talk.note(f"option `--{name}` has no effect here")
    if kind.name == "speech_recognition" and not {"offline", "streaming"} & given.keys():
        talk.note("built for whole utterances (--offline): streaming is not available yet")
    with talk.console() as console, open_executor(console) as executor:
        executed = executor.run(action.spec)
        talk.describe(executed)
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


def _models(kind: PipelineKind, sources: Sequence[str]) -> tuple[dict[str, Path], dict[str, Key]]:
    """Return the archives by slot, and the keys of those that one was given for."""
    parsed = [parse_archive(source) for source in sources]
    paths = [path for path, _ in parsed]
    slots = [slot.name for slot in kind.slots]
    if len(paths) != len(slots):
        raise UsageError(
            f"{kind.name} takes {len(slots)} models ({', '.join(slots)}), got {len(paths)}",
            slug="pipeline.models",
            hint=f"`jarvis-build {kind.name} OUT.jmir {' '.join('IN.ejrvs' for _ in slots)}`",
        )
    for path in paths:
        if path.suffix == ".riva":
            from jarvis_rules.formats.eff import refuse_nvidia

            refuse_nvidia(path)
        _require_suffix(path, ".ejrvs", "a model")
        hint = "make it with `nemo2jarvis model.nemo`"
        require_regular(path, otherwise=hint, among="*.ejrvs")
    keys = {slot: key for slot, (_, key) in zip(slots, parsed, strict=True) if key is not None}
    return dict(zip(slots, paths, strict=True)), keys


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
