"""Two of a kind that differ in one thing: checkpoints, archives, pipelines, repositories."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.engines.engine import EngineSpec, find_engine
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.jmir import read_pipeline
from jarvis_rules.triton.repository import (
    EngineFile,
    compose_repository,
    repository_manifest,
    write_repository,
)

OURS = ("archive_format", "archive_version", "content_digest", "encryption")


class Edits:
    """Writes edited copies of the golden files to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def checkpoint(self, source: Path, *, config=None, weights=None, name="edited.nemo") -> Path:
        """A `.nemo` with another configuration, or with other bytes of a storage."""
        path = self.folder / name
        with tarfile.open(source) as old, tarfile.open(path, "w") as new:
            for member in filter(tarfile.TarInfo.isfile, old.getmembers()):
                data = old.extractfile(member).read()
                if config is not None and member.name.endswith("model_config.yaml"):
                    document = yaml.safe_load(data)
                    config(document)
                    data = yaml.safe_dump(document, sort_keys=False).encode()
                if weights is not None and member.name.endswith("model_weights.ckpt"):
                    data = self._repacked(data, weights)
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        return path

    def _repacked(self, data: bytes, change) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
            for info in old.infolist():
                new.writestr(info.filename, bytes(change(info.filename, old.read(info))))
        return out.getvalue()

    def archive(self, source: Path, *, key=None, metadata=None, name=None, **members) -> Path:
        """An archive written anew; `members` maps a member to a function of its bytes.

        A function that returns None leaves its member out.
        """
        path = self.folder / (name or f"edited{source.suffix}")
        with open_archive(source) as archive:
            kept = {k: v for k, v in archive.manifest.metadata.items() if k not in OURS}
            if metadata is not None:
                metadata(kept)
            changes = members.get("members", {})
            written = []
            for file, properties in archive.manifest.files.items():
                data = changes.get(file, bytes)(archive.read(file))
                if data is not None:
                    written.append(Member(file, properties["role"], "", data=data))
            write_archive(path, archive.manifest.kind, kept, written, key)
        return path

    def packed(self, source: Path, change, name=None) -> Path:
        """An archive whose members `change` has edited, and whose manifest it has not."""
        path = self.folder / (name or f"packed{source.suffix}")
        with tarfile.open(source) as old:
            data = {member.name: old.extractfile(member).read() for member in old}
        change(data)
        with tarfile.open(path, "w:gz", compresslevel=0) as new:
            for name_, content in data.items():
                info = tarfile.TarInfo(name_)
                info.size = len(content)
                new.addfile(info, io.BytesIO(content))
        return path

    def pipeline(self, source: Path, change, **options) -> Path:
        """A `.jmir` with another document."""

        def edit(data: bytes) -> bytes:
            document = json.loads(data)
            change(document)
            return json.dumps(document).encode()

        return self.archive(source, members={"pipeline.json": edit}, **options)

    def graph(self, source: Path, member: str, change, **options) -> Path:
        """An archive with another graph."""
        import onnx

        def edit(data: bytes) -> bytes:
            model = onnx.load_model_from_string(data)
            change(model)
            return model.SerializeToString(deterministic=True)

        return self.archive(source, members={member: edit}, **options)


@pytest.fixture
def edits(tmp_path):
    folder = tmp_path / "edits"
    folder.mkdir()
    return Edits(folder)


@pytest.fixture(scope="session")
def built_repository(tmp_path_factory, jmir):
    root = tmp_path_factory.mktemp("repository")
    engine, gpu = find_engine("onnxruntime"), find_gpu("cpu")
    with open_archive(jmir, "jmir") as archive:
        pipeline = read_pipeline(archive)
        graph, file = root / "graph.onnx", root / "model.onnx"
        archive.extract("acoustic_model/model_graph.onnx", graph)
        built = engine.build(EngineSpec(graph, gpu), file)
        description = {
            "toolchain": engine.name,
            "toolchain_version": built.toolchain_version,
            "portable": built.portable,
            "backend": engine.backend,
            "file": engine.file,
            "inputs": list(built.inputs),
            "outputs": list(built.outputs),
        }
        engines = {"acoustic_model": EngineFile(engine.prefix, description, file)}
        files = compose_repository(pipeline, engines)
        models = root / "models"
        listed = write_repository(files, archive, models)
        manifest = repository_manifest(
            pipeline, archive.manifest.content_digest, engines, gpu.to_json(), listed
        )
        (models / "control.repository.json").write_bytes(manifest)
    return models


@pytest.fixture
def repository(built_repository, tmp_path):
    """A repository of one pipeline, to be spoilt."""
    return Path(shutil.copytree(built_repository, tmp_path / "models"))
