"""Executes an engine of TensorRT-RTX or TensorRT on a GPU, numpy arrays in and out.

The modules `tensorrt_rtx`, `tensorrt_rtx_bindings` and `tensorrt` have the same names for what is
used here (NVIDIA's "TensorRT Python API"); only TensorRT-RTX can say of an engine whether it fits.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .cuda_memory import CudaError, Device, DeviceMemory, PrimaryContext, Stream
from .shape_profiles import Profile, Shape, choose_profile, cut_batch, fill

REQUIRES = ("numpy",)

_MODULES = {
    # The first is a package of one line that imports the second, which alone is a wheel.
    "tensorrt_rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
    "tensorrt": ("tensorrt",),
}
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT64": "int64",
    "INT32": "int32",
    "INT8": "int8",
    "UINT8": "uint8",
    "BOOL": "bool",
}
"""TensorRT's element types that numpy has, by their names."""

_VALIDITY_REASONS = {
    "VERSION_MISMATCH": "it was built by another version",
    "UNSUPPORTED_CC": "it was not built for this GPU",
    "OLD_CUDA_DRIVER": "the NVIDIA driver is too old",
    "OLD_CUDA_RUNTIME": "the CUDA runtime is too old",
    "INSUFFICIENT_GPU_MEMORY": "the GPU has too little memory",
    "MALFORMED_ENGINE": "it is not an engine, or damaged",
    "CUDA_ERROR": "CUDA reports an error",
}
"""The bits of `EngineInvalidityDiagnostics`, by their names."""

_MOST_LOG_LINES = 5


class EngineTensor(NamedTuple):
    """An input or output: its dims have the batch first, -1 for what varies."""

    name: str
    dtype: np.dtype[Any]
    dims: Shape


