"""`jarvis-rules inspect`: what is in a checkpoint, an archive, a pipeline or a repository.

`--format json` prints one object that follows `jarvis_rules/formats/schemas/inspect.schema.json`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jarvis_rules.cli.output import print_json, print_pairs, print_table
from jarvis_rules.errors import EXIT_OK

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
        description="Show what is in a .nemo, .ejrvs, .jmir or model repository. Of a .nemo, "
        "also what exporting it gives, what of its configuration and weights has no part in that, "
        "or why it is refused. Nothing is executed, unpacked or written.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="FILE", help="FILE, FILE:KEY, or a repository's folder")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the description of the file; return 0."""
    from jarvis_rules.reporting.inspection import describe
    from jarvis_rules.reporting.subject import find_subject

    document = describe(find_subject(arguments.path))
    if arguments.format == "json":
        print_json(document)
    else:
        _print_text(document)
    return EXIT_OK


def _print_text(document: Mapping[str, Any]) -> None:
    match document["format"]:
        case "nemo":
            tensors = len(document["tensors"])
            export = document["export"]
            print_pairs(
                {
                    "class": document["class"],
                    "NeMo version": document["nemo_version"] or "unknown",
                    "weights": f"{document['values']:,} values, with buffers, in {tensors} tensors",
                    "family": export["family"] or "none",
                    **_refusal(export["refusal"]),
                }
            )
            print_table(("member", "bytes"), ((m["name"], m["size"]) for m in document["members"]))
            _print_export(export)
        case "ejrvs":
            metadata = document["metadata"]
            print_pairs(
                {
                    "class": metadata["obj_cls"],
                    "family": metadata["family"],
                    "content digest": metadata["content_digest"],
                    **_encryption(metadata),
                }
            )
            _print_members(document["members"])
            _print_facts(metadata["facts"])
            _print_graphs(document["graphs"])
        case "jmir":
            _print_pipeline(document)
            _print_members(document["members"])
        case "repository":
            for pipeline in document["pipelines"]:
                _print_repository(pipeline)


def _refusal(refusal: Mapping[str, Any] | None) -> dict[str, str]:
    if refusal is None:
        return {}
    pairs = {"not exported": f"{refusal['message']} [{refusal['slug']}]"}
    return {**pairs, "hint": refusal["hint"]} if refusal["hint"] else pairs


def _print_export(export: Mapping[str, Any]) -> None:
    _print_facts(export["facts"])
    _print_graphs(export["graphs"])
    print_table(("asset", "bytes"), ((a["name"], a["size"]) for a in export["assets"]))
    print_table(
        ("key without effect", "value", "why"),
        ((k["key"], k["value"], k["reason"]) for k in export["ignored_keys"]),
    )
    print_table(
        ("weights left out", "weights", "why"),
        ((u["pattern"], u["count"], u["reason"]) for u in export["unused_weights"]),
    )


def _print_facts(facts: Mapping[str, Any]) -> None:
    print_table(
        ("fact", "value"),
        (
            (name, _short(value))
            for name, value in facts.items()
            if name not in ("inputs", "outputs", "graphs")
        ),
    )


def _print_graphs(graphs: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ("graph", "kept float32", "tensor", "name", "type", "shape"),
        (row for graph in graphs for row in _graph_rows(graph)),
    )


def _graph_rows(graph: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    head = (graph["name"], graph["full_precision_nodes"])
    for side in ("inputs", "outputs"):
        for tensor in graph[side] or ():
            shape = ", ".join(map(str, tensor["shape"]))
            yield (*head, side.removesuffix("s"), tensor["name"], tensor["dtype"], f"[{shape}]")
            head = ("", "")
    if head[0]:
        yield (*head, "", "", "", "")


def _encryption(metadata: Mapping[str, Any]) -> dict[str, str]:
    encryption = metadata.get("encryption")
    return {} if encryption is None else {"encrypted": f"key {encryption['key_id']}"}


def _print_pipeline(document: Mapping[str, Any]) -> None:
    metadata, pipeline = document["metadata"], document["pipeline"]
    language = {} if pipeline is None else {"language": pipeline["language_code"]}
    print_pairs(
        {
            "pipeline": metadata["name"],
            "kind": metadata["kind"],
            **language,
            "content digest": document["content_digest"],
            **_encryption(metadata),
        }
    )
    if pipeline is None:
        return
    print_table(
        ("slot", "family", "class", "content digest"),
        (
            (slot, m["family"], m["obj_cls"], m["content_digest"][:16])
            for slot, m in pipeline["models"].items()
        ),
    )
    print_table(
        ("module", "model", "uses", "batch"),
        ((m["name"], m["model"], m["uses"], m["max_batch_size"]) for m in pipeline["modules"]),
    )
    print_table(("from", "to"), pipeline["edges"])
    print_table(
        ("option", "value", "origin"),
        ((o["name"], o["value"], o["origin"]) for o in pipeline["options"]),
    )


def _print_repository(pipeline: Mapping[str, Any]) -> None:
    gpu = pipeline["gpu"]
    capabilities = ", ".join(gpu["compute_capabilities"])
    print_pairs(
        {
            "pipeline": pipeline["pipeline"],
            "kind": pipeline["kind"],
            "GPU target": gpu["name"]
            + (f" (compute capability {capabilities})" if capabilities else ""),
            **_lock(pipeline["target_lock"]),
            **_pipeline_digest(pipeline),
        }
    )
    print_table(
        ("engine", "toolchain", "precision", "executed", "compared with what was exported"),
        (
            (
                name,
                f"{e['toolchain']} {e['toolchain_version']}",
                e["precision"],
                e["executed"],
                _comparison(e.get("check")),
            )
            for name, e in pipeline["engines"].items()
        ),
    )
    print_table(("model",), ((model,) for model in pipeline["models"]))
    print_table(
        ("file", "bytes", "sha256"),
        ((name, f["size"], f["sha256"][:16]) for name, f in pipeline["files"].items()),
    )


def _comparison(check: Mapping[str, Any] | None) -> str:
    """Return what the numeric check of an engine compared, and what it did not."""
    if check is None:
        return "no"
    done = [f"{made['what']}, by {made['with']}" for made in check["comparisons"]]
    return "; ".join([*done, *([check["not_compared"]] if check["not_compared"] else [])])


def _lock(lock: Mapping[str, Any]) -> dict[str, str]:
    """Return what the engines ask of a machine, where they ask for anything."""
    from jarvis_rules.reporting.preflight import describe_lock

    asked = describe_lock(lock)
    return {"engines run on": asked} if asked else {}


def _pipeline_digest(pipeline: Mapping[str, Any]) -> dict[str, str]:
    """Return what leads to the pipeline's `.jmir`, where its options are."""
    digest = pipeline.get("pipeline_digest")
    return {} if digest is None else {"pipeline digest": digest}


def _print_members(members: Sequence[Mapping[str, Any]]) -> None:
    print_table(
        ("member", "role", "bytes", "sha256"),
        ((m["name"], m["role"], m["size"], m["sha256"][:16]) for m in members),
    )


def _short(value: Any) -> str:
    """Return a fact on one line of about 100 characters."""
    if isinstance(value, str):
        text = value
    elif isinstance(value, Mapping):
        text = ", ".join(
            f"{name}: {json.dumps(v, ensure_ascii=False)}" for name, v in value.items()
        )
    else:
        text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 100 else text[:99] + "…"
    return f"{len(value)}: {text}" if isinstance(value, list) and len(value) > 8 else text
