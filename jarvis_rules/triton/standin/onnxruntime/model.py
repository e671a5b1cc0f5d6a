"""A stand-in for Triton's ONNX Runtime backend, which the server in the wheel does not have.

A Python-based backend named `onnxruntime`: repositories load here and in production unchanged.
It refuses at load what the real backend refuses, so that a repository which is READY here is not
refused there. Answers are right, timings are not: tensors cross a process boundary.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # noqa: TID253  this program is nothing but onnxruntime
import triton_python_backend_utils as pb_utils
from onnx_signature import TRITON_TYPES, Tensor, disagreements  # type: ignore[import-not-found]

Requests = list[Any]


class TritonPythonModel:
    """One instance of one ONNX model on one CPU thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model and refuse a configuration that does not fit it."""
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"], args["model_version"])
        path /= config["default_model_filename"]
        if not path.is_file():
            raise pb_utils.TritonModelException(f"unable to find `{path}`")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        self._batched = config["max_batch_size"] > 0
        self._inputs = _configured(config["input"])
        self._outputs = _configured(config["output"])
        found = disagreements(
            config["max_batch_size"],
            (self._inputs, self._outputs),
            (_actual(self._session.get_inputs()), _actual(self._session.get_outputs())),
        )
        if found:
            raise pb_utils.TritonModelException(
                f"unable to load model `{args['model_name']}`: " + "; ".join(found)
            )

    def execute(self, requests: Requests) -> list[Any]:
        """Answer every request, in order; requests of equal shapes run as one batch."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple[Any, ...], list[int]] = {}
        feeds: list[dict[str, np.ndarray]] = []
        for index, request in enumerate(requests):
            feeds.append(self._feed(request))
            shapes = tuple((name, array.shape[1:]) for name, array in feeds[-1].items())
            groups.setdefault(shapes if self._batched else (index,), []).append(index)
        for members in groups.values():
            try:
                answers = self._run([feeds[index] for index in members])
            except Exception as fault:
                failure = pb_utils.TritonError(f"onnxruntime: {fault}")
                answers = [pb_utils.InferenceResponse(error=failure) for _ in members]
            for index, answer in zip(members, answers, strict=True):
                responses[index] = answer
        return responses

    def _feed(self, request: Any) -> dict[str, np.ndarray]:
        found = {}
        for tensor in self._inputs:
            value = pb_utils.get_input_tensor_by_name(request, tensor.name)
            if value is not None:
                found[tensor.name] = value.as_numpy()
        return found

    def _run(self, feeds: list[dict[str, np.ndarray]]) -> list[Any]:
        """Run one batch and cut the answer up again."""
        missing = [t.name for t in self._inputs if t.name not in feeds[0]]
        if missing:
            raise ValueError(f"missing input {', '.join(missing)}")
        joined = {}
        for name in feeds[0]:
            joined[name] = _to_onnx(
                np.concatenate([f[name] for f in feeds]) if len(feeds) > 1 else feeds[0][name]
            )
        names = [t.name for t in self._outputs]
        outputs = dict(zip(names, self._session.run(names, joined), strict=True))
        if not self._batched:
            return [self._response(outputs)]
        sizes = [next(iter(feed.values())).shape[0] for feed in feeds]
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != sum(sizes):
                raise ValueError(
                    f"output {name} has shape {list(array.shape)}, expected a batch of {sum(sizes)}"
                )
        ends = np.cumsum(sizes)
        return [
            self._response({name: a[end - size : end] for name, a in outputs.items()})
            for size, end in zip(sizes, ends, strict=True)
        ]

    def _response(self, outputs: dict[str, np.ndarray]) -> Any:
        tensors = [pb_utils.Tensor(name, _from_onnx(array)) for name, array in outputs.items()]
        return pb_utils.InferenceResponse(output_tensors=tensors)


def _configured(tensors: list[dict[str, Any]]) -> list[Tensor]:
    found = []
    for tensor in tensors:
        shape = tensor.get("reshape", {}).get("shape")
        dims = tensor["dims"] if shape is None else shape
        found.append(Tensor(tensor["name"], tensor["data_type"], tuple(int(d) for d in dims)))
    return found


def _actual(arguments: list[Any]) -> list[Tensor]:
    """Read a session's tensors; `type` is `tensor(float)`, a dim an int, a name or None."""
    found = []
    for argument in arguments:
        element = argument.type.removeprefix("tensor(").removesuffix(")")
        dims = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in argument.shape)
        found.append(Tensor(argument.name, TRITON_TYPES.get(element, argument.type), dims))
    return found


def _to_onnx(array: np.ndarray) -> np.ndarray:
    """Decode Triton's bytes, since ONNX Runtime takes text as `str`."""
    if array.dtype != np.object_:
        return np.ascontiguousarray(array)
    decoded = [item.decode() if isinstance(item, bytes) else item for item in array.ravel()]
    return np.array(decoded, dtype=np.object_).reshape(array.shape)


def _from_onnx(array: np.ndarray) -> np.ndarray:
    if array.dtype != np.object_:
        return np.ascontiguousarray(array)
    encoded = [item.encode() if isinstance(item, str) else item for item in array.ravel()]
    return np.array(encoded, dtype=np.object_).reshape(array.shape)
