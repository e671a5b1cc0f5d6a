"""How far two graphs are apart, and how far they may be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from onnx import TensorProto, helper, save

from jarvis_rules.errors import JarvisError
from jarvis_rules.onnx_graph.comparison import (
    ONNXRUNTIME,
    REFERENCE,
    TOLERANCES,
    compare,
    cut_padding,
    decade,
    evaluator_for,
    run_graph,
)

ONES = np.ones((2, 3), "float32")


def worst(expected, got, precision="fp32"):
    (found,) = compare({"y": expected}, {"y": got}, precision)
    return found


@pytest.mark.parametrize("precision", TOLERANCES)
def test_what_is_allowed_grows_with_the_tensor(precision):
    absolute, relative = TOLERANCES[precision]
    scale = 100.0
    allowed = absolute + relative * scale
    expected = ONES * scale
    assert worst(expected, expected, precision).difference == 0
    assert worst(expected, expected + np.float32(allowed * 0.9), precision).is_within
    assert not worst(expected, expected + np.float32(allowed * 1.1), precision).is_within


@pytest.mark.parametrize(
    "spoilt",
    [
        ONES * np.nan,
        np.where(np.arange(6).reshape(2, 3) == 4, np.inf, ONES).astype("float32"),
        ONES[:1],
        ONES.astype("float16"),
    ],
    ids=["nan", "inf", "shape", "dtype"],
)
def test_what_is_no_number_or_no_such_tensor_is_not_within(spoilt):
    found = worst(ONES, spoilt, "bf16")
    assert not found.is_within
    assert found.to_json()["below"] is None


def test_a_missing_output_is_not_within():
    (found,) = compare({"y": ONES}, {}, "fp32")
    assert not found.is_within


def test_integers_must_be_equal():
    lengths = np.array([3, 4])
    assert worst(lengths, lengths).is_within
    assert worst(lengths, np.array([3, 5]), "bf16").difference == 1
    assert not worst(lengths, np.array([3, 5]), "bf16").is_within


def test_padding_is_cut_along_what_grows():
    values = {"y": np.ones((2, 4, 3), "float32"), "n": np.array([4, 2]), "z": np.ones(2)}
    cut = cut_padding(values, {"y": [1], "n": [], "absent": [1]}, [1.0, 0.6])
    assert cut["y"][0].min() == 1
    assert cut["y"][1].tolist() == [[1] * 3, [1] * 3, [0] * 3, [0] * 3]
    assert (cut["n"].tolist(), cut["z"].tolist()) == ([4, 2], [1, 1])
    other = {"y": np.ones((3, 4), "float32")}
    assert cut_padding(other, {"y": [1]}, [1.0, 0.6])["y"].min() == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, 0.0), (1e-5, 1e-5), (1.01e-5, 1e-4), (0.9, 1.0), (math.inf, None), (math.nan, None)],
)
def test_decade(value, expected):
    assert decade(value) == expected


@pytest.fixture
def graph(tmp_path):
    """Adds 0.0004 to 1 in half precision, where that is nothing."""
    value = helper.make_tensor_value_info
    step = helper.make_tensor("step", TensorProto.FLOAT16, [], [0.0004])
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Add", ["half", "step"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["y"], to=TensorProto.FLOAT),
    ]
    body = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n"])],
        [value("y", TensorProto.FLOAT, ["n"])],
        [step],
    )
    path = tmp_path / "graph.onnx"
    save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_the_reference_rounds_where_the_types_say(graph):
    inputs = {"x": np.ones(2, "float32")}
    assert run_graph(graph, inputs, REFERENCE)["y"].tolist() == [1.0, 1.0]
    assert run_graph(graph, inputs, ONNXRUNTIME)["y"].shape == (2,)


def test_small_graphs_are_evaluated_honestly(graph, monkeypatch):
    assert evaluator_for(graph, "fp16") == evaluator_for(graph, "bf16") == REFERENCE
    assert evaluator_for(graph, "fp32") == ONNXRUNTIME
    monkeypatch.setattr("jarvis_rules.onnx_graph.comparison._LARGEST_FOR_REFERENCE", 10)
    assert evaluator_for(graph, "fp16") == ONNXRUNTIME


@pytest.mark.parametrize("evaluator", [REFERENCE, ONNXRUNTIME])
def test_what_does_not_run_is_one_error(tmp_path, evaluator):
    path = tmp_path / "graph.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(JarvisError, match=f"{evaluator} cannot run the graph") as caught:
        run_graph(path, {}, evaluator)
    assert (caught.value.slug, caught.value.where) == ("engine.not-runnable", str(path))
