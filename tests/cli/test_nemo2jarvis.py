"""`nemo2jarvis`: every option of the old tool, and none of its faults."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from command_testing import MODELS, Commands

from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.nemo import open_nemo

# The form, and the sections, of the schema that nemo2riva has for this class.
SCHEMA = """
metadata:
  - obj_cls: nemo.collections.nlp.models.TokenClassificationModel
  - min_nemo_version: 1.1
file_properties:
  - model_config.yaml
  - model_graph.onnx:
      onnx: True
file_content:
  - model_config.yaml:
    - class_labels.class_labels_file: True
    - tokenizer.vocab_file: True
    - language_model.pretrained_model_name
    - language_model.config_file: True
    - language_model.lm_checkpoint
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, capsys, monkeypatch, cache):
    return Commands(tmp_path, capsys, monkeypatch, cache)


@pytest.fixture
def model(run):
    shutil.copy(MODELS / "token_classification.nemo", run.folder / "model.nemo")
    return run


def manifest(path):
    with open_archive(path, "ejrvs") as archive:
        return archive.manifest


# --- the options ------------------------------------------------------------------------------

# Name, metavar and default as the help of the old tool gives them.
HELP = [
    ("--out OUT", "None"),
    ("--validate", "False"),
    ("--schema SCHEMA", "None"),
    ("--format FORMAT", "None"),
    ("--verbose VERBOSE", "None"),
    ("--key KEY", "None"),
    ("--autocast", "None"),
    ("--max-batch", "None"),
    ("--max-dim", "None"),
    ("--onnx-opset", "16"),
    ("--device", "cuda"),
    ("--export-subnet", "None"),
    ("--export-config KEY=VALUE", "None"),
]


@pytest.mark.parametrize(("option", "default"), HELP)
def test_names_and_defaults_are_those_of_the_old_tool(run, option, default):
    text = " ".join(run.ok("nemo2jarvis", "--help").stdout.partition("options:")[2].split())
    entry = re.search(rf"{re.escape(option)}\b.*?\(default: (.*?)\)", text)
    assert entry is not None
    assert entry[1] == default


def test_the_hidden_option_is_hidden_and_taken(run):
    assert "--runtime-check" not in run.ok("nemo2jarvis", "--help").stdout
    done = run.ok("nemo2jarvis", "--runtime-check", "tiny.nemo")
    assert "warning: option `--runtime-check` has no effect here" in done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--max-dim", "100000"),
        ("--max-batch=4",),
        ("--onnx-opset", "16"),
        ("--device", "cpu"),
        ("--autocast", "True"),
        ("--autocast=false",),
        ("--autocast",),
    ],
)
def test_options_without_effect_say_so_once(run, words):
    done = run.ok("nemo2jarvis", *words, "tiny.nemo")
    option = words[0].partition("=")[0]
    assert re.findall(r"option `(\S+)` has no effect here", done.stderr) == [option]
    assert done.stdout == "tiny.ejrvs\n"


def test_options_without_effect_change_no_byte(run):
    run.ok("nemo2jarvis", "tiny.nemo")
    plain = Path("tiny.ejrvs").read_bytes()
    done = run.ok("nemo2jarvis", "--max-dim", "10000", "--device=cuda", "tiny.nemo")
    assert "cached   NemoExport" in done.stderr
    assert Path("tiny.ejrvs").read_bytes() == plain


@pytest.mark.parametrize(
    "words",
    [("--export-subnet", "encoder"), ("--export-config", "a=b", "c=d"), ("--cache-support",)],
)
def test_what_would_be_another_graph_is_refused(run, words):
    done = run("nemo2jarvis", "tiny.nemo", *words)
    assert (done.code, "[option.planned]" in done.stderr) == (2, True)
    assert not Path("tiny.ejrvs").exists()


@pytest.mark.parametrize("words", [("--val", "--verb", "30"), ("--vali", "--form=onnx")])
def test_unique_prefixes_are_taken(run, words):
    assert run.ok("nemo2jarvis", *words, "tiny.nemo").stdout == "tiny.ejrvs\n"


def test_the_archive_lands_beside_the_checkpoint(run):
    Path("models").mkdir()
    Path("tiny.nemo").rename("models/tiny.nemo")
    assert run.ok("nemo2jarvis", "models/tiny.nemo").stdout == "models/tiny.ejrvs\n"


def test_a_second_run_is_served_from_the_cache(run):
    run.ok("nemo2jarvis", "--validate", "tiny.nemo")
    first = Path("tiny.ejrvs").read_bytes()
    done = run.ok("nemo2jarvis", "--validate", "tiny.nemo")
    assert re.findall(r"^(\w+) +(\w+) ", done.stderr, re.M) == [
        ("cached", "NemoExport"),
        ("cached", "ArchiveValidate"),
    ]
    assert Path("tiny.ejrvs").read_bytes() == first