class EngineRunner:
    """A loaded engine; for use in one thread.

    Inputs are filled with zeros to the sizes of the profile that costs least, and the outputs cut
    to the rows of the inputs; what outputs hold past an input's own length belongs to its filling.

    Args:
        path: the engine's file.
        toolchain: what built it, `tensorrt_rtx` or `tensorrt`; its package is imported now.
        device: the GPU, the first of this machine by default.

    RuntimeError with one line where the engine cannot be loaded: no driver, GPU or package, another
    GPU or version, not an engine, or tensors that this class does not know how to handle.

    """

    def __init__(self, path: Path, toolchain: str, device: Device | None = None) -> None:
        self._device = Device() if device is None else device
        self._module: Any = _import_module(toolchain)
        self.inputs: dict[str, EngineTensor] = {}
        self.outputs: dict[str, EngineTensor] = {}
        self.profiles: list[Profile] = []
        self._log: list[str] = []
        self._where = f"engine `{path.name}`"
        self._cuda = PrimaryContext(self._device)
        self._stream: Stream | None = None
        self._memory = DeviceMemory(self._device.driver)
        self._runtime: Any = None
        self._engine: Any = None
        self._context: Any = None
        self._growing: dict[str, list[bool]] = {}
        self._active = 0
        try:
            with self._cuda:
                self._load(path.read_bytes())
        except BaseException:
            # A context that failed refuses this too: what failed first is what matters.
            with contextlib.suppress(CudaError):
                self.close()
            raise

    def __enter__(self) -> EngineRunner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def largest_batch(self) -> int:
        """The most rows that any profile takes."""
        return max(profile.largest_batch for profile in self.profiles)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs of one batch by name.

        Raises:
            ValueError: an input is missing, unknown, of another type or rank, or fits no profile.
            RuntimeError: TensorRT or CUDA fails.

        """
        if self._stream is None:
            raise RuntimeError(f"{self._where} is closed")
        shapes = self._shapes(inputs)
        number, filled = choose_profile(self.profiles, shapes, self._growing)
        self._log.clear()
        with self._cuda:
            self._use_profile(number, self._stream)
            for name, array in inputs.items():
                self._set_input(name, fill(array, filled[name]), self._stream)
            outputs = self._execute(self._stream)
        first = next(iter(self.inputs))
        rows, computed = shapes[first][0], filled[first][0]
        return {name: cut_batch(name, a, rows, computed) for name, a in outputs.items()}

    def close(self) -> None:
        """Give back all that is held of the GPU; a second call does nothing."""
        if self._cuda.is_open:
            with self._cuda:
                if self._stream is not None:
                    self._stream.close()
                    self._stream = None
                self._context = self._engine = self._runtime = None
                self._memory.close()
            self._cuda.close()

    def _load(self, data: bytes) -> None:
        self._stream = Stream(self._device.driver)
        self._runtime = self._module.Runtime(_error_log(self._module, self._log))
        if self._module.__name__ == "tensorrt":
            # A version-compatible plan brings the runtime that it needs.
            self._runtime.engine_host_code_allowed = True
        self._check_validity(data)
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise self._failure("cannot be loaded")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure("gets no execution context")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        is_input = self._module.TensorIOMode.INPUT
        self.inputs = {n: self._tensor(n) for n in names if self._mode(n) == is_input}
        self.outputs = {n: self._tensor(n) for n in names if n not in self.inputs}
        count = self._engine.num_optimization_profiles
        self.profiles = [self._profile(number) for number in range(count)]
        # Without an input of lengths, or of a mask, a graph cannot know what is filling.
        told = any(tensor.dtype.kind in "iub" for tensor in self.inputs.values())
        self._growing = {
            name: [axis == 0 or (told and size == -1) for axis, size in enumerate(tensor.dims)]
            for name, tensor in self.inputs.items()
        }
        self._refuse_unbounded_outputs()

    def _check_validity(self, data: bytes) -> None:
        """Raise RuntimeError where TensorRT-RTX says that the engine cannot run here, and why."""
        if not hasattr(self._runtime, "get_engine_validity"):
            return
        size = self._runtime.engine_header_size
        validity, bits = self._runtime.get_engine_validity(data[:size].ljust(size, b"\0"))
        if validity != self._module.EngineValidity.INVALID:
            return
        known = self._module.EngineInvalidityDiagnostics
        reasons = [
            text
            for name, text in _VALIDITY_REASONS.items()
            if hasattr(known, name) and int(bits) & int(getattr(known, name))
        ]
        # No bit is set where CUDA itself fails; the log says how.
        why = ", ".join(reasons) or (f"diagnostics {bits}" if int(bits) else "CUDA fails")
        raise self._failure(f"cannot run here: {why}")

    def _tensor(self, name: str) -> EngineTensor:
        engine = self._engine
        if engine.get_tensor_location(name) != self._module.TensorLocation.DEVICE:
            raise RuntimeError(f"{self._where}: tensor `{name}` lies in host memory (shape tensor)")
        dtype = engine.get_tensor_dtype(name).name
        if dtype not in _DTYPES:
            raise RuntimeError(f"{self._where}: tensor `{name}` is {dtype}, which numpy has not")
        dims = tuple(engine.get_tensor_shape(name))
        if not dims:
            raise RuntimeError(f"{self._where}: tensor `{name}` has no batch dimension")
        return EngineTensor(name, np.dtype(_DTYPES[dtype]), dims)

    def _mode(self, name: str) -> Any:
        return self._engine.get_tensor_mode(name)

    def _profile(self, number: int) -> Profile:
        least, most = {}, {}
        for name, tensor in self.inputs.items():
            least[name] = most[name] = tensor.dims
            if -1 in tensor.dims:
                low, _, high = self._engine.get_tensor_profile_shape(name, number)
                least[name], most[name] = tuple(low), tuple(high)
        return Profile(number, least, most)

    def _refuse_unbounded_outputs(self) -> None:
        """Raise RuntimeError for outputs whose size depends on values: they need an allocator."""
        for name, shape in self.profiles[0].most.items():
            self._require(self._context.set_input_shape(name, shape), f"refuses the shape {shape}")
        for name in self.outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise RuntimeError(
                    f"{self._where}: the size of output `{name}` depends on values: {list(shape)}"
                )

    def _shapes(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, Shape]:
        for name in [*self.inputs, *inputs]:
            if name not in inputs or name not in self.inputs:
                what = "is missing" if name in self.inputs else "is unknown"
                raise ValueError(f"input `{name}` {what}, {self._where} takes {[*self.inputs]}")
        for name, tensor in self.inputs.items():
            array = inputs[name]
            if array.dtype != tensor.dtype or array.ndim != len(tensor.dims):
                raise ValueError(
                    f"input `{name}` must be {tensor.dtype} with {len(tensor.dims)} dimensions, "
                    f"got {array.dtype} of shape {list(array.shape)}"
                )
        shapes = {name: inputs[name].shape for name in self.inputs}
        if len({shape[0] for shape in shapes.values()}) > 1:
            raise ValueError(f"inputs of unlike batches: {_listed(shapes)}")
        return shapes

    def _use_profile(self, number: int, stream: Stream) -> None:
        if number != self._active:
            chosen = self._context.set_optimization_profile_async(number, stream.handle)
            self._require(chosen, f"refuses its profile {number}")
            stream.synchronize()
            self._active = number

    def _set_input(self, name: str, array: NDArray[Any], stream: Stream) -> None:
        address = self._memory.reserve(name, array.nbytes)
        stream.upload(array, address)
        accepted = self._context.set_input_shape(name, array.shape)
        self._require(accepted, f"refuses the shape {list(array.shape)} of `{name}`")
        self._require(self._context.set_tensor_address(name, address), f"refuses `{name}`")

    def _execute(self, stream: Stream) -> dict[str, NDArray[Any]]:
        outputs, addresses = {}, {}
        for name, tensor in self.outputs.items():
            outputs[name] = np.empty(tuple(self._context.get_tensor_shape(name)), tensor.dtype)
            addresses[name] = self._memory.reserve(name, outputs[name].nbytes)
            accepted = self._context.set_tensor_address(name, addresses[name])
            self._require(accepted, f"refuses `{name}`")
        self._require(self._context.execute_async_v3(stream.handle), "fails")
        for name, array in outputs.items():
            stream.download(addresses[name], array)
        stream.synchronize()
        return outputs

    def _require(self, accepted: bool, what: str) -> None:
        if not accepted:
            raise self._failure(what)

    def _failure(self, what: str) -> RuntimeError:
        """Return an error with what TensorRT logged, on one line."""
        lines = [" ".join(line.split()) for line in self._log[:_MOST_LOG_LINES]]
        self._log.clear()
        module = f"{self._module.__name__} {self._module.__version__}"
        gpu = f"{self._device.name}, sm_{self._device.compute_capability.replace('.', '')}"
        return RuntimeError(": ".join([f"{self._where} {what} ({module} on {gpu})", *lines]))


def _import_module(toolchain: str) -> ModuleType:
    for name in _MODULES[toolchain]:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError) as error:
            if not (isinstance(error, ModuleNotFoundError) and error.name == name):
                raise RuntimeError(f"the Python package `{name}` is broken: {error}") from None
    needed = " or ".join(f"`{name}`" for name in _MODULES[toolchain])
    raise RuntimeError(f"it needs the Python package {needed}, which is not installed")


def _listed(shapes: Mapping[str, Shape]) -> str:
    return ", ".join(f"`{name}` {list(shape)}" for name, shape in shapes.items())


def _error_log(module: Any, lines: list[str]) -> Any:
    """Return a logger of TensorRT that appends errors to `lines` and says nothing."""
    severity = module.ILogger.Severity
    kept = {severity.INTERNAL_ERROR, severity.ERROR}

    def log(_: Any, level: Any, message: str) -> None:
        if level in kept:
            lines.append(message)

    return type("ErrorLog", (module.ILogger,), {"log": log})()
