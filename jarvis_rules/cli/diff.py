"""`jarvis-rules diff`: what differs between two checkpoints, archives, pipelines, repositories.

`--format json` prints one object that follows `jarvis_rules/formats/schemas/diff.schema.json`.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jarvis_rules.errors import EXIT_OK

EXIT_DIFFERENT = 1
SHOWN = 20

EPILOG = """\
examples:
  jarvis-rules diff old.nemo new.nemo
  jarvis-rules diff a.jmir b.jmir --all
  jarvis-rules diff sealed.ejrvs:file:key.txt plain.ejrvs --format json
  jarvis-rules diff out/cpu/models /srv/models/current
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `diff` command."""
    parser = subparsers.add_parser(
        "diff",
        help="compare two .nemo, .ejrvs, .jmir or model repositories",
        description="Compare two .nemo, .ejrvs, .jmir or model repositories: members, "
        "configuration, facts, options, weights with norms. How they are packed or encrypted is "
        "no difference. Without the key of an encrypted one the manifests alone are compared, and "
        "the result says so. Ends with 0 if they are equal, with 1 if they differ, with 3 if one "
        "is damaged.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", metavar="A", help="FILE, FILE:KEY, or a repository's folder")
    parser.add_argument("b", metavar="B", help="what to compare it with")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.add_argument(
        "--all", action="store_true", help=f"list all changes, not the {SHOWN} largest of a kind"
    )
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what differs; return 1 if anything does."""
    from jarvis_rules.cli.output import print_json
    from jarvis_rules.reporting.diff import diff_subjects
    from jarvis_rules.reporting.subject import find_subject

    document = diff_subjects(find_subject(arguments.a), find_subject(arguments.b))
    if arguments.format == "json":
        print_json(document)
    else:
        _print_text(document, None if arguments.all else SHOWN)
    return EXIT_OK if document["equal"] else EXIT_DIFFERENT


def _result(document: Mapping[str, Any]) -> str:
    result = "equal" if document["equal"] else "different"
    return result if document["complete"] else f"{result}, by the manifests alone"


def _print_text(document: Mapping[str, Any], shown: int | None) -> None:
    from jarvis_rules.cli.output import print_pairs

    counts = {kind: _counts(document[kind]) for kind in ("members", "values", "weights")}
    print_pairs(
        {
            "A": document["a"],
            "B": document["b"],
            **{kind: text for kind, text in counts.items() if text},
            "result": _result(document),
        }
    )
    for kind, columns, rows, size in (
        ("members", ("member", "change", "role", "A", "B"), _member_row, _member_size),
        ("values", ("where", "name", "A", "B"), _value_row, None),
        ("weights", _WEIGHT_COLUMNS, _weight_row, _weight_size),
    ):
        _print_changes(document[kind], columns, rows, size, shown)
    for note in document["notes"]:
        _print_line(f"\nnote: {note}")


def _counts(tally: Mapping[str, Any]) -> str:
    kinds = ("changed", "added", "removed", "same")
    return ", ".join(f"{tally[kind]} {kind}" for kind in kinds if tally[kind])


def _print_changes(
    tally: Mapping[str, Any], columns: Sequence[str], row: Any, size: Any, shown: int | None
) -> None:
    from jarvis_rules.cli.output import print_table

    changes = list(tally["changes"])
    count = len(changes) + tally["left_out"]
    if size is not None and shown is not None and count > shown:
        changes.sort(key=size, reverse=True)
    print_table(columns, (row(change) for change in changes[:shown]))
    if shown is not None and count > shown:
        _print_line(f"… and {count - shown} more; `--all` lists them")
    elif tally["left_out"]:
        _print_line(f"… and {tally['left_out']} more")


def _print_line(text: str) -> None:
    from jarvis_rules.cli.output import printable

    print("\n".join(map(printable, text.split("\n"))))  # noqa: T201


def _member_row(change: Mapping[str, Any]) -> Iterator[str]:
    old, new = change["from"], change["to"]
    yield change["name"]
    yield change["change"]
    yield " → ".join(dict.fromkeys(side["role"] for side in (old, new) if side))
    for side in (old, new):
        yield f"{side['sha256'][:16]} ({side['size']} bytes)" if side else ""


def _member_size(change: Mapping[str, Any]) -> int:
    return max(int(side["size"]) for side in (change["from"], change["to"]) if side)


def _value_row(change: Mapping[str, Any]) -> Iterator[str]:
    yield change["section"]
    yield change["name"]
    for side in (change["from"], change["to"]):
        yield "absent" if side is None else side if len(side) <= 60 else side[:59] + "…"


_WEIGHT_COLUMNS = (
    *("weight", "change", "type", "norm of A", "norm of B"),
    *("norm of the difference", "largest", "values"),
)


def _weight_row(change: Mapping[str, Any]) -> Iterator[str]:
    old, new, difference = change["from"], change["to"], change["difference"]
    yield f"{change['graph']}!{change['name']}" if change["graph"] else change["name"]
    yield change["change"]
    yield " → ".join(dict.fromkeys(f"{s['dtype']} {s['shape']}" for s in (old, new) if s))
    for side in (old, new):
        yield _number(side["norm"]) if side else ""
    if difference is None:
        yield from ("", "", "")
        return
    yield _number(difference["norm"])
    yield _number(difference["largest"])
    yield f"{difference['values']} of {math.prod(new['shape'])}"


def _weight_size(change: Mapping[str, Any]) -> tuple[bool, float]:
    """Order by the norm of the difference; what has none, as another shape, comes first."""
    difference = change["difference"]
    if difference is None:
        return True, max(side["norm"] or 0.0 for side in (change["from"], change["to"]) if side)
    norm = difference["norm"]
    return False, 0.0 if norm is None else math.inf if math.isnan(norm) else norm


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"
