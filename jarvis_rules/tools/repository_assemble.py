"""RepositoryAssemble: a `.jmir` and its engines → Triton models, and their manifest.

Request: `jmir`, `engines` (manifest), `engine_files` (folder) and `check` (report): input paths;
`backends`: names of the runtime modules that the pipeline may use. Key: `pipeline`, of an encrypted
`.jmir`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.engines.engine import TIMING_CACHE, find_engine
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.jmir import read_pipeline
from jarvis_rules.formats.schema import validate
from jarvis_rules.tools.program import key_of, run_tool
from jarvis_rules.triton.lint import check_repository
from jarvis_rules.triton.repository import (
    EngineFile,
    compose_repository,
    repository_manifest,
    write_repository,
)

MANIFEST = Path("outputs/repository.json")
TREE = Path("outputs/models")


def assemble_repository(request: Mapping[str, Any]) -> None:
    """Write the models, lint them, and write the manifest."""
    document = json.loads(Path(request["engines"]).read_bytes())
    validate(document, "engines", request["engines"])
    checks = json.loads(Path(request["check"]).read_bytes())
    validate(checks, "check", request["check"])
    folder = Path(request["engine_files"])
    engines = {
        name: EngineFile(
            find_engine(description["toolchain"]).prefix,
            {**description, "check": checks["engines"][name]},
            folder / name / description["file"],
            tuple(
                folder / file
                for file in document["files"]
                if file.startswith(f"{name}/")
                and file not in (f"{name}/{description['file']}", f"{name}/{TIMING_CACHE}")
            ),
            find_engine(description["toolchain"]).runtime,
            tuple(document["gpu"]["compute_capabilities"]),
        )
        for name, description in document["engines"].items()
    }
    with open_archive(Path(request["jmir"]), "jmir", key=key_of(request, "pipeline")) as archive:
        pipeline = read_pipeline(archive)
        for module in pipeline.modules:
            # The files of these backends are in the action's key, those of others are not.
            if module.backend is not None and module.backend not in request["backends"]:
                raise IntegrityError(
                    f"a pipeline of kind `{pipeline.kind}` has no backend `{module.backend}`",
                    slug="repository.unknown-backend",
                    where=f"module `{module.name}` of {request['jmir']}",
                    hint="make the archive again with `jarvis-build`",
                )
        files = write_repository(compose_repository(pipeline, engines), archive, TREE)
        check_repository(TREE)
        MANIFEST.write_bytes(
            repository_manifest(
                pipeline, archive.manifest.content_digest, engines, document["gpu"], files
            )
        )


if __name__ == "__main__":
    sys.exit(run_tool(assemble_repository))
