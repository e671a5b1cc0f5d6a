"""Releases: complete or absent, one link swapped, nothing but our own files removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.triton import publish
from jarvis_rules.triton.publish import publish_release, remove_pipeline

FILES = {"asr/config.pbtxt": b"ensemble", "asr/1/.keep": b"", "asr-am/1/model.onnx": b"graph"}
OTHER = {"tts/config.pbtxt": b"other"}


def write(models, name, files):
    for file, data in files.items():
        (models / file).parent.mkdir(parents=True, exist_ok=True)
        (models / file).write_bytes(data)
    listed = {file: digest_bytes(data).to_json() for file, data in files.items()}
    (models / f"{name}.repository.json").write_text(json.dumps({"files": listed}))


@pytest.fixture
def models(tmp_path):
    models = tmp_path / "models"
    write(models, "asr", FILES)
    return models


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and not p.name.endswith(".repository.json")
    }


def test_a_release_is_complete_and_current(models, tmp_path):
    (models / "asr" / "1" / "__pycache__").mkdir()
    (models / "asr" / "1" / "__pycache__" / "x.pyc").touch()
    release = publish_release(models, tmp_path / "new" / "dest")
    current = tmp_path / "new" / "dest" / "current"
    assert contents(current) == FILES
    assert current.resolve() == release
    assert current.readlink() == Path("releases") / release.name
    assert (current / "asr.repository.json").exists()
    assert [p.name for p in release.parent.iterdir()] == [release.name]
    for path in release.rglob("*"):
        assert not path.is_file() or path.stat().st_nlink == 1


def test_publishing_again_changes_nothing(models, tmp_path):
    release = publish_release(models, tmp_path / "dest")
    before = {p: p.lstat().st_mtime_ns for p in release.rglob("*")}
    assert publish_release(models, tmp_path / "dest") == release
    assert {p: p.lstat().st_mtime_ns for p in release.rglob("*")} == before


def test_an_old_release_stays_and_can_come_back(models, tmp_path):
    dest = tmp_path / "dest"
    first = publish_release(models, dest)
    write(models, "asr", {**FILES, "asr-am/1/model.onnx": b"better"})
    second = publish_release(models, dest)
    assert (dest / "current").resolve() == second != first
    assert contents(first) == FILES
    assert contents(second)["asr-am/1/model.onnx"] == b"better"
    write(models, "asr", FILES)
    assert publish_release(models, dest) == first
    assert (dest / "current").resolve() == first


def test_every_pipeline_is_released(models, tmp_path):
    write(models, "tts", OTHER)
    (models / "hand-made").mkdir()
    (models / "hand-made" / "config.pbtxt").touch()
    assert contents(publish_release(models, tmp_path / "dest")) == {**FILES, **OTHER}


def test_nothing_to_publish_is_an_error(tmp_path):
    with pytest.raises(JarvisError, match="no pipeline to publish") as caught:
        publish_release(tmp_path / "absent", tmp_path / "dest")
    assert caught.value.slug == "publish.empty"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_current_that_is_no_link_is_left_alone(models, tmp_path, kind):
    current = tmp_path / "dest" / "current"
    current.parent.mkdir()
    if kind == "folder":
        current.mkdir()
        (current / "precious").touch()
    else:
        current.write_bytes(b"precious")
    with pytest.raises(JarvisError, match="not a symbolic link") as caught:
        publish_release(models, tmp_path / "dest")
    assert caught.value.slug == "publish.current"
    assert kind == "file" or (current / "precious").exists()


def test_a_dangling_current_is_replaced(models, tmp_path):
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "current").symlink_to("releases/gone")
    release = publish_release(models, tmp_path / "dest")
    assert (tmp_path / "dest" / "current").resolve() == release


def edited(models):
    (models / "asr" / "config.pbtxt").write_bytes(b"Ensemble")


def removed(models):
    (models / "asr-am" / "1" / "model.onnx").unlink()


def folder_for_a_file(models):
    removed(models)
    (models / "asr-am" / "1" / "model.onnx").mkdir()


def file_for_a_folder(models):
    removed(models)
    (models / "asr-am" / "1").rmdir()
    (models / "asr-am" / "1").touch()


def pipe_for_a_file(models):
    removed(models)
    os.mkfifo(models / "asr-am" / "1" / "model.onnx")


def claimed_twice(models):
    write(models, "tts", {"asr/config.pbtxt": b"another"})


@pytest.mark.parametrize(
    "damage",
    [edited, removed, folder_for_a_file, file_for_a_folder, pipe_for_a_file, claimed_twice],
)
def test_a_damaged_repository_is_refused_and_the_old_release_serves_on(models, tmp_path, damage):
    dest = tmp_path / "dest"
    first = publish_release(models, dest)
    write(models, "asr", {**FILES, "asr/new": b"new"})
    damage(models)
    with pytest.raises(JarvisError) as caught:
        publish_release(models, dest)
    assert caught.value.slug == "publish.changed"
    assert (dest / "current").resolve() == first
    assert contents(first) == FILES
    assert list((dest / "releases").iterdir()) == [first]


@pytest.mark.parametrize("name", ["../../victim", "/victim", "asr/../../victim"])
def test_a_hostile_manifest_writes_and_removes_nothing_outside(models, tmp_path, name):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    listed = {name: digest_bytes(b"precious").to_json()}
    (models / "asr.repository.json").write_text(json.dumps({"files": listed}))
    for use in (
        lambda: publish_release(models, tmp_path / "d"),
        lambda: remove_pipeline(models, "asr"),
    ):
        with pytest.raises(IntegrityError, match="no plain path"):
            use()
    assert victim.read_bytes() == b"precious"


def test_a_release_that_lost_a_file_does_not_become_current(models, tmp_path):
    release = publish_release(models, tmp_path / "dest")
    (release / "asr" / "config.pbtxt").unlink()
    with pytest.raises(JarvisError, match=r"lacks `asr/config\.pbtxt`") as caught:
        publish_release(models, tmp_path / "dest")
    assert caught.value.slug == "publish.damaged"


def test_a_release_may_be_tuned_by_hand(models, tmp_path):
    release = publish_release(models, tmp_path / "dest")
    (release / "asr" / "config.pbtxt").write_bytes(b"tuned")
    assert publish_release(models, tmp_path / "dest") == release
    assert (release / "asr" / "config.pbtxt").read_bytes() == b"tuned"


def test_what_a_killed_process_left_is_removed(models, tmp_path):
    left = tmp_path / "dest" / "releases" / ".unfinished-x"
    left.mkdir(parents=True)
    (left / "model.onnx").touch()
    release = publish_release(models, tmp_path / "dest")
    assert list(release.parent.iterdir()) == [release]


def test_a_release_that_is_interrupted_is_not_there(models, tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(publish, "_sync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        publish_release(models, tmp_path / "dest")
    assert list((tmp_path / "dest" / "releases").iterdir()) == []
    assert not (tmp_path / "dest" / "current").is_symlink()


def test_a_destination_that_cannot_be_used_is_named(models, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(JarvisError) as caught:
        publish_release(models, tmp_path / "file")
    assert caught.value.where == str(tmp_path / "file")
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "releases").touch()
    with pytest.raises(JarvisError, match="cannot be published") as caught:
        publish_release(models, tmp_path / "dest")
    assert caught.value.slug == "publish.io"


def test_two_processes_publish_at_once(models, tmp_path):
    code = (
        "import sys; from pathlib import Path; sys.stdin.read();"
        "from jarvis_rules.triton.publish import publish_release;"
        "print(publish_release(Path(sys.argv[1]), Path(sys.argv[2])))"
    )
    argv = [sys.executable, "-c", code, str(models), str(tmp_path / "dest")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(argv, **pipes) for _ in range(3)]
    for process in processes:
        process.stdin.close()
    outputs = {process.stdout.read() for process in processes}
    assert [process.wait() for process in processes] == [0] * 3
    assert len(outputs) == 1
    assert contents(tmp_path / "dest" / "current") == FILES


# Removing a pipeline


def test_a_pipeline_is_removed_and_others_stay(models):
    write(models, "tts", OTHER)
    (models / "asr" / "1" / "__pycache__").mkdir()
    (models / "asr" / "1" / "__pycache__" / "x.pyc").touch()
    remove_pipeline(models, "asr")
    assert contents(models) == OTHER
    assert sorted(p.name for p in models.iterdir()) == ["tts", "tts.repository.json"]


def test_what_somebody_added_stays(models):
    (models / "asr" / "notes.txt").write_bytes(b"mine")
    remove_pipeline(models, "asr")
    assert contents(models) == {"asr/notes.txt": b"mine"}


def test_a_link_out_of_the_repository_is_not_followed(models, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "model.onnx").write_bytes(b"precious")
    removed(models)
    (models / "asr-am" / "1").rmdir()
    (models / "asr-am" / "1").symlink_to(tmp_path / "elsewhere")
    remove_pipeline(models, "asr")
    assert (tmp_path / "elsewhere" / "model.onnx").read_bytes() == b"precious"


@pytest.mark.parametrize("damage", [removed, folder_for_a_file, file_for_a_folder])
def test_what_is_gone_already_does_not_matter(models, damage):
    damage(models)
    remove_pipeline(models, "asr")
    assert not (models / "asr.repository.json").exists()


def test_a_damaged_manifest_removes_nothing(models):
    (models / "asr.repository.json").write_text("{")
    with pytest.raises(IntegrityError):
        remove_pipeline(models, "asr")
    assert contents(models) == FILES


def test_a_manifest_that_is_a_pipe_is_not_opened(models, tmp_path):
    (models / "asr.repository.json").unlink()
    os.mkfifo(models / "asr.repository.json")
    for use in (
        lambda: publish_release(models, tmp_path / "d"),
        lambda: remove_pipeline(models, "asr"),
    ):
        with pytest.raises(IntegrityError, match="no regular file"):
            use()
    assert contents(models) == FILES
