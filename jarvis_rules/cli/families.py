"""`jarvis-rules families`: which models can be exported, and how each configuration key counts.

`--format json` prints one object: `version` 1, and `families`, a list as `describe_family` returns
it, with one entry if a family was named.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from jarvis_rules.errors import EXIT_OK

EPILOG = """\
examples:
  jarvis-rules families
  jarvis-rules families conv_asr
  jarvis-rules families conv_asr --format json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `families` command."""
    parser = subparsers.add_parser(
        "families",
        help="list the model families that can be exported, and the configuration keys they know",
        description="List the model families that can be exported. With FAMILY, list every "
        "configuration key that it knows: used, understood at some values only, or ignored and "
        "why. A key that is not listed is refused, except at the top of the configuration, where "
        "keys that build no module are variables for others.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("family", nargs="?", metavar="FAMILY", help="default: a line for each")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the families, or one with its keys; return 0."""
    from jarvis_rules.cli.output import print_json
    from jarvis_rules.core.registry import require_known
    from jarvis_rules.reporting.families import describe_families

    families = describe_families()
    if arguments.family is not None:
        names = [family["family"] for family in families]
        require_known("family", arguments.family, names, "family.unknown")
        families = [family for family in families if family["family"] == arguments.family]
    if arguments.format == "json":
        print_json({"version": 1, "families": families})
    elif arguments.family is None:
        _print_all(families)
    else:
        _print_family(families[0])
    return EXIT_OK


def _print_all(families: Sequence[Mapping[str, Any]]) -> None:
    from jarvis_rules.cli.output import print_table

    print_table(
        ("family", "what", "NeMo classes", "encoder"),
        (
            (f["family"], f["summary"], _short_names(f["classes"]), _short_names(f["encoders"]))
            for f in families
        ),
        gap=False,
    )


def _print_family(family: Mapping[str, Any]) -> None:
    from jarvis_rules.cli.output import print_pairs, print_table
    from jarvis_rules.reporting.families import group_sections

    print_pairs({"family": family["family"], "what": family["summary"]})
    print_table(("NeMo class",), ((name,) for name in family["classes"]))
    print_table(("encoder._target_",), ((name,) for name in family["encoders"]))
    for places, keys in group_sections(family["sections"]):
        print_table(
            (", ".join(place or "top of the configuration" for place in places), "keys"),
            ((treatment, ", ".join(names)) for names, treatment in keys),
        )
    print_table(
        ("weights left out", "why"),
        ((unused["pattern"], unused["reason"]) for unused in family["unused_weights"]),
    )


def _short_names(dotted: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in dotted))
