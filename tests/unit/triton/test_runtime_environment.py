"""Archives for EXECUTION_ENV_PATH, made of wheels that are written here: no network."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from jarvis_rules.cli import runtime_env
from jarvis_rules.cli.command import ArgumentParser
from jarvis_rules.errors import JarvisError, ToolchainError, UsageError
from jarvis_rules.triton.runtime_environment import find_requirements, pack_environment

METADATA = "Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path, name: str, version: str, files: dict[str, str]) -> str:
    """Write a wheel of pure Python and return its line of requirements."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {
        **files,
        f"{info}/METADATA": METADATA.format(name=name, version=version),
        f"{info}/WHEEL": WHEEL,
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in files.items():
            wheel.writestr(member, text)
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def requirements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, and pip that finds no others."""
    settings = {"NO_INDEX": "1", "FIND_LINKS": str(tmp_path / "wheels"), "CONFIG_FILE": os.devnull}
    for name, value in settings.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    first = write_wheel(
        tmp_path / "wheels",
        "first",
        "1.0",
        {
            "first/__init__.py": "import second\nWORD = second.WORD\n",
            "first/deep/data.txt": "é" * 200,
            "first-1.0.data/purelib/beside.py": "BESIDE = 1\n",
            "first-1.0.data/scripts/first": "#!python\n",
        },
    )
    second = write_wheel(tmp_path / "wheels", "second", "2.0", {"second.py": "WORD = 'found'\n"})
    path = tmp_path / "requirements.txt"
    path.write_text(first + second)
    return path


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder


def test_the_archive_holds_what_python_imports(requirements: Path, tmp_path: Path) -> None:
    pack_environment([requirements], "3.10", tmp_path / "env.tar.gz")
    packages = "lib/python3.10/site-packages"
    with tarfile.open(tmp_path / "env.tar.gz") as tar:
        entries = tar.getmembers()
    assert [entry.name for entry in entries] == [
        "bin/activate",
        f"{packages}/bytecode.pth",
        f"{packages}/beside.py",
        f"{packages}/first-1.0.dist-info/METADATA",
        f"{packages}/first-1.0.dist-info/RECORD",
        f"{packages}/first-1.0.dist-info/WHEEL",
        f"{packages}/first/__init__.py",
        f"{packages}/first/deep/data.txt",
        f"{packages}/second-2.0.dist-info/METADATA",
        f"{packages}/second-2.0.dist-info/RECORD",
        f"{packages}/second-2.0.dist-info/WHEEL",
        f"{packages}/second.py",
    ]
    assert {(e.mtime, e.uid, e.gid, e.uname, e.gname, e.mode) for e in entries} == {
        (0, 0, 0, "", "", 0o644)
    }


def test_the_same_wheels_are_the_same_bytes(requirements: Path, tmp_path: Path) -> None:
    """Built twice, in other folders; nothing in it names one of them."""
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        again = tmp_path / name / "requirements.txt"
        again.write_bytes(requirements.read_bytes())
        pack_environment([again], "3.11", tmp_path / name / "env.tar.gz")
        contents.append((tmp_path / name / "env.tar.gz").read_bytes())
        assert [path.name for path in sorted((tmp_path / name).iterdir())] == [
            "env.tar.gz",
            "requirements.txt",
        ]
    assert contents[0] == contents[1]
    for place in (str(tmp_path), sys.prefix, sys.base_prefix):
        assert place.encode() not in contents[0]


def test_activated_it_is_an_environment_wherever_it_lies(
    requirements: Path, tmp_path: Path
) -> None:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    pack_environment([requirements], version, tmp_path / "env.tar.gz")
    ask = "import first, sys; print(first.WORD, sys.prefix, sys.pycache_prefix)"
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("here", "some where else"):
        folder = unpack(tmp_path / "env.tar.gz", tmp_path / name)
        for _ in range(2):
            done = subprocess.run(
                ["bash", "-c", f"source '{folder}/bin/activate' && python3 -c '{ask}'"],
                env=path,
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout == f"found {folder} {folder}/bytecode\n"
        assert sorted(entry.name for entry in (folder / "bin").iterdir()) == ["activate", "python3"]


def test_activating_never_fails(requirements: Path, tmp_path: Path) -> None:
    """Triton would wait for ever; it is said, and the model then names what it lacks."""
    pack_environment([requirements], "3.11", tmp_path / "env.tar.gz")
    folder = unpack(tmp_path / "env.tar.gz", tmp_path / "env")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("dirname", "readlink", "cat", "ln", "mv"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    done = subprocess.run(
        ["/bin/bash", "-c", f"source '{folder}/bin/activate' && echo started"],
        env={"PATH": str(tools)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "started\n"
    assert f"error: {folder} cannot become an environment of python3" in done.stderr


def test_another_wheel_than_the_hash_says_is_refused(requirements: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "second", "2.0", {"second.py": "WORD = 'other'\n"})
    with pytest.raises(ToolchainError, match="DO NOT MATCH") as caught:
        pack_environment([requirements], "3.11", tmp_path / "env.tar.gz")
    assert caught.value.slug == "runtime-env.download-failed"
    assert str(requirements) in str(caught.value.where)
    assert not list(tmp_path.glob("*env.tar.gz*"))


def test_a_package_that_is_nowhere_is_named(requirements: Path, tmp_path: Path) -> None:
    requirements.write_text(f"third==1.0 --hash=sha256:{'0' * 64}\n")
    with pytest.raises(ToolchainError, match=r"third==1\.0") as caught:
        pack_environment([requirements], "3.11", tmp_path / "env.tar.gz")
    assert caught.value.slug == "runtime-env.download-failed"


def test_an_interpreter_without_pip_is_named(
    requirements: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "venv" / "bin" / "python3"))
    with pytest.raises(ToolchainError, match="has no pip") as caught:
        pack_environment([requirements], "3.11", tmp_path / "env.tar.gz")
    assert caught.value.slug == "runtime-env.no-pip"


def test_the_folder_is_made_and_what_cannot_be_written_is_told(
    requirements: Path, tmp_path: Path
) -> None:
    pack_environment([requirements], "3.11", tmp_path / "new" / "folder" / "env.tar.gz")
    with pytest.raises(UsageError, match="cannot be written: Is a directory") as caught:
        pack_environment([requirements], "3.11", tmp_path / "new" / "folder")
    assert caught.value.slug == "file.unwritable"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def write_requirements(repository: Path, model: str, text: str) -> Path:
    path = repository / model / "1" / "runtime-requirements.txt"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    return path


def test_equal_requirements_count_once(tmp_path: Path) -> None:
    paths = [write_requirements(tmp_path, model, model[0]) for model in ("a1", "a2", "b1")]
    (tmp_path / "engine" / "1").mkdir(parents=True)
    (tmp_path / "runtime-env.tar.gz").touch()
    assert find_requirements(tmp_path) == [paths[0], paths[2]]


def test_requirements_that_are_a_pipe_are_not_opened(tmp_path: Path) -> None:
    path = write_requirements(tmp_path, "model", "")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UsageError, match="got not a regular file") as caught:
        find_requirements(tmp_path)
    assert caught.value.where == str(path)


def run(*arguments: object) -> int:
    parser = ArgumentParser()
    runtime_env.add_parser(parser.add_subparsers(parser_class=ArgumentParser))
    args = parser.parse_args(["runtime-env", *map(str, arguments)])
    return int(args.run(args))


def test_the_command_prints_the_path(
    requirements: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, second = requirements.read_text().splitlines(keepends=True)
    write_requirements(tmp_path / "models", "a", first + second)
    write_requirements(tmp_path / "models", "b", second)
    out = tmp_path / "env.tar.gz"
    assert run(tmp_path / "models", "--out", out, "--python", "3.12") == 0
    said = capfd.readouterr()
    assert said.out == f"{out}\n"
    assert said.err.startswith("for servers with Python 3.12: ")
    content = out.read_bytes()
    run("--requirements", requirements, "--out", out, "--python", "3.12")
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "slug"),
    [
        (["{folder}/absent"], "repository.missing"),
        (["{folder}"], "runtime-env.nothing"),
        ([], "usage"),
        (["--requirements", "{folder}/absent.txt"], "file.missing"),
        (["{folder}", "--python", "3.9"], "usage"),
        (["{folder}", "--out", "{folder}/file/env.tar.gz"], "file.unwritable"),
    ],
)
def test_what_the_command_refuses(tmp_path: Path, arguments: list[str], slug: str) -> None:
    (tmp_path / "folder" / "model").mkdir(parents=True)
    (tmp_path / "folder" / "file").touch()
    with pytest.raises(JarvisError) as caught:
        run(*(argument.format(folder=tmp_path / "folder") for argument in arguments))
    assert caught.value.slug == slug
