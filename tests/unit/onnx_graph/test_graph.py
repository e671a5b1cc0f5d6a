"""The graph builder: what it writes, that it writes it once, and always the same."""

import io
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import JarvisBug
from jarvis_rules.onnx_graph import constants, node_graph
from jarvis_rules.onnx_graph.folding import fold_batch_norm
from jarvis_rules.onnx_graph.graph import ACTIVATIONS, Graph, Value


def dump(graph: Graph) -> bytes:
    file = io.BytesIO()
    assert graph.write(file) == len(file.getvalue()) == graph.size()
    return file.getvalue()


def load(graph: Graph) -> onnx.ModelProto:
    model = onnx.load_from_string(dump(graph))
    onnx.checker.check_model(model, full_check=True)
    return model


def run(graph: Graph, **inputs: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(dump(graph), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def sample() -> Graph:
    """A masked, strided convolution with everything around it that speech models need."""
    r = np.random.RandomState(1)
    graph = Graph("sample")
    x = graph.input("x", "float32", ("batch", 4, "time"))
    n = graph.input("n", "int64", ("batch",))
    weight = r.randn(6, 4, 3).astype(np.float32)
    y = graph.mul(x, graph.mask(n, x))
    y = graph.conv(y, weight, r.randn(6).astype(np.float32), stride=2, pads=(1, 1))
    y = graph.activate(y, "swish")
    graph.output(graph.log_softmax(graph.transpose(y, (0, 2, 1))), "y", ("batch", "half", 6))
    graph.output(n, "m")
    return graph


def test_written_file_is_what_protobuf_itself_would_write():
    data = dump(sample())
    assert onnx.load_from_string(data).SerializeToString(deterministic=True) == data


def test_model_passes_the_full_check_and_carries_nothing_variable():
    model = load(sample())
    assert (model.ir_version, model.producer_name) == (8, "jarvis-rules")
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert not model.producer_version
    assert not model.doc_string
    assert not model.graph.doc_string
    assert not model.metadata_props
    assert not any(node.doc_string or node.domain for node in model.graph.node)


def test_every_node_and_value_has_a_name_of_its_own():
    model = load(sample())
    names = [node.name for node in model.graph.node]
    outputs = [name for node in model.graph.node for name in node.output]
    assert all(names)
    assert len(set(names)) == len(names)
    assert len(set(outputs)) == len(outputs)


def test_inputs_and_outputs_are_typed_with_symbolic_axes():
    model = load(sample())
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "x": ["batch", 4, "time"],
        "n": ["batch"],
        "y": ["batch", "half", 6],
        "m": ["batch"],
    }
    assert sample().outputs[0] == Value("y", "float32", ("batch", "half", 6))


@pytest.mark.parametrize("hash_seed", ["0", "1", "4242"])
def test_bytes_do_not_depend_on_the_process(tmp_path, hash_seed):
    program = (
        "import sys; from onnx_graph.test_graph import dump, sample; "
        "sys.stdout.buffer.write(dump(sample()))"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert done.stdout == dump(sample())


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.arange(6, dtype=">f4"),
        np.array(7, np.int64),
        np.array([True, False]),
        np.zeros((0, 3), np.float32),
        np.array([1.5, -2], np.float16),
        np.array([2**40, -1], np.int64),
        np.arange(300, dtype=np.uint8),
        np.array([1e300]),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_constants_survive(array):
    graph = Graph("constants")
    graph.output(graph.constant(array), "y")
    stored = onnx.numpy_helper.to_array(load(graph).graph.initializer[0])
    np.testing.assert_array_equal(stored, array)
    assert stored.shape == array.shape


def test_equal_constants_are_stored_once():
    graph = Graph("constants")
    a = graph.constant(np.zeros(4, np.float32))
    assert graph.constant(np.zeros(8, np.float32)[::2]) is a
    others = [np.zeros((2, 2), np.float32), np.zeros(2, np.int64), -np.zeros(4, np.float32)]
    assert len({graph.constant(x).name for x in others} | {a.name}) == 4


def test_a_hash_collision_does_not_merge_constants(monkeypatch):
    class Same:
        def update(self, _: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(constants.xxhash, "xxh3_128", Same)
    graph = Graph("constants")
    a, b, again = (graph.constant(np.full(2, x, np.float32)) for x in (1, 2, 1))
    assert a is again
    assert a != b


def test_equal_nodes_are_written_once():
    graph = Graph("nodes")
    x = graph.input("x", "float32", ("batch",))
    assert graph.activate(x, "relu") is graph.activate(x, "relu")
    assert graph.log_softmax(x, 0) is not graph.log_softmax(x, -1)
    assert [node.op for node in graph.nodes] == ["Relu", "LogSoftmax", "LogSoftmax"]


def test_one_mask_per_length_tensor():
    graph = Graph("masks")
    x = graph.input("x", "float32", ("batch", 2, "time"))
    n = graph.input("n", "int64", ("batch",))
    m = graph.input("m", "int64", ("batch",))
    assert graph.mask(n, x) is graph.mask(n, graph.activate(x, "relu"))
    graph.output(graph.mask(n, x), "of_n")
    graph.output(graph.mask(m, x), "of_m")
    assert sum(node.op == "Less" for node in graph.nodes) == 2
    load(graph)
    lengths = np.array([0, 1, 3, 9])
    of_n, of_m = run(graph, x=np.zeros((4, 2, 3), np.float32), n=lengths, m=lengths[::-1].copy())
    np.testing.assert_array_equal(of_n[:, 0], [[0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 1]])
    np.testing.assert_array_equal(of_m, of_n[::-1])
    assert of_n.shape == (4, 1, 3)


def test_outputs_may_be_inputs_constants_or_each_other():
    graph = Graph("outputs")
    x = graph.input("x", "float32", ("batch",))
    y = graph.activate(x, "relu")
    graph.output(x, "same")
    graph.output(y, "y")
    graph.output(y, "again")
    graph.output(graph.constant(np.float32([5])), "five")
    graph.output(graph.activate(y, "swish"), "z")
    load(graph)
    same, y, again, five, _ = run(graph, x=np.float32([-1, 2]))
    assert (same.tolist(), y.tolist(), again.tolist()) == ([-1, 2], [0, 2], [0, 2])
    assert five.tolist() == [5]


@pytest.mark.parametrize(
    ("stride", "dilation", "pads", "groups"),
    [(1, 1, (1, 1), 1), (2, 1, (1, 1), 1), (1, 3, (3, 3), 2), (3, 1, (0, 2), 4), (1, 1, (0, 0), 1)],
)
def test_conv_equals_its_definition(stride, dilation, pads, groups):
    r = np.random.RandomState(3)
    x, w, b = r.randn(2, 4, 11), r.randn(8, 4 // groups, 3), r.randn(8)
    padded = np.pad(x, ((0, 0), (0, 0), pads))
    frames = (padded.shape[2] - dilation * 2 - 1) // stride + 1
    expected = np.zeros((2, 8, frames)) + b[:, None]
    for o in range(8):
        first = o // (8 // groups) * (4 // groups)
        for t in range(frames):
            span = padded[
                :, first : first + 4 // groups, t * stride : t * stride + 2 * dilation + 1
            ]
            expected[:, o, t] += (span[:, :, ::dilation] * w[o]).sum((1, 2))
    graph = Graph("conv")
    value = graph.input("x", "float32", ("batch", 4, 11))
    weight, bias = np.float32(w), np.float32(b)
    y = graph.conv(value, weight, bias, stride=stride, dilation=dilation, pads=pads, groups=groups)
    assert y.shape == ("batch", 8, frames)
    graph.output(y, "y")
    load(graph)
    np.testing.assert_allclose(run(graph, x=np.float32(x))[0], expected, atol=1e-5)


def _definition(kind, x):
    from math import erf

    scale, alpha = 1.0507009873554805, 1.6732632423543772
    return {
        "identity": x,
        "hardtanh": np.clip(x, -1, 1),
        "relu": np.maximum(x, 0),
        "selu": scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
        "swish": x / (1 + np.exp(-x)),
        "silu": x / (1 + np.exp(-x)),
        "gelu": x * 0.5 * (1 + np.array([erf(v / 2**0.5) for v in x])),
    }[kind]


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_equal_their_definitions(kind):
    x = np.linspace(-6, 6, 49)
    graph = Graph("activation")
    value = graph.input("x", "float32", ("time",))
    graph.output(graph.activate(value, kind), "y")
    load(graph)
    np.testing.assert_allclose(run(graph, x=np.float32(x))[0], _definition(kind, x), atol=2e-6)


def test_arithmetic_broadcasts_and_truncates():
    graph = Graph("arithmetic")
    n = graph.input("n", "int64", ("batch", 1))
    two, limits = (graph.constant(np.array(v, np.int64)) for v in (2, [0, 3]))
    half = graph.div(graph.add(n, graph.constant(np.array(-1, np.int64))), two)
    assert graph.maximum(half, limits).shape == ("batch", 2)
    graph.output(half, "half")
    graph.output(graph.maximum(half, limits), "larger")
    load(graph)
    half, larger = run(graph, n=np.array([[0], [1], [7]]))
    assert half.tolist() == [[0], [0], [3]]
    assert larger.tolist() == [[0, 3], [0, 3], [3, 3]]


@pytest.mark.parametrize(
    "misuse",
    [
        lambda g, x, n: g.add(x, n),
        lambda g, x, _: g.mul(x, g.constant(np.zeros((3, 1), np.float32))),
        lambda g, x, _: g.conv(x, np.zeros((2, 3, 1), np.float32)),
        lambda g, x, _: g.mask(x, x),
        lambda g, _, __: g.input("x", "float32", ()),
        lambda g, x, _: g.output(x, "n"),
        lambda g, x, _: g.output(x, "y", ("batch",)),
        lambda g, _, __: g.constant(np.zeros(1, np.complex64)),
    ],
)
def test_misuse_is_our_bug(misuse):
    graph = Graph("misuse")
    x = graph.input("x", "float32", ("batch", 2, "time"))
    n = graph.input("n", "int64", ("batch",))
    with pytest.raises(JarvisBug):
        misuse(graph, x, n)


def test_too_large_is_said_before_anything_is_written(monkeypatch):
    graph = sample()
    monkeypatch.setattr(node_graph, "MAX_BYTES", graph.size() - 1)
    file = io.BytesIO()
    assert graph.is_split()
    with pytest.raises(JarvisBug, match=f"not {graph.size()}"):
        graph.write(file)
    assert not file.getvalue()
    monkeypatch.setattr(node_graph, "MAX_BYTES", graph.size())
    graph.write(file)


def test_weights_are_not_copied_to_be_written():
    graph = Graph("large")
    weight = np.ones((1024, 1024, 8), np.float32)
    x = graph.input("x", "float32", ("batch", 1024, "time"))
    tracemalloc.start()
    try:
        graph.output(graph.conv(x, weight), "y")
        with open(os.devnull, "wb", buffering=0) as file:  # noqa: PTH123
            graph.write(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < weight.nbytes / 8


@pytest.mark.parametrize("with_bias", [False, True])
def test_batch_norm_folds_to_the_nearest_float32(with_bias):
    r = np.random.RandomState(5)
    names = ("gain", "shift", "mean", "variance")
    norm = {name: r.rand(7).astype(np.float32) for name in names}
    weight = r.randn(7, 3, 5).astype(np.float32)
    bias = r.randn(7).astype(np.float32) if with_bias else None
    w, b = fold_batch_norm(weight, **norm, eps=1e-3, bias=bias)
    wide = {k: v.astype(np.longdouble) for k, v in norm.items()}
    scale = wide["gain"] / np.sqrt(wide["variance"] + np.longdouble(1e-3))
    centre = (0 if bias is None else bias.astype(np.longdouble)) - wide["mean"]
    np.testing.assert_array_equal(w, (weight * scale[:, None, None]).astype(np.float32))
    np.testing.assert_array_max_ulp(b, (centre * scale + wide["shift"]).astype(np.float32), 1)
    assert (w.dtype, b.dtype) == (np.float32, np.float32)
    assert np.isnan(fold_batch_norm(weight, **(norm | {"variance": -norm["gain"]}), eps=0)[0]).all()
