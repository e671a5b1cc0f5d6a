"""The command lines as users run them: real processes, real files, exact messages."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
VECTORS = Path(__file__).parents[1] / "vectors" / "nemo"
PROJECT = Path(__file__).parents[1] / "projects" / "basic"
COMMANDS = ("nemo2jarvis", "tlt", "jarvis-build", "jarvis-deploy", "jarvis-rules")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, cache):
    """Run a command in an empty folder that holds `tiny.nemo`."""
    shutil.copy(VECTORS / "control_valid.nemo", tmp_path / "tiny.nemo")

    def run(command, *arguments):
        return subprocess.run(
            [str(BIN / command), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "JARVIS_CACHE": str(cache)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    run.folder = tmp_path
    return run


@pytest.fixture
def built(run):
    """`tiny.ejrvs` and `tiny.jmir`, made."""
    assert run("nemo2jarvis", "tiny.nemo").returncode == 0
    arguments = ("tiny.jmir", "tiny.ejrvs", "--name", "tiny", "--offline")
    done = run("jarvis-build", "speech_recognition", *arguments)
    assert done.returncode == 0, done.stderr
    return run


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def test_the_whole_way_and_stdout_is_data(run):
    steps = [
        ("nemo2jarvis", ("tiny.nemo",), "tiny.ejrvs\n"),
        ("jarvis-build", ("speech_recognition", "t.jmir", "tiny.ejrvs", "--name=t"), "t.jmir\n"),
        ("jarvis-deploy", ("t.jmir", "models"), "models\n"),
    ]
    for command, arguments, stdout in steps:
        done = run(command, *arguments)
        assert (done.returncode, done.stdout) == (0, stdout), done.stderr
    assert (run.folder / "models/t/config.pbtxt").is_file()
    assert (run.folder / "models/t.repository.json").is_file()


def test_files_are_those_of_scons(built, cache):
    checkout = built.folder / "checkout"
    shutil.copytree(PROJECT, checkout)
    shutil.copy(built.folder / "tiny.nemo", checkout / "models" / "tiny.nemo")
    sconscript = checkout / "models" / "SConscript"
    text = sconscript.read_text()
    sconscript.write_text(text.replace(", tiny)", ", tiny, offline=True)"))
    assert built("jarvis-deploy", "--gpu", "cpu", "tiny.jmir", "models").returncode == 0
    environment = {**os.environ, "JARVIS_CACHE": str(cache)}
    done = subprocess.run(
        [str(BIN / "scons"), "-Q"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        check=True,
        text=True,
    )
    assert "built 0, cached 5" in done.stderr
    out = checkout / "out"
    assert files(built.folder / "models") == files(out / "cpu/models")
    assert (built.folder / "tiny.jmir").read_bytes() == (out / "any/tiny.jmir").read_bytes()
    ejrvs = (out / "any/models/tiny.ejrvs").read_bytes()
    assert (built.folder / "tiny.ejrvs").read_bytes() == ejrvs


@pytest.mark.parametrize(
    ("out", "written"),
    [
        ("elsewhere/a.ejrvs", "elsewhere/a.ejrvs"),
        ("v1.2", "v1.2.ejrvs"),
        ("b.riva", "b.ejrvs"),
        (".", "tiny.ejrvs"),
    ],
)
def test_nemo2jarvis_out(run, out, written):
    """The suffix is forced, as the old tool did, and nothing else of the name is lost."""
    done = run("nemo2jarvis", "--out", out, "tiny.nemo")
    assert (done.returncode, done.stdout) == (0, f"{written}\n")
    assert (run.folder / written).is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "slug"),
    [
        (("tiny.nemo:key",), 3, "encryption.not-encrypted"),
        (("--out", "a.ejrvs:", "tiny.nemo"), 2, "key.empty"),
        (("--out", "a.ejrvs:a", "--key", "b", "tiny.nemo"), 2, "key.contradiction"),
        (("--key", "tiny.nemo", "tiny.nemo"), 2, "key.file-name"),
        (("model.etlt:tlt_encode",), 3, "encryption.nvidia"),
    ],
)
def test_nemo2jarvis_refuses_a_key_that_it_would_drop(run, arguments, code, slug):
    (run.folder / "model.etlt").write_bytes(b"\x05\0\0\0input" + bytes(range(99)))
    done = run("nemo2jarvis", *arguments)
    assert (done.returncode, f"[{slug}]" in done.stderr) == (code, True), done.stderr
    assert not list(run.folder.glob("*.ejrvs*"))


@pytest.mark.parametrize("arguments", [("--out", "tiny.ejrvs:k"), ("--key", "k"), ("--key=env:K",)])
def test_the_whole_way_with_a_key(run, monkeypatch, arguments):
    monkeypatch.setenv("K", "k")
    assert run("nemo2jarvis", *arguments, "tiny.nemo").returncode == 0
    build = ("jarvis-build", "speech_recognition")
    assert run(*build, "t.jmir", "tiny.ejrvs", "--name=t").returncode == 3
    assert run(*build, "t.jmir:l", "tiny.ejrvs:env:K", "--name=t", "--offline").returncode == 0
    for key, slug in (("", "missing-key"), (":env:K", "wrong-key")):
        done = run("jarvis-deploy", "--gpu", "cpu", f"t.jmir{key}", "models")
        assert (done.returncode, f"[encryption.{slug}]" in done.stderr) == (3, True), done.stderr
    assert run("jarvis-deploy", "--gpu", "cpu", "--key", "l", "t.jmir", "models").returncode == 0
    assert (run.folder / "models/t/config.pbtxt").is_file()


# Anything that is no archive or not what it says ends in 3, an unknown class in 1.
HOSTILE = sorted(path.name for path in VECTORS.glob("*.nemo") if path.name != "control_valid.nemo")


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_checkpoints(run, name):
    (run.folder / "tiny.nemo").unlink()
    shutil.copy(VECTORS / name, run.folder / name)
    done = run("nemo2jarvis", name)
    assert done.returncode == (1 if name == "unknown_target.nemo" else 3), done.stderr
    assert done.stdout == ""
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert f"error: {name}" in done.stderr or name == "unknown_target.nemo"
    assert [path.name for path in run.folder.iterdir()] == [name]


@pytest.mark.parametrize(
    ("command", "arguments", "code", "message"),
    [
        ("nemo2jarvis", ("absent.nemo",), 2, "error: absent.nemo: "),
        ("nemo2jarvis", ("",), 2, "[usage]"),
        ("nemo2jarvis", ("tiny.txt",), 2, "[file.suffix]"),
        ("nemo2jarvis", (), 2, "error: the following arguments are required: source [usage]"),
        ("nemo2jarvis", ("--otu", "x", "tiny.nemo"), 2, "hint: did you mean `--out`"),
        ("jarvis-build", (), 2, "error: no pipeline given [usage]"),
        ("jarvis-build", ("speech", "o.jmir", "i.ejrvs"), 2, "error: unknown pipeline `speech`"),
        ("jarvis-build", ("speech_recognition", "o.jmir", "tiny.nemo"), 2, "[file.suffix]"),
        ("jarvis-build", ("speech_recognition", "o.jmir", "no.ejrvs"), 2, "[file.missing]"),
        ("jarvis-build", ("speech_recognition", "o.jmir", "a.ejrvs", "b"), 2, "[pipeline.models]"),
        ("jarvis-build", ("speech_recognition", "o.jmir:", "a.ejrvs"), 2, "[key.empty]"),
        ("jarvis-deploy", ("tiny.jmir",), 2, "error: the following arguments are required: DIR"),
        ("jarvis-deploy", ("a.jmir", "b.jmir"), 2, "[usage]"),
        ("jarvis-deploy", ("a.jmir", "models", "--gpu", "a1000"), 2, "did you mean `a100`"),
        ("jarvis-deploy", ("tiny.nemo", "models", "--gpu", "cpu"), 3, "[archive.missing-manifest]"),
        ("jarvis-rules", ("inspekt", "x"), 2, "error: unknown command `inspekt`"),
        ("jarvis-rules", ("inspect", "absent.jmir"), 2, "error: absent.jmir: "),
        ("jarvis-rules", ("inspect", "x", "--fromat", "json"), 2, "did you mean `--format`?"),
    ],
)  # fmt: skip
def test_wrong_input_ends_in_one_message(run, command, arguments, code, message):
    done = run(command, *arguments)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(run.folder.glob("*.jmir"))


def test_build_refuses_to_overwrite_what_differs(built):
    before = (built.folder / "tiny.jmir").read_bytes()
    arguments = ("speech_recognition", "tiny.jmir", "tiny.ejrvs", "--name=other")
    done = built("jarvis-build", *arguments)
    assert (done.returncode, "[build.exists]" in done.stderr) == (2, True)
    assert (built.folder / "tiny.jmir").read_bytes() == before
    assert built("jarvis-build", "-f", *arguments).returncode == 0
    assert (built.folder / "tiny.jmir").read_bytes() != before


def test_deploy_keeps_other_models_and_refuses_differing_ones(built):
    other = ("speech_recognition", "other.jmir", "tiny.ejrvs", "--name=other")
    assert built("jarvis-build", *other).returncode == 0
    assert built("jarvis-deploy", "tiny.jmir", "models").returncode == 0
    before = files(built.folder / "models")
    assert built("jarvis-deploy", "other.jmir", "models").returncode == 0
    assert files(built.folder / "models").items() >= before.items()
    config = built.folder / "models/tiny/config.pbtxt"
    config.write_text("max_batch_size: 3\n")
    refused = built("jarvis-deploy", "tiny.jmir", "models")
    assert refused.returncode == 2
    assert "models/tiny: the model exists and differs in `config.pbtxt`" in refused.stderr
    assert config.read_text() == "max_batch_size: 3\n"
    assert built("jarvis-deploy", "tiny.jmir", "models", "-f").returncode == 0
    assert files(built.folder / "models").items() >= before.items()


def test_deploy_refuses_two_pipelines_of_one_name(built):
    shutil.copy(built.folder / "tiny.jmir", built.folder / "copy.jmir")
    done = built("jarvis-deploy", "tiny.jmir", "copy.jmir", "models")
    assert (done.returncode, "[pipeline.duplicate-model]" in done.stderr) == (2, True)
    assert files(built.folder / "models") == {}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_to_load_and_has_examples(run, command):
    done = run(command, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert run(command, "--version").stdout == f"{command} 0.1.0\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_heavy(run, command):
    module = f"jarvis_rules.cli.{command.replace('-', '_')}"
    code = (
        f"import sys; sys.argv = [{command!r}, '--help']; import {module} as m\n"
        "try: m.main()\nexcept SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'tritonclient', 'grpc', 'jsonschema', 'rich'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=run.folder, capture_output=True, text=True, check=True
    )
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", ["tiny.nemo", "tiny.ejrvs", "tiny.jmir", "models"])
def test_inspect(built, name):
    assert built("jarvis-deploy", "tiny.jmir", "models").returncode == 0
    text = built("jarvis-rules", "inspect", name)
    assert text.returncode == 0, text.stderr
    assert len(text.stdout.splitlines()) > 5
    document = json.loads(built("jarvis-rules", "inspect", name, "--format", "json").stdout)
    assert document["format"] == {"models": "repository"}.get(name, name.partition(".")[2])


def test_inspect_a_repository_of_somebody_else(run):
    (run.folder / "theirs").mkdir()
    done = run("jarvis-rules", "inspect", "theirs")
    assert (done.returncode, "[repository.none]" in done.stderr) == (2, True)


def test_deploy_mends_an_engine_that_lies_damaged_in_the_cache(built, cache):
    assert built("jarvis-deploy", "tiny.jmir", "one").returncode == 0
    model = next((built.folder / "one").glob("*/1/model.onnx")).read_bytes()
    for blob in (cache / "cas").rglob("*"):
        if blob.is_file() and blob.read_bytes() == model:
            blob.chmod(0o644)
            blob.write_bytes(model[:-1] + b"?")
    for result in (cache / "ac").rglob("*.json"):
        if b"repository.json" in result.read_bytes():
            result.unlink()
    done = built("jarvis-deploy", "tiny.jmir", "two")
    assert done.returncode == 0, done.stderr
    assert files(built.folder / "two") == files(built.folder / "one")
