"""A stand-in for Triton's `triton_python_backend_utils`, which exists only inside its stub."""

from __future__ import annotations

import importlib
import shutil
import sys
import types

import numpy as np
import pytest
from runtime_testing import RUNTIME

from jarvis_rules.triton.repository import carried_modules


class Tensor:
    def __init__(self, name, array):
        self.name, self._array = name, array

    def as_numpy(self):
        return self._array

    @staticmethod
    def from_dlpack(name, array):
        return Tensor(name, np.from_dlpack(array))


class TritonError:
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message, code=INTERNAL):
        self.text, self.code = message, code


class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        self.tensors = {tensor.name: tensor.as_numpy() for tensor in output_tensors}
        self.error = error


class Request:
    """Input arrays by name."""

    def __init__(self, **arrays):
        self.arrays = arrays


@pytest.fixture
def triton(monkeypatch):
    """Put what modules use of Triton 24.10's `triton_python_backend_utils` in its place."""
    module = types.ModuleType("triton_python_backend_utils")
    module.Tensor, module.TritonError, module.InferenceResponse = (
        Tensor,
        TritonError,
        InferenceResponse,
    )
    module.get_input_tensor_by_name = lambda request, name: (
        Tensor(name, request.arrays[name]) if name in request.arrays else None
    )
    module.Request, module.logged = Request, []
    module.Logger = types.SimpleNamespace(log_error=module.logged.append)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def import_carried(tmp_path, monkeypatch):
    """Import a Triton module as the generated repository lays it out: with what it carries only."""

    def laid_out(module):
        package = tmp_path / "version" / "jarvis_runtime"
        package.mkdir(parents=True)
        for name in carried_modules(module):
            shutil.copy(RUNTIME / f"{name}.py", package)
        monkeypatch.syspath_prepend(package.parent)
        return importlib.import_module(f"{package.name}.{module}")

    yield laid_out
    for name in [name for name in sys.modules if name.split(".")[0] == "jarvis_runtime"]:
        del sys.modules[name]
