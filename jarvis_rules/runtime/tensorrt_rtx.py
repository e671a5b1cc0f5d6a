"""Triton module: an engine of TensorRT-RTX on the GPU of its instance.

Experimental: it has never executed an engine on a GPU.

Inputs and outputs: those of the engine, as config.pbtxt lists them.
Parameters: `engine_file` (in the version folder), `engine_compute_capabilities` (of the GPUs that
it was built for: `8.0,8.9`), `engine_version` (of the TensorRT-RTX that built it).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cuda_memory import Device
from .parameters import Parameters
from .serving import Answer, answer_together, check_tensors, input_array
from .tensorrt_execution import EngineRunner, EngineTensor

REQUIRES = ("numpy",)

Feed = dict[str, NDArray[Any]]


class TritonPythonModel:
    """What Triton's python backend runs."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the engine; an exception here fails the load with its text."""
        check_tensors()
        config = json.loads(args["model_config"])
        self._is_batched = int(config["max_batch_size"]) > 0
        self._runner = load(Parameters(args), _device_index(args))
        try:
            check_config(config, self._runner)
        except ValueError:
            self._runner.close()
            raise
        self._outputs = [tensor["name"] for tensor in config["output"]]

    def execute(self, requests: list[object]) -> list[object]:
        """Answer requests together where their shapes allow it."""
        read = partial(_read, tensors=self._runner.inputs)
        return answer_together(requests, read, self._answer, "tensorrt_rtx")

    def finalize(self) -> None:
        """Give back the GPU's memory."""
        self._runner.close()

    def _answer(self, feeds: list[Feed]) -> list[Answer | Exception]:
        """Run feeds of equal shapes as one batch each, and cut the outputs up again."""
        answers: list[Answer | Exception] = [{} for _ in feeds]
        groups: dict[tuple[Any, ...], list[int]] = {}
        for index, feed in enumerate(feeds):
            shapes = tuple(array.shape[1:] for array in feed.values())
            groups.setdefault(shapes if self._is_batched else (index,), []).append(index)
        for members in groups.values():
            found = self._run([feeds[index] for index in members])
            for index, answer in zip(members, found, strict=True):
                answers[index] = answer
        return answers

    def _run(self, feeds: list[Feed]) -> list[Answer | Exception]:
        joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
        try:
            outputs = self._runner.run(joined)
        except ValueError as error:
            # No profile takes as many rows of this size: it may take each request's.
            return [error] if len(feeds) == 1 else [self._run([feed])[0] for feed in feeds]
        ends = np.cumsum([len(next(iter(feed.values()))) for feed in feeds])
        parts = {name: np.split(outputs[name], ends[:-1]) for name in self._outputs}
        return [{name: part[index] for name, part in parts.items()} for index in range(len(feeds))]


def load(parameters: Parameters, device_index: int) -> EngineRunner:
    """Load a model's engine on a GPU.

    RuntimeError, in one line with the model's name, where there is no GPU, another one than the
    engine is for, no TensorRT-RTX, or one that refuses the engine.
    """
    file = parameters.file("engine_file")
    capabilities = parameters.text("engine_compute_capabilities").split(",")
    version = parameters.text("engine_version")
    built = f"its engine is for {_architectures(capabilities)} and TensorRT-RTX {version}"
    try:
        device = Device(device_index)
        if device.compute_capability not in capabilities:
            here = _architectures([device.compute_capability])
            raise RuntimeError(f"GPU {device_index} is {device.name}, {here}")
        return EngineRunner(file, "tensorrt_rtx", device)
    except RuntimeError as error:
        raise RuntimeError(f"model `{parameters.model}`: {built}: {error}") from None


def check_config(config: Mapping[str, Any], runner: EngineRunner) -> None:
    """Raise `ValueError` where a model's configuration is not what its engine takes."""
    faults = [
        *_disagreements("input", config["input"], runner.inputs),
        *_disagreements("output", config["output"], runner.outputs),
        *(
            f"input `{name}` of the engine is not configured"
            for name in runner.inputs
            if name not in {tensor["name"] for tensor in config["input"]}
        ),
    ]
    if int(config["max_batch_size"]) > runner.largest_batch:
        faults.append(
            f"max_batch_size is {config['max_batch_size']}, the engine takes at most "
            f"{runner.largest_batch} rows"
        )
    if faults:
        raise ValueError(f"model `{config['name']}`: {'; '.join(faults)}")


def _disagreements(
    kind: str, configured: list[Mapping[str, Any]], tensors: Mapping[str, EngineTensor]
) -> list[str]:
    triton = _triton()
    found = []
    for tensor in configured:
        name, data_type = tensor["name"], tensor["data_type"]
        if name not in tensors:
            found.append(f"{kind} `{name}` is not in the engine, which has {', '.join(tensors)}")
        elif np.dtype(triton.triton_string_to_numpy(data_type)) != tensors[name].dtype:
            found.append(f"{kind} `{name}` is {data_type}, the engine has {tensors[name].dtype}")
    return found


def _read(request: object, tensors: Mapping[str, EngineTensor]) -> Feed:
    feed = {
        name: input_array(request, name, tensor.dtype, len(tensor.dims))
        for name, tensor in tensors.items()
    }
    if len({len(array) for array in feed.values()}) > 1:
        shapes = ", ".join(f"`{name}` {list(array.shape)}" for name, array in feed.items())
        raise ValueError(f"inputs of unlike batches: {shapes}")
    return feed


def _device_index(args: Mapping[str, str]) -> int:
    """Return the number of the instance's GPU; the first for an instance that got none."""
    is_gpu = args["model_instance_kind"] == "GPU"
    return int(args["model_instance_device_id"]) if is_gpu else 0


def _architectures(capabilities: list[str]) -> str:
    return " and ".join(f"sm_{capability.replace('.', '')}" for capability in capabilities)


def _triton() -> ModuleType:
    # It exists only inside Triton's stub, and tests put their own in its place.
    import triton_python_backend_utils

    module: ModuleType = triton_python_backend_utils
    return module
