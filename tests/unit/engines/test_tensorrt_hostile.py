"""Broken and hostile graphs: one clear message each from TensorRT-RTX, and nothing left behind.

Every one of them goes the whole way, through the process that holds the real compiler.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from jarvis_rules.engines.engine import find_engine
from jarvis_rules.errors import JarvisError

from .tensorrt_testing import children, constant, linear_model, make_model, value, write_spec

pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

ENGINE = find_engine("tensorrt_rtx")
HOSTILE = {}


def hostile(slug, words):
    """Register what makes a graph, the slug that it is refused with, and words of the message."""

    def register(make):
        HOSTILE[make.__name__] = (make, slug, words)
        return make

    return register


def node(operator, *names, name="culprit", **attributes):
    *inputs, output = names
    return helper.make_node(operator, inputs, [output], name=name, **attributes)


def identity(**given):
    return make_model([node("Identity", "x", "y")], **given)


def varint(number):
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


# ---- files that are no graph


@hostile("engine.graph-unreadable", "the file is empty")
def empty():
    return b""


@hostile("engine.graph-unreadable", "300 bytes that are no ONNX model, or a truncated one")
def garbage():
    return bytes(range(255, 105, -1)) * 2


@hostile("engine.graph-unreadable", "bytes that are no ONNX model, or a truncated one")
def truncated():
    data = linear_model().SerializeToString()
    return data[: len(data) // 2]


@hostile("engine.graph-unreadable", "the file holds no graph")
def no_graph():
    model = identity()
    model.ClearField("graph")
    return model


@hostile("engine.graph-unreadable", "bytes that are no ONNX model, or a truncated one")
def too_deep():
    """Graphs in graphs, deeper than a reader's stack should follow."""
    graph = b""
    for _ in range(200):
        for field in (6, 5, 1):  # AttributeProto.g, NodeProto.attribute, GraphProto.node
            graph = bytes([field << 3 | 2]) + varint(len(graph)) + graph
    return b"\x3a" + varint(len(graph)) + graph  # ModelProto.graph


# ---- versions and operators


@hostile("engine.graph-version", "of operator set 8, expected one of 9 to 25")
def old_opset():
    return identity(opset=8)


@hostile("engine.graph-version", "of operator set 99, expected one of 9 to 25")
def future_opset():
    return identity(opset=99)


@hostile("engine.graph-version", "of operator set none")
def no_opset():
    model = identity()
    del model.opset_import[:]
    return model


@hostile("engine.graph-version", "of ONNX IR version 99, expected 3 to 13")
def future_ir_version():
    return identity(ir_version=99)


@hostile("engine.graph-invalid", "No Op registered for Frobnicate")
def unknown_operator():
    return make_model([node("Frobnicate", "x", "y")])


@hostile("engine.unsupported-operator", "the graph uses operators of `acme`")
def custom_domain():
    model = make_model([node("Frobnicate", "x", "y", domain="acme")])
    model.opset_import.append(helper.make_opsetid("acme", 1))
    return model


@hostile("engine.unsupported-operator", "node `culprit` (FusedMatMul) is an operator of `com.m")
def undeclared_domain():
    return make_model([node("FusedMatMul", "x", "x", "y", domain="com.microsoft")])


@hostile("engine.unsupported-operator", "node `culprit` (Attention) cannot be compiled: the comp")
def attention():
    """Valid, and some of them end the compiler."""
    shape = [1, 4, 16, 32]
    inputs = [value(name, shape) for name in "qkv"]
    return make_model([node("Attention", *"qkv", "y")], inputs, [value("y", shape)], opset=23)


@hostile("engine.unsupported-operator", "node `culprit` (NonZero) cannot be compiled: the shape")
def non_zero():
    return make_model(
        [node("NonZero", "x", "y")], outputs=[value("y", [2, "found"], TensorProto.INT64)]
    )


@hostile("engine.unsupported-operator", "node `culprit` (DFT) cannot be compiled")
def dft():
    shape = ["batch", 4, 1]
    return make_model([node("DFT", "x", "y", axis=1)], [value("x", shape)], [value("y", None)])


@hostile(
    "engine.unsupported-operator", "(SplitToSequence) cannot be compiled: TensorRT has tensors"
)
def sequence():
    return make_model(
        [node("SplitToSequence", "x", "parts"), node("SequenceAt", "parts", "zero", "y")],
        initializers=[constant("zero", 0, np.int64)],
    )


@hostile("engine.unsupported-operator", "`hidden` (NonZero) cannot be compiled")
def denied_in_a_subgraph():
    branch = helper.make_graph(
        [node("NonZero", "x", "r", name="hidden"), node("Cast", "r", "b", to=1)],
        "branch", [], [value("b", None)],
    )  # fmt: skip
    return make_model(
        [node("If", "flag", "y", then_branch=branch, else_branch=branch)],
        initializers=[constant("flag", True, np.bool_)],
    )


@hostile("engine.unsupported-operator", "the graph defines the function `Twice`")
def local_function():
    model = identity()
    opsets = [helper.make_opsetid("", 17)]
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("local", "Twice", ["a"], ["b"], body, opsets))
    return model


@hostile("engine.unsupported-operator", "knows no operator `Unique`")
def operator_of_onnx_alone():
    return make_model([node("Unique", "x", "y")], outputs=[value("y", ["found"])])


# ---- names


@hostile("engine.graph-invalid", "the graph has no outputs")
def no_outputs():
    return make_model([node("Identity", "x", "y")], outputs=[])


@hostile("engine.graph-invalid", "node `culprit` (Add) reads `nowhere`: nothing makes it")
def dangling_input():
    return make_model([node("Add", "x", "nowhere", "y")])


