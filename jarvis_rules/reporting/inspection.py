"""What is in a checkpoint, an archive, a pipeline or a repository."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.reporting.subject import Subject

VERSION = 1


def describe(subject: Subject) -> dict[str, Any]:
    """Return what is in `subject`, with `format` telling what it is: see the schema `inspect`."""
    match subject.format:
        case "nemo":
            return _describe_nemo(subject.path)
        case "ejrvs":
            return _describe_ejrvs(subject)
        case "jmir":
            return _describe_jmir(subject)
        case "repository":
            return _describe_repository(subject.path)


def _describe_nemo(path: Path) -> dict[str, Any]:
    from jarvis_rules.exporters.exporter import SourceModel
    from jarvis_rules.formats.nemo import open_nemo
    from jarvis_rules.reporting.export_account import account_for_export

    with open_nemo(path) as archive:
        weights = archive.state_dict()
        return {
            "version": VERSION,
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
            "export": account_for_export(
                SourceModel(archive.target, archive.config, weights, archive.artifact)
            ),
        }


def _describe_ejrvs(subject: Subject) -> dict[str, Any]:
    from jarvis_rules.formats.archive import open_archive

    with open_archive(subject.path, "ejrvs", key=subject.key) as archive:
        manifest = archive.manifest
        return {
            "version": VERSION,
            "format": "ejrvs",
            "metadata": dict(manifest.metadata),
            "graphs": _describe_graphs(manifest.metadata),
            "members": [{"name": name, **file} for name, file in manifest.files.items()],
        }


def _describe_graphs(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the graphs of an archive; their tensors are null where its facts do not say."""
    facts, marked = metadata["facts"], metadata.get("full_precision", {})
    each = facts.get("graphs")
    graphs = []
    for name in metadata["graphs"]:
        tensors = facts if len(metadata["graphs"]) == 1 and "inputs" in facts else {}
        if isinstance(each, Mapping) and isinstance(each.get(name), Mapping):
            tensors = each[name]
        graphs.append(
            {
                "name": name,
                "inputs": _tensors(tensors.get("inputs")),
                "outputs": _tensors(tensors.get("outputs")),
                "full_precision_nodes": len(marked.get(name, ())),
            }
        )
    return graphs


def _tensors(described: Any) -> Any:
    """Return `described` if it is a list of tensors, else None: facts may hold anything."""
    is_list = isinstance(described, list) and all(
        isinstance(tensor, Mapping)
        and tensor.keys() == {"name", "dtype", "shape"}
        and isinstance(tensor["name"], str)
        and isinstance(tensor["dtype"], str)
        and isinstance(tensor["shape"], list)
        and all(
            isinstance(size, int | str) and not isinstance(size, bool) for size in tensor["shape"]
        )
        for tensor in described
    )
    return described if is_list else None


def _describe_jmir(subject: Subject) -> dict[str, Any]:
    """Return a pipeline; its document is null where it is encrypted and no key was given."""
    from jarvis_rules.formats.archive import open_archive
    from jarvis_rules.formats.jmir import read_pipeline

    with open_archive(subject.path, "jmir", key=subject.key) as archive:
        manifest = archive.manifest
        is_closed = manifest.encryption is not None and subject.key is None
        return {
            "version": VERSION,
            "format": "jmir",
            "content_digest": manifest.content_digest,
            "metadata": dict(manifest.metadata),
            "pipeline": None if is_closed else read_pipeline(archive).to_json(),
            "members": [{"name": name, **file} for name, file in manifest.files.items()],
        }


def _describe_repository(path: Path) -> dict[str, Any]:
    from jarvis_rules.reporting.repository_folder import list_manifests, read_manifest

    pipelines = [read_manifest(manifest) for manifest in list_manifests(path)]
    return {"version": VERSION, "format": "repository", "pipelines": pipelines}
