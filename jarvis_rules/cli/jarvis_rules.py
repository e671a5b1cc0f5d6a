"""`jarvis-rules`: everything that the old tools had no command for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from jarvis_rules.cli import (
    cache,
    diff,
    doctor,
    explain,
    families,
    gpus,
    infer,
    inspect,
    preflight,
    run_action,
    runtime_env,
    scan,
    serve,
    serving_environment,
    verify,
)
from jarvis_rules.cli.command import ArgumentParser, add_version, run_command

_EXAMPLES = """\
examples:
  jarvis-rules inspect out/any/voice_commands.jmir
  jarvis-rules scan model.nemo
  jarvis-rules serve out/cpu/models
  jarvis-rules infer voice_commands hello.wav --repository out/cpu/models
"""
_COMMANDS = (
    families,
    gpus,
    inspect,
    diff,
    verify,
    scan,
    explain,
    preflight,
    serve,
    infer,
    cache,
    run_action,
    doctor,
    serving_environment,
    runtime_env,
)


def _run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="jarvis-rules",
        description="Look at models and pipelines, serve them, and ask them.",
        epilog=_EXAMPLES,
    )
    add_version(parser)
    subparsers = parser.add_subparsers(
        title="commands", metavar="command", dest="command", parser_class=ArgumentParser
    )
    for command in _COMMANDS:
        command.add_parser(subparsers)
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    code: int = arguments.run(arguments)
    return code


def main() -> None:
    """Run the command."""
    sys.exit(run_command(_run))
