"""`jarvis-rules inspect`: what is in a checkpoint, an archive, a pipeline or a repository."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jarvis_rules.errors import EXIT_OK, UsageError, did_you_mean

EPILOG = """\
examples:
  jarvis-rules inspect model.nemo
  jarvis-rules inspect out/any/voice_commands.jmir --format json
  jarvis-rules inspect out/cpu/models
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `inspect` command."""
    parser = subparsers.add_parser(
        "inspect",
        help="show what is in a .nemo, .ejrvs, .jmir or model repository",
        description="Show what is in a .nemo, .ejrvs, .jmir or model repository. Nothing is "
        "executed or unpacked.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path, metavar="FILE", help="file, or a repository's folder")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the description of the file; return 0."""
    document = describe(arguments.path)
    if arguments.format == "json":
        print(json.dumps(document, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        _print_text(document)
    return EXIT_OK


def describe(path: Path) -> dict[str, Any]:
    """Return what is at `path`, with `format` telling what it is.

    UsageError for a path that is missing or of no known kind.
    """
    if path.is_dir():
        return _describe_repository(path)
    describers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".nemo": _describe_nemo,
        ".tlt": _describe_nemo,
        ".ejrvs": _describe_ejrvs,
        ".jmir": _describe_jmir,
    }
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.glob("*")])
        raise UsageError("there is no such file", slug="file.missing", where=str(path), hint=near)
    if path.suffix not in describers:
        raise UsageError(
            f"the suffix `{path.suffix}` is of no format that can be inspected",
            slug="file.suffix",
            where=str(path),
            hint=f"known: {', '.join(describers)}, and folders of model repositories",
        )
    return describers[path.suffix](path)


def _describe_nemo(path: Path) -> dict[str, Any]:
    from jarvis_rules.formats.nemo import open_nemo

    with open_nemo(path) as archive:
        weights = archive.state_dict()
        return {
            "format": "nemo",
            "class": archive.target,
            "nemo_version": archive.nemo_version,
            "members": [{"name": m.name, "size": m.size} for m in archive.members],
            "values": sum(int(array.size) for array in weights.values()),
            "tensors": [
                {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
                for name, array in weights.items()
            ],
            "config": archive.config,
        }


def _describe_ejrvs(path: Path) -> dict[str, Any]:
    from jarvis_rules.formats.archive import open_archive

    with open_archive(path, "ejrvs") as archive:
        manifest = archive.manifest
        return {
            "format": "ejrvs",
            "metadata": dict(manifest.metadata),
            "members": [{"name": name, **file} for name, file in manifest.files.items()],
        }


def _describe_jmir(path: Path) -> dict[str, Any]:
    from jarvis_rules.formats.archive import open_archive
    from jarvis_rules.formats.jmir import read_pipeline

    with open_archive(path, "jmir") as archive:
        return {
            "format": "jmir",
            "content_digest": archive.manifest.content_digest,
            "pipeline": read_pipeline(archive).to_json(),
            "members": [{"name": name, **file} for name, file in archive.manifest.files.items()],
        }


def _describe_repository(path: Path) -> dict[str, Any]:
    from jarvis_rules.formats.schema import validate

    pipelines = []
    for manifest in sorted(path.glob("*.repository.json")):
        document = json.loads(manifest.read_bytes())
        validate(document, "repository", str(manifest))
        pipelines.append(document)
    if not pipelines:
        raise UsageError(
            "no `*.repository.json` here, so this is no repository of these tools",
            slug="repository.none",
            where=str(path),
            hint="`scons deploy` makes one at out/<gpu>/models",
        )
    return {"format": "repository", "pipelines": pipelines}


def _print_text(document: Mapping[str, Any]) -> None:
    match document["format"]:
        case "nemo":
            tensors = len(document["tensors"])
            _print_pairs(
                {
                    "class": document["class"],
                    "NeMo version": document["nemo_version"],
                    "weights": f"{document['values']:,} values, with buffers, in {tensors} tensors",
                }
            )
            _print_table(("member", "bytes"), ((m["name"], m["size"]) for m in document["members"]))
        case "ejrvs":
            metadata = document["metadata"]
            facts = metadata["facts"]
            _print_pairs(
                {
                    "class": metadata["obj_cls"],
                    "family": metadata["family"],
                    "content digest": metadata["content_digest"],
                    **{name: _short(value) for name, value in facts.items()},
                }
            )
            _print_members(document["members"])
        case "jmir":
            _print_pipeline(document["pipeline"], document["content_digest"])
            _print_members(document["members"])
        case "repository":
            for pipeline in document["pipelines"]:
                _print_repository(pipeline)


def _print_pipeline(pipeline: Mapping[str, Any], content_digest: str) -> None:
    _print_pairs(
        {
            "pipeline": pipeline["name"],
            "kind": pipeline["kind"],
            "language": pipeline["language_code"],
            "content digest": content_digest,
        }
    )
    _print_table(
        ("module", "model", "uses", "batch"),
        ((m["name"], m["model"], m["uses"], m["max_batch_size"]) for m in pipeline["modules"]),
    )
    _print_table(("from", "to"), pipeline["edges"])
    _print_table(
        ("option", "value", "origin"),
        ((o["name"], o["value"], o["origin"]) for o in pipeline["options"]),
    )


def _print_repository(pipeline: Mapping[str, Any]) -> None:
    gpu = pipeline["gpu"]
    capability = gpu["compute_capability"]
    _print_pairs(
        {
            "pipeline": pipeline["pipeline"],
            "kind": pipeline["kind"],
            "GPU target": gpu["name"]
            + (f" (compute capability {capability})" if capability else ""),
        }
    )
    _print_table(
        ("engine", "toolchain", "precision", "executed"),
        (
            (name, f"{e['toolchain']} {e['toolchain_version']}", e["precision"], e["executed"])
            for name, e in pipeline["engines"].items()
        ),
    )
    _print_table(("model",), ((model,) for model in pipeline["models"]))


def _print_members(members: Sequence[Mapping[str, Any]]) -> None:
    _print_table(
        ("member", "role", "bytes", "sha256"),
        ((m["name"], m["role"], m["size"], m["sha256"][:16]) for m in members),
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:99] + "…"


def _print_pairs(pairs: Mapping[str, Any]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        print(f"{name:{width}}  {value}")  # noqa: T201


def _print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "bytes" else "left")
    for row in rows:
        table.add_row(*(str(value) for value in row))
    # A pipe has no width: nothing may be folded for whoever reads it.
    width = None if sys.stdout.isatty() else 1000
    console = Console(width=width, markup=False, highlight=False)
    console.print()
    console.print(table)
