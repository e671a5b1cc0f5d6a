"""What Triton's ONNX Runtime backend demands of a configuration against the model's tensors.

Standard library only, and copied beside the stand-in backend: so that the linter and the server
used in tests refuse the same things. After `ValidateInputs`, `ValidateOutputs` and
`CompareDimsSupported` of triton-inference-server/onnxruntime_backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

TRITON_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float": "TYPE_FP32",
    "double": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "string": "TYPE_STRING",
}
"""ONNX Runtime's element type names to Triton's."""


class Tensor(NamedTuple):
    """A name, a Triton `TYPE_…` and dims with -1 for what varies; the batch counts as a dim."""

    name: str
    data_type: str
    dims: tuple[int, ...]


def disagreements(
    max_batch_size: int,
    configured: tuple[Sequence[Tensor], Sequence[Tensor]],
    actual: tuple[Sequence[Tensor], Sequence[Tensor]],
) -> list[str]:
    """Return one sentence for every way in which a configuration and its model disagree.

    Both arguments hold inputs, then outputs; `configured` as config.pbtxt writes them, without
    the batch dimension. Outputs of the model may stay unnamed in the configuration, inputs not.
    """
    model_inputs, model_outputs = ({t.name: t for t in side} for side in actual)
    found = [
        f"input `{name}` of the model is not in the configuration"
        for name in model_inputs
        if name not in {t.name for t in configured[0]}
    ]
    for kind, side, known in (
        ("input", configured[0], model_inputs),
        ("output", configured[1], model_outputs),
    ):
        for tensor in side:
            found += _against_model(kind, max_batch_size, tensor, known)
    return found


def _against_model(
    kind: str, max_batch_size: int, tensor: Tensor, known: Mapping[str, Tensor]
) -> list[str]:
    model = known.get(tensor.name)
    if model is None:
        names = ", ".join(f"`{name}`" for name in known) or "none"
        return [f"{kind} `{tensor.name}` is not in the model, which has {names}"]
    where = f"{kind} `{tensor.name}`"
    if tensor.data_type != model.data_type:
        return [f"{where} is configured as {tensor.data_type}, the model has {model.data_type}"]
    if max_batch_size > 0 and model.dims[:1] != (-1,):
        return [
            f"{where} has shape {_shape(model.dims)} in the model: max_batch_size "
            f"{max_batch_size} needs a first dimension that varies"
        ]
    full = (-1, *tensor.dims) if max_batch_size > 0 else tensor.dims
    # A scalar cannot be written in a configuration; Triton takes dims [1] for it.
    expected = model.dims or (1,)
    agree = len(full) == len(expected) and all(
        theirs in (-1, ours) for ours, theirs in zip(full, expected, strict=True)
    )
    return (
        []
        if agree
        else [f"{where} is configured as {_shape(full)}, the model has {_shape(expected)}"]
    )


def _shape(dims: Sequence[int]) -> str:
    return f"[{', '.join(str(dim) for dim in dims)}]"
