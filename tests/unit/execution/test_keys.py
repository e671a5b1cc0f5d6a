"""Keys on their way to tools: on a pipe, in every sandbox, and nowhere else."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace

import pytest

from jarvis_rules.core.action import KEY_DESCRIPTOR, ActionSpec, FileInput, MemberInput, Output
from jarvis_rules.core.toolchain import Toolchain
from jarvis_rules.errors import IntegrityError, JarvisBug, ToolchainError
from jarvis_rules.execution import collection
from jarvis_rules.execution.delivery import Destination
from jarvis_rules.execution.process import run_process
from jarvis_rules.execution.replay import replay
from jarvis_rules.execution.sandbox import NAMES, try_sandbox
from jarvis_rules.execution.store import open_private_store, private_root
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.key_source import Key
from jarvis_rules.rules.rules import export_model

SECRET = b"s3cret-of-the-test"
KEY = Key(SECRET, "test")
WORKING = [name for name in NAMES if try_sandbox(name).sandbox is not None]


def contents(folder):
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", WORKING)
def test_a_tool_gets_its_key_in_every_sandbox(executor, nemo, tmp_path, name):
    executor._sandbox = try_sandbox(name).sandbox
    target = Destination(tmp_path / "x.ejrvs", record=tmp_path / "x.json")
    executor.run(export_model(nemo, target.file, key=KEY).action.spec, target)
    with open_archive(target.file, "ejrvs", key=KEY) as archive:
        assert archive.manifest.metadata["family"] == "conv_asr"
        assert archive.read("model_config.yaml")
    for hidden in (SECRET, SECRET.hex().encode()):
        assert hidden not in contents(tmp_path)
    request = json.loads(target.record.read_bytes())["request"]
    assert request["keys"] == {
        "descriptor": KEY_DESCRIPTOR,
        "fingerprints": {"archive": KEY.fingerprint},
    }


@pytest.mark.parametrize("name", WORKING)
def test_what_a_process_finds_on_its_input(tmp_path, name):
    """The pipe holds the bytes and then ends, and no other descriptor was inherited."""
    sandbox = try_sandbox(name).sandbox
    for part in ("inputs", "outputs"):
        (tmp_path / part).mkdir()
    (tmp_path / "request.json").touch()
    code = (
        "import os, sys; data = sys.stdin.buffer.read(); "
        "known = {os.readlink(f'/proc/self/fd/{n}') for n in os.listdir('/proc/self/fd') "
        "if int(n) > 2 and os.path.exists(f'/proc/self/fd/{n}')}; "
        "print(data, [name for name in known if name.startswith('pipe')])"
    )
    open_here = os.pipe()
    launch = sandbox.command([sys.executable, "-c", code], tmp_path, {})
    code = run_process(
        launch.argv, cwd=launch.cwd, environment=launch.environment, log=tmp_path / "log.txt",
        timeout=60, standard_input=b"the bytes",
    )  # fmt: skip
    for descriptor in open_here:
        os.close(descriptor)
    assert (code, (tmp_path / "log.txt").read_text()) == (0, "b'the bytes' []\n")


def test_what_does_not_fit_a_pipe_is_a_bug_and_does_not_hang(tmp_path):
    with pytest.raises(JarvisBug, match="a pipe takes"):
        run_process(
            ["/bin/true"], cwd=tmp_path, environment={}, log=tmp_path / "log", timeout=5,
            standard_input=bytes(1 << 21),
        )  # fmt: skip


def spec(key=None, **more):
    keys = {} if key is None else {"archive": key}
    toolchain = Toolchain("test", "probe", "0" * 64)
    return ActionSpec(
        "Probe", "probe", {"a": 1}, {}, Output("out"), toolchain, "it", keys=keys, **more
    )


def test_another_key_is_another_action():
    specs = [spec(), spec(KEY), spec(Key(b"other"))]
    assert len({s.static_key() for s in specs}) == 3
    assert len({s.resolve({}).key() for s in specs}) == 3
    assert spec(KEY).resolve({}).key() == spec(Key(SECRET, "elsewhere")).resolve({}).key()
    assert SECRET.decode() not in f"{specs}{[s.resolve({}) for s in specs]}"


def test_another_place_of_the_key_is_cached(executor, nemo, tmp_path):
    for source, outcome in (("here", "executed"), ("there", "cached")):
        action = export_model(nemo, tmp_path / "x.ejrvs", key=Key(SECRET, source)).action
        assert executor.run(action.spec).outcome == outcome
    assert executor.run(export_model(nemo, tmp_path / "x.ejrvs").action.spec).outcome == "executed"


# What encrypted archives hold


@pytest.fixture
def sealed(tmp_path):
    """An encrypted archive of one member."""
    path = tmp_path / "x.jmir"
    member = Member("e/model_graph.onnx", "graph", "", data=b"plaintext of the graph")
    write_archive(path, "jmir", {"name": "x", "kind": "qa"}, [member], KEY)
    return path


@pytest.fixture
def copying(monkeypatch):
    """Return the spec of an action that copies its input, by a tool that runs right here."""

    def run(_sandbox, _action, folder, _names, **_):
        (folder / "log.txt").touch()
        staged = folder / "inputs" / "graph.onnx"
        (folder / "outputs" / "out").write_bytes(b"made of " + staged.read_bytes())

    monkeypatch.setattr("jarvis_rules.execution.tool_run.run_tool", run)
    return lambda path, key, **more: replace(
        spec(**more), inputs={"graph.onnx": MemberInput(path, "e/model_graph.onnx", key)}
    )


def test_a_member_is_staged_and_never_stored(executor, store, sealed, copying):
    executed = executor.run(copying(sealed, KEY))
    made = store.read(executed.result.outputs["out"])
    assert made == b"made of plaintext of the graph"
    with open_archive(sealed) as archive:
        assert not store.has(archive.digest("e/model_graph.onnx"))


def test_a_member_has_the_key_of_a_plain_archive_s(executor, sealed, copying, tmp_path):
    plain = tmp_path / "plain.jmir"
    with open_archive(sealed, key=KEY) as archive:
        source = archive.source("e/model_graph.onnx")
        member = Member("e/model_graph.onnx", "graph", "", source=source)
        write_archive(plain, "jmir", {"name": "x", "kind": "qa"}, [member])
    first = executor.run(copying(sealed, KEY))
    assert executor.run(copying(plain, None)).key == first.key


def test_no_key_no_member_even_if_the_result_is_cached(executor, sealed, copying):
    executor.run(copying(sealed, KEY))
    with pytest.raises(IntegrityError, match="no key was given") as caught:
        executor.run(copying(sealed, None))
    assert caught.value.slug == "encryption.missing-key"


def test_confidential_results_are_in_a_store_of_the_user_s_own(
    executor, store, sealed, copying, tmp_path
):
    private = private_root(store.root)
    action = copying(sealed, KEY, confidential=True)
    executed = executor.run(action, Destination(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"made of plaintext of the graph"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert executed.store.root == private
    assert executed.store.has(executed.result.outputs["out"])
    assert not store.has(executed.result.outputs["out"])
    assert store.result(executed.key) is None
    assert executor.run(action, Destination(tmp_path / "out")).outcome == "cached"
    executor.close()


def test_a_private_store_that_others_can_read_is_refused(store):
    private_root(store.root).mkdir(mode=0o755)
    with pytest.raises(ToolchainError) as caught:
        open_private_store(store.root)
    assert caught.value.slug == "cache.not-private"


def test_the_private_store_is_looked_after_too(store):
    assert collection.store_roots(store.root) == (store.root,)
    open_private_store(store.root).close()
    assert collection.store_roots(store.root) == (store.root, private_root(store.root))


# Replaying


def test_a_replay_takes_the_key_by_its_fingerprint(executor, nemo, tmp_path):
    record = tmp_path / "x.json"
    action = export_model(nemo, tmp_path / "x.ejrvs", key=KEY).action.spec
    inputs = {"model.nemo": FileInput(nemo)}
    executor.run(replace(action, inputs=inputs), Destination(tmp_path / "x.ejrvs", record=record))
    document = json.loads(record.read_bytes())
    record.write_text(json.dumps({**document, "sources": {"model.nemo": str(nemo)}}))
    for keys in ((), (Key(b"other"),)):
        with pytest.raises(IntegrityError) as caught:
            replay(executor, record, keep=False, keys=keys)
        assert caught.value.slug == "replay.key"
    replayed = replay(executor, record, keep=False, keys=(Key(b"other"), KEY))
    assert (replayed.error, replayed.differing) == (None, ())
