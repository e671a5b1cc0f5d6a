from __future__ import annotations

import pytest

from jarvis_rules.triton.onnx_signature import Tensor, disagreements

MODEL = ([Tensor("x", "TYPE_FP32", (-1, 80, -1))], [Tensor("y", "TYPE_FP32", (-1, -1, 29))])


def compare(
    batch: int, dims: tuple[int, ...], data_type: str = "TYPE_FP32", name: str = "x"
) -> list[str]:
    configured = ([Tensor(name, data_type, dims)], [Tensor("y", "TYPE_FP32", MODEL[1][0].dims[1:])])
    if batch == 0:
        configured[1][0] = MODEL[1][0]
    return disagreements(batch, configured, MODEL)


@pytest.mark.parametrize(
    ("batch", "dims"),
    [(8, (80, -1)), (8, (80, 100)), (0, (-1, 80, -1)), (0, (1, 80, -1)), (1, (80, -1))],
)
def test_what_triton_accepts(batch: int, dims: tuple[int, ...]) -> None:
    assert compare(batch, dims) == []


@pytest.mark.parametrize(
    ("batch", "dims", "part"),
    [
        (8, (64, -1), "[-1, 64, -1], the model has [-1, 80, -1]"),
        (8, (-1, -1), "[-1, -1, -1], the model has [-1, 80, -1]"),
        (8, (-1, 80, -1), "[-1, -1, 80, -1]"),
        (0, (80, -1), "[80, -1]"),
    ],
)
def test_other_dims_are_refused(batch: int, dims: tuple[int, ...], part: str) -> None:
    (sentence,) = compare(batch, dims)
    assert part in sentence


def test_another_type_is_refused() -> None:
    assert "TYPE_FP16, the model has TYPE_FP32" in compare(8, (80, -1), "TYPE_FP16")[0]


def test_every_input_of_the_model_must_be_configured() -> None:
    sentences = compare(8, (80, -1), name="z")
    assert len(sentences) == 2
    assert "`x` of the model is not in the configuration" in sentences[0]
    assert "`z` is not in the model" in sentences[1]


def test_a_batch_needs_a_first_dimension_that_varies() -> None:
    model = ([Tensor("x", "TYPE_FP32", (1, 80))], [])
    (sentence,) = disagreements(4, ([Tensor("x", "TYPE_FP32", (80,))], []), model)
    assert "needs a first dimension that varies" in sentence


def test_a_scalar_is_configured_as_one_element() -> None:
    model = ([Tensor("x", "TYPE_FP32", ())], [])
    assert disagreements(0, ([Tensor("x", "TYPE_FP32", (1,))], []), model) == []
