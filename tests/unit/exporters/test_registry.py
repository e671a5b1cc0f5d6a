"""The folder of exporters as a registry."""

import subprocess
import sys

import pytest

from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters.exporter import Exporter, export_model, find_exporter, list_exporters

from .exporter_testing import source

CTC = "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
SAMPLES = {
    "conformer_ctc": ("conformer",),
    "conv_asr": ("quartznet", "jasper", "quartznet_espeak", "citrinet"),
    "fastpitch": ("fastpitch", "fastpitch_char"),
    "hifigan": ("hifigan",),
    "intent_slot": ("intent_slot",),
    "punctuation": ("punctuation",),
    "question_answering": ("qa", "variants/language_model/qa_later_class_cased"),
    "speech_classification": ("variants/speech_classification/average",),
    "tacotron2": ("variants/tacotron2/chars", "variants/tacotron2/labels_two_frames"),
    "text_classification": ("text_classification",),
    "token_classification": ("token_classification",),
    "waveglow": ("waveglow", "variants/waveglow/early_every_flow"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a function that makes a package of exporters from the text of its files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    count = 0

    def make(**files: str) -> str:
        nonlocal count
        count += 1
        package = tmp_path / f"{tmp_path.name}_{count}"
        package.mkdir()
        (package / "__init__.py").touch()
        for name, text in files.items():
            (package / f"{name}.py").write_text(text)
        return package.name

    return make


def entry(*classes: str, encoders: tuple[str, ...] = ()) -> str:
    return (
        "from jarvis_rules.exporters.exporter import Exporter\n"
        f"EXPORTER = Exporter('family', {classes!r}, (), lambda source: None, {encoders!r})\n"
    )


def test_every_exporter_is_complete_and_has_a_sample():
    exporters = list_exporters()
    families = [exporter.family for exporter in exporters]
    assert families == sorted(families)
    assert set(families) == set(SAMPLES)
    for exporter in exporters:
        assert exporter.classes
        assert all(unused.pattern and unused.reason for unused in exporter.unused)
        for name in SAMPLES[exporter.family]:
            model = source(name)
            assert find_exporter(model.target, model.config) is exporter
            assert export_model(model).family == exporter.family


def test_finding_a_class():
    config = source("quartznet").config
    assert find_exporter(CTC, config).family == "conv_asr"
    assert isinstance(find_exporter(CTC, config), Exporter)


def test_unknown_class_names_it_and_what_is_supported():
    with pytest.raises(JarvisError) as error:
        find_exporter("nemo.collections.asr.models.EncDecNobodyKnowsModel")
    assert error.value.slug == "export.unknown-class"
    assert error.value.exit_code == 1
    assert "`nemo.collections.asr.models.EncDecNobodyKnowsModel`" in error.value.message
    assert f"`{CTC}`" in error.value.hint


@pytest.mark.parametrize(
    "target", ["nemo.collections.asr.models.EncDecCTCModel", "x.EncDecCtcModel", "EncDecCTCModul"]
)
def test_unknown_class_suggests_the_nearest_name(target):
    with pytest.raises(JarvisError) as error:
        find_exporter(target)
    assert error.value.hint.startswith("did you mean `EncDecCTCModel`")


@pytest.mark.parametrize(
    ("text", "got"),
    [("EXPORTER = {}", "got dict"), ("", "got nothing"), ("EXPORTER = 1", "got int")],
)
def test_a_file_that_exposes_something_else_is_named(folder, text, got):
    with pytest.raises(JarvisError) as error:
        find_exporter(CTC, package=folder(foo=text))
    assert error.value.where.endswith("/foo.py")
    assert "EXPORTER must be" in error.value.message
    assert got in error.value.message


def test_a_class_claimed_twice_is_refused(folder):
    package = folder(one=entry("a.B", "a.C"), two=entry("a.C"))
    with pytest.raises(JarvisError) as error:
        list_exporters(package)
    assert error.value.slug == "registry.duplicate-class"
    assert error.value.where == f"{package}/two.py"
    assert "`a.C` is claimed by `one.py` too" in error.value.message


@pytest.mark.parametrize("encoders", [(), ("m.X",), ("m.Y", "m.X")])
def test_a_shared_class_needs_encoders_that_differ(folder, encoders):
    package = folder(one=entry("a.B", encoders=("m.X",)), two=entry("a.B", encoders=encoders))
    with pytest.raises(JarvisError) as error:
        list_exporters(package)
    assert error.value.slug == "registry.duplicate-class"
    assert "`encoders`" in error.value.hint


def test_the_encoder_decides_between_families_of_one_class(folder):
    two = entry("a.B", encoders=("m.Y",)).replace("'family'", "'other'")
    package = folder(one=entry("a.B", encoders=("m.X",)), two=two)
    assert find_exporter("a.B", {"encoder": {"_target_": "m.Y"}}, package).family == "other"


def test_an_encoder_that_no_family_reads_is_named(folder):
    package = folder(one=entry("a.B", encoders=("m.X",)), two=entry("a.B", encoders=("m.Y",)))
    with pytest.raises(JarvisError) as error:
        find_exporter("a.B", {"encoder": {"_target_": "m.New"}}, package)
    assert error.value.slug == "export.unsupported-config"
    assert "`encoder._target_: 'm.New'`" in error.value.message
    assert "`m.X`, `m.Y`" in error.value.message
    with pytest.raises(JarvisError) as error:
        find_exporter("a.B", {}, package)
    assert "`encoder: None`" in error.value.message


def test_shared_parts_are_no_entries(folder):
    package = folder(one=entry("a.B"), _parts="raise RuntimeError")
    assert find_exporter("a.B", package=package).family == "family"
    assert len(list_exporters(package)) == 1


def test_the_registry_is_light():
    """The command line asks for a family before it needs onnx, which takes 0.2 s to import."""
    program = (
        "import sys; from jarvis_rules.exporters.exporter import find_exporter\n"
        "config = {'encoder': {'_target_': 'nemo.collections.asr.modules.ConvASREncoder'}}\n"
        f"find_exporter({CTC!r}, config)\n"
        "print([m for m in ('onnx', 'onnxruntime', 'google.protobuf') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.strip() == b"[]"
