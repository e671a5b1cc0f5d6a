"""`jarvis-rules gpus`: the GPU targets, and what this machine can build for them.

`--format json` prints one object that follows `jarvis_rules/formats/schemas/gpus.schema.json`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from jarvis_rules.errors import EXIT_OK

EPILOG = """\
examples:
  jarvis-rules gpus
  jarvis-rules gpus h100
  jarvis-rules gpus a100+l4 --format json
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `gpus` command."""
    parser = subparsers.add_parser(
        "gpus",
        help="list the GPU targets, and what this machine can build for them",
        description="List the GPU targets, and for each engine toolchain the precisions that this "
        "machine can build, or why it cannot. With GPU, say more of that one.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "gpu", nargs="?", metavar="GPU", help="name, alias, smXY, or a sum: a100+l4; default: all"
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the targets, or one; return 0."""
    from jarvis_rules.cli.output import print_json
    from jarvis_rules.core.gpus import find_gpu, load_gpus
    from jarvis_rules.reporting.gpus import describe_gpus

    gpus = load_gpus().values() if arguments.gpu is None else [find_gpu(arguments.gpu)]
    document = describe_gpus(gpus)
    if arguments.format == "json":
        print_json(document)
    elif arguments.gpu is None:
        _print_all(document)
    else:
        _print_one(document["gpus"][0])
    return EXIT_OK


def _print_all(document: Mapping[str, Any]) -> None:
    from jarvis_rules.cli.output import print_table
    from jarvis_rules.reporting.gpus import summarise_build

    gpus = document["gpus"]
    toolchains = (f"ENGINE={build['toolchain']}" for build in gpus[0]["engines"])
    print_table(
        ("GPU", "here", "capability", "GiB", "precisions", *toolchains),
        (
            (
                gpu["name"],
                "yes" if gpu["present"] else "",
                ", ".join(gpu["compute_capabilities"]),
                "" if gpu["memory_gib"] is None else gpu["memory_gib"],
                ", ".join(gpu["precisions"]),
                *map(summarise_build, gpu["engines"]),
            )
            for gpu in gpus
        ),
        gap=False,
    )
    for found in document["present"]:
        if found["target"] is None:
            print_table(("here, and no target",), ((_describe_present(found),),))


def _describe_present(found: Mapping[str, Any]) -> str:
    return f"{found['name']}, compute capability {found['compute_capability'] or 'unknown'}"


def _print_one(gpu: Mapping[str, Any]) -> None:
    from jarvis_rules.cli.output import print_pairs

    memory = gpu["memory_gib"]
    print_pairs(
        {
            "GPU": f"{gpu['name']}: {gpu['description']}",
            "aliases": ", ".join(gpu["aliases"]) or "none",
            "compute capability": ", ".join(gpu["compute_capabilities"]) or "none",
            "memory": "none" if memory is None else f"at least {memory} GiB",
            "precisions": ", ".join(gpu["precisions"]),
            "platform": gpu["platform"],
            "on this machine": "yes" if gpu["present"] else "no",
            **{f"ENGINE={b['toolchain']}": _describe_build(b) for b in gpu["engines"]},
        }
    )


def _describe_build(build: Mapping[str, Any]) -> str:
    default = build["default_precision"]
    precisions = ", ".join(
        f"{precision} (default)" if precision == default else precision
        for precision in build["precisions"]
    )
    if build["slug"] is None:
        return f"yes: {precisions}"
    hint = f"; {build['hint']}" if build["hint"] else ""
    return f"no: {build['reason']}{hint} [{build['slug']}]"
