"""Classical TensorRT, as far as it goes without its library.

The builder is the one that TensorRT-RTX uses, for real, in `test_tensorrt_rtx.py`. Here it runs
against what the bindings of TensorRT 10.13 and 11.4 declare (`fake_tensorrt.py`): a call that they
lack fails. Nothing here says that TensorRT builds anything.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
from onnx import helper

from jarvis_rules.core import toolchain
from jarvis_rules.core.toolchain import find_toolchain
from jarvis_rules.engines import tensorrt as classical
from jarvis_rules.engines._cuda_devices import CudaDevice, cuda_devices
from jarvis_rules.engines.engine import find_engine
from jarvis_rules.errors import JarvisError, ToolchainError, UsageError

from .tensorrt_testing import A100, BOTH, CPU, H100, V100, linear_model, make_model, write_spec

ENGINE = find_engine("tensorrt")
HERE = Path(__file__).parent
VERSIONS = ("10.13", "11.4")
DEVICES = (CudaDevice("NVIDIA L4", "8.9", "GPU-1"), CudaDevice("NVIDIA A100", "8.0", "GPU-2"))


@pytest.fixture(params=VERSIONS)
def version(request, monkeypatch, tmp_path_factory):
    """Put the fake where the child process imports it from, on a machine that has an A100."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "tensorrt.py").write_text((HERE / "fake_tensorrt.py").read_text())
    (folder / "tensorrt_api.json").write_text((HERE / "tensorrt_api.json").read_text())
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("FAKE_TENSORRT_API", request.param)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(classical, "cuda_devices", lambda: DEVICES)
    return request.param


def build(folder, model=None, **given):
    engine = folder / "engine" / ENGINE.file
    engine.parent.mkdir()
    spec = write_spec(folder, linear_model() if model is None else model, **given)
    return ENGINE.build(spec, engine), engine


def refusal(folder, **given):
    with pytest.raises(JarvisError) as caught:
        build(folder, **given)
    assert list((folder / "engine").iterdir()) == []
    assert caught.value.hint
    return caught.value


def test_a_build(version, tmp_path, capfd):
    phases = []
    built, engine = build(tmp_path, report=phases.append)
    assert built.toolchain_version.startswith(version)
    assert (built.portable, built.executed) == (
        False,
        "not executed: compiled on the target's GPU",
    )
    assert built.driver_minimum == {"10.13": "525", "11.4": "535"}[version]
    assert built.inputs == ({"name": "x", "dtype": "FP32", "dims": [-1, 4]},)
    assert built.outputs == ({"name": "y", "dtype": "FP32", "dims": [-1, 4]},)
    assert built.profiles == ({"x": {"min": (1, 4), "opt": (2, 4), "max": (4, 4)}},)
    # Bit 1 in 10.x, where bit 0 is EXPLICIT_BATCH; bit 0 in 11.x.
    assert json.loads(engine.read_bytes()) == {
        "network": {"10.13": 2, "11.4": 1}[version],
        "flags": [],
        "pools": {},
        "profiles": [{"x": [[1, 4], [2, 4], [4, 4]]}],
        "compatibility": "NONE",
        "devices": "GPU-2",
    }
    assert engine.with_name("timing.cache").read_bytes() == b"timings"
    assert phases == [
        "Checking the graph",
        "Loading TensorRT",
        "Parsing the graph",
        "Building engine",
        "Writing the engine",
    ]
    out = capfd.readouterr().out
    assert "a warning" in out
    assert re.search(r"^peak memory: \d+ MiB$", out, re.MULTILINE)


@pytest.mark.usefixtures("version")
def test_options(tmp_path):
    options = {
        "workspace_mib": 512,
        "version_compatible": True,
        "hardware_compatibility": "ampere_plus",
    }
    built, engine = build(tmp_path, options=options)
    plan = json.loads(engine.read_bytes())
    assert (plan["pools"], plan["flags"]) == ({"WORKSPACE": 512 << 20}, ["VERSION_COMPATIBLE"])
    assert plan["compatibility"] == "AMPERE_PLUS"
    assert not built.portable


def test_the_levels_are_those_of_the_option(version):
    declared = json.loads((HERE / "tensorrt_api.json").read_text())[version]
    levels = {name.lower() for name in declared["enums"]["HardwareCompatibilityLevel"]}
    assert {"none", "ampere_plus", "same_compute_capability"} <= levels


@pytest.mark.usefixtures("version")
def test_an_unknown_level(tmp_path):
    error = refusal(tmp_path, options={"hardware_compatibility": "pascal"})
    assert (type(error), error.slug) == (UsageError, "option.invalid")
    assert "ampere_plus" in error.hint


@pytest.mark.parametrize(
    ("cache", "words"),
    [(b"foreign", "does not take the timing cache"), (b"partial", "Timing cache miss")],
)
@pytest.mark.usefixtures("version")
def test_a_timing_cache_that_does_not_fit(tmp_path, cache, words):
    path = tmp_path / "given.cache"
    path.write_bytes(cache)
    error = refusal(tmp_path, timing_cache=path)
    assert error.slug == "engine.timing-cache"
    assert words in error.message


