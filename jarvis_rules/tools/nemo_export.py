"""NemoExport: a `.nemo` checkpoint → an `.ejrvs` archive with ONNX graphs, or with weights.

Request: `model`: input path; `format`: `ONNX`, or `CKPT` for the checked weights as safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters.exporter import ExportedModel, SourceModel, export_model
from jarvis_rules.formats.archive import Member, dump_yaml, write_archive
from jarvis_rules.formats.nemo import NemoArchive, open_nemo
from jarvis_rules.tools.program import run_tool

OUTPUT = Path("outputs/model.ejrvs")
CONFIG = "model_config.yaml"
# What Jarvis 1.3's own converter wrote into every archive.
_FORMAT_VERSION, _ONNX_ARCHIVE_FORMAT, _MIN_NEMO_VERSION = 3, 1, "1.1"


def export_nemo(request: Mapping[str, Any]) -> None:
    """Export the model and write the archive."""
    path = Path(request["model"])
    with open_nemo(path) as archive:
        source = SourceModel(
            target=archive.target,
            config=archive.config,
            weights=archive.state_dict(),
            artifact=archive.artifact,
        )
        try:
            model = export_model(source)
        except JarvisError as error:
            raise error.at(str(path)) from None
        write_archive(OUTPUT, "ejrvs", _metadata(archive, model), _members(archive, model))


def _metadata(archive: NemoArchive, model: ExportedModel) -> dict[str, Any]:
    return {
        "description": f"{archive.target.rpartition('.')[2]} exported to ONNX",
        "obj_cls": archive.target,
        "origin": "NeMo",
        "runtime": "ONNX",
        "format_version": _FORMAT_VERSION,
        "onnx": True,
        "onnx_archive_format": _ONNX_ARCHIVE_FORMAT,
        "min_nemo_version": _MIN_NEMO_VERSION,
        "nemo_version": archive.nemo_version,
        "family": model.family,
        "facts": dict(model.facts),
        "graphs": sorted(model.graphs),
        "full_precision": {
            name: list(graph.full_precision_nodes)
            for name, graph in model.graphs.items()
            if graph.full_precision_nodes
        },
    }


def _members(archive: NemoArchive, model: ExportedModel) -> list[Member]:
    config = dump_yaml(archive.config)
    members = [Member(CONFIG, "config", "NeMo model configuration", data=config)]
    for name, graph in model.graphs.items():
        members.append(Member(name, "graph", "ONNX graph", write=graph.write))
    for name, data in model.assets.items():
        members.append(Member(name, "asset", "buffer of the checkpoint", data=data))
    return members


if __name__ == "__main__":
    sys.exit(run_tool(export_nemo))
