"""Projects that must fail, each with its exact message: a folder with `SConstruct` and `expected`.

`expected` holds lines that stderr must contain, or after `@ ` parts of one; a first line `$ …`
holds scons' arguments.
"""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from project_testing import HERE

FAILING = HERE / "failing"
PROJECTS = sorted(path.name for path in FAILING.iterdir())


@pytest.mark.parametrize("name", PROJECTS)
@pytest.mark.parametrize("project", ["basic"], indirect=True)
def test_failing_project(project, name):
    for source in (FAILING / name).rglob("*"):
        if source.is_file() and source.name != "expected":
            target = project.folder / source.relative_to(FAILING / name)
            target.write_bytes(source.read_bytes())
    lines = (FAILING / name / "expected").read_text().splitlines()
    arguments = shlex.split(lines.pop(0)[2:]) if lines[0].startswith("$ ") else []
    result = project.scons(*arguments)
    assert result.code == 2, result.output
    for line in lines:
        if line.startswith("@ "):
            assert line[2:] in result.stderr
        else:
            assert line in result.stderr.splitlines(), result.stderr
    assert "Traceback" not in result.output
    artifacts = [name for name in project.files() if Path(name).suffix in (".ejrvs", ".jmir")]
    assert all(Path(name).name == "tiny.ejrvs" for name in artifacts)


def test_a_cache_that_cannot_be_used_is_one_message(project):
    project.cache.parent.mkdir(exist_ok=True)
    project.cache.write_text("a file")
    result = project.scons()
    assert result.code == 2
    assert "[cache.unusable]" in result.stderr
    assert "hint: set `JARVIS_CACHE` to a folder that you may write to" in result.stderr
    assert "Traceback" not in result.output


def test_an_unknown_sandbox_is_one_message(project):
    project.environment["JARVIS_SANDBOX"] = "bwrp"
    result = project.scons()
    assert result.code == 2
    assert "[sandbox.unknown]" in result.stderr
    assert "did you mean `bwrap`?" in result.stderr
    assert "Traceback" not in result.output
