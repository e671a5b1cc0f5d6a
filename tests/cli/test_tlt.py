"""`tlt` and `tao`: the documented command lines, what wrong ones say, and what is left behind."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest
import yaml

from jarvis_rules.cli import tlt
from jarvis_rules.cli.command import run_command
from jarvis_rules.cli.tlt_mounts import read_mounts
from jarvis_rules.cli.tlt_tasks import TASKS
from jarvis_rules.exporters.exporter import list_exporters
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.key_source import Key

BIN = Path(sys.executable).parent
MODELS = Path(__file__).parents[1] / "data" / "models" / "variants"

# A small model for each task, and where the documentation keeps it.
OF_TASK = {
    "speech_to_text": "conv_asr/features_eps",
    "speech_to_text_citrinet": "conv_asr/wordpiece",
    "speech_to_text_conformer": "conformer_ctc/wordpiece",
    "intent_slot_classification": "language_model/intent_weighted",
    "punctuation_and_capitalization": "language_model/punct_heads",
    "question_answering": "language_model/qa_log_softmax",
    "text_classification": "language_model/text_one_layer",
    "token_classification": "language_model/token_distilbert",
    "spectro_gen": "fastpitch/labels",
    "vocoder": "hifigan/first_block",
}
MOUNTS = {
    "Mounts": [
        {"source": "~/tlt/data", "destination": "/data"},
        {"source": "~/tlt/specs", "destination": "/specs"},
        {"source": "~/tlt/results", "destination": "/results"},
        {"source": "~/.cache", "destination": "/home/.cache"},
    ],
    "DockerOptions": {"shm_size": "16G", "ulimits": {"memlock": -1, "stack": 67108864}},
}
# The `export.yaml` of the documentation of Jarvis 1.3, to the letter.
SPEC = """\
# Path and name of the input .nemo/.tlt archive to be loaded/exported.
restore_from: /data/asr/jasper.tlt
# Name of output file (will land in the folder pointed by -r)
export_to: jasper.ejrvs
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


EXPORT = "tlt speech_to_text export -m /data/asr/jasper.tlt"


