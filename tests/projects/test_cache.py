"""The cache and the records: what is shared, what is missed and why, what is explained."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project_testing import Project, change_one_weight

BIN = Path(sys.executable).parent
ALL = ["EngineBuild", "EngineCheck", "JmirBuild", "NemoExport", "RepositoryAssemble"]


def rules(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "jarvis-rules"), *arguments],
        cwd=project.folder,
        env=project.variables(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def edit(project: Project, old: str, new: str) -> None:
    path = project.folder / "models" / "SConscript"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def options(**values: object) -> str:
    return f", tiny, **{values!r})"


CHANGES = {
    "a weight": (lambda p: change_one_weight(p.folder / "models/tiny.nemo"), (), ALL),
    "a decoder option": (
        lambda p: edit(p, ", tiny)", options(**{"greedy_decoder.asr_model_delay": 1})),
        (),
        ["JmirBuild", "RepositoryAssemble"],
    ),
    "a batch size": (
        lambda p: edit(p, ", tiny)", options(max_batch_size=4)),
        (),
        # The sizes that a check is made with; an engine of ONNX Runtime takes any.
        ["EngineCheck", "JmirBuild", "RepositoryAssemble"],
    ),
    "the pipeline's name": (
        lambda p: edit(p, '"tiny",', '"small",'),
        (),
        ["JmirBuild", "RepositoryAssemble"],
    ),
    "the GPU": (lambda _: None, ("GPU=t4",), ["EngineBuild", "EngineCheck", "RepositoryAssemble"]),
    "the checkpoint's name": (
        lambda p: (
            (p.folder / "models/tiny.nemo").rename(p.folder / "models/other.nemo"),
            edit(p, "tiny.nemo", "other.nemo"),
        ),
        (),
        [],
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_exactly_these_run_again(project, change):
    project.build()
    make, arguments, expected = CHANGES[change]
    make(project)
    assert project.build("deploy", *arguments).ran() == expected


# The version of the runtime that checks engines is part of the key of what uses it.
@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("onnxruntime", ["EngineBuild", "EngineCheck", "RepositoryAssemble"]),
        ("pyyaml", ["JmirBuild", "NemoExport", "RepositoryAssemble"]),
        ("tritonclient", ["RepositoryAssemble"]),
        ("rich", []),
    ],
)
def test_another_version_of_a_tool(project, tmp_path, distribution, expected):
    """Pretend that a distribution's recorded content is another one, in every process."""
    project.build()
    folder = tmp_path / "pretend"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "files = m.Distribution.files.fget\n"
        "def changed(self):\n"
        "    found = files(self)\n"
        f"    if self.metadata['Name'].lower() == {distribution!r} and found:\n"
        "        found = [f for f in found if f.name != '__init__.py']\n"
        "    return found\n"
        "m.Distribution.files = property(changed)\n"
    )
    project.environment["PYTHONPATH"] = str(folder)
    # A real change shows in the stamp of the distribution's RECORD.
    shutil.rmtree(project.cache / "toolchains", ignore_errors=True)
    assert project.build().ran() == expected


def test_require_cached_names_what_differs(project):
    project.build()
    shutil.rmtree(project.folder / "out")
    assert project.build("deploy", "--require-cached").ran("cached") == ALL
    edit(project, ", tiny)", options(max_batch_size=4))
    result = project.scons("deploy", "--require-cached")
    assert result.code == 2
    assert "[action.not-cached]" in result.stderr
    assert "request.options.max_batch_size: absent → 4" in result.stderr
    assert result.ran() == []


def test_check_runs_everything_twice(project):
    project.build()
    result = project.build("deploy", "CHECK=determinism")
    assert result.ran("cached") == ALL
    counted = f"compared {len(ALL)} actions twice: equal bytes\nbuilt 0, cached {len(ALL)}, "
    assert counted in result.stderr
    assert "variable.check" in project.scons("CHECK=determinsm").stderr


def test_explain_names_option_input_and_reason(project):
    project.build()
    edit(project, ", tiny)", options(max_batch_size=4))
    change_one_weight(project.folder / "models/tiny.nemo")
    project.build()
    document = json.loads(rules(project, "explain", "out/any/tiny.jmir", "--format", "json").stdout)
    assert document["outcome"] == "executed"
    fields = {change["field"]: change["after"] for change in document["changes"]}
    assert fields.keys() == {"inputs.inputs/acoustic_model.ejrvs", "request.options.max_batch_size"}
    assert fields["request.options.max_batch_size"] == "4"
    (project.folder / "out/any/tiny.jmir").unlink()
    project.build()
    text = rules(project, "explain", "tiny.jmir").stdout
    assert "taken from the cache, since" in text
    project.build()
    text = rules(project, "explain", "out/cpu/models/tiny.repository.json").stdout
    assert "nothing that it depends on has changed" in text
    assert "inputs/pipeline.jmir" in text
    for path, mnemonic in (
        ("out/cpu/models/tiny/config.pbtxt", "RepositoryAssemble"),
        ("out/cpu/engines/tiny/acoustic_model/model.onnx", "EngineBuild"),
    ):
        assert rules(project, "explain", path).stdout.startswith(f"{mnemonic} {path}: up to date\n")
    unknown = rules(project, "explain", "tiny.jmri")
    assert (unknown.returncode, "did you mean `tiny.jmir`" in unknown.stderr) == (2, True)


