"""`jarvis-rules explain`: why the last build made a target, or what would make it do so."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from jarvis_rules.errors import EXIT_OK, UsageError, did_you_mean

EPILOG = """\
examples:
  jarvis-rules explain out/any/voice_commands.jmir
  jarvis-rules explain out/cpu/models/voice_commands.repository.json --format json
  jarvis-rules explain out/cpu/models/voice_commands/config.pbtxt   the repository that lists it
  jarvis-rules explain voice_commands.engines.json      any target of that name under out/
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `explain` command."""
    parser = subparsers.add_parser(
        "explain",
        help="why the last build made a target, or what would make it do so",
        description="Compare the record of a target's action with the one before it, and name "
        "the inputs, options, tools and platform parts that changed, from what to what.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a file that `scons` makes, those of repositories and engines too, or a target's name",
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="default: out")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the explanation; return 0."""
    from jarvis_rules.execution.execution_log import read_last_build
    from jarvis_rules.reporting.explain import explain

    record = _find(arguments.target, arguments.out)
    log = arguments.out / "execution-log.jsonl"
    try:
        found = explain(arguments.target, record, read_last_build(log) if log.is_file() else [])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"not the record of an action: {error}",
            slug="explain.record",
            where=str(record),
            hint="build again: the record is written anew",
        ) from None
    if arguments.format == "json":
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))  # noqa: T201
        return EXIT_OK
    print(f"{found.mnemonic} {found.target}: {found.outcome}")  # noqa: T201
    print(found.reason)  # noqa: T201
    for change in found.changes if found.outcome != "up to date" else ():
        print(f"  {change.render()}")  # noqa: T201
    if found.outcome == "up to date":
        print("it would be made again if one of these changed:")  # noqa: T201
        for name, values in found.depends_on.items():
            print(f"  {name}: {', '.join(values) or 'none'}")  # noqa: T201
    return EXIT_OK


def _find(target: str, out: Path) -> Path:
    """Return the record of a target: of this very path, or of the only target of that name."""
    from jarvis_rules.reporting.explain import RECORD_SUFFIX, find_record

    path = Path(target)
    record = find_record(path)
    if record is not None:
        return record
    records = sorted(out.rglob(f"*{RECORD_SUFFIX}"))
    named = [record for record in records if record.name == f"{target}{RECORD_SUFFIX}"]
    if len(named) == 1:
        return named[0]
    known = {record.name.removesuffix(RECORD_SUFFIX) for record in records}
    listed = ", ".join(str(record).removesuffix(RECORD_SUFFIX) for record in named or records)
    raise UsageError(
        f"{len(named)} targets have that name" if named else "no action makes this",
        slug="explain.unknown-target",
        where=target,
        hint=did_you_mean(path.name, () if named else known) or f"targets: {listed or 'none yet'}",
    )
