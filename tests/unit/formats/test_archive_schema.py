"""Schemas of archives: both spellings, every refusal, and what complies with them."""

from __future__ import annotations

import pytest
import yaml

from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.exporters.exporter import list_exporters
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_schema import (
    find_schema,
    load_schema,
    normalised_class,
    packaged_schemas,
    read_schema,
)
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.compliance import check_archive
from jarvis_rules.formats.key_source import Key

CLASS = "nemo.collections.nlp.models.text.text_model.TextModel"
# The form of the schemas that come with nemo2riva, in the spelling of Jarvis 1.3.
JARVIS = """
metadata:
  - obj_cls: nemo.collections.nlp.models.TextModel
  - min_nemo_version: 1.10

file_properties:
  - model_config.yaml
  - model_graph.onnx:
      onnx: True
      encrypted: False
      max_dim: 100000

file_content:
  - model_config.yaml:
    - class_labels.class_labels_file: True
    - tokenizer.vocab_file: True
    - language_model.lm_checkpoint # may be null
"""
RIVA = JARVIS.replace("\nfile_", "\nartifact_")
CONFIG = {
    "target": CLASS,
    "class_labels": {"class_labels_file": "nemo:0123456789abcdef0123456789abcdef_label_ids.csv"},
    "tokenizer": {"vocab_file": "nemo:0123456789abcdef0123456789abcdef_tokenizer_vocab"},
    "language_model": {"lm_checkpoint": None, "config_file": "bert_config.json"},
}


def archive(folder, *, config=CONFIG, key=None, weights=False, **metadata):
    graphs = [] if weights else ["model_graph.onnx"]
    members = [
        Member("model_config.yaml", "config", "", data=yaml.safe_dump(config).encode()),
        Member("label_ids.csv", "asset", "", data=b"a\nb"),
        Member("vocab.txt", "asset", "", data=b"x", conf_path="tokenizer.vocab_file"),
        Member("model_weights.safetensors", "weights", "", data=b"w")
        if weights
        else Member("model_graph.onnx", "graph", "", data=b"g"),
    ]
    described = {
        "obj_cls": CLASS,
        "family": "text",
        "facts": {},
        "graphs": graphs,
        "runtime": "CKPT" if weights else "ONNX",
        "nemo_version": "1.23.0",
    }
    path = folder / "a.ejrvs"
    write_archive(path, "ejrvs", described | metadata, members, key)
    return path


def faults(path, text, key=None):
    with open_archive(path, "ejrvs", key=key) as opened:
        return check_archive(opened, load_schema(text.encode(), "s.yaml"))


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [JARVIS, RIVA], ids=["jarvis", "riva"])
def test_both_spellings_say_the_same(text):
    schema = load_schema(text.encode(), "s.yaml")
    assert schema.obj_cls == "nemo.collections.nlp.models.TextModel"
    assert schema.format == "ONNX"
    assert schema.files == {
        "model_config.yaml": {},
        "model_graph.onnx": {"onnx": True, "encrypted": False, "max_dim": "100000"},
    }
    assert schema.content == {
        "model_config.yaml": {
            "class_labels.class_labels_file": True,
            "tokenizer.vocab_file": True,
            "language_model.lm_checkpoint": False,
        }
    }


def test_a_version_is_no_number():
    """nemo2riva read `1.10` as the number 1.1, so that its check passed on too old a NeMo."""
    assert load_schema(JARVIS.encode(), "s.yaml").min_nemo_version == "1.10"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file_properties: [model_graph.onnx]", "ONNX"),
        ("file_properties: [encoder.onnx, decoder.onnx, tokenizer.model]", "ONNX"),
        ("artifact_properties: [model_graph.ts: {onnx: False}]", "TS"),
        ("file_properties: [model_weights.ckpt]", "CKPT"),
        ("file_properties: [decoder.pt: {torch: True, trtllm: True}]", "CKPT"),
        ("file_properties: [model_config.yaml]", None),
        ("metadata:\nfile_properties:\nfile_content:\n", None),
    ],
)
def test_the_format_follows_from_the_suffixes(text, expected):
    assert load_schema(text.encode(), "s.yaml").format == expected


