"""How engines of every kind are served: configurations, files, and what the linter says."""

from __future__ import annotations

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.jmir import Module, Pipeline, Tensor
from jarvis_rules.triton.lint import lint_repository
from jarvis_rules.triton.repository import EngineFile, carried_modules, compose_repository

TENSORS = {
    "inputs": [
        {"name": "x", "dtype": "FP32", "dims": [-1, 64, -1]},
        {"name": "length", "dtype": "INT64", "dims": [-1]},
    ],
    "outputs": [{"name": "y", "dtype": "FP32", "dims": [-1, -1, 29]}],
}


def profile(rows, size):
    return {
        "x": {"min": [1, 64, 1], "opt": [rows, 64, size], "max": [rows, 64, size]},
        "length": {"min": [1], "opt": [rows], "max": [rows]},
    }


def described(**changes):
    return {
        "toolchain": "tensorrt_rtx", "toolchain_version": "1.7.1.116", "backend": "python",
        "file": "model.engine", "graph": "1" * 64, "profiles": [profile(8, 400)],
        **TENSORS, **changes,
    }  # fmt: skip


@pytest.fixture
def pipeline():
    inputs = (Tensor("x", "FP32", (64, -1)), Tensor("length", "INT64", (1,), reshape=()))
    outputs = (Tensor("y", "FP32", (-1, 29)),)
    module = Module("am", "p-am", "engine:am", 8, inputs, outputs, instance_group_count=2)
    edges = [("pipeline.x", "am.x"), ("pipeline.length", "am.length"), ("am.y", "pipeline.y")]
    return Pipeline(
        name="p", kind="k", language_code="en-US", max_batch_size=8,
        inputs=(Tensor("x", "FP32", (64, -1)), Tensor("length", "INT64", (1,))),
        outputs=outputs, modules=(module,), edges=tuple(edges), models={}, options=(),
    )  # fmt: skip


