"""ArchiveValidate: an `.ejrvs` and schemas → a report on whether the archive complies.

Request: `archive`: input path; `schemas`: input paths; `is_chosen`: whether there is one schema,
which counts for any class. Else the schema of the archive's class is looked for among `schemas`,
then among those of this package. Key: `archive`, if it is encrypted. Report: `schema`, the index
of the one that counted, or its name in the package, or null where there is none; `faults`: texts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_schema import find_schema, packaged_schemas, read_schema
from jarvis_rules.formats.compliance import check_archive
from jarvis_rules.tools.program import key_of, run_tool

OUTPUT = Path("outputs/validation.json")


def validate_archive(request: Mapping[str, Any]) -> None:
    """Find the schema, check the archive, and write the report."""
    given = [read_schema(Path(path)) for path in request["schemas"]]
    with open_archive(Path(request["archive"]), "ejrvs", key=key_of(request, "archive")) as archive:
        obj_cls = archive.manifest.metadata["obj_cls"]
        schema = given[0] if request["is_chosen"] else find_schema(obj_cls, given)
        chosen: int | str | None = None if schema is None else given.index(schema)
        if schema is None and (schema := find_schema(obj_cls, packaged_schemas())) is not None:
            chosen = Path(schema.where).name
        faults = [] if schema is None else check_archive(archive, schema)
    OUTPUT.write_bytes(dump_readable_json({"schema": chosen, "faults": faults}))


if __name__ == "__main__":
    sys.exit(run_tool(validate_archive))
