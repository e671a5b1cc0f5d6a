"""The executor with real tools in real processes: the real NemoExport, and a probe."""

from __future__ import annotations

import errno
import gzip
import json
import os
import select
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

import jarvis_rules
from jarvis_rules.core.action import (
    ENVIRONMENT,
    ActionSpec,
    FileInput,
    MemberInput,
    Output,
    Resources,
    StoredInput,
    TreeInput,
)
from jarvis_rules.core.digest import digest_bytes, digest_file
from jarvis_rules.core.events import ActionProgress
from jarvis_rules.core.toolchain import Toolchain
from jarvis_rules.errors import IntegrityError, JarvisBug, JarvisError, ToolchainError, UsageError
from jarvis_rules.execution import file_digests
from jarvis_rules.execution.delivery import Destination, is_intact
from jarvis_rules.execution.execution_log import read_last_build
from jarvis_rules.execution.file_digests import FileStamp
from jarvis_rules.execution.gpu_devices import GpuDevices
from jarvis_rules.execution.replay import replay
from jarvis_rules.execution.sandbox import NoSandbox
from jarvis_rules.execution.store import Store
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.rules.rules import export_model

PACKAGE = Path(jarvis_rules.__file__).parent
GRAPH = "model_graph.onnx"
SEEN = Output("out")


@pytest.fixture(scope="session")
def overlay(tmp_path_factory):
    """A folder to import the package from that has one more tool, the probe."""
    root = tmp_path_factory.mktemp("overlay")
    for folder in ("", "tools"):
        (root / "jarvis_rules" / folder).mkdir()
        for entry in (PACKAGE / folder).iterdir():
            if entry.name not in ("tools", "__pycache__"):
                (root / "jarvis_rules" / folder / entry.name).symlink_to(entry)
    (root / "jarvis_rules" / "tools" / "probe.py").symlink_to(Path(__file__).with_name("probe.py"))
    return root


class OverlaySandbox(NoSandbox):
    """No sandbox, and the package that has the probe."""

    overlay: Path

    def command(self, argv, folder, environment, **more):
        launch = super().command(argv, folder, environment, **more)
        return replace(launch, environment={**environment, "PYTHONPATH": str(self.overlay)})


@pytest.fixture
def probe(overlay, executor):
    """Return the spec of an action that runs the probe."""
    OverlaySandbox.overlay = overlay
    executor._sandbox = OverlaySandbox(None)

    def probe(request=None, inputs=None, output=SEEN, **more):
        toolchain = Toolchain("test", "probe", "0" * 64)
        return ActionSpec(
            "Probe", "probe", request or {}, inputs or {}, output, toolchain, "it", **more
        )

    return probe


def seen(executor, spec):
    executed = executor.run(spec)
    return json.loads(executor.store.read(executed.result.outputs["out"]))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a model.nemo"
    path.write_bytes(b"model")
    return path


# Running and caching


def test_export_is_executed_once(executor, nemo, ejrvs, tmp_path):
    spec = export_model(nemo, Path("x.ejrvs")).action.spec
    for outcome in ("executed", "cached"):
        target = Destination(tmp_path / outcome / "x.ejrvs", record=tmp_path / outcome / "x.json")
        executed = executor.run(spec, target)
        assert executed.outcome == outcome
        assert target.file.read_bytes() == ejrvs.read_bytes()
        assert is_intact(executor.digests, spec.output, target)
        record = json.loads(target.record.read_bytes())
        assert record["key"] == executed.key.sha256
        assert record["inputs"]["inputs/model.nemo"] == digest_file(nemo).to_json()
        assert str(tmp_path) not in target.record.read_text()
        assert str(nemo) not in target.record.read_text()


def test_the_tool_sees_its_inputs_and_nothing_else(executor, probe, overlay, file, monkeypatch):
    monkeypatch.setenv("LD_PRELOAD_SECRET", "x")
    found = seen(executor, probe({"a": 1}, {"x/y.nemo": FileInput(file)}))
    assert found == {
        "environment": {**ENVIRONMENT, "PYTHONPATH": str(overlay)},
        "inputs": {"x/y.nemo": "model"},
        "here": ["inputs", "log.txt", "outputs", "progress", "request.json"],
        "stdin": "",
    }