@hostile("engine.graph-invalid", "the graph gives `nothing`: nothing makes it")
def dangling_output():
    return make_model([node("Identity", "x", "y")], outputs=[value("nothing", ["batch", 4])])


@hostile("engine.graph-invalid", "reads `b`: a later node makes it: the graph is cyclic")
def cyclic():
    return make_model([node("Add", "x", "b", "a"), node("Relu", "a", "b"), node("Relu", "a", "y")])


@hostile("engine.graph-invalid", "the graph makes `y` more than once")
def made_twice():
    return make_model([node("Relu", "x", "y"), node("Identity", "x", "y")])


@hostile("engine.graph-invalid", "the graph makes `x` more than once")
def two_inputs_of_one_name():
    return identity(inputs=[value("x", ["batch", 4]), value("x", ["batch", 4])])


@hostile("engine.graph-invalid", "the graph is no valid ONNX: ")
def missing_attribute():
    return make_model([node("Cast", "x", "y")])


# ---- tensors


@hostile("engine.dtype", "`x` is a tensor of string, which no engine takes or gives")
def strings():
    return identity(inputs=[value("x", ["batch", 4], TensorProto.STRING)])


@hostile("engine.dtype", "`x` is a sequence type, which no engine takes or gives")
def sequence_input():
    return identity(
        inputs=[helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, ["batch", 4])]
    )


@hostile("engine.dtype", "the constant `w` is of type complex64")
def complex_constant():
    w = helper.make_tensor("w", TensorProto.COMPLEX64, [1], [1j])
    return make_model([node("Add", "x", "w", "y")], initializers=[w])


@hostile("engine.dtype", "the constant `w` is of type 4711")
def constant_of_no_type():
    w = constant("w", [1])
    w.data_type = 4711
    return make_model([node("Add", "x", "w", "y")], initializers=[w])


@hostile("engine.graph-invalid", "the constant `w` of shape [1099511627776] has 4 bytes, expected")
def constant_that_promises_more():
    w = constant("w", [1])
    w.dims[0] = 1 << 40
    return make_model([node("Add", "x", "w", "y")], initializers=[w])


@hostile("engine.graph-invalid", "the constant `w` of shape [-1] has 4 bytes")
def constant_of_negative_size():
    w = constant("w", [1])
    w.dims[0] = -1
    return make_model([node("Add", "x", "w", "y")], initializers=[w])


@hostile("engine.graph-too-large", "shape [17179869184] takes 64 GiB, and the GPU has 40")
def bomb():
    """Sixty-four gibibytes out of eight bytes."""
    return make_model(
        [
            node("ConstantOfShape", "size", "all", value=constant("v", [1])),
            node("ReduceSum", "all", "sum", keepdims=0),
            node("Add", "x", "sum", "y"),
        ],
        initializers=[constant("size", [1 << 34], np.int64)],
    )


@hostile("engine.graph-too-large", "the tensor `second` of shape [1048576, 1048576] takes 4096")
def chained_bomb():
    return make_model(
        [
            node("Tile", "one", "times", "first"),
            node("Tile", "first", "times", "second"),
            node("Tile", "second", "times", "third"),
            node("ReduceSum", "third", "sum", keepdims=0),
            node("Add", "x", "sum", "y"),
        ],
        initializers=[constant("one", [[1]]), constant("times", [1 << 10, 1 << 10], np.int64)],
    )


def external(**entries):
    w = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4])
    w.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        w.external_data.add(key=key, value=text)
    return make_model([node("Add", "x", "w", "y")], initializers=[w])


@hostile("engine.graph-external", "lies in `../../../etc/passwd`: only a file beside the graph")
def traversal():
    return external(location="../../../etc/passwd", length="16")


@hostile("engine.graph-external", "lies in `/etc/passwd`")
def absolute_path():
    return external(location="/etc/passwd", length="16")


@hostile("engine.graph-external", "is 16 bytes at 0 of `missing.onnx.data`, which is missing")
def missing_weights():
    return external(location="missing.onnx.data", length="16")


@hostile("engine.graph-external", "bytes at 1099511627776 of `graph.onnx`, which has")
def weights_behind_the_end():
    return external(location="graph.onnx", offset=str(1 << 40), length="16")


# ---- graphs that only the compiler understands


@hostile("engine.compiler-refused", "node `culprit` (MatMul): culprit_0: last dimension of input0")
def shapes_that_do_not_match():
    # The shape of `r` is known to no checker, but to the compiler.
    return make_model(
        [node("Reshape", "w", "shape", "r"), node("MatMul", "x", "r", "y")],
        outputs=[value("y", ["batch", "columns"])],
        initializers=[constant("w", range(10)), constant("shape", [5, 2], np.int64)],
    )


@hostile("engine.compiler-refused", "reshape changes volume")
def reshape_to_another_size():
    return make_model(
        [node("Slice", "w", "zero", "one", "s"), node("Reshape", "s", "shape", "y")],
        initializers=[
            constant("w", range(10)), constant("zero", [0], np.int64),
            constant("one", [7], np.int64), constant("shape", [5, 2], np.int64),
        ],
    )  # fmt: skip


def test_there_are_many():
    assert len(HOSTILE) >= 30


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, tmp_path, monkeypatch, capfd):
    make, slug, words = HOSTILE[name]
    spec = write_spec(tmp_path, make())
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.chdir(tmp_path)
    others = children()
    with pytest.raises(JarvisError) as caught:
        ENGINE.build(spec, tmp_path / ENGINE.file)
    error = caught.value
    assert (error.slug, error.where) == (slug, str(spec.graph))
    assert words in error.message
    assert "\n" not in error.message
    assert len(error.message) < 400
    assert error.hint
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "Traceback" not in capfd.readouterr().err
    assert children() == others
