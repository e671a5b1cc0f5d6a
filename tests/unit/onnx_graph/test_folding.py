"""Weight norm and inverse matrices, computed in an order of our own."""

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError
from jarvis_rules.onnx_graph.folding import fold_weight_norm, invert_matrix


@pytest.mark.parametrize("shape", [(5, 3, 7), (4, 9), (3, 1, 1), (1, 2, 513)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weight_norm_is_that_of_all_axes_but_the_first(shape, dtype):
    r = np.random.RandomState(3)
    direction, gain = r.randn(*shape).astype(dtype), r.randn(shape[0]).astype(dtype)
    rows = direction.astype(np.float64).reshape(shape[0], -1)
    expected = gain[:, None].astype(np.float64) * rows / np.linalg.norm(rows, axis=1)[:, None]
    for form in (gain, gain.reshape(-1, *[1] * (len(shape) - 1))):
        weight = fold_weight_norm(direction, form)
        assert (weight.dtype, weight.shape) == (np.float32, shape)
        np.testing.assert_allclose(weight.reshape(rows.shape), expected, rtol=1e-7)


def test_a_weight_without_direction_is_no_number():
    weight = fold_weight_norm(np.zeros((2, 3)), np.ones((2, 1)))
    assert np.isnan(weight).all()


def test_weight_norm_adds_from_left_to_right():
    r = np.random.RandomState(4)
    direction = (r.randn(1, 4096) * 10.0 ** r.randint(-3, 3, (1, 4096))).astype(np.float32)
    total = 0.0
    for value in direction[0].astype(np.float64).tolist():
        total += value * value
    scale = np.float64(1.0) / np.sqrt(total)
    expected = (direction.astype(np.float64) * scale).astype(np.float32)
    assert fold_weight_norm(direction, np.ones(1)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [1, 2, 3, 8, 24, 64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_inverse_is_that_of_linear_algebra(size, dtype):
    for seed in range(5):
        matrix = np.random.RandomState(seed).randn(size, size).astype(dtype)
        before = matrix.copy()
        expected = np.linalg.inv(matrix.astype(np.float64))
        inverse = invert_matrix(matrix, "w")
        assert inverse.dtype == np.float64
        assert np.abs(inverse - expected).max() <= 1e-12 * np.abs(expected).max()
        assert matrix.tobytes() == before.tobytes()


def test_rows_change_places_where_the_pivot_is_zero():
    matrix = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 4.0], [8.0, 0.0, 0.0]])
    expected = [[0.0, 0.0, 0.125], [0.5, 0.0, 0.0], [0.0, 0.25, 0.0]]
    assert invert_matrix(matrix, "w").tolist() == expected


def test_size_of_the_entries_does_not_matter():
    matrix = np.random.RandomState(5).randn(6, 6)
    for scale in (2.0**-100, 2.0**100):
        inverse = invert_matrix(matrix * scale, "w")
        assert (inverse * scale).tobytes() == invert_matrix(matrix, "w").tobytes()


@pytest.mark.parametrize(
    ("matrix", "columns"),
    [
        (np.zeros((2, 2)), 1),
        (np.ones((3, 3)), 2),
        (np.diag([1.0, 1e-20]), 2),
        (np.outer([1, 2, 3], [0.1, 0.2, 0.3]) + np.outer([1, 1, 0], [0.3, 0.7, 0.9]), 3),
        (np.full((2, 2), np.nan), 1),
    ],
)
def test_a_matrix_without_inverse_is_named(matrix, columns):
    with pytest.raises(IntegrityError) as error:
        invert_matrix(matrix, "some.weight")
    assert error.value.slug == "export.invalid-weight"
    assert f"`some.weight` [{len(matrix)}, {len(matrix)}] has no inverse" in error.value.message
    assert f"first {columns} columns" in error.value.message
