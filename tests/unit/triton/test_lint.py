"""Small broken repositories, each with the one finding that it must give."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jarvis_rules.errors import JarvisError
from jarvis_rules.triton.lint import check_repository, lint_repository

READER = """
name: "reader"
backend: "python"
max_batch_size: 8
input { name: "AUDIO" data_type: TYPE_FP32 dims: -1 }
input { name: "HINT" data_type: TYPE_STRING dims: 1 optional: true }
output { name: "FEATURES" data_type: TYPE_FP32 dims: [4, -1] }
output { name: "COUNT" data_type: TYPE_INT64 dims: 1 }
parameters { key: "window_file" value { string_value: "window.npy" } }
instance_group { kind: KIND_AUTO }
"""
NET = """
name: "net"
platform: "onnxruntime_onnx"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [4, -1] }
input { name: "n" data_type: TYPE_INT64 dims: 1 reshape { shape: [] } }
output { name: "y" data_type: TYPE_FP32 dims: [-1, 4] }
"""
ASR = """
name: "asr"
platform: "ensemble"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: -1 }
output { name: "OUT" data_type: TYPE_FP32 dims: [-1, 4] }
ensemble_scheduling {
  step {
    model_name: "reader" model_version: -1
    input_map { key: "AUDIO" value: "IN" }
    output_map { key: "FEATURES" value: "features" }
    output_map { key: "COUNT" value: "count" }
  }
  step {
    model_name: "net" model_version: -1
    input_map { key: "x" value: "features" }
    input_map { key: "n" value: "count" }
    output_map { key: "y" value: "OUT" }
  }
}
"""
Edit = Callable[[Path], object]


def write_model(path: Path) -> None:
    from onnx import TensorProto, helper, save

    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["t"], perm=[0, 2, 1]),
            helper.make_node("Mul", ["t", "scale"], ["y"]),
        ],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4, "T"]),
            helper.make_tensor_value_info("n", TensorProto.INT64, ["N"]),
            # Before IR version 4 weights had to be inputs too.
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", "T", 4])],
        [helper.make_tensor("scale", TensorProto.FLOAT, [1], [2.0])],
    )
    opset = [helper.make_opsetid("", 17)]
    save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    for name, config in (("reader", READER), ("net", NET), ("asr", ASR)):
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(config)
    (root / "reader" / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    write_model(root / "net" / "1" / "model.onnx")
    (root / "README").write_text("files in the root are ignored by Triton\n")
    return root


def put(model: str, old: str, new: str) -> Edit:
    """Replace text in a model's configuration."""

    def edit(root: Path) -> None:
        path = root / model / "config.pbtxt"
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new, 1))

    return edit


def both(*edits: Edit) -> Edit:
    return lambda root: [edit(root) for edit in edits]


