"""Weights as safetensors: the bytes of the specification, read back without the writer."""

from __future__ import annotations

import hashlib
import io
import json

import numpy as np
import pytest

from jarvis_rules.core.digest import CHUNK
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.safetensors import write_safetensors


def dumped(tensors):
    out = io.BytesIO()
    write_safetensors(tensors, out)
    return out.getvalue()


def read(data):
    """Return the tensors as whoever reads the specification would."""
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    kinds = {"BOOL": "?", "U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8",
             "F16": "<f2", "F32": "<f4", "F64": "<f8"}  # fmt: skip
    end, tensors = 0, {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        assert start == end, "no gaps, in the order of the header"
        assert (8 + size + start) % np.dtype(kinds[entry["dtype"]]).itemsize == 0
        flat = np.frombuffer(body[start:stop], kinds[entry["dtype"]])
        tensors[name], end = flat.reshape(entry["shape"]), stop
    assert end == len(body)
    return tensors


def test_the_bytes_of_a_small_file():
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + bytes.fromhex("0000803f00000040")
    assert dumped({"a": np.array([1, 2], "<f4")}) == expected


def every_dtype():
    kinds = ("bool", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
    tensors = {kind: np.arange(6).reshape(2, 3).astype(kind) for kind in kinds}
    return tensors | {
        "é": np.ones(3, "f4"),
        "scalar": np.array(3, "f4"),
        "none": np.zeros((0, 4), "f4"),
    }


def test_the_bytes_are_those_of_the_library():
    """Recorded with `safetensors.numpy.save` of safetensors 0.8.0."""
    recorded = "17b660b980b689a1f47a0a19fc8d162f4bff1314adb38516e557b7a10641aa7f"
    assert hashlib.sha256(dumped(every_dtype())).hexdigest() == recorded


def test_every_dtype_comes_back():
    tensors = every_dtype()
    tensors |= {"strided": np.arange(12.0).reshape(3, 4).T, "big": np.arange(3, dtype=">i4")}
    back = read(dumped(tensors))
    assert back.keys() == tensors.keys()
    for name, array in tensors.items():
        assert back[name].shape == array.shape
        assert back[name].dtype == array.dtype.newbyteorder("<")
        np.testing.assert_array_equal(back[name], array)


def test_the_order_given_does_not_matter():
    tensors = {"b": np.zeros(3, "i1"), "a": np.zeros(3, "f8"), "c": np.zeros(3, "f8")}
    assert dumped(tensors) == dumped(dict(reversed(tensors.items())))
    assert list(read(dumped(tensors))) == ["a", "c", "b"]


def test_a_large_tensor_is_written_in_pieces():
    class Sink:
        largest = 0

        def write(self, data):
            self.largest = max(self.largest, len(data))

    sink = Sink()
    write_safetensors({"w": np.zeros(3 * CHUNK, "f4")}, sink)
    assert sink.largest <= CHUNK


@pytest.mark.parametrize(
    ("name", "kind"), [("__metadata__", "f4"), ("phase", "c8"), ("text", "U3")]
)
def test_what_the_format_has_no_place_for(name, kind):
    with pytest.raises(IntegrityError, match=f"cannot hold the tensor '{name}'") as caught:
        dumped({name: np.zeros(1, kind)})
    assert caught.value.slug == "checkpoint.unsupported"