@pytest.fixture
def compose(pipeline, tmp_path):
    """Return a function that writes the repository of one engine, and returns its model's."""

    def composed(prefix, description, content=b"an engine", **more):
        path = tmp_path / "built" / description["file"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        engine = EngineFile(prefix, description, path, **more)
        files = compose_repository(pipeline, {"am": engine})
        read = {name: source.read_bytes() for name, source in files.paths.items()}
        for name, data in {**files.data, **read}.items():
            (tmp_path / "models" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "models" / name).write_bytes(data)
        return tmp_path / "models" / f"jarvis-{prefix}-p-am"

    return composed


def config_of(model):
    text = (model / "config.pbtxt").read_text()
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def accelerator_of(model):
    (found,) = config_of(model).optimization.execution_accelerators.gpu_execution_accelerator
    assert found.name == "tensorrt"
    return dict(found.parameters)


RTX = {"runtime": "tensorrt_rtx", "compute_capabilities": ("8.0", "8.9")}


def test_an_engine_of_tensorrt_rtx_is_a_python_model(compose):
    model = compose("rtx", described(), **RTX)
    config = config_of(model)
    assert (config.name, config.backend, config.max_batch_size) == (model.name, "python", 8)
    assert {key: value.string_value for key, value in config.parameters.items()} == {
        "engine_file": "model.engine",
        "engine_compute_capabilities": "8.0,8.9",
        "engine_version": "1.7.1.116",
    }
    (group,) = config.instance_group
    assert (group.kind, group.count) == (model_config_pb2.ModelInstanceGroup.KIND_AUTO, 2)
    assert group.profile == []
    assert (config.default_model_filename, config.platform) == ("", "")
    assert config.HasField("dynamic_batching")
    assert (model / "1" / "model.engine").read_bytes() == b"an engine"
    assert "jarvis_runtime.tensorrt_rtx import" in (model / "1" / "model.py").read_text()
    carried = {path.stem for path in (model / "1" / "jarvis_runtime").iterdir()}
    assert carried == {*carried_modules("tensorrt_rtx"), "__init__"}
    assert carried >= {"cuda_memory", "tensorrt_execution", "shape_profiles", "serving"}
    assert lint_repository(model.parent) == []


def test_a_plan_of_tensorrt_is_what_a_stock_triton_serves(compose):
    model = compose("trt", described(backend="tensorrt", file="model.plan"))
    config = config_of(model)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert config.instance_group[0].profile == []
    assert not config.parameters
    assert not config.HasField("optimization")
    assert lint_repository(model.parent) == []


def test_triton_is_told_of_all_profiles_of_a_plan(compose):
    profiles = [profile(8, 100), profile(8, 400), profile(1, 2000)]
    model = compose("trt", described(backend="tensorrt", file="model.plan", profiles=profiles))
    assert config_of(model).instance_group[0].profile == ["0", "1", "2"]
    assert lint_repository(model.parent) == []


ONNX = {"backend": "onnxruntime", "file": "model.onnx"}


def test_the_accelerator_of_the_onnx_runtime_backend(compose):
    profiles = [profile(8, 100), profile(1, 400)]
    description = described(**ONNX, accelerator={"precision": "fp16"}, profiles=profiles)
    parameters = accelerator_of(compose("onnx", description))
    assert parameters.pop("trt_engine_cache_path").startswith("jarvis-trt-cache-")
    assert parameters == {
        "precision_mode": "FP16",
        "trt_engine_cache_enable": "1",
        "trt_profile_min_shapes": "length:1,x:1x64x1,length:1,x:1x64x1",
        "trt_profile_opt_shapes": "length:8,x:8x64x100,length:1,x:1x64x400",
        "trt_profile_max_shapes": "length:8,x:8x64x100,length:1,x:1x64x400",
    }


def test_no_accelerator_that_nobody_asked_for(compose):
    assert not config_of(compose("onnx", described(**ONNX))).HasField("optimization")


def test_an_accelerator_without_profiles(compose):
    description = described(**ONNX, accelerator={"precision": "fp32"}, profiles=[])
    assert sorted(accelerator_of(compose("onnx", description))) == [
        "precision_mode",
        "trt_engine_cache_enable",
        "trt_engine_cache_path",
    ]


def test_graphs_of_unlike_weights_share_no_cache(compose):
    """ONNX Runtime names compiled engines after the graph's nodes, not after its weights."""

    def folder(**changes):
        description = described(**ONNX, accelerator={"precision": "fp32"}, **changes)
        return accelerator_of(compose("onnx", description))["trt_engine_cache_path"]

    folders = [folder(), folder(graph="2" * 64), folder(graph_data="3" * 64), folder()]
    assert folders[0] == folders[3]
    assert len({*folders}) == 3
    assert not any("/" in name for name in folders)


@pytest.mark.parametrize("more", [RTX, {}])
def test_an_engine_of_smaller_batches_is_refused(compose, more):
    profiles = [profile(4, 400), profile(7, 100)]
    with pytest.raises(IntegrityError, match=r"takes at most 7 rows, .* max_batch_size is 8") as e:
        compose("rtx", described(profiles=profiles), **more)
    assert e.value.slug == "repository.engine-batch"


def test_one_profile_that_takes_the_batch_is_enough(compose):
    compose("rtx", described(profiles=[profile(1, 400), profile(8, 100)]), **RTX)


@pytest.mark.parametrize(("prefix", "more"), [("rtx", RTX), ("trt", {})])
def test_an_empty_engine_is_found(compose, prefix, more):
    description = described() if more else described(backend="tensorrt", file="model.plan")
    model = compose(prefix, description, b"", **more)
    (finding,) = lint_repository(model.parent)
    assert finding.render() == (
        f"{model.name}: `1/{description['file']}` is empty [model.file-empty]"
    )


def test_a_missing_engine_is_found(compose):
    model = compose("rtx", described(), **RTX)
    (model / "1" / "model.engine").unlink()
    (finding,) = lint_repository(model.parent)
    assert finding.render() == (
        f"{model.name}: `1/model.engine`, the engine that it runs, is missing [model.file-missing]"
    )


def test_an_engine_may_be_bound_to_gpus_by_hand(compose):
    model = compose("rtx", described(), **RTX)
    config = (model / "config.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("count: 2", "count: 2 kind: KIND_GPU"))
    assert config_of(model).instance_group[0].kind == model_config_pb2.ModelInstanceGroup.KIND_GPU
    assert lint_repository(model.parent) == []