@pytest.mark.usefixtures("version")
def test_a_timing_cache_repeats_a_build(tmp_path):
    path = tmp_path / "given.cache"
    path.write_bytes(b"timings")
    _, engine = build(tmp_path, timing_cache=path)
    assert json.loads(engine.read_bytes())["flags"] == ["ERROR_ON_TIMING_CACHE_MISS"]
    assert engine.with_name("timing.cache").read_bytes() == b"timings"


@pytest.mark.parametrize(
    ("mode", "slug", "words"),
    [
        ("SIGSEGV", "engine.compiler-crashed", "in the phase `Building engine`: SIGSEGV ended it"),
        ("SIGABRT", "engine.compiler-crashed", "in the phase `Building engine`: SIGABRT ended it"),
        ("exit", "engine.compiler-crashed", "in the phase `Building engine`: it ended with code 3"),
        ("SIGKILL", "engine.memory", "SIGKILL ended TensorRT in the phase `Building engine`"),
        ("memory", "engine.memory", "there is not enough memory for TensorRT in the phase"),
        ("out-of-memory", "engine.memory", "not enough memory for TensorRT 1"),
        ("bad-profile", "engine.compiler-refused", "cannot compile the graph: it does not say why"),
        ("unparsed", "engine.compiler-refused", "at node `project` (MatMul): creator && \"Plugin"),
        ("no-driver", "engine.compiler-refused", "CUDA initialization failure with error: 35"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("version")
def test_what_goes_wrong_is_one_message(tmp_path, monkeypatch, mode, slug, words):
    monkeypatch.setenv("FAKE_TENSORRT", mode)
    error = refusal(tmp_path)
    assert (error.slug, error.where) == (slug, str(tmp_path / "graph.onnx"))
    assert words in error.message


@pytest.mark.usefixtures("version")
def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        ENGINE.build(write_spec(tmp_path, linear_model()), tmp_path / "missing" / ENGINE.file)
    assert caught.value.filename == str(tmp_path / "missing" / ENGINE.file)


@pytest.mark.usefixtures("version")
def test_an_operator_that_the_parser_does_not_know(tmp_path):
    model = make_model([helper.make_node("Unique", ["x"], ["y"])])
    del model.graph.output[0].type.tensor_type.shape.dim[1]
    error = refusal(tmp_path, model=model)
    assert error.slug == "engine.unsupported-operator"
    assert "knows no operator `Unique`" in error.message


@pytest.mark.parametrize(
    ("code", "slug", "words"),
    [
        ("raise ImportError('libnvinfer.so.10: cannot open')", "engine.compiler-missing", "libnv"),
        ("__version__ = '8.6.1'", "engine.version", "TensorRT 8.6.1 is installed, expected 10.x"),
    ],
)
@pytest.mark.usefixtures("version")
def test_a_library_that_does_not_do(tmp_path, monkeypatch, code, slug, words):
    (tmp_path / "tensorrt.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    error = refusal(tmp_path)
    assert (type(error), error.slug) == (ToolchainError, slug)
    assert words in error.message


@pytest.mark.parametrize("devices", [DEVICES[:1], ()])
@pytest.mark.usefixtures("version")
def test_the_gpu_is_looked_at_again_when_it_builds(tmp_path, monkeypatch, devices):
    monkeypatch.setattr(classical, "cuda_devices", lambda: devices)
    error = refusal(tmp_path)
    assert (type(error), error.slug) == (ToolchainError, "engine.machine")
    assert ("NVIDIA L4 (sm_89)" if devices else "no NVIDIA GPU") in error.message


@pytest.mark.usefixtures("version")
def test_one_gpu_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(classical, "cuda_devices", lambda: DEVICES[1:])
    _, engine = build(tmp_path)
    assert json.loads(engine.read_bytes())["devices"] is None


@pytest.mark.parametrize(
    ("gpu", "words", "hint"),
    [
        (CPU, "the target is `cpu`: `tensorrt` compiles for NVIDIA GPUs only", "onnxruntime"),
        (
            BOTH,
            "a100+l4 is sm_80 and sm_89: TensorRT builds for the one GPU",
            "GPU=a100 and GPU=l4",
        ),
        (V100, "v100 is sm_70: TensorRT 10.5 and later cannot target it", "ENGINE=onnxruntime"),
    ],
)
def test_targets_that_no_machine_builds_for(gpu, words, hint):
    with pytest.raises(UsageError, match=re.escape(words)) as caught:
        ENGINE.check_target(gpu, "fp32")
    assert caught.value.slug == "engine.target"
    assert hint in caught.value.hint


def test_targets_that_some_machine_builds_for():
    for gpu in (A100, H100):
        ENGINE.check_target(gpu, "fp16")
        assert ENGINE.default_precision(gpu) == "fp32"
        assert "never executed" in ENGINE.note(gpu)
    assert ENGINE.needs_gpu


@pytest.mark.parametrize(
    ("present", "words"),
    [
        ({}, "and this machine has no NVIDIA GPU"),
        (
            {"NVIDIA L4": "8.9"},
            "the target is h100 (sm_90), and this machine has NVIDIA L4 (sm_89)",
        ),
    ],
)
def test_a_machine_with_another_gpu(present, words):
    with pytest.raises(ToolchainError, match=re.escape(words)) as caught:
        ENGINE.check_machine(H100, present)
    assert caught.value.slug == "engine.machine"


def test_a_machine_without_the_library(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ToolchainError, match="TensorRT is not installed") as caught:
        ENGINE.check_machine(H100, {"NVIDIA H100": "9.0"})
    assert caught.value.slug == "toolchain.missing-package"
    assert "pip install tensorrt" in caught.value.hint
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    ENGINE.check_machine(H100, {"NVIDIA H100": "9.0"})


def test_the_driver_is_asked_without_one(monkeypatch):
    monkeypatch.setattr("jarvis_rules.engines._cuda_devices._LIBRARY", "libcuda-of-no-machine.so")
    assert cuda_devices() == ()


@pytest.fixture
def forgetful(monkeypatch, tmp_path_factory):
    """Read every fingerprint anew."""
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path_factory.mktemp("cache")))
    for cached in (toolchain._find_toolchain, toolchain._distribution_digest):
        cached.cache_clear()
    yield
    for cached in (toolchain._find_toolchain, toolchain._distribution_digest):
        cached.cache_clear()


def install(folder, distribution, *packages):
    """Make what pip leaves of a distribution that provides these packages."""
    information = folder / f"{distribution.replace('-', '_')}-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Name: {distribution}\nVersion: 1")
    rows = []
    for package in packages:
        (folder / package).mkdir()
        (folder / package / "__init__.py").write_text(distribution)
        rows.append(f"{package}/__init__.py,sha256=of-{distribution},1")
    (information / "RECORD").write_text("\n".join(rows))


@pytest.mark.parametrize(
    "distributions",
    [
        {
            "tensorrt-cu12": ["tensorrt"],
            "tensorrt-cu12-bindings": ["tensorrt_bindings"],
            "tensorrt-cu12-libs": ["tensorrt_libs"],
        },
        {
            "tensorrt-cu13": ["tensorrt"],
            "tensorrt-cu13-bindings": ["tensorrt_bindings"],
            "tensorrt-cu13-libs": ["tensorrt_libs"],
        },
        {"tensorrt": ["tensorrt"]},
    ],
)
@pytest.mark.usefixtures("forgetful")
def test_the_fingerprint_has_the_variant_that_is_installed(tmp_path, monkeypatch, distributions):
    for distribution, packages in distributions.items():
        install(tmp_path, distribution, *packages)
    monkeypatch.syspath_prepend(tmp_path)
    found = find_toolchain("engine", "engine_build", ("jarvis_rules.engines.tensorrt",))
    assert {*distributions} <= {*found.distributions}


@pytest.mark.usefixtures("forgetful")
def test_the_fingerprint_without_the_library():
    with pytest.raises(ToolchainError, match="`tensorrt` is not installed") as caught:
        find_toolchain("engine", "engine_build", ("jarvis_rules.engines.tensorrt",))
    assert caught.value.slug == "toolchain.missing-package"


def test_the_fake_refuses_what_the_bindings_lack(version, monkeypatch):
    """What each test above relies on."""
    monkeypatch.syspath_prepend(HERE)
    fake = importlib.reload(importlib.import_module("fake_tensorrt"))
    monkeypatch.setattr(fake, "_MODE", "")

    class Logger(fake.ILogger):
        def __init__(self):
            fake.ILogger.__init__(self)

        def log(self, severity, msg):
            pass

    builder = fake.Builder(Logger())
    config = builder.create_builder_config()
    for attribute in ("num_compute_capabilities", "max_workspace_size"):
        with pytest.raises(AttributeError):
            setattr(config, attribute, 1)
        with pytest.raises(AttributeError):
            getattr(config, attribute)
    with pytest.raises(TypeError):
        builder.create_network(flag=1)
    with pytest.raises(TypeError):
        builder.create_network("1")
    with pytest.raises(TypeError):
        config.set_flag(1)
    with pytest.raises(TypeError):
        config.set_timing_cache(config.create_timing_cache(b""))
    with pytest.raises(AttributeError):
        builder.platform_has_fast_fp17  # noqa: B018
    assert hasattr(fake.BuilderFlag, "FP16") == (version == "10.13")
    assert hasattr(fake.Builder, "platform_has_fast_fp16") == (version == "10.13")
    assert hasattr(fake.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH") == (version == "10.13")
