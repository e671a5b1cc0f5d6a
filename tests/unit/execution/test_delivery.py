"""Deliveries: complete or not there, nothing touched needlessly, nothing outside the tree."""

from __future__ import annotations

import json
import time

import pytest

from jarvis_rules.core.action import ActionResult, Output
from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import IntegrityError
from jarvis_rules.execution import delivery, file_digests
from jarvis_rules.execution.delivery import (
    Destination,
    deliver,
    find_conflict,
    is_intact,
    listed_files,
)
from jarvis_rules.execution.store import BlobMissingError

SINGLE, TREE = Output("model.ejrvs"), Output("repository.json", "models")
MODELS = {"am/config.pbtxt": b"config", "am/1/model.onnx": b"graph", "am/1/sub/x": b"x"}


def result_of(store, output, files):
    """Return the result of an action that made `files`, with the manifest that lists them."""
    digests = {name: store.put_bytes(data) for name, data in files.items()}
    document = {"files": {name: digest.to_json() for name, digest in digests.items()}}
    outputs = {f"{output.tree}/{name}": digest for name, digest in digests.items()}
    outputs[output.file] = store.put_bytes(json.dumps(document).encode())
    return ActionResult(outputs, store.put_bytes(b""))


@pytest.fixture
def out(tmp_path):
    tree = tmp_path / "out" / "models"
    return Destination(tree / "asr.repository.json", tree, tmp_path / "out" / "asr.action.json")


@pytest.fixture
def put(store, digests, out):
    """Deliver models to `out` as the executor does."""

    def put(files, destination=out):
        result = result_of(store, TREE, files)
        outputs = {name: digest.to_json() for name, digest in result.outputs.items()}
        deliver(store, digests, TREE, result, destination, {"outputs": outputs})

    return put


def contents(tree):
    return {
        p.relative_to(tree).as_posix(): p.read_bytes()
        for p in tree.rglob("*")
        if p.is_file() and p.suffix != ".json"
    }


def stamps(folder):
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


def test_a_tree_is_delivered(put, out, digests):
    put(MODELS)
    assert contents(out.tree) == MODELS
    assert set(listed_files(out.file)) == set(MODELS)
    assert is_intact(digests, TREE, out)
    assert not list(out.tree.rglob(".*"))


def test_a_single_file_is_delivered_once(store, digests, tmp_path):
    target = Destination(tmp_path / "out" / "x.ejrvs", record=tmp_path / "out" / "x.action.json")
    digest = store.put_bytes(b"archive")
    result, record = ActionResult({"model.ejrvs": digest}, digest), {}
    record["outputs"] = {"model.ejrvs": digest.to_json()}
    deliver(store, digests, SINGLE, result, target, record)
    assert target.file.read_bytes() == b"archive"
    assert is_intact(digests, SINGLE, target)
    before = target.file.stat()
    deliver(store, digests, SINGLE, result, target, record)
    assert target.file.stat() == before


def test_files_that_are_right_stay_untouched(put, out):
    put(MODELS)
    before = stamps(out.tree / "am")
    put({**MODELS, "am/1/model.onnx": b"other"})
    after = stamps(out.tree / "am")
    assert {p.name for p in before if before[p] != after[p]} == {"model.onnx"}


def test_what_is_no_longer_listed_goes(put, out):
    put({**MODELS, "old/1/model.py": b"old", "am/2/model.onnx": b"two"})
    (out.tree / "other" / "1").mkdir(parents=True)
    (out.tree / "other" / "1" / "model.py").write_bytes(b"another pipeline's")
    put(MODELS)
    assert contents(out.tree) == {**MODELS, "other/1/model.py": b"another pipeline's"}
    assert not (out.tree / "old").exists()
    assert not (out.tree / "am" / "2").exists()


def test_an_old_model_that_somebody_has_changed_is_no_obstacle(put, out):
    put({**MODELS, "old/1/model.py": b"old"})
    (out.tree / "old" / "1" / "model.py").unlink()
    (out.tree / "old" / "1").rmdir()
    (out.tree / "old" / "1").write_bytes(b"mine")
    put(MODELS)
    assert contents(out.tree) == {**MODELS, "old/1": b"mine"}


def test_scons_has_removed_the_manifest(put, out):
    """SCons unlinks a target before it is built; the record still knows what was delivered."""
    put({**MODELS, "old/1/model.py": b"old"})
    out.file.unlink()
    put(MODELS)
    assert contents(out.tree) == MODELS


def stray_file(models):
    (models / "am" / "1" / "stray").touch()


def stray_folder(models):
    (models / "am" / "2").mkdir()


def stray_link_to_a_folder(models):
    (models / "am" / "2").symlink_to(models / "am" / "1")


