"""`jarvis-rules serving-environment`: make the environment that Triton runs in."""

from __future__ import annotations

import argparse

from jarvis_rules.cli.serve import say

EPILOG = """\
examples:
  jarvis-rules serving-environment
  jarvis-rules serving-environment --python python3.11
  JARVIS_CACHE=/data/cache jarvis-rules serving-environment
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `serving-environment` command."""
    parser = subparsers.add_parser(
        "serving-environment",
        help="make the environment that `serve` and `infer --repository` run Triton in",
        description="Make the environment that Triton runs in, unless it is there, and print its "
        "path. The first time it downloads about 100 MB; `serve` and `infer` do this themselves "
        "when needed. It lies under JARVIS_CACHE, by default ~/.cache/jarvis-rules.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--python",
        metavar="PY",
        help="interpreter to make it of: Python 3.10, 3.11 or 3.12 (default: this one, else one "
        "on PATH)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Prepare the environment and print its path; return 0."""
    from jarvis_rules.core.cache_directory import cache_directory
    from jarvis_rules.errors import EXIT_OK
    from jarvis_rules.triton.environment import prepare_serving_environment

    environment = prepare_serving_environment(args.python, cache_directory(), say)
    print(environment.path)  # noqa: T201
    return EXIT_OK