class Machine:
    """A home folder with mounted folders as in the documentation, and an empty current folder."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.home, self.work = root / "home", root / "work"
        self.work.mkdir()
        self.variables = {"HOME": str(self.home), "JARVIS_CACHE": str(cache)}
        for folder in ("data/asr", "specs/asr/speech_to_text", "results"):
            (self.home / "tlt" / folder).mkdir(parents=True)
        self.mounts(MOUNTS)
        self.model("conv_asr/features_eps", "asr/jasper.tlt")
        self.spec("asr/speech_to_text/export.yaml", SPEC)

    def mounts(self, document, name=".tlt_mounts.json"):
        text = document if isinstance(document, str) else json.dumps(document)
        (self.home / name).write_text(text)

    def model(self, name, place):
        path = self.home / "tlt/data" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(MODELS / f"{name}.nemo", path)
        return path

    def spec(self, place, text):
        path = self.home / "tlt/specs" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def run(self, line, *, code=0, command=None):
        """Run a command line in a process of its own."""
        words = shlex.split(line)
        done = subprocess.run(
            command or [str(BIN / words[0]), *words[1:]],
            cwd=self.work,
            env={**os.environ, **self.variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def files(self):
        """Return every file of the home and the current folder."""
        return {
            path.relative_to(root.parent).as_posix(): path.read_bytes()
            for root in (self.home, self.work)
            for path in sorted(root.rglob("*"))
            if path.is_file()
        }


@pytest.fixture
def machine(tmp_path, cache):
    return Machine(tmp_path, cache)


@pytest.fixture
def tell(machine, monkeypatch, capsys):
    """Run a command line in this process; return exit code, stdout and stderr."""
    monkeypatch.chdir(machine.work)
    for name, value in machine.variables.items():
        monkeypatch.setenv(name, value)

    def tell(line):
        program, *words = shlex.split(line)
        code = run_command(partial(tlt._run, program=program), words)
        out, error = capsys.readouterr()
        return code, out, error

    tell.machine = machine
    return tell


# --- what runs ---------------------------------------------------------------------------------


def test_the_command_lines_of_the_documentation(machine):
    """Jarvis 1.3, `Model Development with TLT`, typed as written."""
    (machine.home / "tlt/specs/asr/speech_to_text/export.yaml").unlink()
    done = machine.run(
        "tlt speech_to_text download_specs -o /specs/asr/speech_to_text/ "
        "-r /results/asr/speech_to_text/download_specs/"
    )
    spec = machine.home / "tlt/specs/asr/speech_to_text/export.yaml"
    assert done.stdout == f"{spec}\n"
    assert yaml.safe_load(spec.read_text())["export_to"] == "exported-model.ejrvs"
    results = machine.home / "tlt/results/asr/speech_to_text"
    assert [path.name for path in (results / "download_specs").iterdir()] == ["download_specs.log"]
    spec.write_text(SPEC)
    line = (
        "tlt speech_to_text export -m /data/asr/jasper.tlt "
        "-e /specs/asr/speech_to_text/export.yaml -r /results/asr/speech_to_text/"
    )
    first = machine.run(line)
    assert first.stdout == f"{results / 'jasper.ejrvs'}\n"
    assert "NemoExport jasper.ejrvs" in first.stderr
    assert f"Exported model to '{results / 'jasper.ejrvs'}'\n" in first.stderr
    assert "`DockerOptions` of `~/.tlt_mounts.json` has no effect" in first.stderr
    before = (results / "jasper.ejrvs").read_bytes()
    second = machine.run(line)
    assert "cached   NemoExport jasper.ejrvs" in second.stderr
    assert (results / "jasper.ejrvs").read_bytes() == before


# Of the user guides of TLT 3 and TAO; `$KEY` is left out where it stands for a real one.
DOCUMENTED = [
    "tlt speech_to_text export -m /data/m.tlt -e /specs/e.yaml -r /results/x",
    "tlt speech_to_text export export_format=JARVIS -e /specs/e.yaml -g 1 -m /data/m.tlt "
    "export_to=x.ejrvs -r /results/x",
    "tao speech_to_text_citrinet export -m /data/m.tlt -e /specs/e.yaml -r /results/x "
    "export_format=RIVA export_to=x.riva",
    "tao speech_to_text_conformer export -e /specs/e.yaml -m /data/m.tlt -r /results/x",
    "tlt intent_slot_classification export -e /specs/e.yaml -m /data/m.tlt -r /results/x",
    "tlt punctuation_and_capitalization export -e /specs/e.yaml -r /results/x -m /data/m.tlt "
    "export_format=JARVIS",
    "tlt question_answering export -e /specs/e.yaml -m /data/m.tlt -r /results/x "
    "export_format=ONNX export_to=x.eonnx",
    "tlt text_classification export -e /specs/e.yaml -m /data/m.tlt -r /results/x "
    "export_format=JARVIS export_to=x.ejrvs",
    "tlt token_classification export -e /specs/e.yaml -m /data/m.tlt -r /results/x",
    "tao spectro_gen export -e /specs/e.yaml -g 1 -m /data/m.tlt -r /results/x export_format=RIVA",
    "tao vocoder export -e /specs/e.yaml -m /data/m.tlt -r /results/x",
]
DEFAULT_SPEC = "restore_from: trained-model.tlt\nexport_format: JARVIS\nexport_to: x.ejrvs\n"


@pytest.mark.parametrize("line", DOCUMENTED)
def test_every_task_exports_what_nemo2jarvis_does(machine, line):
    task = line.split()[1]
    model = machine.model(OF_TASK[task], "m.tlt")
    machine.spec("e.yaml", DEFAULT_SPEC)
    archive = Path(machine.run(line).stdout.rstrip("\n"))
    assert archive.parent == machine.home / "tlt/results/x"
    assert {path.name for path in archive.parent.iterdir()} == {
        archive.name,
        "export.resolved.yaml",
        "export.log",
    }
    other = machine.run(f"nemo2jarvis --out by_nemo2jarvis.ejrvs {model}")
    assert "cached   NemoExport" in other.stderr
    assert archive.read_bytes() == (machine.work / "by_nemo2jarvis.ejrvs").read_bytes()


def test_the_archive_is_that_of_scons(machine):
    checkout = machine.work / "checkout"
    shutil.copytree(Path(__file__).parents[1] / "projects" / "basic", checkout)
    shutil.copy(machine.home / "tlt/data/asr/jasper.tlt", checkout / "models/tiny.nemo")
    machine.run("tlt speech_to_text export -m /data/asr/jasper.tlt -r r export_to=tiny.ejrvs")
    done = machine.run(
        "", command=[str(BIN / "scons"), "-Q", "-C", str(checkout), "out/any/models/tiny.ejrvs"]
    )
    assert "built 0, cached 1" in done.stderr
    scons = (checkout / "out/any/models/tiny.ejrvs").read_bytes()
    assert (machine.work / "r/tiny.ejrvs").read_bytes() == scons


def test_results_folder(machine):
    machine.spec("e.yaml", f"{SPEC}export_format: onnx\n")
    line = "tlt speech_to_text export -e /specs/e.yaml -r out +export_to=sub/a.eonnx"
    done = machine.run(line)
    assert done.stdout == "out/sub/a.eonnx\n"
    assert (
        "note: `export_to`: `sub/a.eonnx` of `field=value` wins over `jasper.ejrvs` of "
        f"`{machine.home}/tlt/specs/e.yaml`\n"
    ) in done.stderr
    resolved = (machine.work / "out/export.resolved.yaml").read_text()
    assert resolved == (
        "# What `tlt speech_to_text export` ran with.\n"
        "restore_from: /data/asr/jasper.tlt\n"
        "export_to: sub/a.eonnx\n"
        "export_format: ONNX\n"
        "encryption_key: null\n"
        "exp_manager:\n"
        "  task_name: export\n"
        "  explicit_log_dir: out\n"
    )
    log = (machine.work / "out/export.log").read_text()
    assert log.startswith("tlt speech_to_text export (jarvis-rules ")
    assert "    restore_from: /data/asr/jasper.tlt\n" in log
    assert log.endswith("Exported model to 'out/sub/a.eonnx'\n")
    again = machine.run("tlt speech_to_text export -e out/export.resolved.yaml")
    assert "cached   NemoExport a.eonnx" in again.stderr
    assert (machine.work / "out/export.resolved.yaml").read_text() == resolved


def test_an_interrupt_leaves_nothing(machine):
    before = machine.files()
    code = (
        "import os, signal, sys\n"
        "from jarvis_rules.cli import tlt\n"
        "from jarvis_rules.execution import tool_run\n"
        "run = tool_run.run_tool\n"
        "def run_tool(*a, **k): os.kill(os.getpid(), signal.SIGINT); return run(*a, **k)\n"
        "tool_run.run_tool = run_tool\n"
        "sys.argv[1:] = 'speech_to_text export -m /data/asr/jasper.tlt -r new/r'.split()\n"
        "tlt.main()\n"
    )
    machine.variables["JARVIS_CACHE"] = str(machine.home.parent / "empty_cache")
    done = machine.run("", command=[sys.executable, "-c", code], code=130)
    assert done.stdout == ""
    assert "interrupted" in done.stderr
    assert machine.files() == before
    assert not (machine.work / "new").exists()


@pytest.mark.parametrize("name", ["missing_key", "nan_weight", "pickle_os_system"])
def test_a_bad_checkpoint_leaves_nothing(machine, name):
    place = machine.home / "tlt/data/bad.nemo"
    shutil.copy(Path(__file__).parents[1] / "vectors" / "nemo" / f"{name}.nemo", place)
    done = machine.run("tlt speech_to_text export -m /data/bad.nemo -r r/s", code=3)
    assert f"error: {place}" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert done.stdout == ""
    assert list(machine.work.iterdir()) == []


def as_eff(nemo, tlt, folder="", **properties):
    """Write the files of a `.nemo` as TLT did: an EFF archive, the files in `folder`."""
    with tarfile.open(nemo) as source, tarfile.open(tlt, "w:gz") as out:
        files = {
            member.name.removeprefix("./"): source.extractfile(member).read()
            for member in source
            if member.isfile()
        }
        listed = {name: {"description": "", "binary": True, **properties} for name in files}
        manifest = {"metadata": {"origin": "TLT", "format_version": 1}, "files": listed}
        named = {f"{folder}{name}": data for name, data in files.items()}
        for name, data in {"manifest.yaml": yaml.safe_dump(manifest).encode(), **named}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("folder", ["", "artifacts/"])
def test_a_tlt_in_eff_layout_gives_the_archive_of_its_nemo(machine, folder):
    nemo = machine.model("conv_asr/wordpiece", "citrinet.nemo")
    as_eff(nemo, nemo.with_suffix(".tlt"), folder, encrypted=False)
    for suffix in ("tlt", "nemo"):
        machine.run(
            f"tlt speech_to_text_citrinet export -m /data/citrinet.{suffix} -r {suffix} "
            "export_to=a.ejrvs"
        )
    assert (machine.work / "tlt/a.ejrvs").read_bytes() == (
        machine.work / "nemo/a.ejrvs"
    ).read_bytes()


@pytest.mark.parametrize("properties", [{"encrypted": True}, {"encryption": "AES-256-CTR"}])
def test_a_tlt_that_nvidia_encrypted_is_refused(tell, properties):
    tlt = tell.machine.home / "tlt/data/sealed.tlt"
    as_eff(tell.machine.home / "tlt/data/asr/jasper.tlt", tlt, **properties)
    code, out, error = tell("tlt speech_to_text export -m /data/sealed.tlt -k tlt_encode -r r")
    assert (code, out) == (3, "")
    assert f"error: {tlt}: `model_config.yaml` is encrypted by NVIDIA's tools" in error
    assert "[encryption.nvidia]" in error


# --- keys --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("-k tlt_encode", "'***'"),
        ("encryption_key=tlt_encode", "'***'"),
        ("-k env:KEY_OF_TEST", "env:KEY_OF_TEST"),
        ("-k file:/specs/key.txt", "file:/specs/key.txt"),
        ("-k $SPEC", "'***'"),
    ],
)
def test_a_key_encrypts_and_is_not_shown(machine, given, field):
    machine.variables["KEY_OF_TEST"] = "tlt_encode"
    machine.spec("key.txt", "tlt_encode\n")
    machine.spec("e.yaml", "encryption_key: tlt_encode\n")
    place = given.replace("-k $SPEC", "-e /specs/e.yaml")
    done = machine.run(f"{EXPORT} -r r {place}")
    assert "note: the key `tlt_encode` is printed in NVIDIA's documentation" in done.stderr
    archive = machine.work / "r/exported-model.ejrvs"
    with open_archive(archive) as sealed:
        assert all(properties["encrypted"] for properties in sealed.manifest.files.values())
    key = Key(b"tlt_encode")
    machine.run(f"{EXPORT} -r plain")
    with (
        open_archive(archive, key=key) as sealed,
        open_archive(machine.work / "plain/exported-model.ejrvs") as plain,
    ):
        graph = "model_graph.onnx"
        assert sealed.read(graph) == plain.read(graph)
    resolved = (machine.work / "r/export.resolved.yaml").read_text()
    assert f"encryption_key: {field}\n" in resolved
    log = (machine.work / "r/export.log").read_text()
    for text in (resolved, log, done.stderr):
        assert "tlt_encode" not in text.replace("the key `tlt_encode` is printed", "")


def test_a_secret_is_shown_nowhere(machine):
    machine.spec("e.yaml", "encryption_key: swordfish-1\n")
    done = machine.run(f"{EXPORT} -e /specs/e.yaml -k swordfish-2 -r r")
    assert (
        f"`encryption_key` of `-k` wins over that of `{machine.home}/tlt/specs/e.yaml`"
        in done.stderr
    )
    model = MODELS / "conv_asr/features_eps.nemo"
    other = machine.run(f"nemo2jarvis --key swordfish-2 --out n.ejrvs {model}")
    assert "cached   NemoExport" in other.stderr
    archive = (machine.work / "r/exported-model.ejrvs").read_bytes()
    assert archive == (machine.work / "n.ejrvs").read_bytes()
    written = b"".join(path.read_bytes() for path in (machine.work / "r").iterdir())
    assert b"swordfish" not in done.stdout.encode() + done.stderr.encode() + written


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("file:/specs/none.txt", "encryption_key: the key file `HOME/tlt/specs/none.txt` cannot "
         "be read: No such file or directory [key.file]"),
        ("env:NONE_OF_TEST", "encryption_key: the environment variable `NONE_OF_TEST` is not set "
         "[key.environment]"),
        ("/specs/key.txt", "encryption_key: the key that was given is the name of a file "
         "[key.file-name]"),
    ],
)  # fmt: skip
def test_keys_that_cannot_be_read(tell, key, message):
    tell.machine.spec("key.txt", "x")
    code, out, error = tell(f"{EXPORT} -r r -k {key}")
    assert (code, out) == (2, "")
    assert f"error: {message}\n\nhint: " in error.replace(str(tell.machine.home), "HOME")
    assert list(tell.machine.work.iterdir()) == []


# --- mounts ------------------------------------------------------------------------------------


def locate(machine, monkeypatch, name, program="tlt"):
    monkeypatch.setenv("HOME", str(machine.home))
    return read_mounts(program).locate(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("/data/a/b.tlt", "deep/b.tlt"),
        ("/data/ab", "tlt/data/ab"),
        ("/data", "tlt/data"),
        ("/data/", "tlt/data"),
        ("/data//x/../y", "tlt/data/y"),
        ("/data/../data2/y", "/data2/y"),
        ("/database/y", "/database/y"),
        ("data/y", "data/y"),
        ("../data/y", "../data/y"),
    ],
)
def test_the_longest_destination_counts(machine, monkeypatch, name, expected):
    (machine.home / "deep").mkdir()
    mounts = [*MOUNTS["Mounts"], {"source": "~/deep", "destination": "/data/a/"}]
    machine.mounts({"Mounts": mounts})
    inside = not expected.startswith(("/", "data/", ".."))
    found = locate(machine, monkeypatch, name)
    assert os.path.normpath(found) == str(machine.home / expected if inside else expected)


def test_each_program_takes_its_own_mounts_file_first(machine, monkeypatch):
    (machine.home / "tao").mkdir()
    tao = {"Mounts": [{"source": "~/tao", "destination": "/data"}]}
    machine.mounts(tao, ".tao_mounts.json")
    assert locate(machine, monkeypatch, "/data") == machine.home / "tlt/data"
    assert locate(machine, monkeypatch, "/data", "tao") == machine.home / "tao"
    (machine.home / ".tlt_mounts.json").unlink()
    assert locate(machine, monkeypatch, "/data") == machine.home / "tao"
    (machine.home / ".tao_mounts.json").unlink()
    assert locate(machine, monkeypatch, "/data") == Path("/data")


def test_a_mount_that_is_not_used_may_be_missing(machine, monkeypatch):
    assert not (machine.home / ".cache").exists()
    assert locate(machine, monkeypatch, "/data") == machine.home / "tlt/data"


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not JSON: Expecting property name enclosed in double quotes on line 1"),
        ("[" * 100_000, "not JSON: not UTF-8, or nested too deep"),
        ("[]", "expected an object with `Mounts`"),
        ({"Mount": []}, "unknown section `Mount`"),
        ({"Mounts": {}}, "`Mounts` must be a list"),
        ({"Envs": {}}, "`Envs` must be a list"),
        ({"DockerOptions": []}, "`DockerOptions` must be an object"),
        ({"Mounts": ["/data"]}, "entry 1 of `Mounts` must be an object"),
        ({"Mounts": [{"source": "/a"}]}, "entry 1 of `Mounts` has no text `destination`"),
        ({"Mounts": [{"source": 1, "destination": "/a"}]}, "has no text `source`"),
        ({"Mounts": [{"source": "/a", "destination": "/b", "mode": "r"}]}, "unknown key `mode`"),
        ({"Mounts": [{"source": "/a", "destination": "b"}]}, "`b` must begin with `/`"),
        ({"Mounts": [{"source": "~nobody_/a", "destination": "/b"}]}, "names no user's folder"),
        (
            {"Mounts": [{"source": s, "destination": "/b"} for s in ("/a", "/c")]},
            "two mounts have the destination `/b`",
        ),
    ],
)
def test_mounts_that_are_wrong(tell, document, message):
    tell.machine.mounts(document)
    code, out, error = tell("tlt speech_to_text export -m /data/asr/jasper.tlt -r r")
    assert (code, out) == (2, "")
    assert f"error: ~/.tlt_mounts.json: {message}" in error or message in error
    assert "[tlt.mounts]\n\nhint: " in error


# --- what is refused ---------------------------------------------------------------------------

FIELDS = (
    "known: `restore_from`, `export_to`, `export_format`, `encryption_key`, "
    "`exp_manager.task_name`, `exp_manager.explicit_log_dir`"
)

WRONG = [
    (
        "tlt speech_to_txt export",
        "unknown task `speech_to_txt` [tlt.task]",
        "did you mean `speech_to_text`",
    ),
    (
        "tlt export speech_to_text",
        "expected a task before `export` [tlt.task]",
        "`tlt TASK export`; `tlt list` lists the tasks",
    ),
    (
        "tao n_gram export -m a.tlt",
        "`n_gram` trains and converts n-gram language models, which `tao` does not do here "
        "[tlt.task]",
        "use `lmplz` and `build_binary` of KenLM",
    ),
    ("tlt", "", ""),
    ("tlt vocoder", "expected a verb after `vocoder` [usage]", "see `tlt vocoder --help`"),
    (
        "tlt vocoder exprot -m a.tlt",
        "expected a verb after `vocoder`, got `exprot` [tlt.verb]",
        "did you mean `export`?",
    ),
    (
        "tlt vocoder -m a.tlt export",
        "expected a verb after `vocoder`, got `-m` [tlt.verb]",
        "known: `export`, `download_specs`",
    ),
    (
        "tlt speech_to_text train -e /specs/train.yaml -g 4 -k tlt_encode -r /results",
        "`train` trains a model, which `tlt` does not do here [tlt.verb]",
        "train with NeMo, then export what `model.save_to` wrote",
    ),
    (f"{EXPORT} -r r --experiment_spec_fil x", "unknown option `--experiment_spec_fil` [usage]",
     "did you mean `--experiment_spec_file`? see `tlt speech_to_text export --help`"),
    (f"{EXPORT} -r r -x", "unknown option `-x` [usage]", "see `tlt speech_to_text export --help`"),
    (f"{EXPORT} -r", "argument -r/--results_dir: expected one argument [usage]",
     "see `tlt speech_to_text export --help`"),
    (f"{EXPORT} -r r -g none", "`-g` is `none`, expected a number of GPUs [usage]",
     "leave it out: exporting needs no GPU"),
    (f"{EXPORT} -r r export_to", "expected `field=value`, got `export_to` [usage]", FIELDS),
    (f"{EXPORT} -r r exprot_to=a.ejrvs", "unknown field `exprot_to` [tlt.spec-field]",
     f"did you mean `export_to` or `export_format`? {FIELDS}"),
    (f"{EXPORT} -r r export_to=5", "`export_to` must be text, got a number [tlt.spec-value]",
     'write text, in quotes if need be: `export_to: "…"`'),
    (f"{EXPORT} -r r export_to=jasper.onnx",
     "`export_to` is `jasper.onnx`, expected a name that ends in `.ejrvs` [file.suffix]",
     "`export_to=jasper.ejrvs`"),
    (f"{EXPORT} -r r export_to=jasper.eonnx",
     "`export_to` is `jasper.eonnx`, expected a name that ends in `.ejrvs` [file.suffix]",
     "`export_format=ONNX`, or `export_to=jasper.ejrvs`"),
    (f"{EXPORT} -r r export_format=ONXN",
     "`export_format` is `ONXN`, expected `JARVIS`, `RIVA`, `ONNX` [tlt.spec-value]",
     "did you mean `ONNX`?"),
    (EXPORT, "no results folder given [tlt.spec-value]",
     "name it with `-r RESULTS`, or as `exp_manager.explicit_log_dir` in the spec"),
    ("tlt speech_to_text export -r r", "no checkpoint given [tlt.spec-value]",
     "name it with `-m MODEL`, or as `restore_from` in the spec"),
    ("tlt speech_to_text export -r r -m ''", "`restore_from` of `-m` is empty [tlt.spec-value]",
     "give a value; the shell variable that should hold it may be unset"),
    (f"{EXPORT} -r r -k ''", "`encryption_key` of `-k` is empty [tlt.spec-value]",
     "give a value; the shell variable that should hold it may be unset"),
    ("tlt speech_to_text export -r r -m /data/asr/jaspr.tlt",
     "HOME/tlt/data/asr/jaspr.tlt: no such file [file.missing]", "did you mean `jasper.tlt`?"),
    ("tlt speech_to_text export -r r -m /specs/asr/speech_to_text/export.yaml",
     "HOME/tlt/specs/asr/speech_to_text/export.yaml: expected a `.nemo` or `.tlt` checkpoint "
     "[file.suffix]", "name a file that TLT, or NeMo's `model.save_to`, wrote"),
    (f"{EXPORT} -r r -e /specs/asr/speech_to_text/exprt.yaml",
     "HOME/tlt/specs/asr/speech_to_text/exprt.yaml: no such file [file.missing]",
     "did you mean `export.yaml`?"),
    (f"{EXPORT} -r r -e /specs/asr", "HOME/tlt/specs/asr: expected a file, got a folder "
     "[file.unreadable]", None),
    (f"{EXPORT} -r file/r", "file/r: cannot be written to: `file` is not a folder "
     "[file.unwritable]", "name a folder that you may write to"),
    (f"{EXPORT} -r /home/.cache/r",
     "~/.tlt_mounts.json: `/home/.cache/r` lies in the mount `/home/.cache`, whose source "
     "`HOME/.cache` is not a folder [tlt.mount-source]",
     "make the folder: `mkdir -p HOME/.cache`; or correct the file"),
    ("tlt speech_to_text_citrinet export -m /data/asr/jasper.tlt -r r",
     "HOME/tlt/data/asr/jasper.tlt: `speech_to_text_citrinet` exports `EncDecCTCModelBPE` with a "
     "`ConvASREncoder`, this is `EncDecCTCModel` with a `ConvASREncoder` [tlt.wrong-task]",
     "`tlt speech_to_text export`"),
    ("tlt vocoder export -m /data/label.nemo -r r",
     "HOME/tlt/data/label.nemo: `vocoder` exports `HifiGanModel` or `WaveGlowModel`, this is "
     "`EncDecClassificationModel` [tlt.wrong-task]",
     "no task exports it; `jarvis-rules families` lists what `nemo2jarvis` exports"),
    ("tlt speech_to_text download_specs -o /specs/asr/speech_to_text -r r",
     "HOME/tlt/specs/asr/speech_to_text/export.yaml: exists, and differs from the default spec "
     "[tlt.spec-exists]", "move it away, or name another folder with `-o`"),
    ("tlt speech_to_text download_specs -r r",
     "the following arguments are required: -o/--output_specs_dir [usage]",
     "see `tlt speech_to_text download_specs --help`"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "message", "hint"), WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_input_ends_in_one_message(tell, line, message, hint):
    machine = tell.machine
    machine.model("speech_classification/no_mask", "label.nemo")
    (machine.work / "file").write_text("")
    before = machine.files()
    code, out, error = tell(line)
    assert (code, out) == (2, ""), error
    if message:
        told = error[error.index("error: ") :].replace(str(machine.home), "HOME")
        expected = f"error: {message}\n" + (f"\nhint: {hint}" if hint else "")
        assert told.startswith(expected), told
        assert told.count("\n") == (3 if hint else 1)
    else:
        assert error.startswith("usage: ")
    assert machine.files() == before
    assert [path.name for path in machine.work.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("restore_form: a.tlt", "unknown field `restore_form` [tlt.spec-field]"),
        ("model:\n  a: 1", "unknown field `model` [tlt.spec-field]"),
        ("exp_manager: x", "unknown field `exp_manager` [tlt.spec-field]"),
        ("exp_manager:\n  name: x", "unknown field `exp_manager.name` [tlt.spec-field]"),
        ("export_to: [a]", "`export_to` must be text, got a list [tlt.spec-value]"),
        ("export_to: yes", "`export_to` must be text, got a truth value [tlt.spec-value]"),
        ('export_to: "\\0"', "`export_to` must be text, got a zero byte [tlt.spec-value]"),
        ("export_to: ${name}", "`export_to` refers to another value by `${…}` [tlt.spec-value]"),
        ("encryption_key: '***'", "`encryption_key` is masked: the key itself is not here"),
        ("encryption_key: 1234", "`encryption_key` must be text, got a number [tlt.spec-value]"),
        ("a: b: c", "not a spec: mapping values are not allowed in this context on line 1"),
        ("export_to: a\nexport_to: b", "not a spec: the key `export_to` is given twice on line 2"),
        ("- a", "not a spec: expected a mapping of names to values"),
        ("export_to: !!python/name:os.system", "not a spec: the tag "),
        ("#" * (1 << 20) + "#", "not a spec: it has more than 1048576 bytes"),
    ],
)
def test_specs_that_are_wrong(tell, text, message):
    spec = tell.machine.spec("e.yaml", text)
    code, out, error = tell(f"{EXPORT} -e /specs/e.yaml -r r")
    assert (code, out) == (2, "")
    assert f"error: {spec}: {message}" in error
    assert "\n\nhint: " in error
    assert "1234" not in error.replace(str(spec), "")
    assert list(tell.machine.work.iterdir()) == []


def test_a_path_that_no_mount_covers_is_noted(tell):
    _, _, error = tell("tlt speech_to_text export -m /dta/asr/jasper.tlt -r r")
    assert "note: no mount of `~/.tlt_mounts.json` covers `/dta/asr/jasper.tlt`\n" in error


@pytest.mark.parametrize("verb", ["train", "finetune", "evaluate", "infer", "infer_onnx"])
def test_other_verbs_say_what_they_are_and_where_to_go(tell, verb):
    code, out, error = tell(f"tao speech_to_text {verb} -e /specs/x.yaml -m /data/x.tlt a=b")
    assert (code, out) == (2, "")
    assert error.startswith(f"error: `{verb}` ")
    assert "which `tao` does not do here [tlt.verb]\n\nhint: " in error


def test_default_spec(tell):
    machine = tell.machine
    for task in TASKS:
        code, out, _ = tell(f"tlt {task} download_specs -o /specs/{task} -r r")
        assert (code, out) == (0, f"{machine.home}/tlt/specs/{task}/export.yaml\n")
    text = Path(out.rstrip("\n")).read_text()
    assert "`HifiGanModel` or `WaveGlowModel`" in text
    assert yaml.safe_load(text) == {
        "restore_from": "???",
        "export_format": "JARVIS",
        "export_to": "exported-model.ejrvs",
        "encryption_key": None,
    }
    code, _, error = tell(f"tlt {task} download_specs -o /specs/{task} -r r")
    assert (code, "is there already" in error) == (0, True)
    code, _, error = tell(f"tlt {task} export -e /specs/{task}/export.yaml -r r")
    assert (code, "no checkpoint given" in error) == (2, True)


# --- help --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", ["", "list", "vocoder", "vocoder export", "vocoder download_specs"]
)
@pytest.mark.parametrize("program", ["tlt", "tao"])
def test_help_has_examples(capsys, program, words):
    with pytest.raises(SystemExit) as left:
        tlt._run([*words.split(), "--help"], program=program)
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: {program} {words}".rstrip() in out
    assert "examples:" in out
    assert {"tlt", "tao"} & set(re.findall(r"^ *(tlt|tao) ", out, re.M)) == {program}


def test_list(tell):
    code, out, _ = tell("tlt list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()[1:]] == list(TASKS)


def test_every_task_has_an_exporter():
    exported = {
        (name.rpartition(".")[2], encoder and encoder.rpartition(".")[2])
        for exporter in list_exporters()
        for name in exporter.classes
        for encoder in exporter.encoders or (None,)
    }
    for task in TASKS.values():
        assert {(name, task.encoder) for name in task.classes} <= exported, task.name
