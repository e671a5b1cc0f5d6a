"""Engines on a GPU: against a TensorRT that computes in the memory of a fake GPU."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from cuda_testing import Context, Engine, FakeCuda, FakeTensorRT, engine_bytes

from jarvis_rules.runtime import cuda_memory
from jarvis_rules.runtime.shape_profiles import Profile, choose_profile, cut_batch, fill
from jarvis_rules.runtime.tensorrt_execution import EngineRunner

INPUTS = {"x": ("FLOAT", [-1, 3, -1]), "length": ("INT64", [-1])}
OUTPUTS = {"y": ("FLOAT", [-1, 3, -1]), "count": ("INT64", [-1])}
DYNAMIC = [{"x": ([1, 3, 4], [8, 3, 100]), "length": ([1], [8])}]
STATIC = [
    {"x": ([batch, 3, size], [batch, 3, size]), "length": ([batch], [batch])}
    for batch, size in [(8, 64), (2, 64), (2, 128), (1, 512)]
]


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda(cuda_memory.PROTOTYPES)
    monkeypatch.setattr(cuda_memory, "open_library", lambda: fake)
    return fake


@pytest.fixture
def install(monkeypatch):
    """Let a module be the only TensorRT that is installed, and return its toolchain's name."""

    def installed(module):
        for name in ("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt"):
            found = module if name == module.__name__ else None
            monkeypatch.setitem(sys.modules, name, found)
        return "tensorrt" if module.__name__ == "tensorrt" else "tensorrt_rtx"

    return installed


@pytest.fixture
def runner(cuda, tmp_path, install):
    """Return a function that loads an engine; what it loaded is closed in the end."""
    made = []

    def load(profiles=DYNAMIC, module=None, inputs=INPUTS, outputs=OUTPUTS, **more):
        path = tmp_path / "model.engine"
        path.write_bytes(engine_bytes(inputs, outputs, profiles, **more))
        made.append(EngineRunner(path, install(module or FakeTensorRT(cuda))))
        return made[-1]

    yield load
    for one in made:
        one.close()
    assert cuda.is_clean


def batch(rows, size, seed=0):
    values = np.random.default_rng(seed).normal(size=(rows, 3, size)).astype(np.float32)
    return {"x": values, "length": np.full(rows, size, np.int64)}


def check(outputs, inputs):
    """The rows of the inputs, up to the length of each; the rest belongs to the filling."""
    rows, _, size = inputs["x"].shape
    assert (outputs["y"].dtype, outputs["count"].dtype) == (np.float32, np.int64)
    assert len(outputs["y"]) == rows
    np.testing.assert_array_equal(outputs["y"][:, :, :size], 2 * inputs["x"] + 1)
    np.testing.assert_array_equal(outputs["count"], 2 * inputs["length"] + 1)


@pytest.mark.parametrize("name", ["tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt"])
def test_a_dynamic_engine(cuda, runner, name):
    module = FakeTensorRT(cuda, name)
    loaded = runner(module=module)
    for rows, size in [(1, 4), (8, 100), (3, 50), (8, 100)]:
        inputs = batch(rows, size)
        outputs = loaded.run(inputs)
        check(outputs, inputs)
        assert outputs["y"].shape == (rows, 3, size)
    assert (loaded.inputs["x"].dims, loaded.outputs["y"].dims) == ((-1, 3, -1), (-1, 3, -1))
    assert loaded.largest_batch == 8
    assert module.contexts[0].runs[0] == (0, {"x": (1, 3, 4), "length": (1,)})


def test_static_profiles_are_filled_and_cut(cuda, runner):
    module = FakeTensorRT(cuda)
    loaded = runner(STATIC, module)
    for rows, size, profile in [(8, 64, 0), (1, 10, 1), (3, 64, 0), (2, 65, 2), (1, 129, 3)]:
        inputs = batch(rows, size)
        check(loaded.run(inputs), inputs)
        number, shapes = module.contexts[0].runs[-1]
        assert number == profile
        assert shapes["x"] == tuple(STATIC[profile]["x"][1])