REFUSED = [
    ("", "expected the sections"),
    ("[metadata]", "expected the sections"),
    ("file_propertys: []", "unknown section: `file_propertys`"),
    ("file_properties: []\nartifact_properties: []", "are two names of one section"),
    ("file_properties: model_graph.onnx", "`file_properties` must be a list of names"),
    ("file_properties: [[a]]", "`file_properties` must be a list of names"),
    ("file_properties: [a.onnx: 1]", "the properties of `a.onnx` must be a mapping"),
    ("file_properties: [a.onnx: {onxn: True}]", "unknown property of `a.onnx`: `onxn`"),
    ("file_properties: [a.onnx, a.onnx: {onnx: True}]", "has two different `a.onnx`"),
    ("metadata: [obj_cls: [a]]", "`obj_cls` must be a plain value"),
    ("metadata: [min_nemo_version: one]", "must be a version, got `one`"),
    ("file_content: [vocab.txt: [a]]", "`vocab.txt` cannot be checked"),
    ("file_content: [m.yaml: [a.b: c]]", "`a.b` of `m.yaml` takes `True`"),
    ("metadata: &a [*a]", "not plain YAML: an alias"),
    ("metadata: !!python/name:os.system x", "not plain YAML: the tag"),
    ("metadata: [{1: 2, 1: 3}]", "not plain YAML"),
    ("metadata: [a: 1\n", "not plain YAML"),
    ("metadata: " + "[" * 40, "nested more than 16 deep"),
    ("\0", "not YAML"),
    ("# " + "x" * (1 << 20), "at most 1048576"),
]


