"""JmirBuild: `.ejrvs` archives → a `.jmir`.

Request: `pipeline` (kind), `name`, `options` (given, typed), `models` {slot: input path}.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.archive import Archive, Member, open_archive, write_archive
from jarvis_rules.formats.jmir import PIPELINE_MEMBER, dump_pipeline
from jarvis_rules.pipelines.pipeline import ModelSource, SourceMember, find_pipeline
from jarvis_rules.tools.program import run_tool

OUTPUT = Path("outputs/pipeline.jmir")


def build_jmir(request: Mapping[str, Any]) -> None:
    """Compose the pipeline and write the archive."""
    kind = find_pipeline(request["pipeline"])
    with contextlib.ExitStack() as stack:
        archives = {
            slot: stack.enter_context(open_archive(Path(path), "ejrvs"))
            for slot, path in request["models"].items()
        }
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
            members.append(_member(name, source, archives))
        write_archive(
            OUTPUT,
            "jmir",
            {
                "description": f"{kind.name} pipeline",
                "name": composition.pipeline.name,
                "kind": kind.name,
            },
            members,
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


def _member(name: str, source: SourceMember | bytes, archives: Mapping[str, Archive]) -> Member:
    role = "graph" if name.endswith(".onnx") else "asset"
    if isinstance(source, bytes):
        return Member(name, role, "made by the pipeline", data=source)
    scratch = Path(f"member-{name.replace('/', '-')}")
    archives[source.slot].extract(source.member, scratch)
    return Member(name, role, f"`{source.member}` of {source.slot}", path=scratch)


if __name__ == "__main__":
    sys.exit(run_tool(build_jmir))