def test_what_fills_is_zero_though_memory_is_not_fresh(runner):
    loaded = runner(STATIC)
    loaded.run(batch(8, 64))
    outputs = loaded.run(batch(3, 60))
    np.testing.assert_array_equal(outputs["y"][:, :, 60:], 1)


def test_memory_is_reused_and_grows(cuda, runner):
    loaded = runner()
    loaded.run(batch(1, 4))
    sizes = sorted(map(len, cuda.memory.values()))
    assert sizes == [8, 8, 48, 48]
    loaded.run(batch(1, 4))
    addresses = set(cuda.memory)
    loaded.run(batch(8, 100))
    loaded.run(batch(1, 4))
    assert sorted(map(len, cuda.memory.values())) == [64, 64, 9600, 9600]
    assert not addresses & set(cuda.memory)


def test_an_array_that_is_not_contiguous(runner):
    inputs = batch(4, 20)
    inputs["x"] = np.asfortranarray(inputs["x"])
    check(runner().run(inputs), inputs)


def test_scalars_per_row_and_half_precision(runner):
    loaded = runner(
        [{"x": ([1], [4])}], inputs={"x": ("HALF", [-1])}, outputs={"y": ("HALF", [-1])}
    )
    np.testing.assert_array_equal(
        loaded.run({"x": np.array([1, 2, 3], np.float16)})["y"], np.array([3, 5, 7], np.float16)
    )


@pytest.mark.parametrize(
    ("rows", "size", "text"),
    [
        (1, 101, r"input `x` has shape \[1, 3, 101\], the engine takes \[1..8, 3, 1..100\]"),
        (9, 50, r"input `x` has shape \[9, 3, 50\], the engine takes \[1..8, 3, 1..100\]"),
    ],
)
def test_a_shape_outside_of_the_profile(runner, rows, size, text):
    loaded = runner()
    with pytest.raises(ValueError, match=text):
        loaded.run(batch(rows, size))
    check(loaded.run(batch(2, 30)), batch(2, 30))


def test_a_shape_that_no_static_profile_has(runner):
    text = (
        r"`x` has shape \[2, 3, 300\], the engine takes \[1..8, 3, 1..64\] or .* \[1, 3, 1..512\]"
    )
    with pytest.raises(ValueError, match=text):
        runner(STATIC).run(batch(2, 300))


def test_each_input_has_a_profile_but_none_takes_all(runner):
    profiles = [{"x": ([1, 3, 1], [4, 3, 8]), "z": ([1, 1], [4, 2])},
                {"x": ([1, 3, 1], [4, 3, 2]), "z": ([1, 1], [4, 8])}]  # fmt: skip
    loaded = runner(
        profiles,
        inputs={"x": ("FLOAT", [-1, 3, -1]), "z": ("FLOAT", [-1, -1])},
        outputs={"y": ("FLOAT", [-1, 3, -1])},
    )
    with pytest.raises(ValueError, match=r"no profile .* shapes: `x` \[1, 3, 8\], `z` \[1, 8\]"):
        loaded.run({"x": np.zeros((1, 3, 8), np.float32), "z": np.zeros((1, 8), np.float32)})


def test_a_fixed_dimension_is_never_filled(runner):
    inputs = batch(1, 30)
    inputs["x"] = inputs["x"][:, :2]
    with pytest.raises(ValueError, match=r"shape \[1, 2, 30\]"):
        runner().run(inputs)


