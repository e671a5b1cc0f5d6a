"""The model repository: its files, its manifest, and what a foreign pipeline may not ask for."""

from __future__ import annotations

import dataclasses
import json

import pytest

from jarvis_rules.core.digest import digest_file
from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.engines.engine import find_engine
from jarvis_rules.errors import IntegrityError, JarvisBug
from jarvis_rules.execution.delivery import listed_files
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.jmir import read_pipeline
from jarvis_rules.formats.schema import validate
from jarvis_rules.triton.lint import lint_repository
from jarvis_rules.triton.repository import (
    EngineFile,
    RepositoryFiles,
    carried_modules,
    compose_repository,
    repository_manifest,
    served_name,
    write_repository,
)
from jarvis_rules.triton.runtime_requirements import render_requirements
from jarvis_rules.triton.target_lock import make_target_lock

ENGINE = "jarvis-onnx-control-am-streaming-offline"
FEATURES = "control-feature-extractor-streaming-offline"
DECODER = "control-ctc-decoder-cpu-streaming-offline"
TENSORS = {
    "inputs": [
        {"name": "audio_signal", "dtype": "FP32", "dims": [-1, 64, -1]},
        {"name": "length", "dtype": "INT64", "dims": [-1]},
    ],
    "outputs": [
        {"name": "logprobs", "dtype": "FP32", "dims": [-1, -1, 29]},
        {"name": "encoded_length", "dtype": "INT64", "dims": [-1]},
    ],
}


@pytest.fixture
def archive(jmir):
    with open_archive(jmir) as archive:
        yield archive


@pytest.fixture
def pipeline(archive):
    return read_pipeline(archive)


@pytest.fixture
def engines(archive, tmp_path):
    path = tmp_path / "model.onnx"
    archive.extract("acoustic_model/model_graph.onnx", path)
    description = {
        "toolchain": "onnxruntime",
        "toolchain_version": "1",
        "backend": "onnxruntime",
        "file": "model.onnx",
        "portable": True,
        **TENSORS,
    }
    prefix = find_engine("onnxruntime").prefix
    return {"acoustic_model": EngineFile(prefix, description, path)}


def test_the_repository_is_complete_and_faultless(archive, pipeline, engines, tmp_path):
    files = write_repository(compose_repository(pipeline, engines), archive, tmp_path / "m")
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"control", ENGINE, FEATURES, DECODER}
    assert lint_repository(tmp_path / "m") == []
    written = {
        p.relative_to(tmp_path / "m").as_posix() for p in (tmp_path / "m").rglob("*") if p.is_file()
    }
    assert set(files) == written
    for name, digest in files.items():
        assert digest == digest_file(tmp_path / "m" / name).to_json()
    assert f"{FEATURES}/1/featurizer_fb.npy" in files
    assert f"{DECODER}/1/jarvis_runtime/ctc_greedy.py" in files
    assert "control/1/.keep" in files
    shim = (tmp_path / "m" / DECODER / "1" / "model.py").read_text()
    assert "from jarvis_runtime.ctc_decoder import TritonPythonModel" in shim
    compile(shim, "model.py", "exec")
    assert max(map(len, shim.splitlines())) <= 100
    for model in (FEATURES, DECODER):
        needs = (tmp_path / "m" / model / "1" / "runtime-requirements.txt").read_bytes()
        assert needs == render_requirements(["numpy"])


def test_the_manifest(archive, pipeline, engines, tmp_path):
    files = write_repository(compose_repository(pipeline, engines), archive, tmp_path / "m")
    gpu = find_gpu("l4").to_json()
    manifest = tmp_path / "control.repository.json"
    digest = archive.manifest.content_digest
    manifest.write_bytes(repository_manifest(pipeline, digest, engines, gpu, files))
    document = json.loads(manifest.read_bytes())
    validate(document, "repository", "x")
    assert set(listed_files(manifest)) == set(files)
    assert document["models"] == sorted(["control", ENGINE, FEATURES, DECODER])
    assert (document["ensemble"], document["gpu"]) == ("control", gpu)
    assert document["target_lock"] == make_target_lock(gpu, document["engines"])
    assert str(tmp_path) not in manifest.read_text()


def test_what_travels_with_a_backend():
    assert carried_modules("ctc_decoder") == ("ctc_decoder", "ctc_greedy", "parameters", "serving")
    with pytest.raises(JarvisBug, match="no runtime module"):
        carried_modules("absent")


def replace_module(pipeline, index, **changes):
    modules = list(pipeline.modules)
    modules[index] = dataclasses.replace(modules[index], **changes)
    return dataclasses.replace(pipeline, modules=tuple(modules))


