"""`jarvis-rules runtime-env`: pack the Python packages of a repository for a server."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from jarvis_rules.cli.command import require_writable
from jarvis_rules.cli.serve import say

EPILOG = """\
examples:
  jarvis-rules runtime-env out/cpu/models --out runtime-env.tar.gz
  jarvis-rules runtime-env /srv/models/current --python 3.10 --out /srv/models/runtime-env.tar.gz
"""
VERSIONS = ("3.10", "3.11", "3.12")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `runtime-env` command."""
    parser = subparsers.add_parser(
        "runtime-env",
        help="pack the Python packages of a repository for Triton's EXECUTION_ENV_PATH",
        description="Write an archive with the packages that the Python models of a repository "
        "import, for a server whose own Python lacks them, and print its path. Wheels come from "
        "pip and are checked against the hashes in the repository. Build the pipelines with "
        "`execution_env_path` to make models use it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "repository", type=Path, nargs="?", metavar="DIR", help="the model repository"
    )
    parser.add_argument(
        "--requirements",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a requirements file with hashes, beside or instead of a repository; may be repeated",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runtime-env.tar.gz"),
        metavar="FILE",
        help="the archive to write (default: runtime-env.tar.gz)",
    )
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    parser.add_argument(
        "--python",
        choices=VERSIONS,
        default=running if running in VERSIONS else VERSIONS[-1],
        help="version of Python that the server's stub was built for (default: the version that "
        "runs this, if it is one of them, else the last)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Write the archive and print its path; return 0."""
    from jarvis_rules.errors import EXIT_OK, UsageError
    from jarvis_rules.formats.input_file import require_regular
    from jarvis_rules.triton.runtime_environment import find_requirements, pack_environment

    if args.repository is None and not args.requirements:
        raise UsageError(
            "no repository, and no `--requirements`",
            slug="usage",
            hint=f"see `{args.parser.prog} --help`",
        )
    for path in args.requirements:
        hint = "name a file with hashes, such as pip reads with `--requirement`"
        require_regular(path, otherwise=hint)
    require_writable(args.out)
    found = find_requirements(args.repository) if args.repository else []
    pack_environment([*found, *args.requirements], args.python, args.out)
    say(f"for servers with Python {args.python}: {args.out.stat().st_size / 1e6:.0f} MB")
    print(args.out)  # noqa: T201  (the result)
    return EXIT_OK
