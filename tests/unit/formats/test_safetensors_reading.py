"""Weights as safetensors, read: what was written comes back, all else is refused."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.safetensors import write_safetensors
from jarvis_rules.formats.safetensors_reading import read_safetensors

TENSORS = {
    **{
        kind: np.arange(6).reshape(2, 3).astype(kind)
        for kind in ("bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
    },
    "scalar": np.array(3, "f4"),
    "none": np.zeros((0, 4), "f4"),
}


def test_what_was_written_comes_back():
    out = io.BytesIO()
    write_safetensors(TENSORS, out)
    tensors = read_safetensors(memoryview(out.getvalue()), "x")
    assert tensors.keys() == TENSORS.keys()
    for name, expected in TENSORS.items():
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected, strict=True)


def packed(header, body=b"", size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text + body


def entry(start=0, stop=8, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 7,
        packed({}, size=1 << 60),
        packed(b"["),
        packed(b"[]"),
        packed(b"[" * 100_000),
        packed(b"\xff"),
        packed({"a": 1}),
        packed({"a": entry(dtype="BF17")}, bytes(8)),
        packed({"a": entry()}, bytes(7)),
        packed({"a": entry()}, bytes(9)),
        packed({"a": entry(8, 0)}, bytes(8)),
        packed({"a": entry(-8, 0)}, bytes(8)),
        packed({"a": entry(4, 12)}, bytes(12)),
        packed({"a": entry(), "b": entry()}, bytes(8)),
        packed({"a": entry(), "b": entry(4, 12)}, bytes(12)),
        packed({"a": entry(shape=(-2,))}, bytes(8)),
        packed({"a": entry(shape=(1 << 62, 4))}, bytes(8)),
        packed({"a": entry(shape=(1,) * 64)}, bytes(8)),
        packed({"a": entry(shape=(True, 2))}, bytes(8)),
    ],
)
def test_damaged_files_are_refused(data):
    with pytest.raises(IntegrityError) as raised:
        read_safetensors(memoryview(data), "x")
    assert raised.value.slug == "safetensors.damaged"
