"""`jarvis-rules verify`: whether checkpoints, archives, pipelines and repositories are whole.

`--format json` prints one object that follows `jarvis_rules/formats/schemas/verify.schema.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from jarvis_rules.errors import EXIT_INTEGRITY, EXIT_OK

EPILOG = """\
examples:
  jarvis-rules verify model.nemo
  jarvis-rules verify out/any/*.jmir out/cpu/models
  jarvis-rules verify sealed.ejrvs:env:MODEL_KEY --format json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `verify` command."""
    parser = subparsers.add_parser(
        "verify",
        help="read all of a .nemo, .ejrvs, .jmir or model repository and list what is wrong",
        description="Read all of each .nemo, .ejrvs, .jmir or model repository: digests, weights, "
        "graphs, documents, and what they say of each other. All problems are listed, not only "
        "the first. Ends with 3 if there are any.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="FILE, FILE:KEY, or a repository's folder"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what is wrong; return 3 if anything is."""
    from jarvis_rules.cli.output import print_json
    from jarvis_rules.reporting.subject import find_subject
    from jarvis_rules.reporting.verify import verify_document, verify_subjects

    document = verify_document(verify_subjects([find_subject(text) for text in arguments.paths]))
    if arguments.format == "json":
        print_json(document)
    else:
        for result in document["results"]:
            _print_result(result)
    return EXIT_OK if document["sound"] else EXIT_INTEGRITY


def _print_result(result: Mapping[str, Any]) -> None:
    from jarvis_rules.cli.output import print_marked

    path = result["path"]
    for problem in result["problems"]:
        place = f"{path}: {problem['place']}: " if problem["place"] else f"{path}: "
        print_marked(place, "error", "bold red", f": {problem['message']} [{problem['slug']}]")
        if problem["hint"]:
            print_marked("  ", "hint", "", f": {problem['hint']}")
    if result["left_out"]:
        print_marked(f"{path}: ", "error", "bold red", f": {result['left_out']} more problems")
    for skipped in result["not_checked"]:
        text = f": {skipped['what']}: {skipped['reason']}"
        print_marked(f"{path}: ", "not verified", "yellow", text)
    counts = ", ".join(
        f"{count} {what.removesuffix('s') if count == 1 else what}"
        for what, count in result["checked"].items()
    )
    verdict, style = ("sound", "green") if result["sound"] else ("damaged", "bold red")
    print_marked(f"{path}: ", verdict, style, f": {counts or 'nothing'} verified")