def test_an_action_can_be_replayed(project):
    project.build()
    done = rules(project, "run-action", "--keep-sandbox", "out/cpu/tiny.engines.json.action.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("2 of 2 outputs are as recorded\n")
    folder = Path(done.stdout.strip())
    assert (folder / "outputs/engines.json").is_file()
    shutil.rmtree(folder)
    bad = rules(project, "run-action", "SConstruct")
    assert (bad.returncode, "[replay.record]" in bad.stderr) == (2, True)


def test_cache_commands(project):
    project.build()
    stat = json.loads(rules(project, "cache", "stat", "--format", "json").stdout)
    assert stat["results"] == len(ALL)
    assert stat["blobs"] > 20
    blob = max((project.cache / "cas").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)
    blob.chmod(0o644)
    blob.write_bytes(b"damaged")
    verified = rules(project, "cache", "verify", "--format", "json")
    assert verified.returncode == 3
    damaged = json.loads(verified.stdout)["damaged"]
    assert f"blob {blob.name}" in damaged
    assert rules(project, "cache", "verify").returncode == 0
    shutil.rmtree(project.folder / "out")
    again = project.build()
    assert again.ran()
    old = time.time() - 7200
    for path in (project.cache / "ac").rglob("*.json"):
        os.utime(path, (old, old))
    for path in (project.cache / "cas").rglob("*"):
        os.utime(path, (old, old))
    removed = json.loads(
        rules(project, "cache", "gc", "--max-size", "1", "--format", "json").stdout
    )
    assert removed["removed_results"] == len(ALL)
    assert removed["blobs"] == 0
    assert rules(project, "cache", "gc", "--max-size", "much").returncode == 2
    project.scons().assert_up_to_date()
    assert rules(project, "cache", "clear").returncode == 0
    assert not (project.cache / "cas").exists()


def test_two_trees_with_one_cache_execute_each_action_once(project, tmp_path):
    other = Project(tmp_path / "other", project.cache)
    shutil.copytree(project.folder, other.folder)
    processes = [
        subprocess.Popen(
            tree.command("-j8"),
            cwd=tree.folder,
            env=tree.variables(),
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for tree in (project, other)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    executed = [
        line["key"]
        for tree in (project, other)
        for line in map(json.loads, (tree.folder / "out/execution-log.jsonl").open())
        if line.get("outcome") == "executed"
    ]
    assert len(executed) == len(set(executed)) == len(ALL)
    assert project.files() == other.files()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_tools_at_once_and_leaves_a_clean_tree(project, number):
    """The tool of a big enough model is running when the signal comes."""
    slow = project.folder / "slow"
    slow.mkdir()
    shutil.copytree(Path(__import__("jarvis_rules").__file__).parent, slow / "jarvis_rules")
    program = slow / "jarvis_rules" / "tools" / "program.py"
    program.write_text(
        program.read_text().replace("    _die_with_parent()\n", "    import time; time.sleep(60)\n")
    )
    process = subprocess.Popen(
        project.command(),
        cwd=project.folder,
        env={**project.variables(), "PYTHONPATH": str(slow)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    scratch = project.cache / "tmp"
    deadline = time.monotonic() + 30
    while not list(scratch.glob("*/*/request.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    begun = time.monotonic()
    process.send_signal(number)
    _, error = process.communicate(timeout=30)
    # One second for the tools, the rest for SCons to end.
    assert time.monotonic() - begun < 5
    assert process.returncode != 0
    assert "interrupted" in error
    assert "Traceback" not in error
    assert list(scratch.iterdir()) == []
    assert project.files() == {}
    assert project.build().ran() == ALL


def test_flipped_bytes_are_detected_and_healed(project):
    """Any byte of any cache entry or output; the long form is benchmarks/fault_trials.py."""
    project.build()
    expected = project.files()
    random_ = random.Random(20211122)  # noqa: S311  (trials, not secrets)
    for trial in range(12):
        roots = (project.cache / "cas", project.cache / "ac", project.folder / "out")
        root = roots[trial % len(roots)]
        files = [p for p in sorted(root.rglob("*")) if p.is_file() and p.stat().st_size]
        path = random_.choice([p for p in files if p.name not in (".lock", "execution-log.jsonl")])
        data = bytearray(path.read_bytes())
        data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
        path.chmod(0o644)
        path.write_bytes(bytes(data))
        if trial % 2:
            shutil.rmtree(project.folder / "out")
        project.build()
        assert project.files() == expected, path


def test_what_was_built_without_a_sandbox_is_not_believed_by_a_build_with_one(project):
    project.environment["JARVIS_SANDBOX"] = "none"
    result = project.build()
    assert result.ran() == ALL
    assert "note: no sandbox (JARVIS_SANDBOX=none)" in result.stderr
    shutil.rmtree(project.folder / "out")
    assert project.build().ran("cached") == ALL
    shutil.rmtree(project.folder / "out")
    del project.environment["JARVIS_SANDBOX"]
    assert project.build().ran() == ALL
    project.environment["JARVIS_SANDBOX"] = "none"
    shutil.rmtree(project.folder / "out")
    assert project.build().ran("cached") == ALL