# --- --verbose --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("debug", ("debug:", "warning:", "NemoExport")),
        ("10", ("debug:", "warning:", "NemoExport")),
        ("1", ("debug:", "warning:", "NemoExport")),
        ("INFO", ("warning:", "NemoExport")),
        ("20", ("warning:", "NemoExport")),
        ("warn", ("warning:",)),
        ("30", ("warning:",)),
        ("ERROR", ()),
        ("50", ()),
    ],
)
def test_verbose_takes_numbers_and_names(run, level, said):
    done = run.ok("nemo2jarvis", "--verbose", level, "--max-dim=1", "tiny.nemo")
    for word in ("debug:", "warning:", "NemoExport"):
        assert (word in done.stderr) == (word in said), done.stderr
    assert done.stdout == "tiny.ejrvs\n"


def test_errors_are_said_at_every_level(run):
    done = run("nemo2jarvis", "--verbose", "50", "absent.nemo")
    assert (done.code, "[file.missing]" in done.stderr) == (2, True)


# --- --format ---------------------------------------------------------------------------------


def test_ckpt_keeps_the_checked_weights(model):
    model.ok("nemo2jarvis", "--format", "ckpt", "model.nemo")
    with open_archive(Path("model.ejrvs"), "ejrvs") as archive:
        metadata = archive.manifest.metadata
        members = set(archive.manifest.files)
        data = archive.read("model_weights.safetensors")
    assert {name: metadata[name] for name in ("runtime", "onnx", "graphs")} == {
        "runtime": "CKPT",
        "onnx": False,
        "graphs": [],
    }
    assert not any(name.endswith(".onnx") for name in members)
    assert {"model_config.yaml", "vocab.txt", "label_ids.csv"} < members
    assert not {"inputs", "outputs", "graphs"} & metadata["facts"].keys()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    with open_nemo(Path("model.nemo")) as checkpoint:
        weights = checkpoint.state_dict()
        assert {name: tuple(entry["shape"]) for name, entry in header.items()} == {
            name: array.shape for name, array in weights.items()
        }
        name, entry = next(iter(header.items()))
        start, end = (8 + int.from_bytes(data[:8], "little") + at for at in entry["data_offsets"])
        assert data[start:end] == weights[name].tobytes()


def test_weights_are_checked_before_they_are_kept(run):
    """What the graph would not use is told here too: these are weights of that model or none."""
    done = run("nemo2jarvis", "--format", "CKPT", damaged(run.folder))
    assert (done.code, "[export.wrong-shape]" in done.stderr) == (3, True)


def damaged(folder):
    """Return a checkpoint whose configuration asks for other shapes than its weights have."""
    scratch = folder / "scratch"
    with tarfile.open("tiny.nemo") as tar, tarfile.open("other.nemo", "w") as out:
        for member in filter(tarfile.TarInfo.isfile, tar.getmembers()):
            data = tar.extractfile(member).read()
            if member.name.endswith("model_config.yaml"):
                config = yaml.safe_load(data)
                config["encoder"]["jasper"][0]["filters"] += 8
                data = yaml.safe_dump(config).encode()
            scratch.write_bytes(data)
            out.add(scratch, member.name)
    return "other.nemo"


def test_a_pipeline_refuses_an_archive_of_weights(run):
    run.ok("nemo2jarvis", "--format", "CKPT", "tiny.nemo")
    done = run("jarvis-build", "speech_recognition", "t.jmir", "tiny.ejrvs", "--offline")
    assert done.code == 2
    assert "tiny.ejrvs: the archive holds weights (`--format CKPT`) and no graph" in done.stderr
    assert "[pipeline.no-graph]" in done.stderr


def test_inspect_shows_an_archive_of_weights(run):
    run.ok("nemo2jarvis", "--format", "CKPT", "tiny.nemo")
    assert "model_weights.safetensors" in run.ok("jarvis-rules", "inspect", "tiny.ejrvs").stdout


def test_torchscript_names_the_toolchain(run):
    done = run("nemo2jarvis", "--format", "TS", "tiny.nemo")
    assert done.code == 4
    assert "TorchScript takes a toolchain with torch and NeMo" in done.stderr


@pytest.mark.parametrize(
    ("member", "runtime"), [("model_graph.onnx", "ONNX"), ("model_weights.ckpt", "CKPT")]
)
def test_the_format_follows_from_the_schema(run, member, runtime):
    Path("s.yaml").write_text(f"file_properties: [{member}]\n")
    run.ok("nemo2jarvis", "--schema", "s.yaml", "--validate", "tiny.nemo")
    assert manifest(Path("tiny.ejrvs")).metadata["runtime"] == runtime


