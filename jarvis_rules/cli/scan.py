"""`jarvis-rules scan`: what checkpoints and archives would have executed, without executing it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import EXIT_INTEGRITY, EXIT_OK

if TYPE_CHECKING:
    from jarvis_rules.scanning.report import ScanReport

EPILOG = """\
examples:
  jarvis-rules scan model.nemo
  jarvis-rules scan downloads/*.nemo model.ckpt --format json
  jarvis-rules scan models/*.nemo --format sarif > scan.sarif
"""
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `scan` command."""
    parser = subparsers.add_parser(
        "scan",
        help="find what a checkpoint or an archive would execute, and what else is wrong",
        description="Look for what loading a .nemo, .tlt, .ckpt, .pt, .pth, .ejrvs or .jmir would "
        "execute, and for everything that is hidden or wrong in it. Nothing is executed or "
        "unpacked. Ends with 3 if there is an error.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", type=Path, nargs="+", metavar="FILE", help="file to look into")
    parser.add_argument(
        "--format", choices=("text", "json", "sarif"), default="text", help="default: text"
    )
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was found; return 3 where anything is an error."""
    from jarvis_rules.scanning.documents import report_document, sarif_document
    from jarvis_rules.scanning.scan import scan_file

    reports = [scan_file(path) for path in arguments.paths]
    if arguments.format == "text":
        _print_text(reports)
    else:
        write = report_document if arguments.format == "json" else sarif_document
        print(json.dumps(write(reports), indent=2))  # noqa: T201
    return EXIT_INTEGRITY if any(report.count("error") for report in reports) else EXIT_OK


def _print_text(reports: Sequence[ScanReport]) -> None:
    from rich.console import Console
    from rich.text import Text

    from jarvis_rules.scanning.documents import place_of
    from jarvis_rules.scanning.report import RULES, SEVERITIES

    console = Console(markup=False, highlight=False, soft_wrap=True)
    for report in reports:
        for finding in report.findings:
            place = place_of(finding)
            line = Text(f"{report.path}: {place}: " if place else f"{report.path}: ")
            line.append(finding.severity, style=_STYLES[finding.severity])
            line.append(f": {finding.message} [{finding.rule}]")
            console.print(line)
        for rule, count in report.left_out.items():
            severity = RULES[rule].severity
            console.print(f"{report.path}: {severity}: {count} more are not listed [{rule}]")
        counts = (_plural(report.count(severity), severity) for severity in SEVERITIES)
        console.print(f"{report.path}: {', '.join(counts)}")


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
