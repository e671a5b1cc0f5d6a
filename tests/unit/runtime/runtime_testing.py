"""Recorded models, and what runtime modules declare, for the tests of the runtime."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np

from jarvis_rules.formats.nemo import open_nemo

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "tests" / "data" / "models"
SPEECH = ROOT / "tests" / "data" / "speech"
RUNTIME = ROOT / "jarvis_rules" / "runtime"


def featurizer_buffers(path):
    """Return the `window` and `fb` that a .nemo checkpoint carries."""
    with open_nemo(path) as archive:
        state = archive.state_dict()
        return tuple(state[f"preprocessor.featurizer.{name}"].copy() for name in ("window", "fb"))


def recorded(name):
    """Return the arrays of `<name>.npz` in tests/data/models."""
    with np.load(MODELS / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def carried_modules(module):
    """Return what a Triton module says that it carries and requires, read without importing it."""
    found = {}
    for node in ast.parse((RUNTIME / f"{module}.py").read_text()).body:
        if isinstance(node, ast.Assign) and node.targets[0].id in {"CARRIES", "REQUIRES"}:
            found[node.targets[0].id] = ast.literal_eval(node.value)
    return found["CARRIES"], found["REQUIRES"]


def imports(module):
    """Return the sibling modules and the outside packages that a runtime module imports."""
    siblings, packages = set(), set()
    for node in ast.walk(ast.parse((RUNTIME / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            siblings.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            packages.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {alias.name.split(".")[0] for alias in node.names}
    return siblings, packages - sys.stdlib_module_names


def undeclared(module):
    """Return the difference between what a Triton module declares and what it needs."""
    carries, requires = carried_modules(module)
    siblings, packages = map(set().union, *(imports(name) for name in (module, *carries)))
    return siblings ^ set(carries), packages - {"triton_python_backend_utils"} ^ set(requires)
