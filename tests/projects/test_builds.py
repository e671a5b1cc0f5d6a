"""What is rebuilt, what is not, and what heals: whole builds with the real scons and tools."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project_testing import Project, change_one_weight

import jarvis_rules

ALL = ["EngineBuild", "EngineCheck", "JmirBuild", "NemoExport", "RepositoryAssemble"]


def test_second_build_executes_nothing(project):
    built = project.build()
    assert built.ran() == ALL
    assert all(action["peak_memory_mib"] > 0 for action in built.actions)
    before = project.files()
    project.scons().assert_up_to_date()
    assert project.files() == before


def test_touching_the_model_executes_nothing(project):
    project.build()
    os.utime(project.folder / "models" / "tiny.nemo")
    project.scons().assert_up_to_date()


def test_changing_one_weight_redoes_the_whole_way(project):
    project.build()
    change_one_weight(project.folder / "models" / "tiny.nemo")
    result = project.build()
    assert result.ran() == ALL
    assert result.ran("cached") == []


def test_changing_a_decoder_option_builds_no_engine(project):
    project.build()
    sconscript = project.folder / "models" / "SConscript"
    option = ', **{"greedy_decoder.asr_model_delay": 2})'
    sconscript.write_text(sconscript.read_text().replace(", tiny)", f", tiny{option}"))
    assert sconscript.read_text().count("asr_model_delay") == 1
    result = project.build()
    assert result.ran() == ["JmirBuild", "RepositoryAssemble"]
    # SCons asks for the engine, since the .jmir changed; its key says that nothing did.
    assert result.ran("cached") == ["EngineBuild", "EngineCheck"]


@pytest.mark.parametrize(
    "pattern",
    [
        "out/cpu/models/tiny/config.pbtxt",
        "out/cpu/models/*/1/model.onnx",
        "out/cpu/models/*/1/jarvis_runtime/ctc_greedy.py",
        "out/cpu/models/tiny.repository.json",
        "out/cpu/engines/tiny/acoustic_model/model.onnx",
        "out/cpu/tiny.engines.json",
        "out/any/tiny.jmir",
        "out/any/models/tiny.ejrvs",
    ],
)
@pytest.mark.parametrize("damage", ["edit", "remove"])
def test_damaged_outputs_are_repaired(project, pattern, damage):
    project.build()
    before = project.files()
    (path,) = project.folder.glob(pattern)
    if damage == "edit":
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        status = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    else:
        path.unlink()
    result = project.build()
    assert result.ran("cached")
    assert result.ran() == []
    assert project.files() == before
    project.scons().assert_up_to_date()


def test_a_stray_file_in_a_model_is_removed(project):
    project.build()
    before = project.files()
    stray = project.folder / "out/cpu/models/tiny/2/model.py"
    stray.parent.mkdir()
    stray.write_text("raise SystemExit")
    project.build()
    assert project.files() == before


def test_moved_checkout_takes_all_from_the_cache(project, tmp_path):
    project.build()
    elsewhere = tmp_path / "another" / "place"
    shutil.copytree(project.folder, elsewhere, ignore=shutil.ignore_patterns("out", ".sconsign*"))
    moved = Project(elsewhere, project.cache)
    result = moved.build()
    assert (result.ran(), result.ran("cached")) == ([], ALL)
    assert moved.files() == project.files()


def test_two_caches_give_the_same_bytes(project, tmp_path):
    project.build()
    other = tmp_path / "other user"
    shutil.copytree(project.folder, other, ignore=shutil.ignore_patterns("out", ".sconsign*"))
    settings = {"PYTHONHASHSEED": "7", "LC_ALL": "C", "TZ": "Asia/Tokyo"}
    again = Project(other, tmp_path / "cache2", settings)
    assert again.build().ran() == ALL
    assert again.files() == project.files()


def test_two_gpus_share_export_and_pipeline(project):
    result = project.build("deploy", "GPU=cpu,a100")
    assert sorted(result.ran()) == sorted(
        [*ALL, "EngineBuild", "EngineCheck", "RepositoryAssemble"]
    )
    assert "note: a100: onnxruntime, since no sm_80 GPU is here for `tensorrt`" in result.stderr
    manifest = json.loads((project.folder / "out/a100/models/tiny.repository.json").read_bytes())
    assert (manifest["gpu"]["name"], manifest["gpu"]["compute_capabilities"]) == ("a100", ["8.0"])
    engine = manifest["engines"]["acoustic_model"]
    assert (engine["portable"], engine["executed"]) == (True, "not executed on this target")
    assert project.build("deploy", "GPU=a100,cpu").actions == []


def test_a_killed_build_leaves_nothing_that_looks_finished(project):
    """SIGKILL in the middle of an action; then the next build is right and complete."""
    slow = project.folder / "slow"
    slow.mkdir()
    shutil.copytree(Path(jarvis_rules.__file__).parent, slow / "jarvis_rules")
    program = slow / "jarvis_rules" / "tools" / "program.py"
    program.write_text(
        program.read_text().replace(
            "    try:\n        _work(", "    __import__('time').sleep(60)\n    try:\n        _work("
        )
    )
    process = subprocess.Popen(
        project.command(),
        cwd=project.folder,
        env={**project.variables(), "PYTHONPATH": str(slow)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list((project.cache / "tmp").glob("*/*/log.txt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((project.folder / "out").rglob("*.ejrvs"))
    fresh = Project(project.folder.with_name("fresh"), project.folder.with_name("cache3"))
    shutil.copytree(
        project.folder, fresh.folder, ignore=shutil.ignore_patterns("out", ".sconsign*", "slow")
    )
    fresh.build()
    assert project.build().ran() == ALL
    assert project.files() == fresh.files()
    assert list((project.cache / "tmp").iterdir()) == []


def test_two_builds_in_one_tree_wait_for_each_other(project):
    first, second = (
        subprocess.Popen(
            project.command(),
            cwd=project.folder,
            env=project.variables(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    )
    errors = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), errors
    lines = [json.loads(x) for x in (project.folder / "out/execution-log.jsonl").open()]
    executed = [line["mnemonic"] for line in lines if line.get("outcome") == "executed"]
    assert sorted(executed) == ALL


def test_a_pipeline_that_is_no_longer_declared_is_removed(project):
    sconscript = project.folder / "models" / "SConscript"
    one = sconscript.read_text()
    sconscript.write_text(one + 'env.Pipeline("second", "speech_recognition", tiny)\n')
    project.build()
    models = project.folder / "out/cpu/models"
    assert (models / "second").is_dir()
    sconscript.write_text(one)
    result = project.build()
    assert "removing `second`: no pipeline of that name is declared" in result.stderr
    assert not [path.name for path in models.iterdir() if "second" in path.name]
    assert (models / "tiny/config.pbtxt").is_file()


def test_aliases(project):
    assert project.build("archives").ran() == ["NemoExport"]
    assert project.build("jmirs").ran() == ["JmirBuild"]
    assert project.build("engines").ran() == ["EngineBuild", "EngineCheck"]
    assert project.build("repository").ran() == ["RepositoryAssemble"]
    assert project.build("deploy").ran() == []


def test_deploy_publishes_a_complete_release(project):
    result = project.build("deploy", "DEST=live")
    current = project.folder / "live/current"
    assert current.is_symlink()
    assert current.resolve().parent == (project.folder / "live/releases").resolve()
    assert f"published live/releases/{current.resolve().name}" in result.stderr
    assert project.files("live/current") == project.files("out/cpu/models")
    first = current.resolve()
    project.build("deploy", "DEST=live")
    assert current.resolve() == first
    change_one_weight(project.folder / "models" / "tiny.nemo")
    project.build("deploy", "DEST=live")
    assert current.resolve() != first
    assert first.is_dir()


def test_out_elsewhere(project, tmp_path):
    out = tmp_path / "far" / "out"
    result = project.scons(f"OUT={out}", out=str(out))
    assert result.code == 0, result.output
    assert (out / "cpu/models/tiny/config.pbtxt").is_file()
    assert not (project.folder / "out").exists()


def test_clean_removes_what_was_built(project):
    project.build()
    project.build("-c", "deploy", "archives")
    assert project.files() == {}
    assert project.build().ran("cached") == ALL


def test_dry_run_names_actions_and_makes_nothing(project):
    result = project.scons("-n")
    assert result.code == 0
    assert result.stdout.splitlines() == [
        "NemoExport tiny.ejrvs",
        "JmirBuild tiny",
        "EngineBuild tiny[cpu]",
        "EngineCheck tiny[cpu]",
        "RepositoryAssemble tiny[cpu]",
    ]
    assert not (project.folder / "out").exists()


def test_help_explains_variables_and_targets(project):
    result = project.scons("-h")
    assert result.code == 0
    for text in (
        "GPU: GPU targets",
        "ENGINE: engine toolchain: auto, onnxruntime, tensorrt, tensorrt_rtx",
        "PRECISION: precision",
        "OUT: folder",
        "DEST: folder",
        "archives ",
        "scons deploy GPU=a100",
    ):
        assert text in result.stdout
    assert not (project.folder / "out").exists()


def test_summary_is_the_last_line(project):
    line = project.build().stderr.splitlines()[-1]
    assert line.startswith("built 5, cached 0, ")
    assert "; slowest " in line
    assert project.build().stderr.splitlines()[-1].startswith("built 0, cached 0, ")


def test_log_lines_are_complete(project):
    result = project.build()
    fields = {"key", "mnemonic", "target", "outcome", "seconds", "inputs", "outputs"}
    assert set(result.actions[0]) == fields | {"peak_memory_mib"}
    engine = next(a for a in result.actions if a["mnemonic"] == "EngineBuild")
    assert set(engine["inputs"]) == {"request.json", "inputs/acoustic_model/model_graph.onnx"}
    record = json.loads((project.folder / "out/cpu/tiny.engines.json.action.json").read_bytes())
    assert record["key"] == engine["key"]


@pytest.mark.parametrize("project", ["foreign"], indirect=True)
def test_rules_live_in_a_foreign_sconstruct(project):
    result = project.build("everything", "FLAVOUR=sour")
    assert result.ran() == ALL
    assert (project.folder / "out/notes.txt").read_text() == "flavour sour"
    project.scons("everything", "FLAVOUR=sour").assert_up_to_date()


def test_one_model_declared_in_two_places_is_one_target(project):
    sconscript = project.folder / "models" / "SConscript"
    again = 'env.Pipeline("second", "speech_recognition", env.NemoModel("tiny.nemo"))\n'
    sconscript.write_text(sconscript.read_text() + again)
    result = project.build()
    assert result.ran().count("NemoExport") == 1
    assert "warning" not in result.stderr
    # Two pipelines of one graph: the second engine comes from the cache.
    assert result.ran().count("EngineBuild") == 1


def test_two_sconstructs_with_one_output_folder_do_not_believe_each_other(project):
    """A, then B, then A again: A must not take what B made for its own."""
    project.build()
    first = project.files()
    other = Project(project.folder.with_name("other"), project.cache)
    shutil.copytree(
        project.folder, other.folder, ignore=shutil.ignore_patterns("out", ".sconsign*")
    )
    change_one_weight(other.folder / "models" / "tiny.nemo")
    out = f"OUT={project.folder / 'out'}"
    assert other.scons(out).code == 0
    assert project.files() != first
    project.build()
    assert project.files() == first
    project.scons().assert_up_to_date()


@pytest.mark.parametrize("out", ["../upout", "a/../b", "./c", "d/"])
def test_out_is_understood_however_it_is_written(project, out):
    folder = os.path.normpath(project.folder / out)
    result = project.scons(f"OUT={out}", out=folder)
    assert result.ran() == ALL, result.output
    assert Path(folder, "cpu/models/tiny/config.pbtxt").is_file()
    project.scons(f"OUT={out}", out=folder).assert_up_to_date()


def test_a_model_may_be_made_by_another_builder(project):
    """What a builder returns is a list of nodes: the usual idiom for a model that is fetched."""
    sconscript = project.folder / "models" / "SConscript"
    sconscript.write_text(
        'Import("env")\n'
        'fetched = env.Command("fetched.nemo", "tiny.nemo", Copy("$TARGET", "$SOURCE"))\n'
        'env.Pipeline("tiny", "speech_recognition", env.NemoModel(fetched))\n'
    )
    assert project.build().ran() == ALL
    project.scons().assert_up_to_date()


def test_a_release_cannot_hold_a_file_that_nobody_listed(project):
    """A relative environment would lie inside of the repository, which a release replaces."""
    sconscript = project.folder / "models" / "SConscript"
    sconscript.write_text(
        sconscript.read_text().replace(", tiny)", ', tiny, execution_env_path="env.tar.gz")')
    )
    project.build("repository")
    refused = project.scons("deploy", "DEST=live")
    assert refused.code == 2
    assert "[deploy.relative-environment]" in refused.stderr
    assert "hint: give `execution_env_path` as an absolute path on the server" in refused.stderr
    assert not (project.folder / "live/current").exists()
    sconscript.write_text(sconscript.read_text().replace("env.tar.gz", "/srv/env.tar.gz"))
    project.build("deploy", "DEST=live")


def test_a_relative_cache_starts_where_scons_does(project):
    project.environment["JARVIS_CACHE"] = "my-cache"
    project.build()
    assert (project.folder / "my-cache" / "cas").is_dir()
    assert not (project.folder / "models" / "my-cache").exists()
