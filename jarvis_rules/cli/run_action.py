"""`jarvis-rules run-action`: run the action of a record again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from jarvis_rules.cli.command import parse_key
from jarvis_rules.errors import EXIT_BUILD, EXIT_OK

EPILOG = """\
examples:
  jarvis-rules run-action out/any/voice_commands.jmir.action.json
  jarvis-rules run-action --keep-sandbox ~/.cache/jarvis-rules/logs/EngineBuild-….action.json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `run-action` command."""
    parser = subparsers.add_parser(
        "run-action",
        help="run the action of a record again, as it ran",
        description="Run the action of a record (X.action.json) again, from the inputs in the "
        "cache and in the same kind of sandbox, print what the tool says, and compare its outputs "
        "with the record's. Nothing is delivered or cached.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("record", type=Path, metavar="X.action.json", help="the action's record")
    parser.add_argument(
        "--keep-sandbox", action="store_true", help="keep the action's folder and print its path"
    )
    parser.add_argument(
        "--key", action="append", default=[], help="a key that the action had; may be repeated"
    )
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay the action; return 0, or 1 where its outputs differ from the record's."""
    from jarvis_rules.execution.replay import replay
    from jarvis_rules.execution.workspace import open_executor

    with open_executor() as executor:
        keys = [key for text in arguments.key if (key := parse_key(text)) is not None]
        replayed = replay(executor, arguments.record, arguments.keep_sandbox, keys)
    sys.stderr.write(replayed.log)
    if replayed.folder is not None:
        print(replayed.folder)  # noqa: T201
    if replayed.error is not None:
        raise replayed.error
    for name in replayed.differing:
        print(f"differs: {name}", file=sys.stderr)  # noqa: T201
    count = len(replayed.outputs) - len(replayed.differing)
    print(f"{count} of {len(replayed.outputs)} outputs are as recorded", file=sys.stderr)  # noqa: T201
    return EXIT_BUILD if replayed.differing else EXIT_OK
