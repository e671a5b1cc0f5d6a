"""Writing weights as safetensors: tensors by name that loading can never execute.

The format is that of `safetensors` 0.4 and later: the length of the header as 8 bytes
little-endian, the header in JSON, the tensors without gaps. The bytes are those of the library,
which wants all tensors in memory at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np

from jarvis_rules.core.digest import CHUNK, Sink
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.state_dict import Array

# In the order in which the library writes them: the widest first, so that all are aligned.
_DTYPES = {
    "int64": "I64",
    "float64": "F64",
    "float32": "F32",
    "int32": "I32",
    "float16": "F16",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
_ALIGNMENT = 8
# The header's own key for remarks, of which there are none: two versions give the same bytes.
_RESERVED = "__metadata__"


def write_safetensors(tensors: Mapping[str, Array], sink: Sink) -> None:
    """Write `tensors` to `sink`, one of them in memory at a time.

    The bytes do not depend on the order of `tensors`. IntegrityError for a dtype or a name that
    the format has no place for.
    """
    kinds = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    for name, (dtype, _) in kinds.items():
        if dtype.name not in _DTYPES or name == _RESERVED:
            raise IntegrityError(
                f"safetensors cannot hold the tensor {name!a} of {dtype.name}",
                slug="checkpoint.unsupported",
                hint="leave `--format CKPT` out",
            )
    ranks = {name: rank for rank, name in enumerate(_DTYPES)}
    order = sorted(kinds, key=lambda name: (ranks[kinds[name][0].name], name))
    header, end = {}, 0
    for name in order:
        dtype, shape = kinds[name]
        start, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _DTYPES[dtype.name],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(
        errors="backslashreplace"
    )
    text += b" " * (-len(text) % _ALIGNMENT)
    sink.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        dtype = kinds[name][0].newbyteorder("<")
        flat = np.ascontiguousarray(tensors[name], dtype).reshape(-1)
        step = CHUNK // dtype.itemsize
        for at in range(0, flat.size, step):
            sink.write(flat[at : at + step].tobytes())
