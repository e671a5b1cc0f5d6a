"""What runtime modules say that they import is what they import."""

from __future__ import annotations

import ast
import sys

import pytest
from runtime_testing import RUNTIME

from jarvis_rules.core.registry import entry_names
from jarvis_rules.pipelines.pipeline import find_pipeline, pipeline_names
from jarvis_rules.triton.repository import carried_modules
from jarvis_rules.triton.runtime_requirements import (
    declared_packages,
    render_requirements,
    required_packages,
)

MODULES = entry_names("jarvis_rules.runtime")
TRITONS_OWN = "triton_python_backend_utils"


def foreign_imports(module):
    packages = set()
    for node in ast.walk(ast.parse((RUNTIME / f"{module}.py").read_bytes())):
        if isinstance(node, ast.ImportFrom) and not node.level:
            packages.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
    return sorted(packages - sys.stdlib_module_names - {TRITONS_OWN})


@pytest.mark.parametrize("module", MODULES)
def test_a_module_declares_what_it_imports(module):
    assert list(declared_packages(module)) == foreign_imports(module)


@pytest.mark.parametrize("kind", pipeline_names())
def test_what_a_backend_needs_is_locked(kind):
    for backend in find_pipeline(kind).backends:
        packages = required_packages(carried_modules(backend))
        assert packages == (("numpy",) if kind == "speech_recognition" else ("numpy", "tokenizers"))
        assert render_requirements(packages)
