"""`nemo2jarvis`: a `.nemo` checkpoint → an `.ejrvs` archive."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jarvis_rules.cli.command import ArgumentParser, add_version, parse_file_and_key, run_command
from jarvis_rules.errors import UsageError

_EXAMPLES = """\
examples:
  nemo2jarvis model.nemo                        writes model.ejrvs next to it
  nemo2jarvis --out build/asr.ejrvs model.nemo
"""
_MODEL_SUFFIXES = (".ejrvs", ".enemo", ".nemo", ".riva", ".tlt")


def _run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="nemo2jarvis",
        description="Export a .nemo checkpoint to a Jarvis .ejrvs archive.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("source", help="Source .nemo file")
    parser.add_argument(
        "--out", help="Location to write resulting Jarvis EFF input to (default: None)"
    )
    add_version(parser)
    arguments = parser.parse_args(argv)
    source = parse_file_and_key(arguments.source, (".nemo", ".tlt"))
    if source.name and source.suffix not in (".nemo", ".tlt"):
        raise UsageError(
            "expected a `.nemo` checkpoint",
            slug="file.suffix",
            where=str(source),
            hint="name a file that NeMo's `model.save_to` wrote",
        )
    if not source.name:
        raise UsageError("no checkpoint given", slug="usage", hint="`nemo2jarvis model.nemo`")
    archive = _archive(
        parse_file_and_key(arguments.out or str(source), (".ejrvs", ".riva")), source
    )

    from jarvis_rules.execution.delivery import Destination
    from jarvis_rules.execution.workspace import open_executor
    from jarvis_rules.reporting.console import Console
    from jarvis_rules.rules.rules import export_model

    info = export_model(source, archive)
    with Console() as console, open_executor(console) as executor:
        executor.run(info.action.spec, Destination(archive))
    print(archive)  # noqa: T201
    return 0


def _archive(out: Path, source: Path) -> Path:
    """Return the archive's path: the old tool forced the suffix too."""
    if out.is_dir():
        return out / f"{source.stem}.ejrvs"
    if out.suffix in _MODEL_SUFFIXES:
        return out.with_suffix(".ejrvs")
    return out.with_name(f"{out.name}.ejrvs")


def main() -> None:
    """Run the command."""
    sys.exit(run_command(_run))