def test_every_kind_of_input_is_staged(executor, probe, file, ejrvs, tmp_path):
    tree = {"m/1/a": b"A", "m/b": b"B"}
    for name, data in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    manifest = tmp_path / "tree.json"
    listed = {name: digest_bytes(data).to_json() for name, data in tree.items()}
    manifest.write_text(json.dumps({"files": listed}))
    inputs = {
        "file": FileInput(file),
        "member": MemberInput(ejrvs, GRAPH),
        "tree": TreeInput(manifest, tmp_path),
        "blob": StoredInput(executor.store.put_bytes(b"stored")),
    }
    found = seen(executor, probe(inputs=inputs))["inputs"]
    with open_archive(ejrvs) as archive:
        graph = archive.read(GRAPH).decode("latin-1")
    assert found == {
        "file": "model", "member": graph, "blob": "stored", "tree/m/1/a": "A", "tree/m/b": "B"
    }  # fmt: skip


def test_another_place_of_the_same_content_is_cached(executor, probe, file, tmp_path):
    assert executor.run(probe(inputs={"x": FileInput(file)})).outcome == "executed"
    moved = file.rename(tmp_path / "moved")
    assert executor.run(probe(inputs={"x": FileInput(moved)})).outcome == "cached"
    moved.write_bytes(b"MODEL")
    assert executor.run(probe(inputs={"x": FileInput(moved)})).outcome == "executed"


def test_a_member_keeps_its_key_in_another_archive(executor, probe, ejrvs, jmir):
    one = executor.run(probe(inputs={"g": MemberInput(ejrvs, GRAPH)}))
    other = executor.run(probe(inputs={"g": MemberInput(jmir, f"acoustic_model/{GRAPH}")}))
    assert one.key == other.key
    assert other.outcome == "cached"


def flip(path):
    path.chmod(0o644)
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_output_is_made_again(executor, probe, tmp_path, damage):
    spec, target = probe({"write": {"out": "result"}}), Destination(tmp_path / "out" / "x")
    executed = executor.run(spec, target)
    target.file.unlink()
    damage(executor.store.path(executed.result.outputs["out"]))
    assert executor.run(spec, target).outcome == "executed"
    assert target.file.read_text() == "result"


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_later_delivery_mends_a_damaged_output(executor, probe, tmp_path, damage):
    """The commands run first and deliver later, when they know that nothing is overwritten."""
    spec, target = probe({"write": {"out": "result"}}), Destination(tmp_path / "out" / "x")
    executor.run(spec)
    executed = executor.run(spec)
    assert executed.outcome == "cached"
    damage(executor.store.path(executed.result.outputs["out"]))
    executor.deliver(spec, executed, target)
    assert target.file.read_text() == "result"


def test_a_damaged_stored_member_is_taken_from_the_archive_again(executor, probe, ejrvs):
    spec = probe(inputs={"g": MemberInput(ejrvs, GRAPH)})
    good = seen(executor, spec)["inputs"]["g"]
    with open_archive(ejrvs) as archive:
        flip(executor.store.path(archive.digest(GRAPH)))
    assert seen(executor, replace(spec, request={"again": 1}))["inputs"]["g"] == good


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_damaged_blob_is_never_given_to_a_tool(executor, probe, damage):
    digest = executor.store.put_bytes(b"stored")
    damage(executor.store.path(digest))
    with pytest.raises(IntegrityError, match="damaged and has been removed") as caught:
        executor.run(probe(inputs={"x": StoredInput(digest)}))
    assert caught.value.slug == "store.damaged"


@pytest.mark.parametrize("name", ["other", "models/x"])
def test_a_cached_result_of_other_outputs_is_a_miss(executor, probe, tmp_path, name):
    spec = probe({"write": {"out": "result"}})
    executor.run(spec)
    (entry,) = (executor.store.root / "ac").rglob("*.json")
    entry.write_text(entry.read_text().replace('"out"', f'"{name}"'))
    target = Destination(tmp_path / "x")
    assert executor.run(spec, target).outcome == "executed"
    assert target.file.read_text() == "result"