def test_a_forced_format_wins_over_the_schema(run):
    Path("s.yaml").write_text("file_properties: [model_graph.onnx]\n")
    done = run.ok("nemo2jarvis", "--schema", "s.yaml", "--format=CKPT", "tiny.nemo")
    assert manifest(Path("tiny.ejrvs")).metadata["runtime"] == "CKPT"
    assert "with the schema s.yaml: no member `model_graph.onnx`" in done.stderr


# --- schemas ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        SCHEMA,
        SCHEMA.replace("\nfile_", "\nartifact_"),
        SCHEMA.replace("1.1", "1.10"),
    ],
    ids=["1.3", "later", "version"],
)
def test_a_schema_of_the_old_form_is_read_and_met(model, text):
    """Its leaves name files by the checkpoint's names, members have stable ones."""
    Path("s.yaml").write_text(text)
    done = model.ok("nemo2jarvis", "--validate", "--schema", "s.yaml", "model.nemo")
    assert "warning" not in done.stderr
    files = manifest(Path("model.ejrvs")).files
    assert {file["conf_path"]: name for name, file in files.items() if "conf_path" in file} == {
        "class_labels.class_labels_file": "label_ids.csv",
        "language_model.config_file": "bert-base-uncased_encoder_config.json",
        "tokenizer.vocab_file": "vocab.txt",
    }


@pytest.mark.parametrize("name", sorted(path.stem for path in MODELS.glob("*.nemo")))
def test_every_model_complies_with_the_schema_of_its_class(run, name):
    shutil.copy(MODELS / f"{name}.nemo", "m.nemo")
    done = run.ok("nemo2jarvis", "--validate", "--verbose", "debug", "m.nemo")
    with open_nemo(Path("m.nemo")) as checkpoint:
        assert f"debug: schema {checkpoint.target.rpartition('.')[2]}.yaml" in done.stderr


def test_an_encrypted_archive_is_validated(model):
    Path("s.yaml").write_text(SCHEMA.replace("onnx: True", "onnx: True\n      encrypted: True"))
    words = ("--validate", "--schema", "s.yaml", "model.nemo")
    done = model("nemo2jarvis", *words)
    assert done.code == 3
    assert "`model_graph.onnx` is not encrypted: give a `--key`" in done.stderr
    model.ok("nemo2jarvis", "--key", "a secret", *words)


def test_a_schema_of_the_user_wins_over_the_packaged_one(model, monkeypatch):
    folder = model.folder / "config" / "jarvis-rules" / "schemas"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(SCHEMA + "    - class_labels.other\n")
    done = model("nemo2jarvis", "--validate", "model.nemo")
    assert done.code == 3
    assert f"the schema {folder / 'mine.yaml'}: model_config.yaml has no" in done.stderr
    monkeypatch.setenv("JARVIS_SCHEMAS", str(model.folder))
    model.ok("nemo2jarvis", "--validate", "model.nemo")


def test_the_format_of_a_schema_of_the_user_counts(run):
    folder = run.folder / "config" / "jarvis-rules" / "schemas"
    folder.mkdir(parents=True)
    obj_cls = "nemo.collections.asr.models.EncDecCTCModel"
    text = f"metadata: [obj_cls: {obj_cls}]\nfile_properties: [model_weights.ckpt]\n"
    (folder / "mine.yaml").write_text(text)
    run.ok("nemo2jarvis", "--validate", "tiny.nemo")
    assert manifest(Path("tiny.ejrvs")).metadata["runtime"] == "CKPT"


# --- faults of nemo2riva that are not here ----------------------------------------------------


def test_a_key_file_is_read(run):
    """nemo2riva took the path for the key: the branch that read the file never worked."""
    Path("key.txt").write_text("secret\n")
    run.ok("nemo2jarvis", "--key", "file:key.txt", "--out", "a", "tiny.nemo")
    run.ok("nemo2jarvis", "--key", "secret", "--out", "b", "tiny.nemo")
    assert Path("a.ejrvs").read_bytes() == Path("b.ejrvs").read_bytes()
    done = run("nemo2jarvis", "--key", "key.txt", "--out", "c", "tiny.nemo")
    assert (done.code, "[key.file-name]" in done.stderr) == (2, True)


def test_a_version_is_compared_as_text(model):
    """In nemo2riva `1.100` was the number 1.1: too old a NeMo passed."""
    Path("s.yaml").write_text(SCHEMA.replace("1.1", "1.100"))
    done = model("nemo2jarvis", "--validate", "--schema", "s.yaml", "model.nemo")
    assert done.code == 3
    assert "the checkpoint is of NeMo `1.23.0`, older than 1.100" in done.stderr


