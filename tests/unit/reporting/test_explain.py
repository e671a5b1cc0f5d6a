"""Whose action made a file: the record beside a target, or of the manifest that lists the file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import IntegrityError
from jarvis_rules.reporting.explain import find_record


def write_tree(manifest: Path, record: Path, tree: Path, *names: str) -> None:
    for name in names:
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).touch()
    files = {name: digest_bytes(b"").to_json() for name in names}
    manifest.write_text(json.dumps({"files": files}))
    record.touch()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Two repositories in one folder, the engines of one, and converted graphs."""
    out = tmp_path / "out"
    for name in ("asr", "nlp"):
        models, record = out / "cpu" / "models", out / "cpu" / f"{name}.repository.json.action.json"
        files = (f"{name}/config.pbtxt", f"{name}/1/.keep")
        models.mkdir(parents=True, exist_ok=True)
        write_tree(models / f"{name}.repository.json", record, models, *files)
    for folder, name, kind in (("cpu", "asr", "engines"), ("any", "asr.fp16", "graphs")):
        manifest = out / folder / f"{name}.{kind}.json"
        tree = out / folder / kind / name
        tree.mkdir(parents=True)
        record = manifest.with_name(f"{manifest.name}.action.json")
        write_tree(manifest, record, tree, "net/model.onnx")
    return out


@pytest.mark.parametrize(
    ("path", "record"),
    [
        ("cpu/asr.engines.json", "cpu/asr.engines.json"),
        ("cpu/models/asr.repository.json", "cpu/asr.repository.json"),
        ("cpu/models/asr/config.pbtxt", "cpu/asr.repository.json"),
        ("cpu/models/nlp/1/.keep", "cpu/nlp.repository.json"),
        ("cpu/engines/asr/net/model.onnx", "cpu/asr.engines.json"),
        ("any/graphs/asr.fp16/net/model.onnx", "any/asr.fp16.graphs.json"),
    ],
)
def test_a_file_stands_for_the_action_whose_manifest_lists_it(out, path, record, monkeypatch):
    assert find_record(out / path) == out / f"{record}.action.json"
    monkeypatch.chdir((out / path).parent)
    assert find_record(Path(Path(path).name)) == out / f"{record}.action.json"


@pytest.mark.parametrize(
    "path", ["cpu/models/asr/1/__pycache__", "cpu/models/asr/model.py", "cpu/engines/asr/x", "a"]
)
def test_what_no_manifest_lists_has_no_record(out, path):
    assert find_record(out / path) is None


def test_a_manifest_that_is_no_file_is_not_opened(out):
    manifest = out / "cpu" / "models" / "asr.repository.json"
    manifest.unlink()
    os.mkfifo(manifest)
    with pytest.raises(IntegrityError, match="no regular file"):
        find_record(out / "cpu" / "models" / "asr" / "config.pbtxt")