def test_the_first_of_two_results_counts(executor, store, probe, monkeypatch):
    spec = probe({"write": {"out": "ours"}})
    executed = executor.run(spec)
    store.forget(executed.key)
    theirs = replace(executed.result, outputs={"out": store.put_bytes(b"theirs")})
    real = executor._execute
    monkeypatch.setattr(
        executor, "_execute", lambda *a: (store.put_result(executed.key, theirs), real(*a))[1]
    )
    assert executor.run(spec).result == theirs


def test_threads_share_an_executor(executor, probe):
    specs = [probe({"write": {"out": str(i % 3)}}) for i in range(6)]
    results = {}

    def run(i):
        results[i] = executor.run(specs[i]).result.outputs

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: {"out": digest_bytes(str(i % 3).encode())} for i in range(6)}
    assert len(read_last_build(executor.log.path)) == 6


# Inputs that change or are not what they should be


def finish(monkeypatch, meanwhile):
    """Let the tool do nothing but what happens `meanwhile`."""

    def run(_sandbox, _action, folder, _names, **_):
        meanwhile()
        (folder / "log.txt").touch()
        (folder / "outputs" / "out").touch()

    monkeypatch.setattr("jarvis_rules.execution.tool_run.run_tool", run)


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_bytes(b"MODEL"), os.utime, Path.unlink],
    ids=["rewritten", "touched", "removed"],
)
def test_a_source_that_changes_meanwhile_fails_the_action(
    executor, probe, file, monkeypatch, change
):
    spec = probe(inputs={"x": FileInput(file)})
    with monkeypatch.context() as patch:
        finish(patch, lambda: change(file))
        with pytest.raises(IntegrityError, match="changed while") as caught:
            executor.run(spec)
    assert (caught.value.slug, caught.value.where) == ("action.input-changed", str(file))
    file.write_bytes(b"model")
    assert executor.run(spec).outcome == "executed"


def test_a_source_that_changes_before_it_is_staged_fails_the_action(
    executor, probe, file, monkeypatch
):
    """On a coarse clock: the file had just been written, so its stamp does not tell."""
    stamp = classmethod(lambda *_: FileStamp(5, 0, 0, 1, racy=True))
    monkeypatch.setattr(FileStamp, "of", stamp)
    real = executor.digests.sha256
    monkeypatch.setattr(
        executor.digests, "sha256", lambda path: (real(path), path.write_bytes(b"MODEL"))[0]
    )
    with pytest.raises(IntegrityError, match="changed while"):
        executor.run(probe(inputs={"x": FileInput(file)}))


def test_a_file_in_two_places_must_be_the_same_in_both(executor, probe, file, monkeypatch):
    real, later = executor.digests.sha256, file.stat().st_ctime_ns + 10**11
    monkeypatch.setattr(file_digests.time, "time_ns", lambda: later)

    def sha256(path):
        found = real(path)
        if path.read_bytes() != b"MODEL":
            path.write_bytes(b"MODEL")
        return found

    monkeypatch.setattr(executor.digests, "sha256", sha256)
    with pytest.raises(IntegrityError, match="changed while"):
        executor.run(probe(inputs={"x": FileInput(file), "y": FileInput(file)}))


@pytest.mark.parametrize(
    ("kind", "slug"),
    [("absent", "missing"), *((kind, "unreadable") for kind in ("folder", "pipe", "loop"))],
)
def test_an_input_that_is_no_file_is_named(executor, probe, tmp_path, kind, slug):
    path = tmp_path / "input"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
    with pytest.raises(JarvisError) as caught:
        executor.run(probe(inputs={"x": FileInput(path)}))
    assert (caught.value.slug, caught.value.where) == (f"file.{slug}", str(path))


def test_a_name_need_not_be_utf_8(executor, probe, tmp_path):
    name = os.fsdecode(b"model-\xff")
    (tmp_path / name).write_bytes(b"model")
    spec = replace(probe(inputs={"x": FileInput(tmp_path / name)}), target=name)
    executor.run(spec, Destination(tmp_path / "out", record=tmp_path / "out.json"))
    assert json.loads((tmp_path / "out.json").read_bytes())["target"] == name


def test_a_tree_that_is_not_what_its_manifest_says_is_refused(executor, probe, file, tmp_path):
    manifest = tmp_path / "tree.json"
    manifest.write_text(json.dumps({"files": {file.name: digest_bytes(b"MODEL").to_json()}}))
    with pytest.raises(IntegrityError, match="its manifest says"):
        executor.run(probe(inputs={"x": TreeInput(manifest, tmp_path)}))


