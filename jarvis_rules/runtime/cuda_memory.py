"""Device memory of an NVIDIA GPU through the CUDA driver API, without a CUDA toolkit.

`libcuda.so.1` comes with the driver. Functions and constants after NVIDIA's "CUDA Driver API"
reference and `cuda.h`; names that end in `_v2` are those that its macros choose.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

REQUIRES = ("numpy",)

LIBRARY = "libcuda.so.1"

_INT, _TEXT = ctypes.c_int, ctypes.c_char_p
_HANDLE, _HOST, _DEVICE = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64
PROTOTYPES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDriverGetVersion": (ctypes.POINTER(_INT),),
    "cuDeviceGetCount": (ctypes.POINTER(_INT),),
    "cuDeviceGet": (ctypes.POINTER(_INT), _INT),
    "cuDeviceGetName": (ctypes.POINTER(ctypes.c_char), _INT, _INT),
    "cuDeviceGetAttribute": (ctypes.POINTER(_INT), _INT, _INT),
    "cuDevicePrimaryCtxRetain": (ctypes.POINTER(_HANDLE), _INT),
    "cuDevicePrimaryCtxRelease_v2": (_INT,),
    "cuCtxPushCurrent_v2": (_HANDLE,),
    "cuCtxPopCurrent_v2": (ctypes.POINTER(_HANDLE),),
    "cuMemAlloc_v2": (ctypes.POINTER(_DEVICE), ctypes.c_size_t),
    "cuMemFree_v2": (_DEVICE,),
    "cuMemcpyHtoDAsync_v2": (_DEVICE, _HOST, ctypes.c_size_t, _HANDLE),
    "cuMemcpyDtoHAsync_v2": (_HOST, _DEVICE, ctypes.c_size_t, _HANDLE),
    "cuStreamCreate": (ctypes.POINTER(_HANDLE), ctypes.c_uint),
    "cuStreamSynchronize": (_HANDLE,),
    "cuStreamDestroy_v2": (_HANDLE,),
    "cuGetErrorName": (_INT, ctypes.POINTER(_TEXT)),
    "cuGetErrorString": (_INT, ctypes.POINTER(_TEXT)),
}
"""The parameters of the functions that are used here; all return a `CUresult`."""

_NO_DEVICE = 100
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76
_STREAM_NON_BLOCKING = 1
_NAME_BYTES = 256


class CudaError(RuntimeError):
    """A call of the driver that failed; `code` is its `CUresult`."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def open_library() -> Any:
    """Return the driver's library; RuntimeError where there is none."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        raise RuntimeError(f"no NVIDIA driver on this machine ({LIBRARY} is missing)") from None
    for name, parameters in PROTOTYPES.items():
        function = getattr(library, name)
        function.argtypes, function.restype = parameters, _INT
    return library


class Driver:
    """The driver's functions, with exceptions for their error codes.

    RuntimeError where there is no driver, `CudaError` where a call fails.
    """

    def __init__(self) -> None:
        self._library = open_library()
        self.call("cuInit", 0)

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function; `CudaError` with the name and text of the code that it returns."""
        code = getattr(self._library, function)(*arguments)
        if code:
            name, text = (self._text(what, code) for what in ("cuGetErrorName", "cuGetErrorString"))
            raise CudaError(f"{function}: {name or f'error {code}'}: {text or 'unknown'}", code)

    def _text(self, function: str, code: int) -> str | None:
        text = ctypes.c_char_p()
        getattr(self._library, function)(code, ctypes.byref(text))
        return None if text.value is None else text.value.decode("ascii", "replace")

    def integer(self, function: str, *arguments: Any) -> int:
        """Return the int that a function writes through its first parameter."""
        value = ctypes.c_int()
        self.call(function, ctypes.byref(value), *arguments)
        return value.value