def test_without_lengths_only_the_batch_is_filled(runner):
    """A vocoder would hear what fills: its output has another length, and other edges."""
    loaded = runner(
        [{"x": ([4, 3, 64], [4, 3, 64])}],
        inputs={"x": INPUTS["x"]},
        outputs={"y": OUTPUTS["y"]},
    )
    inputs = {"x": batch(2, 64)["x"]}
    np.testing.assert_array_equal(loaded.run(inputs)["y"], 2 * inputs["x"] + 1)
    with pytest.raises(ValueError, match=r"\[2, 3, 60\], the engine takes \[1..4, 3, 64\]"):
        loaded.run({"x": batch(2, 60)["x"]})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"length": None}, "input `length` is missing, engine `model.engine` takes"),
        ({"other": np.zeros(1)}, "input `other` is unknown"),
        ({"x": np.zeros((1, 3, 9))}, "must be float32 with 3 dimensions, got float64"),
        ({"length": np.zeros((1, 1), np.int64)}, r"int64 with 1 dimensions, .* of shape \[1, 1\]"),
        ({"length": np.zeros(2, np.int64)}, r"unlike batches: `x` \[1, 3, 9\], `length` \[2\]"),
    ],
)
def test_inputs_that_are_not_the_engine_s(runner, changes, text):
    inputs = {**batch(1, 9), **changes}
    with pytest.raises(ValueError, match=text):
        runner().run({name: array for name, array in inputs.items() if array is not None})


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"unbounded": ["y"]}, r"the size of output `y` depends on values: \[-1\]"),
        ({"host": ["length"]}, "tensor `length` lies in host memory"),
        ({"outputs": {"y": ("BF16", [-1, 3, -1])}}, "tensor `y` is BF16, which numpy has not"),
        ({"outputs": {"y": ("FLOAT", [])}}, "tensor `y` has no batch dimension"),
    ],
)
def test_engines_that_it_cannot_run(cuda, runner, more, text):
    with pytest.raises(RuntimeError, match=f"^engine `model.engine`: .*{text}"):
        runner(**more)
    assert cuda.is_clean


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        (2, "cannot run here: it was not built for this GPU"),
        (1 | 4, "it was built by another version, the NVIDIA driver is too old"),
        (1024, "cannot run here: diagnostics 1024"),
        (0, "cannot run here: CUDA fails"),
    ],
)
def test_an_engine_that_is_not_for_here(cuda, runner, bits, text):
    module = FakeTensorRT(cuda, validity=(2, bits))
    with pytest.raises(RuntimeError) as caught:
        runner(module=module)
    assert text in str(caught.value)
    assert str(caught.value).endswith("(tensorrt_rtx 1.7.1.116 on Fake GPU 0, sm_80)")
    assert cuda.is_clean


def test_a_suboptimal_engine_runs(cuda, runner):
    check(runner(module=FakeTensorRT(cuda, validity=(1, 0))).run(batch(1, 9)), batch(1, 9))


def test_what_tensorrt_says_of_a_broken_engine_is_on_one_line(cuda, tmp_path, install):
    path = tmp_path / "model.engine"
    path.write_bytes(b"broken")
    module = FakeTensorRT(cuda, "tensorrt", log=[(1, "Error Code 1:\n  bad"), (2, "a warning")])
    with pytest.raises(RuntimeError) as caught:
        EngineRunner(path, install(module))
    assert str(caught.value) == (
        "engine `model.engine` cannot be loaded (tensorrt 1.7.1.116 on Fake GPU 0, sm_80): "
        "Error Code 1: bad"
    )
    assert cuda.is_clean


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        ("run", "fails"),
        ("profile", "refuses its profile 3"),
        ("address of x", "refuses `x`"),
        ("address of y", "refuses `y`"),
    ],
)
def test_a_call_that_tensorrt_refuses(cuda, runner, refused, text):
    module = FakeTensorRT(cuda)
    loaded = runner(STATIC, module)
    module.refused.add(refused)
    with pytest.raises(RuntimeError, match=text):
        loaded.run(batch(1, 500))
    module.refused.clear()
    check(loaded.run(batch(1, 500)), batch(1, 500))