def test_a_member_of_a_damaged_archive_is_refused(executor, probe, ejrvs, tmp_path):
    damaged = tmp_path / "x.ejrvs"
    with open_archive(ejrvs) as archive:
        graph = archive.read(GRAPH)
    data = bytearray(gzip.decompress(ejrvs.read_bytes()))
    data[data.index(graph) + 100] ^= 1
    damaged.write_bytes(gzip.compress(bytes(data), 0))
    with pytest.raises(IntegrityError, match="the manifest says") as caught:
        executor.run(probe(inputs={"g": MemberInput(damaged, GRAPH)}))
    assert caught.value.slug == "archive.member-digest"
    with pytest.raises(IntegrityError, match="no member `absent`"):
        executor.run(probe(inputs={"g": MemberInput(ejrvs, "absent")}))


# Tools that fail


def test_a_tool_s_error_is_the_user_s(executor, nemo):
    bad = nemo.with_name("missing_weights.nemo")
    with pytest.raises(IntegrityError) as caught:
        executor.run(export_model(bad, Path("x.ejrvs")).action.spec)
    assert caught.value.where == str(bad)
    assert caught.value.slug == "nemo.missing-weights"
    assert "inputs/" not in caught.value.render()


def test_an_error_names_the_user_s_files(executor, probe, file, ejrvs):
    other = file.with_name("inputs")
    other.mkdir()
    nested = file.rename(other / "x")
    request = {
        "error": "ToolchainError", "message": "inputs/x, inputs/x.onnx and inputs/xy",
        "hint": "look at inputs/g", "where": "inputs/x", "slug": "some.slug",
    }  # fmt: skip
    inputs = {
        "x": FileInput(nested), "x.onnx": FileInput(nested), "g": MemberInput(ejrvs, GRAPH)
    }  # fmt: skip
    with pytest.raises(ToolchainError) as caught:
        executor.run(probe(request, inputs))
    error = caught.value
    assert error.message == f"{nested}, {nested} and {nested}y"
    assert error.hint == f"look at {ejrvs}!{GRAPH}"
    assert (error.where, error.slug) == (str(nested), "some.slug")


def log_of(error):
    return Path(error.message.partition("whole log: ")[2].partition("\n")[0])


def test_a_crash_shows_the_end_of_the_log_and_where_all_of_it_is(executor, probe):
    texts = [f"reason {i}" for i in range(2)]
    errors = []
    for text in texts:
        with pytest.raises(JarvisError, match=rf"exit code 1(.|\n)*RuntimeError: {text}") as caught:
            executor.run(probe({"crash": text}, inputs={"x": FileInput(Path(__file__))}))
        errors.append(caught.value)
    for text, error in zip(texts, errors, strict=True):
        assert error.slug == "action.crashed"
        log = Path(error.message.rpartition("whole log: ")[2].partition("\nreplay: ")[0])
        assert f"RuntimeError: {text}" in log.read_text()


def test_actions_of_one_kind_keep_logs_of_their_own(executor, probe, tmp_path):
    """Exports of many models differ in nothing but their inputs."""
    logs = set()
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
        with pytest.raises(JarvisError) as caught:
            executor.run(probe({"crash": "x"}, {"x": FileInput(tmp_path / name)}))
        logs.add(log_of(caught.value))
    assert len(logs) == 2


@pytest.mark.parametrize(
    ("number", "slug", "text"),
    [
        (signal.SIGINT, "action.interrupted", "was interrupted"),
        (signal.SIGKILL, "action.crashed", "killed by signal 9"),
        (signal.SIGSEGV, "action.crashed", "killed by signal 11"),
    ],
)
def test_a_killed_tool(executor, probe, number, slug, text):
    with pytest.raises(JarvisError, match=text) as caught:
        executor.run(probe({"signal": int(number)}))
    assert caught.value.slug == slug


def test_a_tool_that_takes_too_long_is_stopped(executor, probe, tmp_path):
    pipe = tmp_path / "pipe"
    pipe.touch()
    with pytest.raises(JarvisError, match="more than 1 s") as caught:
        executor.run(probe({"report": str(pipe)}, timeout=1))
    assert caught.value.slug == "action.timeout"


