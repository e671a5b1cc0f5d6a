"""Graphs in 16 bits: what changes its type, what stays, and that the results are still the same."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import onnx
import pytest
from exporters.exporter_testing import dump, source, variants
from exporters.precision_testing import FEEDS, in_onnxruntime, valid_positions
from onnx import TensorProto, helper, numpy_helper

from jarvis_rules.errors import IntegrityError, JarvisBug, JarvisError
from jarvis_rules.exporters.exporter import export_model
from jarvis_rules.onnx_graph import precision as precision_module
from jarvis_rules.onnx_graph.comparison import TOLERANCES
from jarvis_rules.onnx_graph.precision import PRECISIONS, convert_precision
from jarvis_rules.onnx_graph.reference_runtime import load_reference

FLOAT, HALF, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT64,
    TensorProto.BOOL,
)


def node(op, name, inputs, outputs=None, **attributes):
    """Return a node that gives what it is called, unless `outputs` are given."""
    outputs = [name] if outputs is None else outputs.split()
    return helper.make_node(op, inputs.split(), outputs, name=name, **attributes)


def value(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def convert(tmp_path):
    """Return a function that makes a model of nodes, converts it and returns model and report."""

    def make(nodes, inputs, outputs, constants=None, *, keep=(), precision="fp16", **options):
        graph = helper.make_graph(nodes, "g", inputs, outputs)
        for name, array in (constants or {}).items():
            graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
        opset = options.pop("opset", 17)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8
        )
        onnx.save(model, tmp_path / "g.onnx")
        target = tmp_path / f"{precision}.onnx"
        report = convert_precision(tmp_path / "g.onnx", target, precision, keep, **options)
        converted = onnx.load(target)
        onnx.checker.check_model(converted, full_check=True)
        assert [i.SerializeToString() for i in converted.graph.input] == [
            i.SerializeToString() for i in model.graph.input
        ]
        assert converted.graph.output[0] == model.graph.output[0]
        assert (converted.ir_version, converted.opset_import) == (8, model.opset_import)
        return Converted(converted), report

    return make


class Converted:
    """A converted model: its nodes and constants by name, the type of every value."""

    def __init__(self, model):
        self.model = model
        self.nodes = {n.name: n for n in model.graph.node}
        assert len(self.nodes) == len(model.graph.node)
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True)
        values = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
        self.types = {v.name: v.type.tensor_type.elem_type for v in values}
        self.ops = [n.op_type for n in model.graph.node]

    def kind(self, name):
        """Return the type that the node computes in."""
        return self.types[self.nodes[name].output[0]]


X = value("x", FLOAT, "n", 4)
WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3) / 8


# ---- what is in half


def test_weights_halve_and_inputs_and_outputs_keep_their_types(convert):
    nodes = [node("MatMul", "m", "x w"), node("Relu", "y", "m")]
    found, report = convert(nodes, [X], [value("y", FLOAT, "n", 3)], {"w": WEIGHT})
    assert [(n.name, list(n.input), list(n.output)) for n in found.model.graph.node] == [
        ("x.fp16", ["x"], ["x.fp16"]),
        ("m", ["x.fp16", "w.fp16"], ["m"]),
        ("y", ["m"], ["y.fp16"]),
        ("y.fp32", ["y.fp16"], ["y"]),
    ]
    np.testing.assert_array_equal(found.constants["w.fp16"], WEIGHT.astype(np.float16))
    assert found.constants.keys() == {"w.fp16"}
    assert (report.half, report.casts, report.kept) == (2, 2, {})
    json.dumps(report.to_json(), allow_nan=False)


def test_what_is_kept_computes_in_float32_and_casts_are_shared(convert):
    nodes = [
        node("MatMul", "m", "x w"),
        node("Exp", "e", "m"),
        node("Sin", "s", "m"),
        node("Add", "a", "e s"),
        node("Mul", "b", "a m"),
        node("Mul", "y", "b a"),
    ]
    keep = ["e", "s"]
    found, report = convert(nodes, [X], [value("y", FLOAT, "n", 3)], {"w": WEIGHT}, keep=keep)
    assert [found.kind(name) for name in "mesab"] == [HALF, FLOAT, FLOAT, HALF, HALF]
    # x, m for both, e, s, and the output.
    assert report.casts == found.ops.count("Cast") == 5
    assert found.nodes["e"].input[0] == found.nodes["s"].input[0] == "m.fp32"
    assert report.kept == {"hint": ("e", "s")}


def test_a_value_that_is_an_output_too_is_cast_once(convert):
    nodes = [node("Relu", "y", "x"), node("Exp", "e", "y"), node("Neg", "z", "y")]
    outputs = [value("y", FLOAT, "n", 4), value("e", FLOAT, "n", 4), value("z", FLOAT, "n", 4)]
    found, report = convert(nodes, [X], outputs, keep=["e"])
    assert list(found.nodes["e"].input) == ["y"]
    assert list(found.nodes["z"].input) == ["y.fp16"]
    assert report.casts == 3


def test_a_mask_is_cast_to_half_at_once(convert):
    nodes = [node("Cast", "f", "b", to=FLOAT), node("Mul", "y", "f x")]
    mask = value("b", BOOL, "n", 4)
    found, _ = convert(nodes, [X, mask], [value("y", FLOAT, "n", 4)])
    assert found.nodes["f"].attribute[0].i == HALF
    assert found.ops.count("Cast") == 3


# ---- integers


def test_integers_never_pass_through_half(convert):
    nodes = [
        node("Range", "r", "zero n one"),
        node("Cast", "steps", "r", to=FLOAT),
        node("Unsqueeze", "column", "steps axis"),
        node("Mul", "angles", "column w"),
        node("Sin", "sines", "angles"),
        node("MatMul", "m", "sines v"),
        node("Add", "sum", "m column"),
        node("Relu", "y", "sum"),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "axis": np.int64([1])}
    constants |= {"w": np.ones(3, np.float32), "v": np.ones((3, 2), np.float32)}
    inputs, outputs = [value("n", INT64)], [value("y", FLOAT, None, 2)]
    found, report = convert(nodes, inputs, outputs, constants)
    assert report.kept == {"integer": ("steps", "column", "angles", "sines", "sum")}
    assert {found.kind(n) for n in ("m", "y")} == {HALF}
    assert list(found.nodes["r"].input) == ["zero", "n", "one"]


def test_what_becomes_an_integer_is_computed_in_float32(convert):
    nodes = [
        node("Relu", "r", "x"),
        node("Mul", "product", "r w"),
        node("Floor", "down", "product"),
        node("Reshape", "flat", "down shape"),
        node("Cast", "y", "flat", to=INT64),
    ]
    constants = {"w": np.float32([3, 3, 3, 3]), "shape": np.int64([-1])}
    found, report = convert(nodes, [X], [value("y", INT64, None)], constants)
    assert report.kept == {"integer": ("product", "down", "flat", "y")}
    assert found.kind("r") == HALF


def test_integer_arithmetic_is_untouched(convert):
    nodes = [
        node("Shape", "s", "x", start=1, end=2),
        node("CumSum", "c", "i axis"),
        node("Less", "l", "c s"),
        node("Where", "y", "l x zero"),
    ]
    i = value("i", INT64, 4)
    constants = {"axis": np.int64(0), "zero": np.float32(0)}
    found, report = convert(nodes, [X, i], [value("y", FLOAT, "n", 4)], constants)
    assert list(found.nodes["s"].input) in (["x"], ["x.fp16"])
    assert list(found.nodes["c"].input) == ["i", "axis"]
    assert list(found.nodes["y"].input) == ["l", "x.fp16", "zero.fp16"]
    assert report.kept == {}


# ---- operators, movement


def recurrent(lengths):
    inputs = "t w r b n" if lengths else "t w r b"
    return [node("Unsqueeze", "t", "x axis"), node("LSTM", "l", inputs, "y", hidden_size=2)]


RECURRENT = {
    "axis": np.int64([1]),
    "w": np.full((1, 8, 4), 0.25, np.float32),
    "r": np.full((1, 8, 2), 0.5, np.float32),
    "b": np.zeros((1, 16), np.float32),
}
OPERATORS = {
    "Celu": ([node("Celu", "y", "x")], {}, ["y"]),
    "float CumSum": ([node("CumSum", "y", "x a")], {"a": np.int64(1)}, ["y"]),
    "random": ([node("RandomNormalLike", "r", "x", dtype=1), node("Add", "y", "r x")], {}, ["r"]),
    "constant node": (
        [
            node("Constant", "c", "", value=numpy_helper.from_array(np.ones(4, np.float32))),
            node("Add", "y", "c x"),
        ],
        {},
        ["c"],
    ),
    "mean of a norm": (
        [node("LayerNormalization", "l", "x g", "y mean"), node("Relu", "z", "mean")],
        {"g": np.ones(4, np.float32)},
        ["l"],
    ),
}


@pytest.mark.parametrize("case", OPERATORS)
def test_operators_without_a_half_form_stay(convert, case):
    nodes, constants, kept = OPERATORS[case]
    found, report = convert(nodes, [X], [value("y", FLOAT, None, 4)], constants)
    assert list(report.kept["operator"]) == kept
    assert {found.kind(name) for name in kept} == {FLOAT}


@pytest.mark.parametrize("lengths", [False, True])
def test_recurrent_layers_with_lengths_stay(convert, lengths):
    n = value("n", TensorProto.INT32, 1)
    inputs, outputs = [X, n] if lengths else [X], [value("y", FLOAT, None, 1, 1, 2)]
    found, report = convert(recurrent(lengths), inputs, outputs, RECURRENT)
    assert report.kept == ({"movement": ("t",), "operator": ("l",)} if lengths else {})
    assert found.constants.keys() >= ({"w", "r"} if lengths else {"w.fp16", "r.fp16"})


def test_an_operand_that_is_always_float32_stays(convert):
    nodes = [node("Resize", "y", "i  scales", mode="nearest")]
    nodes[0].input.insert(1, "")
    image, bigger = value("i", FLOAT, 1, 1, 2, 2), value("y", FLOAT, 1, 1, 4, 4)
    scales = {"scales": np.float32([1, 1, 2, 2])}
    found, report = convert(nodes, [image], [bigger], scales)
    assert list(found.nodes["y"].input) == ["i.fp16", "", "scales"]
    assert report.half == 1


def test_bfloat16_leaves_convolutions_as_the_opset_has_none(convert):
    image, weight = value("i", FLOAT, 1, 2, 5), np.ones((3, 2, 1), np.float32)
    nodes = [node("Conv", "c", "i w"), node("Relu", "y", "c")]
    outputs = [value("y", FLOAT, 1, 3, 5)]
    for precision, kept in (("bf16", {"operator": ("c",)}), ("fp16", {})):
        _, report = convert(nodes, [image], outputs, {"w": weight}, precision=precision)
        assert report.kept == kept


def test_movement_between_float32_is_not_rounded(convert):
    nodes = [
        node("Transpose", "t", "x", perm=[1, 0]),
        node("Exp", "e", "t"),
        node("Transpose", "u", "e", perm=[1, 0]),
        node("Sin", "s", "u"),
        node("MatMul", "m", "u w"),
        node("Transpose", "z", "m", perm=[1, 0]),
    ]
    outputs = [value("s", FLOAT, None, 4), value("z", FLOAT, 3, None)]
    found, report = convert(nodes, [X], outputs, {"w": WEIGHT}, keep=["e", "s"])
    assert report.kept == {"hint": ("e", "s"), "movement": ("t", "u")}
    assert found.kind("z") == HALF


# ---- constants


def test_a_constant_of_both_types_exists_twice_and_an_unused_one_not(convert):
    nodes = [node("Add", "a", "x c"), node("Mul", "y", "a c")]
    constants = {"c": np.float32([1, 2, 3, 1 / 3]), "unused": np.ones(3, np.float32)}
    found, _ = convert(nodes, [X], [value("y", FLOAT, "n", 4)], constants, keep=["a"])
    assert list(found.constants) == ["c", "c.fp16"]
    assert list(found.nodes["a"].input) == ["x", "c"]
    assert list(found.nodes["y"].input) == ["a.fp16", "c.fp16"]


def test_clipping_and_underflow_are_reported(convert):
    big = np.float32([[1e5, -7e4, 65504, np.inf], [-np.inf, -10000, 65520, -3e38]])
    small = np.float32([[1e-9, -1e-8, 0, 2.0**-14], [2.0**-24, 1e-6, 2.0**-25, 1]])
    nodes = [node("Add", "a", "x big"), node("Mul", "y", "a small")]
    outputs = [value("y", FLOAT, 2, 4)]
    found, report = convert(nodes, [value("x", FLOAT, 2, 4)], outputs, {"big": big, "small": small})
    (clipped,) = report.clipped
    assert (clipped.name, clipped.count) == ("big", 4)
    assert clipped.largest == float(np.float32(3e38))
    assert (report.zeroed, report.subnormal) == (3, 2)
    np.testing.assert_array_equal(
        found.constants["big.fp16"],
        [[65504, -65504, 65504, np.inf], [-np.inf, -10000, 65504, -65504]],
    )
    assert report.to_json()["clipped"] == [{"name": "big", "count": 4, "largest": clipped.largest}]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", np.float16), ("bf16", ml_dtypes.bfloat16)]
)
def test_rounding_is_to_nearest_even(convert, precision, dtype):
    """Every sign and exponent with mantissas around ties, in several blocks of bytes."""
    bits = np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32)
    ties = (np.arange(2**16, dtype=np.uint32) << 16) | 0x8000
    numbers = np.concatenate([bits, ties, ties + 1, ties - 1]).view(np.float32)
    limit = float(ml_dtypes.finfo(dtype).max)
    numbers = np.where(np.abs(numbers) > limit, np.float32(1), numbers)
    nodes, n = [node("Mul", "y", "x c")], len(numbers)
    vector = [value("x", FLOAT, n)], [value("y", FLOAT, n)]
    found, report = convert(nodes, *vector, {"c": numbers}, precision=precision)
    (raw,) = (t.raw_data for t in found.model.graph.initializer)
    with np.errstate(invalid="ignore"):
        expected, wide_numbers = numbers.astype(dtype), numbers.astype(np.float64)
    is_nan = np.isnan(numbers)
    rounded = np.frombuffer(raw, np.uint16)
    np.testing.assert_array_equal(rounded[~is_nan], expected.view(np.uint16)[~is_nan])
    assert np.isnan(rounded.view(dtype)[is_nan].astype(np.float32)).all()
    assert report.clipped == ()
    wide = expected.astype(np.float64)
    tiny = (numbers != 0) & (np.abs(wide_numbers) < ml_dtypes.finfo(dtype).tiny)
    assert report.zeroed == int(((numbers != 0) & (wide == 0)).sum())
    assert report.zeroed + report.subnormal == int(tiny.sum())


def test_numbers_beyond_bfloat16_are_clipped(convert):
    numbers = np.float32([3.4e38, -3.4028235e38, np.inf, 3.3895e38])
    nodes = [node("Mul", "y", "x c")]
    found, report = convert(
        nodes, [X], [value("y", FLOAT, "n", 4)], {"c": numbers}, precision="bf16"
    )
    (raw,) = (t.raw_data for t in found.model.graph.initializer)
    assert np.frombuffer(raw, "<u2").tolist() == [0x7F7F, 0xFF7F, 0x7F80, 0x7F7F]
    assert report.clipped[0].count == 2


def test_constants_stored_as_numbers_are_read(tmp_path):
    graph = helper.make_graph([node("Mul", "y", "x c")], "g", [X], [value("y", FLOAT, "n", 4)])
    graph.initializer.append(helper.make_tensor("c", FLOAT, [4], [1.0, 2.0, 3.0, 4.0]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "g.onnx")
    convert_precision(tmp_path / "g.onnx", tmp_path / "h.onnx", "fp16", ())
    (constant,) = onnx.load(tmp_path / "h.onnx").graph.initializer
    assert numpy_helper.to_array(constant).tolist() == [1, 2, 3, 4]


def test_external_weights_are_read_and_written(tmp_path, monkeypatch):
    model = export_model(source("text_classification"))
    data = dump(model)["model_graph.onnx"]
    keep = model.graphs["model_graph.onnx"].full_precision_nodes
    whole, split = tmp_path / "whole.onnx", tmp_path / "split.onnx"
    whole.write_bytes(data)
    convert_precision(whole, tmp_path / "expected.onnx", "fp16", keep)
    with split.open("wb") as file:
        model.graphs["model_graph.onnx"].write(file, "split.onnx.data")
    with (tmp_path / "split.onnx.data").open("wb") as file:
        model.graphs["model_graph.onnx"].write_weights(file)
    convert_precision(split, tmp_path / "found.onnx", "fp16", keep)
    assert (tmp_path / "found.onnx").read_bytes() == (tmp_path / "expected.onnx").read_bytes()
    monkeypatch.setattr(precision_module, "MAX_BYTES", 100_000)
    convert_precision(split, tmp_path / "both.onnx", "fp16", keep)
    assert (tmp_path / "both.onnx").stat().st_size < 100_000
    onnx.checker.check_model(str(tmp_path / "both.onnx"), full_check=True)
    both, expected = onnx.load(tmp_path / "both.onnx"), onnx.load(tmp_path / "expected.onnx")
    for a, b in zip(both.graph.initializer, expected.graph.initializer, strict=True):
        assert (a.name, a.raw_data) == (b.name, b.raw_data)
    (tmp_path / "split.onnx.data").write_bytes(b"short")
    with pytest.raises(IntegrityError, match=r"needs \d+ bytes"):
        convert_precision(split, tmp_path / "found.onnx", "fp16", keep)


# ---- linear layers as convolutions


PRODUCTS = [
    ("MatMul", (5, 4), (4, 3), {}),
    ("MatMul", (2, 5, 4), (4, 3), {}),
    ("MatMul", (2, 2, 5, 4), (4, 3), {}),
    ("MatMul", (4, 5), (3, 4), {"left": True}),
    ("MatMul", (2, 4, 5), (3, 4), {"left": True}),
    ("MatMul", (2, 2, 4, 5), (3, 4), {"left": True}),
    ("Gemm", (5, 4), (4, 3), {"bias": True}),
    ("Gemm", (5, 4), (3, 4), {"bias": True, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", (4, 5), (4, 3), {"transA": 1, "alpha": 2.0}),
    ("Gemm", (4, 5), (4, 3), {"left": True, "transA": 1, "bias": True}),
    ("Gemm", (5, 4), (3, 4), {"left": True, "transB": 1}),
]


@pytest.mark.parametrize(("op", "shape", "weight", "options"), PRODUCTS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_linear_layers_become_convolutions(
    convert, tmp_path, op, shape, weight, options, precision
):
    options, noise = dict(options), np.random.RandomState(3)
    left, bias = options.pop("left", False), options.pop("bias", False)
    constants = {"w": noise.standard_normal(weight).astype(np.float32)}
    if bias:
        constants["c"] = noise.standard_normal((1, 5 if left else 3)).astype(np.float32)
    inputs = ("w x" if left else "x w") + (" c" if bias else "")
    outputs = [value("y", FLOAT, *[None] * len(shape))]
    found, report = convert(
        [node(op, "y", inputs, **options)], [value("x", FLOAT, *shape)], outputs, constants,
        keep=["y"], precision=precision, linear_as_convolution=True,
    )  # fmt: skip
    assert op not in found.ops
    assert "Conv" in found.ops
    assert (report.convolved, report.halved, report.casts) == (("y",), (), 0)
    feed = {"x": noise.standard_normal(shape).astype(np.float32)}
    before, after = (
        in_onnxruntime(tmp_path / f"{name}.onnx")(feed)["y"] for name in ("g", precision)
    )
    np.testing.assert_allclose(after, before, rtol=1e-6, atol=1e-6)


def test_products_of_activations_are_halved(convert):
    nodes = [
        node("Transpose", "t", "x", perm=[1, 0]),
        node("MatMul", "scores", "x t"),
        node("Softmax", "y", "scores"),
    ]
    outputs = [value("y", FLOAT, "n", None)]
    for precision, keep in (("fp32", ()), ("fp16", ("scores", "y"))):
        found, report = convert(
            nodes, [X], outputs, keep=keep, precision=precision, linear_as_convolution=True
        )
        assert report.halved == ("scores",)
        assert (found.kind("scores"), found.kind("y")) == (HALF, FLOAT)


def test_recurrent_layers_are_halved(convert):
    outputs = [value("y", FLOAT, None, 1, 1, 2)]
    found, report = convert(
        recurrent(False), [X], outputs, RECURRENT, precision="fp32", linear_as_convolution=True
    )
    assert report.halved == ("l",)
    assert found.constants["w.fp16"].dtype == np.float16


# ---- bytes


def test_fp32_is_the_same_file_and_a_second_conversion_too(tmp_path):
    model = export_model(source("fastpitch"))
    for name, data in dump(model).items():
        if name not in model.graphs:
            continue
        keep = model.graphs[name].full_precision_nodes
        first, second, third = (tmp_path / f"{i}.onnx" for i in range(3))
        first.write_bytes(data)
        convert_precision(first, second, "fp32", ())
        assert second.read_bytes() == data
        convert_precision(first, second, "fp16", keep)
        report = convert_precision(second, third, "fp16", keep)
        assert third.read_bytes() == second.read_bytes()
        assert report.casts == 0


PROGRAM = """
import sys
from pathlib import Path
from jarvis_rules.onnx_graph.precision import convert_precision
convert_precision(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], set(sys.argv[4:]))
"""


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_bytes_do_not_depend_on_the_process(tmp_path, precision):
    model = export_model(source("citrinet"))
    graph = model.graphs["model_graph.onnx"]
    (tmp_path / "g.onnx").write_bytes(dump(model)["model_graph.onnx"])
    digests = set()
    for seed in ("0", "1", "77"):
        folder = tmp_path / seed
        folder.mkdir()
        subprocess.run(
            [
                *(sys.executable, "-c", PROGRAM, tmp_path / "g.onnx", folder / f"{seed}.onnx"),
                *(precision, *graph.full_precision_nodes),
            ],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=folder,
            check=True,
        )
        digests.add(hashlib.sha256((folder / f"{seed}.onnx").read_bytes()).hexdigest())
    assert len(digests) == 1


# ---- refusals


def test_a_hint_without_its_node_is_refused(convert):
    nodes = [node("Relu", "relu_0", "x", "y")]
    with pytest.raises(IntegrityError, match="`relu_1` is to stay") as error:
        convert(nodes, [X], [value("y", FLOAT, "n", 4)], keep=["relu_1"])
    assert error.value.slug == "precision.unknown-node"
    assert "`relu_0`" in error.value.hint


def test_misuse_is_a_bug(convert, tmp_path):
    nodes, outputs = [node("Relu", "y", "x")], [value("y", FLOAT, "n", 4)]
    with pytest.raises(JarvisBug, match="int8"):
        convert(nodes, [X], outputs, precision="int8")
    with pytest.raises(JarvisBug, match="bfloat16"):
        convert(nodes, [X], outputs, precision="bf16", linear_as_convolution=True)
    with pytest.raises(JarvisBug, match="cannot convert"):
        convert_precision(tmp_path / "g.onnx", tmp_path / "g.onnx", "fp16", ())


def branch():
    inner = helper.make_graph([node("Identity", "i", "x")], "b", [], [value("i", FLOAT, None, 4)])
    return node("If", "y", "b", then_branch=inner, else_branch=inner)


def save(path, nodes):
    inputs, outputs = [X, value("b", BOOL)], [value("y", FLOAT, None, 4)]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), path)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([node("Gelu", "y", "x", domain="com.microsoft")], r"`y` \(Gelu\) is no operator of ONNX"),
        ([node("Frobnicate", "y", "x")], r"`y` \(Frobnicate\) is no operator of ONNX opset 17"),
        ([branch()], r"`y` \(If\) has a graph inside"),
    ],
    ids=["domain", "operator", "subgraph"],
)
def test_what_cannot_be_typed_is_refused_by_name(tmp_path, nodes, message):
    save(tmp_path / "g.onnx", nodes)
    with pytest.raises(JarvisError, match=message) as error:
        convert_precision(tmp_path / "g.onnx", tmp_path / "h.onnx", "fp16", ())
    assert error.value.slug == "precision.operator"
    assert error.value.where == str(tmp_path / "g.onnx")
    assert not (tmp_path / "h.onnx").exists()


BROKEN = {
    "order": [node("Relu", "y", "r"), node("Relu", "r", "x")],
    "cycle": [node("Add", "y", "x r"), node("Relu", "r", "y")],
    "dangling": [node("Add", "y", "x missing")],
    "twice": [node("Relu", "y", "x"), node("Neg", "z", "x", "y")],
    "types": [node("Add", "y", "x b")],
    "sizes": [node("Concat", "y", "x b", axis=0)],
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_graphs_are_refused(tmp_path, case):
    save(tmp_path / "g.onnx", BROKEN[case])
    with pytest.raises(IntegrityError) as error:
        convert_precision(tmp_path / "g.onnx", tmp_path / "h.onnx", "fp16", ())
    assert error.value.slug == "precision.graph"


def test_every_cut_and_many_changes_of_a_file_are_refused_or_converted(tmp_path):
    """No exception but a JarvisError, whatever the bytes are."""
    model = export_model(source(variants("hifigan")[0]))
    data = dump(model)["model_graph.onnx"]
    graph, target = tmp_path / "g.onnx", tmp_path / "h.onnx"
    noise, slugs = np.random.RandomState(1), []
    for trial in range(300):
        if trial % 3 == 0:
            changed = data[: noise.randint(len(data))]
        else:
            changed = bytearray(data)
            for _ in range(trial % 3):
                changed[noise.randint(min(len(data), 3000))] = noise.randint(256)
        graph.write_bytes(changed)
        try:
            convert_precision(graph, target, "fp16", ())
        except JarvisError as error:
            slugs.append(error.slug)
    assert len(slugs) > 150
    assert all(slug.startswith("precision.") for slug in slugs)


# ---- real models

REAL = {
    "conv_asr": "citrinet",
    "conformer_ctc": "variants/conformer_ctc/fast_conformer",
    "fastpitch": "variants/fastpitch/conditions",
    "hifigan": "variants/hifigan/first_block",
    "intent_slot": "intent_slot",
    "punctuation": "punctuation",
    "question_answering": "qa",
    "speech_classification": "variants/speech_classification/average",
    "tacotron2": "variants/tacotron2/chars",
    "text_classification": "text_classification",
    "token_classification": "token_classification",
    "waveglow": "variants/waveglow/never_early_group_2",
}


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("family", REAL)
def test_real_models_stay_within_their_tolerance(tmp_path, family, precision):
    """Rounded as the graph says, by onnx; onnxruntime runs fp16 too, and removes casts."""
    name = REAL[family]
    model = export_model(source(name))
    exact, runs = {}, {}
    for graph, data in dump(model).items():
        if graph not in model.graphs:
            continue
        before, after = tmp_path / graph, tmp_path / f"{precision}.{graph}"
        before.write_bytes(data)
        keep = model.graphs[graph].full_precision_nodes
        report = convert_precision(before, after, precision, keep)
        assert report.clipped == ()
        assert len(report.kept.get("hint", ())) <= len(keep)
        onnx.checker.check_model(onnx.load(after), full_check=True)
        exact[graph], runs[graph] = in_onnxruntime(before), [load_reference(after)]
        if precision == "fp16":
            runs[graph].append(in_onnxruntime(after))
    for graph, feed in FEEDS[family](name, model, exact):
        wanted = exact[graph](feed)
        for run in runs[graph]:
            found = run(feed)
            for output, expected in wanted.items():
                if expected.dtype.kind != "f":
                    np.testing.assert_array_equal(found[output], expected)
                    continue
                valid = valid_positions(feed, wanted, output)
                absolute, relative = TOLERANCES[precision]
                bound = absolute + relative * np.abs(expected[valid]).max()
                assert np.abs(found[output] - expected)[valid].max() <= bound
                if output.endswith(("logits", "logprobs")) and precision == "fp16":
                    ours, theirs = found[output].argmax(-1), expected.argmax(-1)
                    np.testing.assert_array_equal(ours[valid], theirs[valid])


def test_every_precision_has_a_tolerance():
    assert PRECISIONS.keys() == TOLERANCES.keys()
