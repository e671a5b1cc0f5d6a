"""`jarvis-rules preflight`: whether this machine can run the engines of a model repository.

`--format json` prints one object that follows `jarvis_rules/formats/schemas/preflight.schema.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.errors import EXIT_BUILD, EXIT_OK

EPILOG = """\
examples:
  jarvis-rules preflight out/a100/models
  jarvis-rules preflight /srv/models/current
  jarvis-rules preflight /srv/models --server /opt/tritonserver
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `preflight` command."""
    parser = subparsers.add_parser(
        "preflight",
        help="say whether this machine can run the engines of a model repository",
        description="Compare what the engines of a model repository need with this machine: the "
        "GPU, its driver, and the version of TensorRT. Nothing is started or loaded, and nothing "
        "but file names is asked of TensorRT. Ends with 1 where something does not fit.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "repository", type=Path, metavar="DIR", help="a model repository, or a folder of releases"
    )
    parser.add_argument(
        "--server",
        type=Path,
        metavar="DIR",
        help="the folder of the server, to find its TensorRT in; default: where the loader looks",
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print what was compared; return 0 where all fits, 1 where it does not.

    As text the latter ends in JarvisError `preflight.mismatch`.
    """
    from jarvis_rules.cli.output import print_json
    from jarvis_rules.reporting.preflight import check_pipelines, mismatch_error

    report = check_pipelines(arguments.repository, arguments.server)
    if arguments.format == "json":
        print_json(report)
        return EXIT_OK if report["fits"] else EXIT_BUILD
    _print_text(report)
    if not report["fits"]:
        lines = [
            f"{p['pipeline']}: {text}" for p in report["pipelines"] for text in p["mismatches"]
        ]
        raise mismatch_error(lines, Path(report["repository"]), report["hint"])
    return EXIT_OK


def _print_text(report: Mapping[str, Any]) -> None:
    from jarvis_rules.cli.command import print_note
    from jarvis_rules.cli.output import print_pairs, print_table
    from jarvis_rules.reporting.preflight import describe_lock

    machine = report["machine"]
    libraries = (f"{lib['version']}, {lib['path']}" for lib in machine["libraries"])
    print_pairs(
        {
            "GPU": "; ".join(dict.fromkeys(map(_describe_gpu, machine["gpus"]))) or "none",
            "TensorRT": "; ".join(libraries) or "none found",
        }
    )
    print_table(
        ("pipeline", "needs", "fits"),
        (
            (
                pipeline["pipeline"],
                describe_lock(pipeline["target_lock"]) or "nothing: it is portable",
                "no" if pipeline["mismatches"] else "yes",
            )
            for pipeline in report["pipelines"]
        ),
    )
    for pipeline in report["pipelines"]:
        for note in pipeline["notes"]:
            print_note(f"{pipeline['pipeline']}: {note}")


def _describe_gpu(gpu: Mapping[str, Any]) -> str:
    capability = f"compute capability {gpu['compute_capability'] or 'unknown'}"
    return f"{gpu['name']}, {capability}, driver {gpu['driver_version']}"
