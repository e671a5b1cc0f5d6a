"""An NVIDIA driver and a TensorRT in the place of the real ones, whose GPU is host memory.

The driver's functions are C function pointers of the real prototypes, so that every argument is
converted as for the real library. What goes to a stream happens when somebody waits for it; device
addresses are no host addresses; memory and streams need a current context.
"""

# ruff: noqa: N802  methods are named after the functions of the driver
from __future__ import annotations

import ctypes
import itertools
import json
import types

import numpy as np

TAG = 1 << 60
INVALID_VALUE, OUT_OF_MEMORY, NO_DEVICE, INVALID_CONTEXT, UNKNOWN = 1, 2, 100, 201, 999
NAMES = {
    INVALID_VALUE: (b"CUDA_ERROR_INVALID_VALUE", b"invalid argument"),
    OUT_OF_MEMORY: (b"CUDA_ERROR_OUT_OF_MEMORY", b"out of memory"),
    NO_DEVICE: (b"CUDA_ERROR_NO_DEVICE", b"no CUDA-capable device is detected"),
    INVALID_CONTEXT: (b"CUDA_ERROR_INVALID_CONTEXT", b"invalid device context"),
}
CONTEXT = 0x7000


class FakeCuda:
    """What `open_library` returns; `failing` maps functions to the codes that they return."""

    def __init__(self, prototypes, capability=(8, 0), devices=1, memory=1 << 20):
        self.capability, self.devices, self.free = capability, devices, memory
        self.failing, self.calls, self.faults = {}, [], []
        self.used, self.retained, self.stack, self.memory, self.streams = set(), 0, [], {}, {}
        self._numbers = itertools.count(0x100)
        for name, parameters in prototypes.items():
            function = ctypes.CFUNCTYPE(ctypes.c_int, *parameters)(self._guarded(name))
            setattr(self, name, function)

    def _guarded(self, name):
        implementation = getattr(self, f"_{name}")

        def call(*arguments):
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            if name.startswith(("cuMem", "cuStream")) and not self.stack:
                return INVALID_CONTEXT
            try:
                return implementation(*arguments) or 0
            except Exception as fault:
                # One that leaves a C function pointer would only be printed.
                self.faults.append(fault)
                return UNKNOWN

        return call

    @property
    def is_clean(self):
        """Whether everything was given back, and used as it should be."""
        assert self.faults == []
        return not (self.retained or self.stack or self.memory or self.streams)

    def _cuInit(self, flags):
        return INVALID_VALUE if flags else 0 if self.devices else NO_DEVICE

    def _cuDriverGetVersion(self, version):
        version[0] = 13010

    def _cuDeviceGetCount(self, count):
        count[0] = self.devices

    def _cuDeviceGet(self, device, index):
        device[0] = index + 40

    def _cuDeviceGetName(self, name, size, device):
        text = f"Fake GPU {device - 40}".encode()[: size - 1] + b"\0"
        ctypes.memmove(name, text, len(text))

    def _cuDeviceGetAttribute(self, value, attribute, device):
        assert device >= 40
        value[0] = {75: self.capability[0], 76: self.capability[1]}[attribute]

    def _cuDevicePrimaryCtxRetain(self, context, device):
        assert device >= 40
        self.retained += 1
        self.used.add(device - 40)
        context[0] = CONTEXT

    def _cuDevicePrimaryCtxRelease_v2(self, device):
        assert device >= 40
        self.retained -= 1

    def _cuCtxPushCurrent_v2(self, context):
        if context != CONTEXT or not self.retained:
            return INVALID_CONTEXT
        return self.stack.append(context)

    def _cuCtxPopCurrent_v2(self, context):
        context[0] = self.stack.pop()

    def _cuMemAlloc_v2(self, address, size):
        if not size:
            return INVALID_VALUE
        if size > self.free:
            return OUT_OF_MEMORY
        self.free -= size
        buffer = ctypes.create_string_buffer(b"\xa5" * size, size)
        address[0] = ctypes.addressof(buffer) | TAG
        self.memory[address[0]] = buffer
        return None

    def _cuMemFree_v2(self, address):
        self.free += len(self.memory.pop(address))

    def _cuMemcpyHtoDAsync_v2(self, address, host, size, stream):
        self._queue(stream, lambda: ctypes.memmove(self.at(address, size), host, size))

    def _cuMemcpyDtoHAsync_v2(self, host, address, size, stream):
        self._queue(stream, lambda: ctypes.memmove(host, self.at(address, size), size))

    def _cuStreamCreate(self, stream, flags):
        assert flags == 1
        stream[0] = next(self._numbers)
        self.streams[stream[0]] = []

    def _cuStreamSynchronize(self, stream):
        waiting, self.streams[stream] = self.streams[stream], []
        for work in waiting:
            work()

    def _cuStreamDestroy_v2(self, stream):
        assert not self.streams.pop(stream)

    def _cuGetErrorName(self, code, text):
        text[0] = NAMES.get(code, (None, None))[0]

    def _cuGetErrorString(self, code, text):
        text[0] = NAMES.get(code, (None, None))[1]

    def _queue(self, stream, work):
        self.streams[stream].append(work)

    def at(self, address, size):
        """Return the host address of a device address with `size` bytes behind it."""
        for start, buffer in self.memory.items():
            if start <= address and address + size <= start + len(buffer):
                return address ^ TAG
        raise AssertionError(f"{size} bytes at {address:#x} are no device memory")


