"""The store of a graph's constants: large ones, laid out in every way."""

import gc
import warnings

import numpy as np
import pytest

from jarvis_rules.onnx_graph.constants import ConstantStore

LARGE = np.arange(3 * 700 * 1000, dtype=np.float32).reshape(3, 700, 1000)


@pytest.mark.parametrize(
    "array",
    [
        LARGE,
        LARGE.T,
        LARGE[:, ::2],
        LARGE[:, :, 5:],
        LARGE.transpose(1, 0, 2),
        LARGE.reshape(-1)[::2],
        LARGE[:1, :, ::-1],
        LARGE.astype(">f4").T,
        np.broadcast_to(np.float32(1.5), (600, 700)),
        LARGE[:0].T,
        np.array(7, np.float32),
    ],
    ids=lambda array: f"{array.shape}{array.strides}",
)
def test_bytes_are_those_of_c_order(array):
    store = ConstantStore()
    store.add(np.ones(3, np.float32))
    constant, is_new = store.add(array)
    assert is_new
    blocks = list(constant.blocks())
    assert b"".join(blocks) == array.astype("<f4").tobytes()
    assert max(map(len, blocks), default=0) <= 1 << 20
    assert (constant.dtype, constant.shape) == ("float32", array.shape)
    assert store.add(array.copy(order="C")) == (constant, False)


def test_a_constant_that_was_there_leaves_no_trace():
    one, other = ConstantStore(), ConstantStore()
    arrays = [LARGE, np.arange(9), -LARGE]
    for array in arrays:
        one.add(array)
        for again in (array, LARGE.copy()):
            other.add(again)
    assert [one.add(a)[0].offset for a in arrays] == [other.add(a)[0].offset for a in arrays]


def test_constants_may_be_read_in_turns():
    store = ConstantStore()
    first, second = store.add(LARGE)[0].blocks(), store.add(-LARGE)[0].blocks()
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(np.frombuffer(a, "<f4"), -np.frombuffer(b, "<f4"))


def test_the_array_is_not_kept():
    store, array = ConstantStore(), np.ones(1 << 19, np.float32)
    constant, _ = store.add(array)
    array[:] = 2
    assert set(b"".join(constant.blocks())) == {0, 0x80, 0x3F}


def test_the_file_ends_with_the_store():
    store = ConstantStore()
    file = store._file
    constant, _ = store.add(LARGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del store
        assert next(constant.blocks())  # it holds its store
        del constant
        gc.collect()
    assert file.closed