@pytest.mark.parametrize(
    ("index", "changes", "slug", "text"),
    [
        (1, {"uses": "engine:other"}, "missing-engine", "no engine `other`, built: acoustic_model"),
        (0, {"uses": "backend:absent"}, "unknown-backend", "no backend `absent`"),
        (0, {"uses": "backend:parameters"}, "unknown-backend", "no backend `parameters`"),
        (0, {"uses": "backend:__init__"}, "unknown-backend", "no backend `__init__`"),
        (0, {"parameters": {"calls": "x"}}, "unknown-call", "calls `x`, which is no module"),
        (0, {"model": "control"}, "duplicate-model", "named `control`"),
        (0, {"model": ENGINE}, "duplicate-model", f"named `{ENGINE}`"),
        (0, {"files": {"model.py": "pipeline.json"}}, "file-clash", "`model.py`"),
        (
            0,
            {"files": {"runtime-requirements.txt": "pipeline.json"}},
            "file-clash",
            "`runtime-requirements.txt`",
        ),
        (1, {"files": {"model.onnx": "pipeline.json"}}, "file-clash", "`model.onnx`"),
    ],
)
def test_a_pipeline_that_no_version_of_ours_makes_is_refused(
    pipeline, engines, index, changes, slug, text
):
    with pytest.raises(IntegrityError, match=text) as caught:
        compose_repository(replace_module(pipeline, index, **changes), engines)
    assert caught.value.slug == f"repository.{slug}"


def test_a_file_that_the_archive_lacks_is_named(archive, pipeline, engines, tmp_path):
    pipeline = replace_module(pipeline, 0, files={"x.npy": "absent"})
    with pytest.raises(IntegrityError, match="no member `absent`"):
        write_repository(compose_repository(pipeline, engines), archive, tmp_path / "m")


@pytest.mark.parametrize(
    ("where", "tensor"),
    [
        ("inputs", {"name": "audio_signal", "dtype": "FP16", "dims": [-1, 64, -1]}),
        ("inputs", {"name": "audio_signal", "dtype": "FP32", "dims": [-1, 80, -1]}),
        ("inputs", {"name": "audio_signal", "dtype": "FP32", "dims": [-1, 64]}),
        ("inputs", {"name": "audio", "dtype": "FP32", "dims": [-1, 64, -1]}),
        ("outputs", {"name": "logprobs", "dtype": "FP32", "dims": [-1, -1, 28]}),
    ],
)
def test_an_engine_of_other_tensors_is_refused(pipeline, engines, where, tensor):
    description = {**engines["acoustic_model"].description}
    description[where] = [tensor, *description[where][1:]]
    engines["acoustic_model"] = dataclasses.replace(
        engines["acoustic_model"], description=description
    )
    with pytest.raises(IntegrityError, match="of the engine is") as caught:
        compose_repository(pipeline, engines)
    assert caught.value.slug == "repository.engine-tensors"


def test_a_file_of_two_sources_is_a_bug(archive, tmp_path):
    files = RepositoryFiles(data={"m/x": b""}, members={"m/x": "pipeline.json"})
    with pytest.raises(JarvisBug, match="two sources"):
        write_repository(files, archive, tmp_path)


def test_served_names(pipeline, engines):
    assert [served_name(module, engines) for module in pipeline.modules] == [
        FEATURES,
        ENGINE,
        DECODER,
    ]


ENGINES = {
    "version": 1,
    "gpu": find_gpu("cpu").to_json(),
    "engines": {
        "acoustic_model": {
            "toolchain": "onnxruntime", "toolchain_version": "1", "backend": "onnxruntime",
            "file": "model.onnx", "graph": "0" * 64, "precision": "fp32", "portable": True,
            "options": {}, "driver_minimum": None, "profiles": [], "executed": "no", **TENSORS,
        }
    },
    "files": {},
}  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"file": "/etc/passwd"},
        {"file": "../../x"},
        {"file": "model.onnx\n"},
        {"toolchain": "../x"},
        {"inputs": [{"name": "x"}]},
        {"outputs": [1]},
    ],
)
def test_an_engines_manifest_may_not_name_what_is_outside(changes):
    validate(ENGINES, "engines", "x")
    engine = {**ENGINES["engines"]["acoustic_model"], **changes}
    with pytest.raises(IntegrityError, match="does not follow"):
        validate({**ENGINES, "engines": {"acoustic_model": engine}}, "engines", "x")
    with pytest.raises(IntegrityError, match="does not follow"):
        validate({**ENGINES, "engines": {"../x": engine}}, "engines", "x")
