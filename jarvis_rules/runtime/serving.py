"""What every Triton module does alike: one answer per request, whatever happens.

A Python exception that leaves `execute` fails every request of that call, and the server may have
put requests of different users into it. So each request is answered alone: values that can't be
used give an INVALID_ARG error with a clear text, anything unforeseen an INTERNAL one.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

REQUIRES = ("numpy",)

Answer = Mapping[str, NDArray[Any]]
T = TypeVar("T")


def check_tensors() -> None:
    """Raise `RuntimeError` if this Triton's stub garbles tensors.

    Stubs built for numpy 1.x (Triton 24.10 for one) do so silently under numpy 2.x: they take every
    item size for 0, so that the server says READY and every tensor is wrong.
    """
    if int(np.__version__.split(".")[0]) < 2:
        return
    sample = np.array([1.5, -2.5], np.float32)
    # A tensor made of an array just holds it; this one is laid out by the stub.
    returned = _triton().Tensor.from_dlpack("sample", sample).as_numpy()
    if not np.array_equal(returned, sample):
        raise RuntimeError(
            f"this Triton's Python stub garbles tensors under numpy {np.__version__}: "
            "give its Python environment numpy < 2"
        )


def answer_each(
    requests: Iterable[object], answer: Callable[[object], Answer], module: str
) -> list[object]:
    """Answer every request by itself.

    Args:
        requests: the `pb_utils.InferenceRequest`s of one `execute` call.
        answer: makes the output tensors of one request by name; it raises `ValueError`, whose text
            the client gets, for a request that can't be answered.
        module: name for messages about our own mistakes.

    Returns:
        One `pb_utils.InferenceResponse` per request, in order.

    """
    return [_answer(request, answer, module) for request in requests]


def answer_together(
    requests: list[object],
    read: Callable[[object], T],
    answer: Callable[[list[T]], Sequence[Answer | Exception]],
    module: str,
) -> list[object]:
    """Answer requests in one go; where that fails unforeseen, each by itself.

    Args:
        requests: the `pb_utils.InferenceRequest`s of one `execute` call.
        read: what to answer of one request; it raises `ValueError` as in `answer_each`.
        answer: makes the output tensors of requests that were read, or says why there are none.
        module: name for messages about our own mistakes.

    Returns:
        One `pb_utils.InferenceResponse` per request, in order.

    """
    responses: dict[int, object] = {}
    waiting: dict[int, T] = {}
    for number, request in enumerate(requests):
        try:
            waiting[number] = read(request)
        except Exception as error:
            responses[number] = _failed(error, module)
    try:
        found = answer(list(waiting.values()))
    except Exception as error:
        if len(requests) > 1:
            return [answer_together([one], read, answer, module)[0] for one in requests]
        found = [error]
    for number, value in zip(waiting, found, strict=True):
        if isinstance(value, Exception):
            responses[number] = _failed(value, module)
        else:
            responses[number] = _answered(value)
    return [responses[number] for number in range(len(requests))]


def input_texts(request: object, name: str) -> list[str]:
    """Return a STRING input of shape [items, 1] as texts; raise `ValueError` for other bytes."""
    array = input_array(request, name, np.object_, 2)
    if array.shape[1] != 1:
        raise ValueError(f"input `{name}` must have shape [items, 1], got {list(array.shape)}")
    texts = []
    for item, value in enumerate(array[:, 0]):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            raise ValueError(
                f"item {item}: `{name}` is not UTF-8: byte 0x{value[error.start]:02x} at "
                f"{error.start}"
            ) from None
    return texts


def input_array(request: object, name: str, dtype: DTypeLike, rank: int) -> NDArray[Any]:
    """Return an input tensor as an array; raise `ValueError` if it is missing or of another kind.

    Args:
        request: a `pb_utils.InferenceRequest`.
        name: of the tensor.
        dtype: what the array must hold.
        rank: number of dimensions, the batch included.

    """
    tensor = _triton().get_input_tensor_by_name(request, name)
    if tensor is None:
        raise ValueError(f"input `{name}` is missing")
    array: NDArray[Any] = tensor.as_numpy()
    if array.dtype != np.dtype(dtype) or array.ndim != rank:
        raise ValueError(
            f"input `{name}` must be {np.dtype(dtype)} with {rank} dimensions, "
            f"got {array.dtype} of shape {list(array.shape)}"
        )
    return array


def input_column(request: object, name: str, items: int) -> NDArray[np.int64]:
    """Return an INT64 input of shape [items, 1] as [items]; raise `ValueError` if it is not one."""
    array = input_array(request, name, np.int64, 2)
    if array.shape != (items, 1):
        raise ValueError(f"input `{name}` must have shape {[items, 1]}, got {list(array.shape)}")
    return array[:, 0]


def _answer(request: object, answer: Callable[[object], Answer], module: str) -> object:
    try:
        return _answered(answer(request))
    except Exception as error:
        return _failed(error, module)


def _answered(answer: Answer) -> object:
    triton = _triton()
    tensors = [triton.Tensor(name, array) for name, array in answer.items()]
    return triton.InferenceResponse(output_tensors=tensors)


def _failed(error: Exception, module: str) -> object:
    triton = _triton()
    if isinstance(error, ValueError):
        return _failure(str(error), triton.TritonError.INVALID_ARG)
    triton.Logger.log_error("".join(traceback.format_exception(error)))
    text = f"{module} failed: {type(error).__name__}: {error}"
    return _failure(text, triton.TritonError.INTERNAL)


def _failure(text: str, code: object) -> object:
    triton = _triton()
    return triton.InferenceResponse(output_tensors=[], error=triton.TritonError(text, code))


def _triton() -> ModuleType:
    # It exists only inside Triton's stub, and tests put their own in its place.
    import triton_python_backend_utils

    module: ModuleType = triton_python_backend_utils
    return module