def dangling_link(models):
    (models / "am" / "1" / "stray").symlink_to("nowhere")


def folder_for_a_file(models):
    (models / "am" / "config.pbtxt").unlink()
    (models / "am" / "config.pbtxt").mkdir()
    (models / "am" / "config.pbtxt" / "x").touch()


def file_for_a_folder(models):
    (models / "am" / "1" / "sub" / "x").unlink()
    (models / "am" / "1" / "sub").rmdir()
    (models / "am" / "1" / "sub").touch()


def link_for_a_folder(models):
    (models / "am" / "1").rename(models.parent / "moved")
    (models / "am" / "1").symlink_to(models.parent / "moved")


def file_for_a_model(models):
    (models / "am").rename(models.parent / "moved")
    (models / "am").touch()


def edited_byte(models):
    path = models / "am" / "1" / "model.onnx"
    before = path.stat().st_ctime_ns
    # Where the clock is coarse, a change may leave the old times for some milliseconds.
    while path.stat().st_ctime_ns == before:
        path.write_bytes(b"grapH")


def removed_file(models):
    (models / "am" / "1" / "model.onnx").unlink()


def edited_manifest(models):
    path = models / "asr.repository.json"
    path.write_text(path.read_text() + " ")


def removed_manifest(models):
    (models / "asr.repository.json").unlink()


DAMAGE = [
    stray_file,
    stray_folder,
    stray_link_to_a_folder,
    dangling_link,
    folder_for_a_file,
    file_for_a_folder,
    link_for_a_folder,
    file_for_a_model,
    edited_byte,
    removed_file,
    edited_manifest,
    removed_manifest,
]


@pytest.fixture
def settled(monkeypatch):
    """A minute has passed since the last delivery: what is found right is remembered."""
    now = time.time_ns() + 60_000_000_000
    monkeypatch.setattr(file_digests.time, "time_ns", lambda: now)


@pytest.mark.usefixtures("settled")
def test_an_intact_delivery_is_looked_into_once(put, out, digests, monkeypatch):
    put(MODELS)
    assert is_intact(digests, TREE, out)
    monkeypatch.setattr(digests, "matches", lambda *_: pytest.fail("looked into again"))
    monkeypatch.setattr(delivery, "_strays", lambda *_: pytest.fail("looked into again"))
    assert is_intact(digests, TREE, out)


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_what_is_remembered_is_seen(put, out, digests, damage):
    put(MODELS)
    assert is_intact(digests, TREE, out)
    damage(out.tree)
    assert not is_intact(digests, TREE, out)


@pytest.mark.usefixtures("settled")
def test_another_record_is_not_what_was_remembered(put, out, digests):
    put(MODELS)
    assert is_intact(digests, TREE, out)
    out.record.write_text('{"outputs": {}}')
    assert not is_intact(digests, TREE, out)


def test_what_could_still_change_unseen_is_not_remembered(put, out, digests):
    put(MODELS)
    assert is_intact(digests, TREE, out)
    assert not digests.is_unchanged(out.record / "models")


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen_and_mended(put, out, digests, damage):
    put(MODELS)
    damage(out.tree)
    assert not is_intact(digests, TREE, out)
    put(MODELS)
    assert is_intact(digests, TREE, out)
    assert contents(out.tree) == MODELS


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"outputs": 1}', b"[" * 100_000, None])
def test_without_a_good_record_nothing_is_intact(put, out, digests, content):
    put(MODELS)
    if content is None:
        out.record.unlink()
    else:
        out.record.write_bytes(content)
    assert not is_intact(digests, TREE, out)
    put(MODELS)
    assert is_intact(digests, TREE, out)


def test_what_a_server_s_python_writes_is_no_damage(put, out, digests):
    put(MODELS)
    cache = out.tree / "am" / "1" / "__pycache__"
    cache.mkdir()
    (cache / "model.pyc").touch()
    assert is_intact(digests, TREE, out)
    put({**MODELS, "am/1/model.onnx": b"other"})
    assert (cache / "model.pyc").exists()
    put({"new/1/model.onnx": b"new"})
    assert contents(out.tree) == {"new/1/model.onnx": b"new"}


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_interrupted_delivery_does_not_look_finished(
    put, out, store, digests, monkeypatch, place
):
    put({**MODELS, "old/1/model.py": b"old"})
    real, calls = store.copy_to, []

    def copy(digest, target):
        calls.append(target)
        if len(calls) > place:
            raise KeyboardInterrupt
        return real(digest, target)

    monkeypatch.setattr(store, "copy_to", copy)
    other = {name: data + b"!" for name, data in MODELS.items()}
    with pytest.raises(KeyboardInterrupt):
        put(other)
    assert not out.file.exists()
    assert not is_intact(digests, TREE, out)
    monkeypatch.undo()
    put(other)
    assert contents(out.tree) == other


