"""`jarvis-rules cache`: look at the cache, shrink it, check it, empty it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from jarvis_rules.cli.command import print_note
from jarvis_rules.errors import EXIT_INTEGRITY, EXIT_OK

EPILOG = """\
examples:
  jarvis-rules cache stat
  jarvis-rules cache gc --max-size 10G
  jarvis-rules cache verify --format json
  JARVIS_CACHE=/shared/cache jarvis-rules cache clear
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `cache` command."""
    parser = subparsers.add_parser(
        "cache",
        help="show, shrink, check or empty the cache of action results",
        description="The cache lies under JARVIS_CACHE, by default ~/.cache/jarvis-rules. `stat` "
        "shows its size, `gc` removes what has not been used for longest, `verify` reads all of "
        "it and removes what is damaged, `clear` empties it. A running build is not harmed: what "
        "it misses, it makes again.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("verb", choices=("stat", "gc", "verify", "clear"), help="what to do")
    parser.add_argument(
        "--max-size",
        metavar="SIZE",
        help="with `gc`: bytes to keep at most, as 500M or 20G (default: JARVIS_CACHE_MAX_SIZE, "
        "else 20G)",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Do what the verb says and print the outcome; return 0, or 3 where something was damaged."""
    from jarvis_rules.core.cache_directory import cache_directory
    from jarvis_rules.execution import collection

    root = cache_directory()
    roots = collection.store_roots(root)
    limit = 0
    document: dict[str, Any] = {"cache": str(root)}
    code = EXIT_OK
    if arguments.verb == "gc":
        given = arguments.max_size
        limit = collection.parse_size(given) if given else collection.max_size()
        collected = [collection.collect(store, limit) for store in roots]
        document |= {
            "removed_results": sum(c.results for c in collected),
            "removed_blobs": sum(c.blobs for c in collected),
            "removed_bytes": sum(c.blob_bytes for c in collected),
        }
    elif arguments.verb == "verify":
        verified = [collection.verify(store) for store in roots]
        document |= {
            "checked_blobs": sum(v.blobs for v in verified),
            "checked_results": sum(v.results for v in verified),
            "damaged": [name for v in verified for name in v.damaged],
        }
        code = EXIT_INTEGRITY if document["damaged"] else EXIT_OK
    elif arguments.verb == "clear":
        for store in roots:
            collection.clear(store)
    sizes = [collection.measure(store).to_json() for store in roots]
    document |= {name: sum(size[name] for size in sizes) for name in sizes[0]}
    _print(document, arguments.format)
    if arguments.verb == "gc" and document["blob_bytes"] > limit:
        print_note("what was used within the last hour stays, whatever the size")
    return code


def _print(document: dict[str, Any], form: str) -> None:
    if form == "json":
        print(json.dumps(document, indent=2))  # noqa: T201
        return
    for name, value in document.items():
        shown = ", ".join(value) or "none" if isinstance(value, list) else value
        if name.endswith("bytes"):
            shown = f"{value / (1 << 20):.1f} MiB"
        print(f"{name.replace('_', ' '):16} {shown}")  # noqa: T201
