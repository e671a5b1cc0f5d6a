"""Device memory through the driver's functions, against a driver whose GPU is host memory."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from cuda_testing import INVALID_VALUE, NO_DEVICE, FakeCuda

from jarvis_rules.runtime import cuda_memory
from jarvis_rules.runtime.cuda_memory import (
    CudaError,
    Device,
    DeviceMemory,
    PrimaryContext,
    Stream,
)


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda(cuda_memory.PROTOTYPES, devices=2)
    monkeypatch.setattr(cuda_memory, "open_library", lambda: fake)
    return fake


@pytest.fixture
def context(cuda):
    context = PrimaryContext(Device(1))
    yield context
    context.close()
    context.close()
    assert cuda.is_clean


def test_a_device(cuda):
    device = Device(1)
    assert (device.compute_capability, device.cuda_version) == ("8.0", "13.1")
    assert device.name == "Fake GPU 1"
    assert cuda.is_clean


def test_no_driver(monkeypatch):
    monkeypatch.setattr(cuda_memory, "LIBRARY", "libcuda-of-nobody.so.1")
    with pytest.raises(RuntimeError, match=r"no NVIDIA driver on this machine .libcuda-of-nobody"):
        Device()


def test_the_real_library_gets_the_prototypes(monkeypatch):
    """Against a library that is everywhere, with functions of it in the place of CUDA's."""
    monkeypatch.setattr(cuda_memory, "LIBRARY", "libc.so.6")
    monkeypatch.setattr(cuda_memory, "PROTOTYPES", {"abs": (ctypes.c_int,)})
    library = cuda_memory.open_library()
    assert (library.abs.argtypes, library.abs.restype) == ((ctypes.c_int,), ctypes.c_int)
    assert library.abs(-3) == 3


@pytest.mark.parametrize("function", ["cuInit", "cuDeviceGetCount"])
def test_no_gpu(cuda, function):
    cuda.failing[function] = NO_DEVICE
    with pytest.raises(RuntimeError, match=r"^no NVIDIA GPU on this machine$"):
        Device()


@pytest.mark.parametrize("index", [2, -1])
@pytest.mark.usefixtures("cuda")
def test_no_gpu_of_that_number(index):
    with pytest.raises(RuntimeError, match=f"no NVIDIA GPU {index} on this machine, which has 2"):
        Device(index)


def test_an_error_has_its_name_and_text(cuda):
    cuda.failing["cuDeviceGetCount"] = INVALID_VALUE
    with pytest.raises(
        CudaError, match=r"^cuDeviceGetCount: CUDA_ERROR_INVALID_VALUE: invalid argument$"
    ) as caught:
        Device()
    assert caught.value.code == INVALID_VALUE
    cuda.failing["cuDeviceGetCount"] = 4711
    with pytest.raises(CudaError, match=r"^cuDeviceGetCount: error 4711: unknown$"):
        Device()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4),
        np.arange(24, dtype=np.int64).reshape(4, 6).T,
        np.arange(24, dtype=np.float16)[::2],
        np.array([[True], [False]]),
        np.array(7, np.int32),
        np.zeros((0, 5), np.float32),
    ],
)
def test_arrays_go_there_and_back(context, array):
    with context:
        stream, memory = Stream(context.driver), DeviceMemory(context.driver)
        address = memory.reserve("x", array.nbytes)
        # Nobody but the stream holds the copy that is contiguous.
        stream.upload(array, address)
        found = np.empty(array.shape, array.dtype)
        stream.download(address, found)
        stream.synchronize()
        np.testing.assert_array_equal(found, array)
        memory.close()
        stream.close()
        stream.close()


def test_nothing_is_there_before_somebody_waits(context):
    with context:
        stream, memory = Stream(context.driver), DeviceMemory(context.driver)
        address = memory.reserve("x", 4)
        stream.upload(np.array([7], np.int32), address)
        found = np.zeros(1, np.int32)
        stream.download(address, found)
        assert found[0] == 0
        stream.synchronize()
        assert found[0] == 7
        memory.close()
        stream.close()


def test_where_a_download_cannot_go(context):
    with context:
        stream = Stream(context.driver)
        for array in (np.zeros((2, 2))[:, 0], np.frombuffer(b"12345678")):
            with pytest.raises(ValueError, match="contiguous and writeable"):
                stream.download(0, array)
        stream.close()


def test_memory_only_grows(context, cuda):
    with context:
        memory = DeviceMemory(context.driver)
        first = memory.reserve("x", 100)
        assert memory.reserve("x", 100) == memory.reserve("x", 1) == memory.reserve("x", 0) == first
        assert memory.reserve("y", 100) != first
        memory.reserve("x", 101)
        assert sorted(map(len, cuda.memory.values())) == [100, 101]
        assert memory.reserve("empty", 0) != 0
        memory.close()
        assert not cuda.memory
        assert memory.reserve("x", 5) in cuda.memory
        memory.close()


def test_too_little_memory_names_the_tensor_and_leaves_order(context, cuda):
    with context:
        memory = DeviceMemory(context.driver)
        memory.reserve("x", 1000)
        with pytest.raises(
            CudaError, match=r"^9000000 bytes for `x`: cuMemAlloc_v2: CUDA_ERROR_OUT_OF_MEMORY"
        ):
            memory.reserve("x", 9_000_000)
        # What was there went first, and is not freed again.
        assert not cuda.memory
        memory.close()
        assert memory.reserve("x", 10) in cuda.memory
        memory.close()


def test_the_context_is_current_inside_of_with_only(context, cuda):
    with context, context:
        assert len(cuda.stack) == 2
    with pytest.raises(CudaError, match="CUDA_ERROR_INVALID_CONTEXT"):
        Stream(context.driver)
    with pytest.raises(KeyError), context:
        raise KeyError
    assert cuda.stack == []
    assert context.is_open


def test_addresses_have_64_bits(context, cuda):
    with context:
        memory = DeviceMemory(context.driver)
        address = memory.reserve("x", 1)
        assert address >= 1 << 60
        memory.close()
    assert cuda.memory == {}