def test_a_failed_validation_fails(model):
    """nemo2riva logged it and ended with 0."""
    Path("s.yaml").write_text(SCHEMA.replace("vocab_file", "vocab_fiel"))
    words = ("--schema", "s.yaml", "model.nemo")
    done = model("nemo2jarvis", "--validate", *words)
    assert (done.code, done.stdout) == (3, "")
    assert "model_config.yaml has no `tokenizer.vocab_fiel`" in done.stderr
    assert not Path("model.ejrvs").exists()
    done = model.ok("nemo2jarvis", *words)
    assert done.stderr.count("warning: model.ejrvs: does not comply with the schema s.yaml") == 1
    assert Path("model.ejrvs").exists()


def test_errors_in_a_schema_are_not_swallowed(model):
    """nemo2riva went on with its defaults where it could not read what to export."""
    Path("s.yaml").write_text(SCHEMA.replace("file_properties", "file_propertys"))
    done = model("nemo2jarvis", "--schema", "s.yaml", "model.nemo")
    assert (done.code, "[schema.unknown-key]" in done.stderr) == (2, True)
    assert "hint: did you mean `file_properties`" in done.stderr


def test_the_largest_input_is_never_lowered_in_silence(run):
    """nemo2riva halved `max_dim` where memory was short: other machines, other graphs."""
    run.ok("nemo2jarvis", "--max-dim", "100000", "--out", "a", "tiny.nemo")
    run.ok("nemo2jarvis", "--max-dim", "10000", "--out", "b", "tiny.nemo")
    assert Path("a.ejrvs").read_bytes() == Path("b.ejrvs").read_bytes()
    assert "max_dim" not in json.dumps(manifest(Path("a.ejrvs")).metadata)


def test_members_of_one_base_name_do_not_overwrite_each_other(model):
    """nemo2riva kept the last member of a base name, whichever folder it was in."""
    with tarfile.open("model.nemo") as tar, tarfile.open("two.nemo", "w") as out:
        for member in tar.getmembers():
            out.addfile(member, tar.extractfile(member))
        member = next(m for m in tar.getmembers() if m.name.endswith("_vocab.txt"))
        # Another file in a folder, last: the configuration names the one at the top.
        other = tarfile.TarInfo(f"other/{member.name.removeprefix('./')}")
        out.addfile(other)
    model.ok("nemo2jarvis", "two.nemo")
    model.ok("nemo2jarvis", "model.nemo")
    assert Path("two.ejrvs").read_bytes() == Path("model.ejrvs").read_bytes()


@pytest.mark.parametrize("export_format", ["ONNX", "CKPT"])
def test_metadata_is_true(model, export_format):
    """nemo2riva wrote one `min_nemo_version` and `has_pytorch_checkpoint` into every archive."""
    model.ok("nemo2jarvis", "--format", export_format, "model.nemo")
    metadata = manifest(Path("model.ejrvs")).metadata
    assert metadata["nemo_version"] == metadata["min_nemo_version"] == "1.23.0"
    assert metadata["onnx"] is (export_format == "ONNX")
    assert ("onnx_archive_format" in metadata) is (export_format == "ONNX")
    assert metadata["has_pytorch_checkpoint"] is False, "safetensors are no pickle"


def test_a_version_that_is_not_known_is_not_claimed(run):
    shutil.copy(MODELS / "old" / "nemo_1_0.nemo", "old.nemo")
    run.ok("nemo2jarvis", "old.nemo")
    metadata = manifest(Path("old.ejrvs")).metadata
    assert metadata["nemo_version"] is None
    assert "min_nemo_version" not in metadata


# --- SCons ------------------------------------------------------------------------------------


@pytest.mark.parametrize("export_format", ["ONNX", "CKPT"])
def test_scons_and_the_command_give_the_same_bytes(run, export_format):
    run.ok("nemo2jarvis", "--format", export_format, "--max-dim=5", "tiny.nemo")
    Path("SConstruct").write_text(
        "import jarvis_rules\n"
        'env = Environment(tools=["default", jarvis_rules.tool])\n'
        f'env.NemoModel("tiny.nemo", format="{export_format}")\n'
        'env.Default("archives")\n'
    )
    scons = Path(sys.executable).parent / "scons"
    done = subprocess.run([scons, "-Q"], capture_output=True, text=True, check=True)
    assert "built 0, cached 1" in done.stderr
    assert Path("out/any/tiny.ejrvs").read_bytes() == Path("tiny.ejrvs").read_bytes()
