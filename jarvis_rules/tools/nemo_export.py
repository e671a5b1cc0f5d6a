"""NemoExport: a `.nemo` checkpoint → an `.ejrvs` archive with ONNX graphs, or with weights.

Request: `model`: input path; `format`: `ONNX`, or `CKPT` for the checked weights as safetensors.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters.exporter import ExportedModel, SourceModel, export_model
from jarvis_rules.formats.archive_manifest import MAC, MANIFEST, dump_yaml
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.nemo import NemoArchive, artifact_name, open_nemo
from jarvis_rules.formats.safetensors import write_safetensors
from jarvis_rules.onnx_graph.graph import Graph
from jarvis_rules.tools.program import key_of, run_tool

OUTPUT = Path("outputs/model.ejrvs")
CONFIG = "model_config.yaml"
WEIGHTS = "model_weights.safetensors"
# What Jarvis 1.3's own converter wrote into every archive.
_FORMAT_VERSION, _ONNX_ARCHIVE_FORMAT = 3, 1
# Facts of the graphs, which an archive of weights does not have.
_GRAPH_FACTS = ("inputs", "outputs", "graphs")


def export_nemo(request: Mapping[str, Any]) -> None:
    """Export the model and write the archive."""
    path = Path(request["model"])
    with open_nemo(path) as archive:
        artifacts = _Artifacts(archive)
        source = SourceModel(
            target=archive.target,
            config=archive.config,
            weights=archive.state_dict(),
            artifact=artifacts.read,
        )
        try:
            model = export_model(source)
        except JarvisError as error:
            raise error.at(str(path)) from None
        members = [
            Member(CONFIG, "config", "NeMo model configuration", data=dump_yaml(archive.config)),
            *_asset_members(model, artifacts),
        ]
        if request["format"] == "CKPT":
            metadata = _metadata(archive, model) | _weights_metadata(archive, model)
            write = partial(write_safetensors, source.weights)
            members.append(Member(WEIGHTS, "weights", "checked weights", write=write))
        else:
            metadata = _metadata(archive, model) | _graphs_metadata(archive, model)
            for name, graph in model.graphs.items():
                members += _graph_members(name, graph)
        write_archive(OUTPUT, "ejrvs", metadata, members, key_of(request, "archive"))


def _graph_members(name: str, graph: Graph) -> Iterator[Member]:
    """Yield a graph, and its weights by themselves where no ONNX file can hold both."""
    if not graph.is_split():
        yield Member(name, "graph", "ONNX graph", write=graph.write)
        return
    weights = f"{name}.data"
    write = partial(graph.write, weights=PurePosixPath(weights).name)
    yield Member(name, "graph", "ONNX graph", write=write)
    yield Member(weights, "weights", f"weights of {name}", write=graph.write_weights)


@dataclass(slots=True)
class _Artifacts:
    """Artifacts of the checkpoint, and a memory of those that the exporter asked for."""

    archive: NemoArchive
    contents: dict[str, bytes] = field(default_factory=dict)

    def read(self, reference: str) -> bytes:
        self.contents[reference] = self.archive.artifact(reference)
        return self.contents[reference]

    def places(self) -> Iterator[tuple[str, str]]:
        """Yield every dotted key whose value names such an artifact, with the value."""
        yield from _keys(self.archive.config, self.contents)


def _keys(
    section: Mapping[str, Any], values: Container[str], prefix: str = ""
) -> Iterator[tuple[str, str]]:
    for name, value in section.items():
        if isinstance(value, Mapping):
            yield from _keys(value, values, f"{prefix}{name}.")
        elif isinstance(value, str) and value in values:
            yield f"{prefix}{name}", value


def _asset_members(model: ExportedModel, artifacts: _Artifacts) -> Iterator[Member]:
    """Yield the assets, and what else was read of the checkpoint, each with the key it came from.

    Configurations name files of the checkpoint and members have names of their own.
    """
    places: dict[str, str] = {}
    rest: dict[str, tuple[str, bytes]] = {}
    taken = {CONFIG, WEIGHTS, MANIFEST, MAC, *model.graphs, *model.assets}
    for key, reference in artifacts.places():
        content = artifacts.contents[reference]
        # A family may write a label file without the line ends behind it.
        same = [n for n, data in model.assets.items() if data.rstrip() == content.rstrip()]
        name = same[0] if same else artifact_name(reference)
        if same:
            places.setdefault(name, key)
        elif name not in taken:
            rest.setdefault(name, (key, content))
    for name, data in model.assets.items():
        place = places.get(name)
        yield Member(name, "asset", "buffer of the checkpoint", data=data, conf_path=place)
    for name, (key, data) in rest.items():
        yield Member(name, "asset", "file of the checkpoint", data=data, conf_path=key)


def _metadata(archive: NemoArchive, model: ExportedModel) -> dict[str, Any]:
    return {
        "obj_cls": archive.target,
        "origin": "NeMo",
        "format_version": _FORMAT_VERSION,
        "has_pytorch_checkpoint": False,
        "nemo_version": archive.nemo_version,
        # No other NeMo is known to read it.
        **({"min_nemo_version": archive.nemo_version} if archive.nemo_version else {}),
        "family": model.family,
    }


def _graphs_metadata(archive: NemoArchive, model: ExportedModel) -> dict[str, Any]:
    return {
        "description": f"{archive.target.rpartition('.')[2]} exported to ONNX",
        "runtime": "ONNX",
        "onnx": True,
        "onnx_archive_format": _ONNX_ARCHIVE_FORMAT,
        "facts": dict(model.facts),
        "graphs": sorted(model.graphs),
        "full_precision": {
            name: list(graph.full_precision_nodes)
            for name, graph in model.graphs.items()
            if graph.full_precision_nodes
        },
    }


def _weights_metadata(archive: NemoArchive, model: ExportedModel) -> dict[str, Any]:
    return {
        "description": f"weights of {archive.target.rpartition('.')[2]}",
        "runtime": "CKPT",
        "onnx": False,
        "facts": {name: fact for name, fact in model.facts.items() if name not in _GRAPH_FACTS},
        "graphs": [],
    }


if __name__ == "__main__":
    sys.exit(run_tool(export_nemo))