def test_no_execution_context(cuda, runner):
    module = FakeTensorRT(cuda)
    module.refused.add("context")
    with pytest.raises(RuntimeError, match="gets no execution context"):
        runner(module=module)
    assert cuda.is_clean


def test_what_failed_first_is_what_is_said(cuda, tmp_path, install):
    """A context with a fault refuses to give anything back, too."""
    path = tmp_path / "model.engine"
    path.write_bytes(engine_bytes(INPUTS, OUTPUTS, DYNAMIC, host=["x"]))
    cuda.failing["cuStreamDestroy_v2"] = 700
    with pytest.raises(RuntimeError, match="lies in host memory"):
        EngineRunner(path, install(FakeTensorRT(cuda)))


def test_memory_that_does_not_suffice(runner):
    loaded = runner([{"x": ([1, 3, 1], [8, 3, 1 << 20]), "length": ([1], [8])}])
    with pytest.raises(RuntimeError, match="`x`: cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"):
        loaded.run(batch(8, 1 << 16))
    check(loaded.run(batch(1, 10)), batch(1, 10))


def test_closed(cuda, runner):
    loaded = runner()
    with loaded:
        loaded.run(batch(1, 9))
    assert cuda.is_clean
    loaded.close()
    with pytest.raises(RuntimeError, match="is closed"):
        loaded.run(batch(1, 9))


def test_the_cheapest_profile():
    def profile(number, least, most):
        return Profile(number, {"x": least}, {"x": most})

    def chosen(shape, *profiles):
        return choose_profile(profiles, {"x": shape}, {"x": [True, True]})

    wide, narrow = profile(0, (1, 1), (8, 100)), profile(1, (8, 64), (8, 64))
    # What is computed counts first, what could be computed second.
    assert chosen((1, 10), wide, narrow) == (0, {"x": (1, 10)})
    assert chosen((8, 64), wide, narrow) == (1, {"x": (8, 64)})
    assert chosen((8, 65), wide, narrow) == (0, {"x": (8, 65)})
    assert chosen((2, 2), profile(5, (1, 1), (4, 4)), profile(4, (1, 1), (4, 4)))[0] == 4


def test_filling_and_cutting():
    array = np.arange(6).reshape(2, 3)
    assert fill(array, (2, 3)) is array
    np.testing.assert_array_equal(fill(array, (3, 4)), [[0, 1, 2, 0], [3, 4, 5, 0], [0, 0, 0, 0]])
    assert cut_batch("y", array, 1, 2).tolist() == [[0, 1, 2]]
    with pytest.raises(RuntimeError, match=r"`y` has shape \[2, 3\], expected 4 rows"):
        cut_batch("y", array, 1, 4)


def test_the_fake_has_nothing_that_tensorrt_rtx_lacks(cuda):
    real = pytest.importorskip("tensorrt_rtx_bindings")
    fake = FakeTensorRT(cuda)
    for name in ("ILogger", "Runtime", "TensorIOMode", "TensorLocation", "EngineValidity",
                 "EngineInvalidityDiagnostics"):  # fmt: skip
        found, expected = vars(getattr(fake, name)), dir(getattr(real, name))
        assert {key for key in found if not key.startswith("_")} <= {*expected}
    for ours, theirs in ((Engine, real.ICudaEngine), (Context, real.IExecutionContext)):
        assert {key for key in vars(ours) if not key.startswith("_")} <= {*dir(theirs)}
    assert real.DataType.FLOAT.name == "FLOAT"


def test_the_real_library_refuses_what_is_no_engine(cuda, tmp_path):
    """All that it can do without a GPU."""
    pytest.importorskip("tensorrt_rtx_bindings")
    path = tmp_path / "model.engine"
    path.write_bytes(b"no engine")
    with pytest.raises(RuntimeError, match="cannot run here: it is not an engine, or damaged"):
        EngineRunner(path, "tensorrt_rtx")
    assert cuda.is_clean