def engine_bytes(inputs, outputs, profiles, **more):
    """Return an engine of the fake TensorRT.

    `inputs` and `outputs` are {name: (type, dims)}; `profiles` a list of {input: (least, most)}.
    Every output is `2 * x + 1` of the first input, in which its dims -1 are the sizes of the same
    axis; those of an output named `count` are the second input's.
    """
    return b"fake" + json.dumps([inputs, outputs, profiles, more]).encode()


class Enum(str):
    name = property(str)
    __slots__ = ()


class FakeTensorRT(types.ModuleType):
    """A module with the names of `tensorrt_rtx` (or, without validity, of `tensorrt`).

    `validity` is what `get_engine_validity` answers; `log` what is said at a deserialisation.
    """

    def __init__(self, cuda, name="tensorrt_rtx", validity=(0, 0), log=()):
        super().__init__(name)
        fake, severities = self, types.SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2)
        self.cuda, self.validity, self.log, self.refused = cuda, validity, log, set()
        self.contexts = []
        self.__version__ = "1.7.1.116"

        class ILogger:
            Severity = severities

        class Runtime:
            engine_header_size = 64

            def __init__(self, logger):
                self.logger = logger

            def get_engine_validity(self, header):
                assert len(header) == 64
                return fake.validity

            def deserialize_cuda_engine(self, data):
                assert fake.cuda.stack, "no current context"
                for severity, line in fake.log:
                    self.logger.log(severity, line)
                return Engine(fake, json.loads(data[4:])) if data[:4] == b"fake" else None

        if name == "tensorrt":
            del Runtime.get_engine_validity, Runtime.engine_header_size
        self.ILogger, self.Runtime = ILogger, Runtime
        self.TensorIOMode = types.SimpleNamespace(INPUT="INPUT", OUTPUT="OUTPUT")
        self.TensorLocation = types.SimpleNamespace(DEVICE="DEVICE", HOST="HOST")
        self.EngineValidity = types.SimpleNamespace(VALID=0, SUBOPTIMAL=1, INVALID=2)
        self.EngineInvalidityDiagnostics = types.SimpleNamespace(
            VERSION_MISMATCH=1, UNSUPPORTED_CC=2, OLD_CUDA_DRIVER=4, MALFORMED_ENGINE=32
        )


class Engine:
    def __init__(self, module, document):
        self.module = module
        self.inputs, self.outputs, self.profiles, self.more = document
        self.tensors = {**self.inputs, **self.outputs}
        self.num_io_tensors, self.num_optimization_profiles = len(self.tensors), len(self.profiles)

    def get_tensor_name(self, index):
        return [*self.tensors][index]

    def get_tensor_mode(self, name):
        return "INPUT" if name in self.inputs else "OUTPUT"

    def get_tensor_dtype(self, name):
        return Enum(self.tensors[name][0])

    def get_tensor_shape(self, name):
        return list(self.tensors[name][1])

    def get_tensor_location(self, name):
        return "HOST" if name in self.more.get("host", ()) else "DEVICE"

    def get_tensor_profile_shape(self, name, index):
        least, most = self.profiles[index][name]
        return [least, most, most]

    def create_execution_context(self):
        if "context" in self.module.refused:
            return None
        self.module.contexts.append(Context(self))
        return self.module.contexts[-1]


class Context:
    """One that refuses what TensorRT refuses: shapes outside of the active profile."""

    def __init__(self, engine):
        self.engine, self.cuda, self.refused = engine, engine.module.cuda, engine.module.refused
        self.profile, self.shapes, self.addresses, self.runs = 0, {}, {}, []

    def set_optimization_profile_async(self, index, stream):
        assert stream in self.cuda.streams
        self.profile, self.shapes = index, {}
        return "profile" not in self.refused

    def set_input_shape(self, name, shape):
        least, most = self.engine.profiles[self.profile][name]
        if not all(low <= size <= high for low, size, high in zip(least, shape, most, strict=True)):
            return False
        self.shapes[name] = tuple(shape)
        return True

    def get_tensor_shape(self, name):
        assert len(self.shapes) == len(self.engine.inputs), "an input has no shape"
        if name in self.engine.more.get("unbounded", ()):
            return [-1]
        first, *others = self.shapes.values()
        source = others[0] if name == "count" else first
        dims = self.engine.outputs[name][1]
        return [source[axis] if size == -1 else size for axis, size in enumerate(dims)]

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return f"address of {name}" not in self.refused

    def execute_async_v3(self, stream):
        assert self.cuda.stack, "no current context"
        assert set(self.addresses) == set(self.engine.tensors), "a tensor has no address"
        self.runs.append((self.profile, dict(self.shapes)))
        shapes = {name: tuple(self.get_tensor_shape(name)) for name in self.engine.outputs}
        self.cuda.streams[stream].append(lambda: self._compute(shapes))
        return "run" not in self.refused

    def _compute(self, shapes):
        first, *others = (self._array(name, shape) for name, shape in self.shapes.items())
        for name, shape in shapes.items():
            source = others[0] if name == "count" else first
            self._array(name, shape)[...] = (2 * source + 1).reshape(shape)

    def _array(self, name, shape):
        types_ = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64, "INT32": np.int32}
        dtype = np.dtype(types_[self.engine.tensors[name][0]])
        size = int(np.prod(shape)) * dtype.itemsize
        host = self.cuda.at(self.addresses[name], size) if size else 0
        data = (ctypes.c_char * size).from_address(host) if size else b""
        return np.frombuffer(data, dtype).reshape(shape)