@pytest.mark.parametrize(("text", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_is_no_schema_is_refused(text, message):
    with pytest.raises(UsageError) as caught:
        load_schema(text.encode(), "s.yaml")
    assert message in str(caught.value)
    assert caught.value.slug in ("schema.unreadable", "schema.unknown-key")
    assert caught.value.hint


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UsageError, match=r"s\.yaml: not YAML"):
        load_schema(b"metadata: \xff", "s.yaml")


def test_several_formats_must_be_decided():
    schema = load_schema(b"file_properties: [encoder.onnx, decoder.pt]", "s.yaml")
    with pytest.raises(UsageError, match="several formats: CKPT, ONNX") as caught:
        schema.format  # noqa: B018
    assert caught.value.slug == "schema.formats"


def test_a_missing_schema_names_a_similar_one(tmp_path):
    (tmp_path / "mine.yaml").write_text(JARVIS)
    with pytest.raises(UsageError) as caught:
        read_schema(tmp_path / "mien.yaml")
    assert (caught.value.slug, caught.value.hint) == ("file.missing", "did you mean `mine.yaml`?")


def test_two_schemas_of_one_class_are_refused():
    schemas = [load_schema(JARVIS.encode(), name) for name in ("a.yaml", "b.yaml")]
    assert find_schema(CLASS, schemas[:1]) is schemas[0]
    with pytest.raises(UsageError, match=r"b\.yaml: a second schema of the class .* a\.yaml"):
        find_schema(CLASS, schemas)


def test_modules_below_models_do_not_count():
    assert normalised_class("nemo.collections.asr.models.a.b.C") == "nemo.collections.asr.models.C"
    assert normalised_class("nemo.collections.asr.models.C") == "nemo.collections.asr.models.C"
    assert normalised_class("my.own.C") == "my.own.C"


# --- those that come with the package ---------------------------------------------------------


def test_every_class_that_is_exported_has_a_schema():
    classes = {normalised_class(name) for exporter in list_exporters() for name in exporter.classes}
    assert sorted(schema.obj_cls for schema in packaged_schemas()) == sorted(classes)


def test_packaged_schemas_ask_for_onnx_and_are_named_after_their_class():
    for schema in packaged_schemas():
        assert schema.format == "ONNX", "the command looks no further where no schema is given"
        assert schema.where.endswith(f"/{schema.obj_cls.rpartition('.')[2]}.yaml")


# --- checking ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [JARVIS, RIVA], ids=["jarvis", "riva"])
def test_a_good_archive_complies(tmp_path, text):
    assert faults(archive(tmp_path), text) == []


def without(config, section, key):
    return config | {section: {k: v for k, v in config[section].items() if k != key}}


FAULTS = [
    ("metadata: [obj_cls: my.models.TextModle]", "the class is `nemo.collections.nlp.models.Text"),
    ("metadata: [min_nemo_version: 1.230]", "the checkpoint is of NeMo `1.23.0`, older than 1.230"),
    ("metadata: [runtime: TorchScript]", "manifest.yaml says `runtime`: `ONNX`, not `TorchScript`"),
    ("metadata: [licence: free]", "manifest.yaml has no metadata `licence`"),
    ("metadata: [encryption: True]", "the archive is not encrypted: give a `--key`"),
    ("file_properties: [vocab.tx]", "no member `vocab.tx`; did you mean `vocab.txt`?"),
    ("file_properties: [vocab.txt: {onnx: True}]", "`vocab.txt` is no ONNX graph"),
    ("file_properties: [model_graph.onnx: {onnx: False}]", "`model_graph.onnx` is an ONNX graph"),
    ("file_properties: [model_graph.onnx: {encrypted: True}]", "`model_graph.onnx` is not encr"),
    ("file_properties: [model_weights.ckpt]", "no member `model_weights.ckpt`"),
    ("file_content: [m.yaml: [a]]", "no member `m.yaml`, so no `a`"),
    ("file_content: [model_config.yaml: [tokenizer.vocab_fiel]]",
     "model_config.yaml has no `tokenizer.vocab_fiel`; did you mean `tokenizer.vocab_file`"),
    ("file_content: [model_config.yaml: [language_model.config_file: True]]",
     "model_config.yaml: `language_model.config_file` names `bert_config.json`, which is not in"),
    ("file_content: [model_config.yaml: [language_model.lm_checkpoint: True]]",
     "`language_model.lm_checkpoint` names nothing, which is not in the archive"),
    ("file_content: [model_config.yaml: [target.deeper]]", "has no `target.deeper`"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_what_does_not_comply_is_named(tmp_path, text, message):
    (fault,) = faults(archive(tmp_path), text)
    assert message in fault


def test_all_faults_are_found(tmp_path):
    text = "file_properties: [a, b]\nfile_content: [model_config.yaml: [c, d: True]]"
    assert len(faults(archive(tmp_path), text)) == 4


@pytest.mark.parametrize(
    ("version", "count"), [("1.9.0", 1), ("1.10", 0), ("1.9rc1", 1), (None, 0)]
)
def test_versions_are_compared_as_versions(tmp_path, version, count):
    """Of a checkpoint that does not say which NeMo wrote it, nothing can be said."""
    path = archive(tmp_path, nemo_version=version)
    assert len(faults(path, "metadata: [min_nemo_version: 1.10]")) == count


def test_weights_stand_in_for_the_pickle_of_the_old_tool(tmp_path):
    path = archive(tmp_path, weights=True)
    assert faults(path, "file_properties: [model_weights.ckpt]") == []
    assert faults(path, JARVIS)[0] == "no member `model_graph.onnx`"


def test_an_encrypted_archive_is_checked_with_its_key(tmp_path):
    key = Key(b"secret")
    path = archive(tmp_path, key=key)
    text = JARVIS.replace("encrypted: False", "encrypted: True")
    assert faults(path, text, key) == []
    assert faults(path, JARVIS, key) == ["`model_graph.onnx` is encrypted"]


def test_nothing_of_an_archive_reaches_a_terminal_as_it_is(tmp_path):
    path = archive(tmp_path, config={"\x1b[2Jab": {"c": "\x1b[2J"}}, nemo_version="1\x1b[2J")
    text = "metadata: [min_nemo_version: 2]\nfile_content: [model_config.yaml: [ab]]"
    found = faults(path, text)
    assert len(found) == 2
    assert all(fault.isprintable() for fault in found)


def test_a_configuration_that_cannot_be_read_is_a_fault(tmp_path):
    path = archive(tmp_path, config="x")
    (fault,) = faults(path, "file_content: [model_config.yaml: [a]]")
    assert fault.startswith("model_config.yaml: expected a mapping")


def test_a_damaged_archive_is_no_fault_but_an_error(tmp_path):
    path = archive(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(JarvisError, match="breaks off"):
        faults(path, JARVIS)