STEP = "step {\n    model_name:"
CASES: dict[str, tuple[Edit, list[tuple[str, str]]]] = {
    "hidden folder": (
        lambda root: (root / ".staging").mkdir(),
        [(".staging", "repository.stray-directory")],
    ),
    "folder without config": (
        lambda root: (root / "old").mkdir(),
        [("old", "repository.stray-directory")],
    ),
    "model without config": (
        lambda root: (root / "old" / "1").mkdir(parents=True),
        [("old", "config.missing")],
    ),
    "unknown field": (
        put("net", "max_batch_size", "max_batch_sise"),
        [("net", "config.parse")],
    ),
    "two scheduling choices": (
        put("asr", "max_batch_size: 8", "max_batch_size: 8 dynamic_batching { }"),
        [("asr", "config.parse")],
    ),
    "call of an absent model": (
        put(
            "reader",
            'key: "window_file" value { string_value: "window.npy" }',
            'key: "calls" value { string_value: "nt" }',
        ),
        [("reader", "python.unknown-call")],
    ),
    "wrong name": (put("reader", '"reader"', '"readr"'), [("reader", "config.name")]),
    "no name": (put("reader", 'name: "reader"', ""), [("reader", "config.name")]),
    "no backend": (
        put("reader", 'backend: "python"', ""),
        [("reader", "config.backend")],
    ),
    "absolute path": (
        put("reader", "window.npy", "/data/models/reader/1/window.npy"),
        [("reader", "config.absolute-path")],
    ),
    "needless GPU": (
        put("reader", "KIND_AUTO", "KIND_GPU"),
        [("reader", "config.kind-gpu")],
    ),
    "ensemble without version": (
        lambda root: (root / "asr" / "1").rmdir(),
        [("asr", "version.missing")],
    ),
    "leading zero": (
        lambda root: (root / "reader" / "1").rename(root / "reader" / "01"),
        [("reader", "version.missing")],
    ),
    "half-made python version": (
        lambda root: (root / "reader" / "2").mkdir(),
        [("reader", "python.model-missing")],
    ),
    "missing model file": (
        lambda root: (root / "net" / "1" / "model.onnx").unlink(),
        [("net", "model.file-missing")],
    ),
    "other file name": (
        put("net", "max_batch_size", 'default_model_filename: "a.onnx" max_batch_size'),
        [("net", "model.file-missing")],
    ),
    "damaged model": (
        lambda root: (root / "net" / "1" / "model.onnx").write_bytes(b"\xff\xff\xff"),
        [("net", "onnx.unreadable")],
    ),
    "model lacks an output": (
        put("net", "output", 'output { name: "z" data_type: TYPE_FP32 dims: 1 } output'),
        [("net", "onnx.signature")],
    ),
    "unknown step": (
        put("asr", 'model_name: "net"', 'model_name: "nets"'),
        [("asr", "ensemble.unknown-model")],
    ),
    "unknown input": (
        put("asr", 'key: "AUDIO"', 'key: "AUDIOS"'),
        [
            ("asr", "ensemble.input-unmapped"),
            ("asr", "ensemble.unknown-tensor"),
        ],
    ),
    "unmapped input": (
        put("asr", '    input_map { key: "n" value: "count" }\n', ""),
        [("asr", "ensemble.input-unmapped"), ("asr", "ensemble.tensor-unused")],
    ),
    "made twice": (
        put("asr", 'key: "COUNT" value: "count"', 'key: "COUNT" value: "features"'),
        [("asr", "ensemble.tensor-missing"), ("asr", "ensemble.tensor-twice")],
    ),
    "unused input": (
        put("asr", "input {", 'input { name: "MORE" data_type: TYPE_FP32 dims: 1 } input {'),
        [("asr", "ensemble.tensor-unused")],
    ),
    "output never made": (
        put("asr", "output {", 'output { name: "MORE" data_type: TYPE_FP32 dims: 1 } output {'),
        [("asr", "ensemble.tensor-missing")],
    ),
    "other type": (
        put("asr", '"OUT" data_type: TYPE_FP32', '"OUT" data_type: TYPE_FP16'),
        [("asr", "ensemble.dtype")],
    ),
    "other dims": (put("asr", "dims: [-1, 4]", "dims: [-1, 5]"), [("asr", "ensemble.dims")]),
    "other rank": (put("asr", "dims: [-1, 4]", "dims: 4"), [("asr", "ensemble.dims")]),
    "batch too large": (
        put("asr", "max_batch_size: 8", "max_batch_size: 16"),
        [("asr", "ensemble.batch"), ("asr", "ensemble.batch")],
    ),
    "cycle": (
        both(
            put("asr", 'key: "AUDIO" value: "IN"', 'key: "AUDIO" value: "OUT"'),
            put("asr", "dims: [-1, 4]", "dims: -1"),
            put("net", "dims: [-1, 4]", "dims: -1"),
            put("asr", 'input { name: "IN" data_type: TYPE_FP32 dims: -1 }', ""),
        ),
        [("asr", "ensemble.cycle"), ("net", "onnx.signature")],
    ),
    "no steps": (
        lambda root: (root / "asr" / "config.pbtxt").write_text(
            ASR.partition("ensemble_scheduling")[0] + "ensemble_scheduling { }"
        ),
        [("asr", "ensemble.steps")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_each_fault_is_found_and_nothing_else(case: str, repository: Path) -> None:
    edit, expected = CASES[case]
    edit(repository)
    findings = lint_repository(repository)
    assert [(finding.model, finding.slug) for finding in findings] == expected
    assert all(finding.hint and not finding.message.endswith(".") for finding in findings)


def test_a_good_repository_has_no_findings(repository: Path) -> None:
    assert lint_repository(repository) == []
    check_repository(repository)


def test_packages_may_lie_elsewhere_on_the_server(repository: Path) -> None:
    put("reader", 'key: "window_file"', 'key: "EXECUTION_ENV_PATH"')(repository)
    put("reader", "window.npy", "/srv/models/runtime-env.tar.gz")(repository)
    assert lint_repository(repository) == []


def test_an_ensemble_without_a_batch_may_run_models_with_one(repository: Path) -> None:
    put("asr", "max_batch_size: 8", "max_batch_size: 0")(repository)
    assert lint_repository(repository) == []


def test_the_place_of_an_unknown_field_is_named(repository: Path) -> None:
    CASES["unknown field"][0](repository)
    (finding,) = lint_repository(repository)
    assert "4:1" in finding.message
    assert "max_batch_sise" in finding.message


def test_an_unknown_step_is_answered_with_a_suggestion(repository: Path) -> None:
    CASES["unknown step"][0](repository)
    (finding,) = lint_repository(repository)
    assert finding.hint == "did you mean `net`?"


def test_check_lists_every_finding(repository: Path) -> None:
    (repository / ".staging").mkdir()
    CASES["needless GPU"][0](repository)
    with pytest.raises(JarvisError) as caught:
        check_repository(repository)
    assert caught.value.slug == "repository.lint"
    assert "2 faults" in caught.value.message
    assert "[repository.stray-directory]" in caught.value.message
    assert "[config.kind-gpu]" in caught.value.message


def test_an_empty_repository_is_a_finding(tmp_path: Path) -> None:
    assert [finding.slug for finding in lint_repository(tmp_path)] == ["repository.empty"]


def test_a_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(JarvisError) as caught:
        lint_repository(tmp_path / "none")
    assert caught.value.slug == "repository.missing"


def test_a_symlinked_repository_is_followed(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(repository)
    assert lint_repository(tmp_path / "current") == []
    shutil.rmtree(repository / "net")
    assert [f.slug for f in lint_repository(tmp_path / "current")] == ["ensemble.unknown-model"]


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("reader/config.pbtxt", "config.missing"),
        ("reader/1/model.py", "model.file-empty"),
        ("net/1/model.onnx", "model.file-empty"),
    ],
)
def test_a_pipe_is_a_fault_and_is_not_opened(repository: Path, name: str, slug: str) -> None:
    (repository / name).unlink()
    os.mkfifo(repository / name)
    found = {finding.model: finding.slug for finding in lint_repository(repository)}
    assert found[name.partition("/")[0]] == slug
