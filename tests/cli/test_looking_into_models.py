"""`jarvis-rules families` and `inspect` as users run them."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from jarvis_rules.exporters.exporter import list_exporters
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.schema import validate

PROGRAM = Path(sys.executable).parent / "jarvis-rules"
ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "vectors"
MODELS = ROOT / "data" / "models"
QUARTZNET = MODELS / "quartznet.nemo"
EJRVS = VECTORS / "archive" / "v1" / "control_valid.ejrvs"
JMIR = VECTORS / "archive" / "v1" / "control.jmir"


def run(*arguments, **environment):
    return subprocess.run(
        [str(PROGRAM), *map(str, arguments)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def output(*arguments, **environment):
    done = run(*arguments, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def inspect(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = output("inspect", path, "--format", "json")
    document = json.loads(text, parse_constant=refuse)
    validate(document, "inspect", str(path))
    return document


def on_a_terminal(*arguments, **environment):
    """Return what is printed where stdout is a terminal."""
    ours, theirs = pty.openpty()
    surrounding = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "FORCE_COLOR")}
    process = subprocess.Popen(
        [str(PROGRAM), *map(str, arguments)],
        env={**surrounding, "TERM": "xterm", "COLUMNS": "80", **environment},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
    )
    os.close(theirs)
    data = b""
    try:
        while block := os.read(ours, 1 << 16):
            data += block
    except OSError:  # Linux's end of a terminal
        pass
    os.close(ours)
    assert process.wait(timeout=60) == 0
    return data.decode()


@pytest.fixture
def edited(tmp_path):
    """Return a function that writes a QuartzNet with another configuration."""

    def edit(change):
        path = tmp_path / "edited.nemo"
        with tarfile.open(QUARTZNET) as old, tarfile.open(path, "w") as new:
            for member in filter(tarfile.TarInfo.isfile, old.getmembers()):
                data = old.extractfile(member).read()
                if member.name.endswith("model_config.yaml"):
                    config = yaml.safe_load(data)
                    change(config)
                    data = yaml.safe_dump(config).encode()
                member.size = len(data)
                new.addfile(member, io.BytesIO(data))
        return path

    return edit


# --- families ---------------------------------------------------------------------------------


def test_every_family_is_listed():
    lines = output("families").splitlines()
    names = [exporter.family for exporter in list_exporters()]
    assert [line.partition(" ")[0] for line in lines] == ["family", *names]
    conv_asr = next(line for line in lines if line.startswith("conv_asr "))
    assert "EncDecCTCModel, EncDecCTCModelBPE" in conv_asr
    assert conv_asr.endswith("ConvASREncoder")


def test_one_family_shows_its_keys():
    text = output("families", "conv_asr")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "family conv_asr",
        "nemo.collections.asr.models.ctc_bpe_models.EncDecCTCModelBPE",
        "nemo.collections.asr.modules.conv_asr.ConvASREncoder",
        "top of the configuration keys",
        "encoder.jasper[] keys",
        "only false: needs the scales of pytorch-quantization quantize",
        "ignored: noise against overfitting, added in training only dither",
        "*.num_batches_tracked counts training steps",
    ):
        assert line in lines


def test_families_as_json():
    every = json.loads(output("families", "--format", "json"))
    validate(every, "families", "x")
    one = json.loads(output("families", "--format=json", "conv_asr"))
    validate(one, "families", "x")
    assert one["families"] == [f for f in every["families"] if f["family"] == "conv_asr"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("conv_ars", "did you mean `conv_asr`?"), ("Conv_ASR", "did you mean"), ("", "known: conf")],
)
def test_an_unknown_family(name, hint):
    done = run("families", name)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"error: unknown family `{name}` [family.unknown]" in done.stderr
    assert f"hint: {hint}" in done.stderr


@pytest.mark.parametrize("command", ["families", "inspect"])
def test_help_has_examples(command):
    assert f"examples:\n  jarvis-rules {command}" in output(command, "--help")


@pytest.mark.parametrize("arguments", [("families",), ("families", "qa"), ("inspect", QUARTZNET)])
def test_no_onnx_is_imported_to_look(arguments):
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


def test_a_checkpoint_in_words():
    lines = [" ".join(line.split()) for line in output("inspect", QUARTZNET).splitlines()]
    for line in (
        "class nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "NeMo version 1.23.0",
        "family conv_asr",
        "task ctc",
        "sample_rate 16000",
        "model_graph.onnx 1 input audio_signal float32 [batch, 64, time]",
        "output logprobs float32 [batch, time_out, 29]",
        "featurizer_window.npy 1408",
        "preprocessor.dither 1e-05 noise against overfitting, added in training only",
        "encoder.jasper[].dropout 0.1 training only",
        "*.num_batches_tracked 12 counts training steps",
    ):
        assert line in lines


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.nemo")), ids=lambda path: path.stem)
def test_checkpoints_as_json(path):
    document = inspect(path)
    assert document["version"] == 1
    assert document["export"]["refusal"] is None
    assert document["export"]["facts"]["task"]


def test_an_archive():
    document = inspect(EJRVS)
    (graph,) = document["graphs"]
    assert graph["name"] == "model_graph.onnx"
    assert [tensor["name"] for tensor in graph["inputs"]] == ["audio_signal", "length"]
    marked = document["metadata"].get("full_precision", {}).get("model_graph.onnx", ())
    assert graph["full_precision_nodes"] == len(marked)
    text = output("inspect", EJRVS)
    assert "family          conv_asr" in text
    assert "audio_signal" in text


def test_what_inspect_says_before_and_after_the_export_is_the_same(tmp_path):
    nemo2jarvis = PROGRAM.with_name("nemo2jarvis")
    for name in ("quartznet", "fastpitch"):
        exported = tmp_path / f"{name}.ejrvs"
        subprocess.run(
            [nemo2jarvis, "--out", exported, MODELS / f"{name}.nemo"],
            env={**os.environ, "JARVIS_CACHE": str(tmp_path / "cache")},
            check=True,
            capture_output=True,
        )
        after, before = inspect(exported), inspect(MODELS / f"{name}.nemo")["export"]
        assert after["metadata"]["family"] == before["family"]
        assert after["metadata"]["facts"] == before["facts"]
        order = {graph["name"]: graph for graph in after["graphs"]}
        assert order == {graph["name"]: graph for graph in before["graphs"]}


@pytest.mark.parametrize(
    "facts",
    [
        {"inputs": 3, "outputs": [{"name": 1}]},
        {"inputs": [{"name": "x", "dtype": "float32", "shape": [True]}], "far": float("inf")},
        {"graphs": "model_graph.onnx"},
        {"graphs": {"model_graph.onnx": {"inputs": {}}}},
        {"\x1b[31m": "\x9b"},
    ],
    ids=repr,
)
def test_an_archive_with_other_facts(tmp_path, facts):
    path = tmp_path / "x.ejrvs"
    graph = Member("model_graph.onnx", "graph", "a graph", data=b"graph")
    metadata = {"obj_cls": "a.B", "family": "toy", "facts": facts, "graphs": [graph.name]}
    write_archive(path, "ejrvs", metadata, [graph])
    (described,) = inspect(path)["graphs"]
    assert (described["inputs"], described["outputs"]) == (None, None)
    text = output("inspect", path)
    assert "model_graph.onnx" in text
    assert all(c.isprintable() or c == "\n" for c in text)


def test_a_pipeline_as_json():
    document = inspect(JMIR)
    assert (document["version"], document["format"]) == (1, "jmir")


def test_a_class_that_nobody_reads_is_shown():
    path = VECTORS / "nemo" / "unknown_target.nemo"
    export = inspect(path)["export"]
    assert export["family"] is None
    assert export["refusal"]["slug"] == "export.unknown-class"
    text = output("inspect", path)
    assert "family        none\n" in text
    assert "\nnot exported  no exporter reads the class" in text
    assert "[export.unknown-class]\nhint          did you mean `EncDec" in text


def test_a_refused_configuration_is_shown(edited):
    path = edited(lambda config: config["encoder"].update(quantize=True))
    export = inspect(path)["export"]
    assert (export["family"], export["refusal"]["slug"]) == (
        "conv_asr",
        "export.unsupported-config",
    )
    text = output("inspect", path)
    assert (
        "family        conv_asr\nnot exported  the configuration has `encoder.quantize: Tr" in text
    )
    assert "key without effect" not in text


def test_nothing_that_a_terminal_would_obey_is_printed(edited):
    def change(config):
        config["\x1b[31mred\x9b"] = {"a\nb": "\x1b]0;title\x07", "far": float("inf")}

    path = edited(change)
    text = output("inspect", path)
    assert "\\x1b[31mred\\x9b" in text
    raw = output("inspect", path, "--format", "json")
    for printed in (text, raw):
        assert all(c.isprintable() or c == "\n" for c in printed)
    config = inspect(path)["config"]
    assert config["\x1b[31mred\x9b"] == {"a\nb": "\x1b]0;title\x07", "far": "inf"}


@pytest.mark.parametrize(
    ("name", "slug"),
    [("missing_key", "export.missing-weight"), ("wrong_shape", "export.wrong-shape")],
)
def test_weights_that_do_not_fit_are_shown(name, slug):
    export = inspect(VECTORS / "nemo" / f"{name}.nemo")["export"]
    assert export["refusal"]["slug"] == slug


UNREADABLE = [
    path
    for path in sorted((VECTORS / "nemo").glob("*.nemo"))
    if path.stem not in ("control_valid", "unknown_target", "missing_key", "wrong_shape")
]


@pytest.mark.parametrize("path", UNREADABLE, ids=lambda path: path.stem)
def test_what_cannot_be_read_ends_in_3(path):
    done = run("inspect", path)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments", [("families",), ("inspect", QUARTZNET), ("verify", QUARTZNET)]
)
def test_colour_is_for_terminals_and_can_be_switched_off(arguments):
    assert "\x1b[" in on_a_terminal(*arguments)
    assert "\x1b" not in on_a_terminal(*arguments, NO_COLOR="1")
    assert "\x1b" not in output(*arguments, FORCE_COLOR="1")
