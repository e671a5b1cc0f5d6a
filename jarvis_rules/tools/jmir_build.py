"""JmirBuild: `.ejrvs` archives → a `.jmir`.

Request: `pipeline` (kind), `name`, `options` (given, typed), `models` {slot: input path}.
Keys: `models/<slot>` of an encrypted archive, `pipeline` to encrypt the `.jmir` with.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.archive import Archive, open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.engine_inputs import (
    HINTS_MEMBER,
    INPUTS_MEMBER,
    dump_engine_inputs,
    dump_precision_hints,
)
from jarvis_rules.formats.jmir import PIPELINE_MEMBER, dump_pipeline
from jarvis_rules.pipelines._engine_options import choose_engines
from jarvis_rules.pipelines.pipeline import ModelSource, SourceMember, find_pipeline
from jarvis_rules.tools.program import key_of, run_tool

OUTPUT = Path("outputs/pipeline.jmir")


def build_jmir(request: Mapping[str, Any]) -> None:
    """Compose the pipeline and write the archive."""
    kind = find_pipeline(request["pipeline"])
    with contextlib.ExitStack() as stack:
        archives = {
            slot: stack.enter_context(_open(request, slot, Path(path)))
            for slot, path in request["models"].items()
        }
        for slot, archive in archives.items():
            _require_graphs(archive, request["models"][slot])
        models = {slot: _source(archive) for slot, archive in archives.items()}
        for slot in kind.slots:
            if models[slot.name].family not in slot.families:
                raise UsageError(
                    f"a model of family `{models[slot.name].family}` does not fit the slot "
                    f"`{slot.name}` of {kind.name}, which takes: {', '.join(slot.families)}",
                    slug="pipeline.wrong-family",
                    where=request["models"][slot.name],
                    hint="give the archive of another model, or build another pipeline",
                )
        composition = kind.compose(request["name"], models, kind.values(request["options"]))
        members = [
            Member(
                PIPELINE_MEMBER, "pipeline", "pipeline document",
                data=dump_pipeline(composition.pipeline),
            )
        ]  # fmt: skip
        for name, source in composition.members.items():
            members += _members(name, source, archives)
        for engine, inputs in composition.engine_inputs.items():
            data = dump_engine_inputs(inputs)
            members.append(
                Member(f"{engine}/{INPUTS_MEMBER}", "engine", "sizes of the inputs", data=data)
            )
        write_archive(
            OUTPUT,
            "jmir",
            {
                "description": f"{kind.name} pipeline",
                "name": composition.pipeline.name,
                "kind": kind.name,
                "engine_choices": choose_engines(kind, request["options"]).to_json(),
            },
            members,
            key_of(request, "pipeline"),
        )


def _open(
    request: Mapping[str, Any], slot: str, path: Path
) -> contextlib.AbstractContextManager[Archive]:
    return open_archive(path, "ejrvs", key=key_of(request, f"models/{slot}"))


def _require_graphs(archive: Archive, where: str) -> None:
    if not archive.manifest.metadata["graphs"]:
        raise UsageError(
            "the archive holds weights (`--format CKPT`) and no graph to build a pipeline of",
            slug="pipeline.no-graph",
            where=where,
            hint="export the model again without `--format`",
        )


def _source(archive: Archive) -> ModelSource:
    metadata = archive.manifest.metadata
    return ModelSource(
        family=metadata["family"],
        obj_cls=metadata["obj_cls"],
        content_digest=archive.manifest.content_digest,
        facts=metadata["facts"],
        members=tuple(archive.manifest.files),
    )


def _members(
    name: str, source: SourceMember | bytes, archives: Mapping[str, Archive]
) -> Iterator[Member]:
    role = "graph" if name.endswith(".onnx") else "asset"
    if isinstance(source, bytes):
        yield Member(name, role, "made by the pipeline", data=source)
        return
    archive, origin = archives[source.slot], f"`{source.member}` of {source.slot}"
    yield Member(name, role, origin, source=archive.source(source.member))
    if role == "graph":
        nodes = archive.manifest.metadata.get("full_precision", {}).get(source.member, ())
        hints = str(PurePosixPath(name).with_name(HINTS_MEMBER))
        yield Member(hints, "engine", f"hints of {origin}", data=dump_precision_hints(nodes))
    weights = PurePosixPath(f"{source.member}.data")
    if str(weights) in archive.manifest.files:
        # The graph refers to them by this name.
        beside = str(PurePosixPath(name).with_name(weights.name))
        yield Member(beside, "weights", f"weights of {origin}", source=archive.source(str(weights)))


if __name__ == "__main__":
    sys.exit(run_tool(build_jmir))