class Device:
    """A GPU, described: nothing is held of it.

    `compute_capability` as `8.0`; `cuda_version`, the newest that the driver takes, as `13.0`.
    RuntimeError without a driver or a GPU of that number.
    """

    def __init__(self, index: int = 0) -> None:
        try:
            self.driver = Driver()
            count = self.driver.integer("cuDeviceGetCount")
        except CudaError as error:
            if error.code == _NO_DEVICE:
                raise RuntimeError("no NVIDIA GPU on this machine") from None
            raise
        if not 0 <= index < count:
            raise RuntimeError(f"no NVIDIA GPU {index} on this machine, which has {count}")
        self.index = index
        self.handle = self.driver.integer("cuDeviceGet", index)
        major, minor = (
            self.driver.integer("cuDeviceGetAttribute", attribute, self.handle)
            for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        self.compute_capability = f"{major}.{minor}"
        version = self.driver.integer("cuDriverGetVersion")
        self.cuda_version = f"{version // 1000}.{version % 1000 // 10}"
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self.driver.call("cuDeviceGetName", name, _NAME_BYTES, self.handle)
        self.name = name.value.decode("ascii", "replace")


class PrimaryContext:
    """The context of a GPU that the CUDA runtime uses too; current for a thread inside of `with`.

    `close` releases it; streams and memory of it must have gone before.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.driver = device.driver
        self._handle = ctypes.c_void_p()
        self.driver.call("cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), device.handle)

    def __enter__(self) -> PrimaryContext:
        self.driver.call("cuCtxPushCurrent_v2", self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.driver.call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))

    @property
    def is_open(self) -> bool:
        """Whether `close` is still to come."""
        return self._handle.value is not None

    def close(self) -> None:
        """Release the context; a second call does nothing."""
        if self.is_open:
            self._handle = ctypes.c_void_p()
            self.driver.call("cuDevicePrimaryCtxRelease_v2", self.device.handle)


class Stream:
    """An order of copies and kernels on the GPU; for use while its context is current."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._handle = ctypes.c_void_p()
        self._held: list[NDArray[Any]] = []
        driver.call("cuStreamCreate", ctypes.byref(self._handle), _STREAM_NON_BLOCKING)

    @property
    def handle(self) -> int:
        """The `CUstream` as a number."""
        return self._handle.value or 0

    def upload(self, array: NDArray[Any], address: int) -> None:
        """Copy an array to device memory; it is held until `synchronize`."""
        # Not `ascontiguousarray`, which makes a vector of a scalar.
        array = np.asarray(array, order="C")
        self._held.append(array)
        if array.nbytes:
            arguments = (address, array.ctypes.data, array.nbytes, self._handle)
            self._driver.call("cuMemcpyHtoDAsync_v2", *arguments)

    def download(self, address: int, array: NDArray[Any]) -> None:
        """Copy device memory into a contiguous array, which is complete after `synchronize`."""
        if not (array.flags.c_contiguous and array.flags.writeable):
            raise ValueError("the array to copy to must be contiguous and writeable")
        self._held.append(array)
        if array.nbytes:
            arguments = (array.ctypes.data, address, array.nbytes, self._handle)
            self._driver.call("cuMemcpyDtoHAsync_v2", *arguments)

    def synchronize(self) -> None:
        """Wait for all that was put into the stream; `CudaError` for what failed in it."""
        self._driver.call("cuStreamSynchronize", self._handle)
        self._held.clear()

    def close(self) -> None:
        """Wait for the stream and destroy it; a second call does nothing."""
        if self._handle.value is not None:
            try:
                self.synchronize()
            finally:
                handle, self._handle = self._handle, ctypes.c_void_p()
                self._driver.call("cuStreamDestroy_v2", handle)


class DeviceMemory:
    """Device memory by name, each piece of which only grows; for use while a context is current."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._pieces: dict[str, tuple[int, int]] = {}

    def reserve(self, name: str, size: int) -> int:
        """Return the address of at least `size` bytes, whose content is anything.

        The address of a name changes when it grows. `CudaError` where memory does not suffice.
        """
        wanted = max(size, 1)
        if name in self._pieces:
            address, available = self._pieces[name]
            if wanted <= available:
                return address
            # The old piece goes first: both at once may not fit.
            self._free([name])
        found = ctypes.c_uint64()
        try:
            self._driver.call("cuMemAlloc_v2", ctypes.byref(found), wanted)
        except CudaError as error:
            raise CudaError(f"{wanted} bytes for `{name}`: {error}", error.code) from None
        self._pieces[name] = found.value, wanted
        return found.value

    def close(self) -> None:
        """Free all of it; a second call does nothing."""
        self._free([*self._pieces])

    def _free(self, names: Iterable[str]) -> None:
        for name in names:
            if name in self._pieces:
                address, _ = self._pieces.pop(name)
                self._driver.call("cuMemFree_v2", address)
