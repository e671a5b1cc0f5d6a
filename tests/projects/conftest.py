"""A copy of a project for each test."""

from __future__ import annotations

import shutil

import pytest
from project_testing import HERE, MODEL, Project


@pytest.fixture
def project(tmp_path, request):
    """The project named by the test's parameter, `basic` where it names none."""
    folder = tmp_path / "checkout"
    shutil.copytree(HERE / getattr(request, "param", "basic"), folder)
    shutil.copy(MODEL, folder / "models" / "tiny.nemo")
    return Project(folder, tmp_path / "cache")