def test_a_delivery_that_is_killed_while_it_removes_is_finished_by_the_next(put, out, monkeypatch):
    put({**MODELS, "old/1/a": b"", "old/1/b": b""})
    real, calls = delivery._remove_file, []

    def remove(path, tree):
        calls.append(path)
        if len(calls) > 1:
            raise KeyboardInterrupt
        real(path, tree)

    monkeypatch.setattr(delivery, "_remove_file", remove)
    with pytest.raises(KeyboardInterrupt):
        put(MODELS)
    monkeypatch.undo()
    put(MODELS)
    assert contents(out.tree) == MODELS


def test_a_lost_blob_leaves_no_manifest(out, store, digests):
    result = result_of(store, TREE, MODELS)
    store.path(result.outputs["models/am/1/model.onnx"]).unlink()
    with pytest.raises(BlobMissingError):
        deliver(store, digests, TREE, result, out, {})
    assert not out.file.exists()


HOSTILE = ["/etc/x", "../x", "a/../x", "./x", "a//x", "a/", "", ".", "a\0b", "a\x1b[31m", "\ud800"]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manifest_may_not_name_what_is_outside(tmp_path, name):
    manifest = tmp_path / "m.json"
    manifest.write_text(json.dumps({"files": {name: digest_bytes(b"").to_json()}}))
    with pytest.raises(IntegrityError, match="no plain path inside the tree") as caught:
        listed_files(manifest)
    assert str(caught.value).isprintable()


def test_a_manifest_may_not_name_a_file_and_a_folder_alike(tmp_path):
    manifest, empty = tmp_path / "m.json", digest_bytes(b"").to_json()
    manifest.write_text(json.dumps({"files": {"a": empty, "a/b": empty}}))
    with pytest.raises(IntegrityError, match="'a' is no plain path"):
        listed_files(manifest)


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}}', b"\xff", b'{"files":' * 99_999],
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    manifest = tmp_path / "m.json"
    manifest.write_bytes(content)
    with pytest.raises(IntegrityError, match="not a manifest of files"):
        listed_files(manifest)


def test_a_manifest_that_is_not_there_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(IntegrityError, match="not a manifest of files"):
            listed_files(path)


@pytest.mark.parametrize("name", ["/victim", "../../victim", "am/link/victim"])
def test_an_edited_record_cannot_remove_foreign_files(put, out, tmp_path, name):
    (tmp_path / "victim").write_bytes(b"precious")
    put(MODELS)
    (out.tree / "am" / "link").symlink_to(tmp_path)
    if name.startswith("/"):
        name = str(tmp_path / "victim")
    record = json.loads(out.record.read_bytes())
    record["outputs"][f"models/{name}"] = digest_bytes(b"precious").to_json()
    out.record.write_text(json.dumps(record))
    put(MODELS)
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert contents(out.tree) == MODELS


def test_strays_behind_a_link_are_not_ours_to_remove(put, out, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    put(MODELS)
    (out.tree / "am" / "1").rename(tmp_path / "moved")
    (out.tree / "am" / "1").symlink_to(elsewhere)
    put(MODELS)
    assert (elsewhere / "precious").exists()
    assert contents(out.tree) == MODELS


@pytest.mark.parametrize("damage", [d for d in DAMAGE if "manifest" not in d.__name__])
def test_a_differing_model_is_a_conflict(put, out, store, digests, damage):
    put(MODELS)
    result = result_of(store, TREE, MODELS)
    assert find_conflict(digests, TREE, result, out.tree) is None
    damage(out.tree)
    path = find_conflict(digests, TREE, result, out.tree)
    assert path is not None
    assert path.is_relative_to(out.tree / "am")


def test_a_link_in_the_place_of_a_model_is_a_conflict(out, store, digests):
    out.tree.mkdir(parents=True)
    (out.tree / "am").symlink_to("/nowhere")
    result = result_of(store, TREE, MODELS)
    assert find_conflict(digests, TREE, result, out.tree).is_relative_to(out.tree / "am")


def test_other_models_are_no_conflict(out, store, digests):
    (out.tree / "other").mkdir(parents=True)
    (out.tree / "other" / "config.pbtxt").touch()
    assert find_conflict(digests, TREE, result_of(store, TREE, MODELS), out.tree) is None


def test_what_the_store_holds_of_a_record_does_not_matter(put, out, store, digests):
    put(MODELS)
    record = out.record.read_bytes()
    blob = store.path(store.put_bytes(record))
    blob.chmod(0o644)
    blob.write_bytes(bytes(len(record)))
    out.record.unlink()
    put(MODELS)
    assert out.record.read_bytes() == record
    assert is_intact(digests, TREE, out)
