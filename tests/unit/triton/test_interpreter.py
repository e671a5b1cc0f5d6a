"""Which Python is chosen, shown with programs that only answer the probe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from jarvis_rules.errors import EXIT_TOOLCHAIN, ToolchainError
from jarvis_rules.triton import interpreter as module
from jarvis_rules.triton.interpreter import (
    Interpreter,
    choose_interpreter,
    find_shared_library,
    obtain_shared_library,
)


def fake_python(path: Path, version: str, libraries: Path, implementation: str = "cpython") -> Path:
    facts = {
        "version": version,
        "implementation": implementation,
        "executable": str(path),
        "libraries": [str(libraries), ""],
    }
    path.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_system_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEFAULT_LIBRARY_DIRECTORIES", ())
    monkeypatch.setattr(module, "_from_linker_cache", lambda _: None)


def test_an_unsupported_version_is_refused_with_the_way_out(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "python3.13", "3.13", tmp_path)
    with pytest.raises(ToolchainError, match=r"is Python 3\.13") as caught:
        choose_interpreter(str(python))
    assert caught.value.slug == "serving.python-unsupported"
    assert caught.value.exit_code == EXIT_TOOLCHAIN
    assert "--python python3.12" in str(caught.value.hint)


@pytest.mark.parametrize("content", ["#!/bin/sh\nexit 127\n", "#!/bin/sh\necho hello\n"])
def test_what_does_not_answer_is_refused(tmp_path: Path, content: str) -> None:
    program = tmp_path / "python3.12"
    program.write_text(content)
    program.chmod(0o755)
    for name in (program, tmp_path / "none"):
        with pytest.raises(ToolchainError) as caught:
            choose_interpreter(str(name))
        assert caught.value.slug == "serving.python-missing"


def test_another_implementation_is_refused(tmp_path: Path) -> None:
    python = fake_python(tmp_path / "pypy", "3.11", tmp_path, implementation="pypy")
    with pytest.raises(ToolchainError):
        choose_interpreter(str(python))


def test_without_a_name_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = fake_python(tmp_path / "mine", "3.13", tmp_path)
    fake_python(tmp_path / "python3.10", "3.10", tmp_path)
    monkeypatch.setattr(sys, "executable", str(mine))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_interpreter(None).version == "3.10"


@pytest.mark.usefixtures("no_system_libraries")
def test_one_with_its_library_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_python(tmp_path / "python3.12", "3.12", tmp_path / "none")
    fake_python(tmp_path / "python3.11", "3.11", tmp_path)
    (tmp_path / "libpython3.11.so.1.0").touch()
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert choose_interpreter(None).version == "3.11"


def test_no_supported_python_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolchainError) as caught:
        choose_interpreter(None)
    assert caught.value.slug == "serving.python-unsupported"


@pytest.mark.usefixtures("no_system_libraries")
def test_only_the_library_itself_is_put_on_the_library_path(tmp_path: Path) -> None:
    own = tmp_path / "lib"
    own.mkdir()
    (own / "libpython3.12.so.1.0").write_bytes(b"library")
    (own / "libstdc++.so.6").write_bytes(b"of conda")
    interpreter = Interpreter("python3.12", "3.12", (str(own),))
    library = obtain_shared_library(interpreter, tmp_path / "put", lambda _: None)
    assert library.read_bytes() == b"library"
    assert [path.name for path in (tmp_path / "put").iterdir()] == ["libpython3.12.so.1.0"]


@pytest.mark.usefixtures("no_system_libraries")
def test_a_missing_library_names_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "fetch_shared_library", lambda *_: None)
    interpreter = Interpreter("python3.12", "3.12", (str(tmp_path),))
    assert find_shared_library(interpreter) is None
    with pytest.raises(ToolchainError) as caught:
        obtain_shared_library(interpreter, tmp_path / "put", lambda _: None)
    assert caught.value.slug == "serving.libpython-missing"
    assert caught.value.hint == "apt-get install libpython3.12"
