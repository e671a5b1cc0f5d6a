"""`jarvis-rules diff` and `verify` as users run them; what `inspect` says of encrypted files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.key_source import Key
from jarvis_rules.formats.schema import validate
from jarvis_rules.triton.target_lock import make_target_lock

PROGRAM = Path(sys.executable).parent / "jarvis-rules"
VECTORS = Path(__file__).parents[1] / "vectors"
NEMO = VECTORS / "nemo" / "control_valid.nemo"
EJRVS = VECTORS / "archive" / "v1" / "control_valid.ejrvs"
JMIR = VECTORS / "archive" / "v1" / "control.jmir"
QUARTZNET = Path(__file__).parents[1] / "data" / "models" / "quartznet.nemo"
OURS = ("archive_format", "archive_version", "content_digest", "encryption")


def run(*arguments, **environment):
    return subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def document(schema, code, *arguments, **environment):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    done = run(schema, *arguments, "--format", "json", **environment)
    assert (done.returncode, done.stderr) == (code, "")
    assert all(c.isprintable() or c == "\n" for c in done.stdout)
    read = json.loads(done.stdout, parse_constant=refuse)
    validate(read, schema, "x")
    return read


def rewritten(source, target, key=None, change=None):
    """Write an archive anew, with an edited pipeline document or sealed with a key."""
    with open_archive(source) as archive:
        members = []
        for name, properties in archive.manifest.files.items():
            data = archive.read(name)
            if change is not None and name == "pipeline.json":
                pipeline = json.loads(data)
                change(pipeline)
                data = json.dumps(pipeline).encode()
            members.append(Member(name, properties["role"], "", data=data))
        metadata = {k: v for k, v in archive.manifest.metadata.items() if k not in OURS}
        write_archive(target, archive.manifest.kind, metadata, members, key)
    return target


def repository(folder):
    """A folder that a manifest lists, small enough to be written by hand."""
    from jarvis_rules.core.digest import digest_file

    model = folder / "m"
    (model / "1").mkdir(parents=True)
    (model / "1" / "model.py").write_text("x = 1\n")
    (model / "config.pbtxt").write_text('name: "m"\nbackend: "python"\nmax_batch_size: 4\n')
    names = ("m/1/model.py", "m/config.pbtxt")
    manifest = {
        "version": 1,
        "pipeline": "m",
        "kind": "qa",
        "pipeline_digest": "0" * 64,
        "gpu": find_gpu("cpu").to_json(),
        "target_lock": make_target_lock(find_gpu("cpu").to_json(), {}),
        "ensemble": "m",
        "models": ["m"],
        "engines": {},
        "files": {name: digest_file(folder / name).to_json() for name in names},
    }
    (folder / "m.repository.json").write_text(json.dumps(manifest))
    return folder


# --- diff -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [NEMO, EJRVS, JMIR], ids=lambda path: path.suffix)
def test_equal_files(path, tmp_path):
    copy = Path(shutil.copy(path, tmp_path))
    done = run("diff", path, copy)
    assert (done.returncode, done.stderr) == (0, "")
    assert "result   equal" in done.stdout
    assert document("diff", 0, path, copy)["equal"]


def test_two_checkpoints():
    done = run("diff", QUARTZNET, NEMO)
    assert (done.returncode, done.stderr) == (1, "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert "result different" in lines
    assert "config decoder.feat_in 64 12" in lines
    assert "… and 63 more; `--all` lists them" in lines
    assert any(line.startswith("decoder.decoder_layers.0.weight changed float32") for line in lines)
    every = run("diff", QUARTZNET, NEMO, "--all").stdout
    assert "more" not in every
    assert len(every.splitlines()) > len(lines) + 63
    found = document("diff", 1, QUARTZNET, NEMO)
    assert not found["equal"]
    assert len(found["weights"]["changes"]) == 83


def test_one_option(tmp_path):
    def change(pipeline):
        for option in pipeline["options"]:
            if option["name"] == "language_code":
                option["value"] = "\x1b[31mred"

    other = rewritten(JMIR, tmp_path / "other.jmir", change=change)
    done = run("diff", JMIR, other)
    assert done.returncode == 1
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert 'options language_code "en-GB" (given) "\\u001b[31mred" (given)' in lines
    (found,) = document("diff", 1, JMIR, other)["values"]["changes"]
    assert found["to"] == '"\\u001b[31mred" (given)'


def test_repositories(tmp_path):
    one, other = repository(tmp_path / "one"), repository(tmp_path / "other")
    assert document("diff", 0, one, other)["equal"]
    config = other / "m" / "config.pbtxt"
    config.write_text(config.read_text().replace("4", "8"))
    done = run("diff", one, other)
    assert done.returncode == 1
    assert "model m  max_batch_size  4  8" in done.stdout
    document("diff", 1, one, other)


def test_encrypted_files(tmp_path):
    sealed = rewritten(EJRVS, tmp_path / "sealed.ejrvs", key=Key(b"hush"))
    plain = rewritten(EJRVS, tmp_path / "plain.ejrvs")
    found = document("diff", 0, f"{sealed}:env:MODEL_KEY", plain, MODEL_KEY="hush")
    assert found["a"] == str(sealed)
    done = run("diff", sealed, plain)
    assert done.returncode == 0
    assert "equal, by the manifests alone" in done.stdout
    assert "note: not read without a key" in done.stdout
    assert not document("diff", 0, sealed, plain)["complete"]
    done = run("diff", f"{sealed}:wrong", plain)
    assert (done.returncode, done.stdout) == (3, "")
    assert "[encryption.wrong-key]" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((NEMO, JMIR), 2, "[diff.formats]"),
        ((NEMO,), 2, "[usage]"),
        ((NEMO, "absent.nemo"), 2, "[file.missing]"),
        ((NEMO, "pyproject.toml"), 2, "[file."),
        ((NEMO, VECTORS), 2, "[repository.none]"),
        ((NEMO, f"{NEMO}:key"), 2, "[key.checkpoint]"),
        ((NEMO, NEMO, "--fromat=json"), 2, "did you mean `--format`?"),
        ((NEMO, VECTORS / "nemo" / "pickle_os_system.nemo"), 3, "[checkpoint.would-execute]"),
        ((VECTORS / "nemo" / "truncated_tar.nemo", NEMO), 3, "[nemo.truncated]"),
    ],
    ids=str,
)
def test_what_cannot_be_compared(arguments, code, message):
    done = run("diff", *arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


# --- verify -----------------------------------------------------------------------------------


def test_sound_files(tmp_path):
    folder = repository(tmp_path / "models")
    done = run("verify", NEMO, EJRVS, JMIR, folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"{NEMO}: sound: 1 configuration, 2 members, 37 tensors verified",
        f"{EJRVS}: sound: 1 configuration, 1 graph, 1 manifest, 4 members, 20 weights verified",
        f"{JMIR}: sound: 1 graph, 1 manifest, 7 members, 1 pipeline, 20 weights verified",
        f"{folder}: sound: 2 files, 1 manifest verified",
    ]
    assert document("verify", 0, NEMO, EJRVS, JMIR, folder)["sound"]


def test_all_that_is_wrong_is_listed(tmp_path):
    folder = repository(tmp_path / "models")
    (folder / "m" / "1" / "model.py").write_text("x = 2\n")
    (folder / "m" / "config.pbtxt").unlink()
    (folder / "m" / "\x1b[31m").touch()
    broken = VECTORS / "nemo" / "nan_weight.nemo"
    done = run("verify", broken, EJRVS, folder)
    assert (done.returncode, done.stderr) == (3, "")
    for text in (
        f"{broken}: model_weights.ckpt: error: tensor",
        "[checkpoint.nan]\n  hint: training diverged",
        f"{EJRVS}: sound: ",
        f"{folder}: m/1/model.py: error: it is ",
        f"{folder}: m/config.pbtxt: error: the manifest lists it, and it is not there",
        f"{folder}: m/\\x1b[31m: error: no manifest lists it [repository.unlisted]",
        f"{folder}: m: error: no `config.pbtxt` [config.missing]",
        f"{folder}: damaged: 1 manifest verified",
    ):
        assert text in done.stdout
    found = document("verify", 3, broken, EJRVS, folder)
    assert [result["sound"] for result in found["results"]] == [False, True, False]


def test_a_swapped_member(tmp_path):
    path = tmp_path / "swapped.jmir"
    with tarfile.open(JMIR) as old:
        data = {member.name: old.extractfile(member).read() for member in old}
    one, other = sorted(name for name in data if name.endswith(".npy"))
    data[one], data[other] = data[other], data[one]
    with tarfile.open(path, "w") as new:
        for name, content in data.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            (tmp_path / "content").write_bytes(content)
            with (tmp_path / "content").open("rb") as file:
                new.addfile(info, file)
    (result,) = document("verify", 3, path)["results"]
    assert [problem["place"] for problem in result["problems"]] == [one, other]
    assert {problem["slug"] for problem in result["problems"]} == {"archive.member-size"}


def test_encrypted_files_with_and_without_the_key(tmp_path):
    sealed = rewritten(JMIR, tmp_path / "sealed.jmir", key=Key(b"hush"))
    (tmp_path / "key").write_text("hush\n")
    done = run("verify", sealed, f"{sealed}:file:{tmp_path / 'key'}")
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"{sealed}: not verified: the content of 7 members: encrypted")
    assert lines[1] == f"{sealed}: sound: 1 manifest verified"
    assert "1 pipeline" in lines[2]
    done = run("verify", f"{sealed}:wrong")
    assert done.returncode == 3
    assert "[encryption.wrong-key]" in done.stdout


@pytest.mark.parametrize("path", ["absent.nemo", str(VECTORS), "pyproject.toml"])
def test_what_is_nothing_to_verify_stops_everything(path):
    done = run("verify", NEMO, path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")


@pytest.mark.parametrize("path", sorted((VECTORS / "nemo").glob("*.nemo")), ids=lambda p: p.stem)
def test_hostile_checkpoints(path):
    done = run("verify", path)
    sound = path.stem in ("control_valid", "unknown_target", "missing_key", "wrong_shape")
    assert (done.returncode, done.stderr) == (0 if sound else 3, "")
    assert sound or f"{path}: damaged: " in done.stdout


# --- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["diff", "verify"])
def test_help_has_examples(command):
    assert f"examples:\n  jarvis-rules {command}" in run(command, "--help").stdout


@pytest.mark.parametrize("arguments", [("diff", NEMO, NEMO), ("verify", NEMO)])
def test_no_onnx_is_imported_for_a_checkpoint(arguments):
    program = (
        "import sys; from jarvis_rules.cli.jarvis_rules import main\n"
        "sys.argv[0] = 'jarvis-rules'\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'onnx', 'onnxruntime', 'google.protobuf', 'tritonclient', 'jsonschema'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.splitlines()[-1] == "[]"


# --- inspect ----------------------------------------------------------------------------------


def test_inspect_shows_options_with_their_origin_and_digests():
    lines = [" ".join(line.split()) for line in run("inspect", JMIR).stdout.splitlines()]
    for line in (
        "language_code en-GB given",
        "ms_per_timestep 20.0 derived",
        "decoder_type greedy default",
        "chunk_size 0.8 no-effect",
    ):
        assert line in lines
    members = document("inspect", 0, JMIR)["members"]
    assert all(any(m["sha256"][:16] in line for line in lines) for m in members)


def test_inspect_of_a_repository_shows_digests(tmp_path):
    text = run("inspect", repository(tmp_path / "models")).stdout
    assert f"pipeline digest  {'0' * 64}" in text
    assert "m/1/model.py" in text
    (tmp_path / "models" / "m.repository.json").write_text("{")
    done = run("inspect", tmp_path / "models")
    assert done.returncode == 3
    assert "[manifest.invalid]" in done.stderr


def test_inspect_of_an_encrypted_pipeline(tmp_path):
    sealed = rewritten(JMIR, tmp_path / "sealed.jmir", key=Key(b"hush"))
    found = document("inspect", 0, sealed)
    assert found["pipeline"] is None
    assert len(found["members"]) == 7
    assert "encrypted" in run("inspect", sealed).stdout
    opened = document("inspect", 0, f"{sealed}:env:MODEL_KEY", MODEL_KEY="hush")
    assert opened["pipeline"]["name"] == "control"


def test_what_jarvis_deploy_makes_is_sound(tmp_path):
    deploy = PROGRAM.with_name("jarvis-deploy")
    subprocess.run(
        [str(deploy), str(JMIR), str(tmp_path / "models"), "--gpu", "cpu"],
        env={**os.environ, "JARVIS_CACHE": str(tmp_path / "cache")},
        check=True,
        capture_output=True,
    )
    done = run("verify", tmp_path / "models")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments",
    [("diff", NEMO, "--format", "json", NEMO), ("verify", NEMO, "--format", "json", EJRVS)],
    ids=lambda arguments: arguments[0],
)
def test_options_may_stand_between(arguments):
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    json.loads(done.stdout)
