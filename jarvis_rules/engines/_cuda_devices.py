"""The GPUs that CUDA sees from this process, asked of the driver itself (CUDA Driver API)."""

from __future__ import annotations

import ctypes
import uuid
from dataclasses import dataclass

_LIBRARY = "libcuda.so.1"
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of `CUdevice_attribute`.
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True, slots=True)
class CudaDevice:
    """A GPU: its name, compute capability, and what `CUDA_VISIBLE_DEVICES` calls it."""

    name: str
    compute_capability: str
    identifier: str


def cuda_devices() -> tuple[CudaDevice, ...]:
    """Return the GPUs in CUDA's order; none without a driver, or where it finds none."""
    try:
        cuda = ctypes.CDLL(_LIBRARY)
    except OSError:
        return ()
    count = ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return ()
    return tuple(_describe(cuda, index) for index in range(count.value))


def _describe(cuda: ctypes.CDLL, index: int) -> CudaDevice:
    device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name, identifier = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    cuda.cuDeviceGet(ctypes.byref(device), index)
    cuda.cuDeviceGetName(name, len(name), device)
    cuda.cuDeviceGetUuid(identifier, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, device)
    cuda.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, device)
    return CudaDevice(
        name.value.decode(errors="replace"),
        f"{major.value}.{minor.value}",
        f"GPU-{uuid.UUID(bytes=identifier.raw)}",
    )