@pytest.mark.parametrize(
    ("files", "output", "message"),
    [
        ({}, SEEN, "wrote no out"),
        ({"out": "", "more": ""}, SEEN, "undeclared files"),
        ({"out": '{"files": {}}', "tree/x": ""}, Output("out", "tree"), "undeclared files"),
    ],
)
def test_a_tool_writes_what_it_declares(executor, probe, files, output, message):
    with pytest.raises(JarvisBug, match=message):
        executor.run(probe({"write": files}, output=output))


def test_nothing_of_a_failure_is_kept(executor, probe, tmp_path):
    (tmp_path / "out").write_text("what was there")
    spec = probe({"error": "UsageError", "message": "no", "slug": "x"})
    for _ in range(2):
        with pytest.raises(UsageError):
            executor.run(spec, Destination(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "what was there"
    assert not any((executor.store.root / "ac").rglob("*.json"))
    assert not any(executor.store._session.iterdir())


def test_a_target_that_cannot_be_written_is_named(executor, probe, tmp_path):
    spec = probe({"write": {"out": "result"}})
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "x").mkdir(parents=True)
    for target, named in ((tmp_path / "file" / "out", "file"), (tmp_path / "folder", "folder")):
        with pytest.raises(JarvisError, match="cannot be read or written") as caught:
            executor.run(spec, Destination(target))
        assert caught.value.slug == "action.io"
        assert caught.value.where == str(tmp_path / named)
        with pytest.raises(JarvisError, match="cannot be read or written"):
            executor.deliver(spec, executor.run(spec), Destination(target))


def test_a_full_disk_is_no_bug(executor, probe, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/cache/blob")

    monkeypatch.setattr(executor.store, "put_file", full)
    with pytest.raises(JarvisError, match="No space left on device") as caught:
        executor.run(probe())
    assert caught.value.where == "/cache/blob"


# The log


def test_the_log_tells_every_outcome(executor, probe, file, tmp_path):
    good, bad = probe(inputs={"x": FileInput(file)}), probe({"crash": "x"})
    missing = probe(inputs={"x": FileInput(tmp_path / "missing")})
    executed = executor.run(good)
    executor.run(good)
    for spec in (bad, missing):
        with pytest.raises(JarvisError):
            executor.run(spec)
    lines = read_last_build(executor.log.path)
    assert [line["outcome"] for line in lines] == ["executed", "cached", "failed", "failed"]
    assert [bool(line["key"]) for line in lines] == [True, True, True, False]
    assert lines[0]["key"] == executed.key.sha256
    assert lines[0]["inputs"]["inputs/x"] == str(digest_bytes(b"model"))
    assert lines[0]["outputs"] == {"out": str(executed.result.outputs["out"])}
    peaks = [line["peak_memory_mib"] for line in lines]
    assert peaks == [executed.result.peak_memory_mib, None, None, None]
    assert peaks[0] > 0
    kinds = [type(event).__name__ for event in executor.events.received]
    assert kinds == [
        "ActionStarted",
        *["ActionFinished"] * 2,
        "ActionStarted",
        *["ActionFinished"] * 2,
    ]
    assert [e.outcome for e in executor.events.received if hasattr(e, "outcome")] == [
        line["outcome"] for line in lines
    ]


def test_phases_become_events(executor, probe, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    phases = []

    class Events:
        def receive(self, event):
            if isinstance(event, ActionProgress):
                phases.append((event.mnemonic, event.target, event.phase, event.detail))
                assert event.seconds > 0
                if len(phases) == 1:
                    pipe.write_text("seen")

    executor.events = Events()
    executor.run(probe({"phase": "Compiling", "until": str(pipe)}))
    assert set(phases) == {("Probe", "it", "Compiling", "")}


def test_a_result_that_is_the_same_twice_is_told(executor, probe):
    executor.check_determinism = True
    executor.run(probe({"write": {"out": "x"}}))
    kinds = [type(event).__name__ for event in executor.events.received]
    assert kinds == ["ActionStarted", "ActionStarted", "ActionCompared", "ActionFinished"]


def test_a_result_that_differs_is_not_kept(executor, probe):
    executor.check_determinism = True
    spec = probe({"random": True})
    with pytest.raises(JarvisError, match="gave other bytes the second time: out"):
        executor.run(spec)
    assert not any((executor.store.root / "ac").rglob("*.json"))
    kinds = [type(event).__name__ for event in executor.events.received]
    assert "ActionCompared" not in kinds


@pytest.mark.parametrize("gpus", [0, 1])
def test_an_action_that_asks_for_a_gpu_gets_what_is_there(
    executor, probe, tmp_path, monkeypatch, gpus
):
    devices, given = GpuDevices((Path("/dev/null"),), ()), []
    monkeypatch.setattr("jarvis_rules.execution.tool_run.find_gpu_devices", lambda: devices)
    real = OverlaySandbox.command

    def command(*args, gpu=None):
        given.append(gpu)
        return real(*args)

    monkeypatch.setattr(OverlaySandbox, "command", command)
    spec = probe({"write": {"out": "x"}}, resources=Resources(gpus=gpus))
    executed = executor.run(spec, Destination(tmp_path / "x", record=tmp_path / "x.action.json"))
    assert given == [devices if gpus else None]
    record = json.loads((tmp_path / "x.action.json").read_text())
    assert record["gpus"] == gpus
    replayed = replay(executor, tmp_path / "x.action.json", keep=False)
    assert (replayed.error, replayed.differing) == (None, ())
    assert given == [devices if gpus else None] * 2
    # What an action needs of the machine is no part of its key.
    assert executed.key == spec.resolve({}).key()


# Processes

PARENT = """
import json, sys
from pathlib import Path
from jarvis_rules.core.action import ActionSpec, Output
from jarvis_rules.core.toolchain import Toolchain
from jarvis_rules.execution.executor import Executor
from jarvis_rules.execution.file_digests import FileDigests
from jarvis_rules.execution.store import Store
root, request = Path(sys.argv[1]), json.loads(sys.argv[2])
executor = Executor(Store(root), FileDigests(root / "db.sqlite"))
toolchain = Toolchain("test", "probe", "0" * 64)
spec = ActionSpec("Probe", "probe", request, {}, Output("out"), toolchain, "it")
print(executor.run(spec).outcome)
"""


# The overlay's links lead to where no sandbox would let the tool read.
OUTSIDE = {**os.environ, "JARVIS_SANDBOX": "none"}


def happens(descriptor, seconds):
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def test_the_tool_dies_with_whoever_started_it(overlay, tmp_path):
    pipe, root = tmp_path / "pipe", tmp_path / "cache"
    os.mkfifo(pipe)
    argv = [sys.executable, "-c", PARENT, str(root), json.dumps({"report": str(pipe)})]
    ear = os.open(pipe, os.O_RDWR)
    with subprocess.Popen(argv, cwd=overlay, env=OUTSIDE) as parent:
        assert happens(ear, 30), "the tool has not begun"
        tool = os.pidfd_open(int(os.read(ear, 100)))
        assert not happens(tool, 0)
        parent.kill()
        assert happens(tool, 30), "the tool is still there"
    os.close(tool)
    os.close(ear)
    Store(root).close()
    assert not any((root / "tmp").iterdir())


def test_two_processes_run_the_same_action(overlay, tmp_path):
    argv = [sys.executable, "-c", PARENT, str(tmp_path), json.dumps({"write": {"out": "x"}})]
    pipes = {"stdout": subprocess.PIPE, "text": True, "cwd": overlay, "env": OUTSIDE}
    processes = [subprocess.Popen(argv, **pipes) for _ in range(2)]
    outcomes = [process.communicate()[0].strip() for process in processes]
    assert sorted(outcomes) == ["cached", "executed"]
    store = Store(tmp_path)
    assert store.read(digest_bytes(b"x")) == b"x"
    store.close()


def test_a_blob_that_vanishes_between_making_and_delivering_is_made_again(
    executor, store, probe, tmp_path, monkeypatch
):
    real, lost = store.copy_to, []

    def copy(digest, target):
        if not lost:
            lost.append(digest)
            store.path(digest).unlink()
        return real(digest, target)

    monkeypatch.setattr(store, "copy_to", copy)
    target = Destination(tmp_path / "x", record=tmp_path / "x.action.json")
    assert executor.run(probe({"write": {"out": "text"}}), target).outcome == "executed"
    assert lost
    assert target.file.read_text() == "text"
