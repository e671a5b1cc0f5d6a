"""The bookkeeping of serving environments; a real one is made in tests/serving."""

from __future__ import annotations

import platform
import threading
import time
from pathlib import Path

import pytest

from jarvis_rules.core.cache_directory import cache_directory
from jarvis_rules.errors import ToolchainError
from jarvis_rules.triton import environment as module
from jarvis_rules.triton.environment import (
    LOCK_FILE,
    ServingEnvironment,
    ensure_serving_environment,
    find_serving_environment,
    prepare_serving_environment,
)
from jarvis_rules.triton.interpreter import Interpreter


def pretend_to_make(environment: ServingEnvironment, *_: object) -> None:
    library = environment.shared_libraries / f"libpython{environment.python_version}.so.1.0"
    for path in (environment.python, environment.server, library, environment.path / ".complete"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        module, "choose_interpreter", lambda _: Interpreter("python3.11", "3.11", ())
    )
    monkeypatch.setattr(module, "_require_platform", lambda: None)
    monkeypatch.setattr(module, "_make", pretend_to_make)


def test_a_finished_environment_is_found_and_not_made_again(tmp_path: Path) -> None:
    assert find_serving_environment(tmp_path) is None
    made = prepare_serving_environment(None, tmp_path, lambda _: None)
    assert made.path.parent == tmp_path / "serving"
    assert made.path.name.startswith("py3.11-")
    (made.path / "kept").touch()
    assert prepare_serving_environment(None, tmp_path, lambda _: None) == made
    assert ensure_serving_environment(tmp_path, lambda _: None) == made
    assert (made.path / "kept").exists()


@pytest.mark.parametrize("lost", [".complete", "bin/python3", "libpython/libpython3.11.so.1.0"])
def test_an_unfinished_environment_is_made_anew(tmp_path: Path, lost: str) -> None:
    made = prepare_serving_environment(None, tmp_path, lambda _: None)
    (made.path / lost).unlink()
    (made.path / "half").touch()
    assert find_serving_environment(tmp_path) is None
    prepare_serving_environment(None, tmp_path, lambda _: None)
    assert not (made.path / "half").exists()


def test_another_lock_is_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare_serving_environment(None, tmp_path, lambda _: None)
    (tmp_path / "lock").write_text("numpy==1.26.3\n")
    monkeypatch.setattr(module, "LOCK_FILE", tmp_path / "lock")
    assert find_serving_environment(tmp_path) is None
    assert prepare_serving_environment(None, tmp_path, lambda _: None).path != made.path


def test_two_at_once_make_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, said = [], []

    def make(environment: ServingEnvironment, *_: object) -> None:
        made.append(environment)
        time.sleep(0.2)
        pretend_to_make(environment)

    monkeypatch.setattr(module, "_make", make)
    threads = [
        threading.Thread(target=prepare_serving_environment, args=(None, tmp_path, said.append))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert said == ["another process is making the serving environment, waiting"]


def test_the_first_use_says_that_it_downloads(tmp_path: Path) -> None:
    said: list[str] = []
    ensure_serving_environment(tmp_path, said.append)
    assert "100 MB" in said[0]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolchainError) as caught:
        prepare_serving_environment(None, tmp_path / "file", lambda _: None)
    assert caught.value.slug == "serving.cache-unwritable"
    assert "JARVIS_CACHE" in str(caught.value.hint)


def test_an_old_glibc_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.31"))
    with pytest.raises(ToolchainError, match=r"2\.31") as caught:
        module._require_platform()
    assert caught.value.slug == "serving.platform-unsupported"


def test_the_lock_pins_hashes_and_names_no_index() -> None:
    text = LOCK_FILE.read_text()
    requirements = [line for line in text.splitlines() if "==" in line and line[0] != "#"]
    assert [line.split("=")[0] for line in requirements] == [
        "numpy",
        "nvidia-pytriton",
        "onnxruntime",
        "tokenizers",
    ]
    assert "numpy==1." in text
    assert "://" not in text


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("JARVIS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_directory() == tmp_path / ".cache" / "jarvis-rules"
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_directory() == Path("/xdg/jarvis-rules")
    monkeypatch.setenv("JARVIS_CACHE", "~/cache")
    assert cache_directory() == tmp_path / "cache"
