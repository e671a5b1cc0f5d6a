"""What differs between two of a kind: found to the bit, the same document every time."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError, UsageError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.key_source import Key
from jarvis_rules.formats.safetensors import write_safetensors
from jarvis_rules.formats.schema import validate
from jarvis_rules.reporting.diff import diff_subjects
from jarvis_rules.reporting.subject import Subject, find_subject
from jarvis_rules.reporting.tensor_changes import describe_change, is_same
from jarvis_rules.reporting.value_changes import MAX_LISTED, Tally, add_changes

GRAPH = "model_graph.onnx"
ENGINE_GRAPH = "acoustic_model/model_graph.onnx"


def diff(a, b):
    one, other = (p if isinstance(p, Subject) else find_subject(str(p)) for p in (a, b))
    document = diff_subjects(one, other)
    validate(document, "diff", "x")
    return document


def changes(document, kind):
    return document[kind]["changes"]


def counts(document, kind):
    return {k: document[kind][k] for k in ("added", "removed", "changed") if document[kind][k]}


# --- trees of values --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": 1}, {"a": 1}, []),
        ({"a": 1}, {"a": True}, [("a", "1", "true")]),
        ({"a": 1}, {"a": 1.0}, [("a", "1", "1.0")]),
        ({"a": float("nan")}, {"a": float("nan")}, []),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 3]}}, [("a.b[1]", "2", "3")]),
        ({"a": []}, {"a": [4]}, [("a", "[]", None), ("a[0]", None, "4")]),
        ({"a": {}}, {}, [("a", "{}", None)]),
        ({"a": {}}, {"a": {"b": None}}, [("a", "{}", None), ("a.b", None, "null")]),
        ({"a": [0]}, {"a": {"0": 0}}, [("a.0", None, "0"), ("a[0]", "0", None)]),
        ({}, {"b": 1, "a": 2}, [("a", None, "2"), ("b", None, "1")]),
        (None, None, []),
    ],
    ids=repr,
)  # fmt: skip
def test_leaves(before, after, expected):
    tally = Tally()
    add_changes(tally, "config", before, after)
    assert [(c["name"], c["from"], c["to"]) for c in tally.listed] == expected


def test_what_is_long_or_deep_is_bounded():
    tally = Tally()
    deep = leaf = {}
    for _ in range(5000):
        leaf["x" * 200] = leaf = {}
    add_changes(tally, "config", {"deep": deep, "text": "a" * 10_000}, {"text": "b"})
    assert max(len(c["name"]) for c in tally.listed) <= 400
    assert max(len(c["from"] or "") for c in tally.listed) <= 200
    tally = Tally()
    add_changes(tally, "config", {}, {"list": list(range(MAX_LISTED + 5))})
    assert (tally.added, len(tally.listed)) == (MAX_LISTED + 5, MAX_LISTED)
    assert tally.to_json()["left_out"] == 5


# --- tensors ----------------------------------------------------------------------------------


def test_norms():
    before = np.array([[3, 4], [0, 0]], "f4")
    after = np.array([[3, 4], [0, 2]], "f4")
    change = describe_change(before, after)
    assert change["from"] == {"dtype": "float32", "shape": [2, 2], "norm": 5.0}
    assert change["difference"] == {"norm": 2.0, "largest": 2.0, "values": 1}


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (np.array([0.0], "f4"), np.array([-0.0], "f4"), (0.0, 0.0, 1)),
        (np.array([np.inf, 1], "f4"), np.array([np.inf, 2], "f4"), (1.0, 1.0, 1)),
        (np.array([1, 2], "f4"), np.array([1, 2.5], "f2"), (0.5, 0.5, 1)),
        (np.array([True, False]), np.array([True, True]), (1.0, 1.0, 1)),
        (np.array(7, "i8"), np.array(4, "i8"), (3.0, 3.0, 1)),
        (np.arange(6.0).reshape(2, 3).T, np.arange(6.0).reshape(2, 3).T + 1, (6**0.5, 1.0, 6)),
        (np.zeros((0, 3), "f4"), np.zeros((0, 3), "f8"), (0.0, 0.0, 0)),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), (None, None, 1)),
    ],
    ids=repr,
)
def test_differences(before, after, expected):
    assert not is_same(before, after)
    assert tuple(describe_change(before, after)["difference"].values()) == pytest.approx(expected)


def test_tensors_of_two_shapes_have_no_difference():
    assert describe_change(np.zeros(2), np.zeros(3))["difference"] is None


def test_tensors_of_several_pieces():
    before = np.zeros((1 << 20) + 5, "f4")
    after = before.copy()
    after[-1], after[0] = 3, 4
    assert is_same(before, before.copy())
    assert describe_change(before, after)["difference"] == {
        "norm": 5.0,
        "largest": 4.0,
        "values": 2,
    }


# --- checkpoints ------------------------------------------------------------------------------


def test_equal_checkpoints(nemo):
    document = diff(nemo, nemo)
    assert document["equal"]
    assert document["weights"]["same"] == 37
    assert not any(changes(document, kind) for kind in ("members", "values", "weights"))


def flip(name, data):
    """Change the lowest bit of one value."""
    if name.endswith("/data/3"):
        data = bytearray(data)
        data[0] ^= 1
    return data


def test_one_bit_of_one_weight(nemo, edits):
    document = diff(nemo, edits.checkpoint(nemo, weights=flip))
    assert not document["equal"]
    assert [c["name"] for c in changes(document, "members")] == ["model_weights.ckpt"]
    assert counts(document, "values") == {}
    (change,) = changes(document, "weights")
    assert (change["graph"], change["change"]) == (None, "changed")
    assert change["difference"]["values"] == 1
    assert 0 < change["difference"]["largest"] == change["difference"]["norm"] < 1e-6
    assert document["weights"]["same"] == 36


def test_the_same_weights_in_another_file_are_the_same(nemo, edits):
    document = diff(nemo, edits.checkpoint(nemo, weights=lambda _, data: data))
    assert counts(document, "weights") == {}
    assert counts(document, "members") == {"changed": 1}


def test_one_key_of_a_configuration(nemo, edits):
    def edit(config):
        config["encoder"]["jasper"][0]["filters"] = 9
        config["\x1b[31m"] = "\x07"
        del config["sample_rate"]

    document = diff(nemo, edits.checkpoint(nemo, config=edit))
    found = {c["name"]: (c["from"], c["to"]) for c in changes(document, "values")}
    assert found["encoder.jasper[0].filters"] == ("8", "9")
    assert found["\x1b[31m"] == (None, '"\\u0007"')
    assert found["sample_rate"] == ("16000", None)
    assert len(found) == 3


def test_a_damaged_checkpoint_is_no_difference(nemo, edits):
    path = edits.checkpoint(nemo)
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(IntegrityError):
        diff(nemo, path)


def test_two_formats(nemo, jmir):
    with pytest.raises(UsageError) as raised:
        diff(nemo, jmir)
    assert raised.value.slug == "diff.formats"


# --- archives ---------------------------------------------------------------------------------


def test_equal_archives_however_packed(ejrvs, edits):
    packed = edits.packed(ejrvs, len)
    assert packed.read_bytes() != ejrvs.read_bytes()
    document = diff(ejrvs, packed)
    assert document["equal"]
    assert document["weights"]["same"] == 20


def test_one_weight_of_a_graph(ejrvs, edits):
    def edit(model):
        tensor = next(t for t in model.graph.initializer if t.data_type == 1)
        raw = bytearray(tensor.raw_data)
        raw[-4] ^= 1
        tensor.raw_data = bytes(raw)

    document = diff(ejrvs, edits.graph(ejrvs, GRAPH, edit))
    (change,) = changes(document, "weights")
    assert change["graph"] == GRAPH
    assert change["difference"]["values"] == 1
    assert (counts(document, "values"), document["notes"]) == ({}, [])


def test_another_structure_is_said(ejrvs, edits):
    def edit(model):
        node = model.graph.node.add(op_type="Identity", name="more")
        node.input.append(model.graph.output[0].name)
        node.output.append("unused")

    document = diff(ejrvs, edits.graph(ejrvs, GRAPH, edit))
    found = {c["name"]: (c["from"], c["to"]) for c in changes(document, "values")}
    assert found["nodes.Identity"] == (None, "1")
    assert "wiring" in found
    assert "has another structure" in document["notes"][0]


def test_facts_and_metadata(ejrvs, edits):
    def edit(metadata):
        metadata["facts"]["sample_rate"] = 8000
        metadata["description"] = "other"

    document = diff(ejrvs, edits.archive(ejrvs, metadata=edit))
    found = {(c["section"], c["name"]): c["to"] for c in changes(document, "values")}
    assert found == {("facts", "sample_rate"): "8000", ("metadata", "description"): '"other"'}


def test_a_member_more(ejrvs, edits):
    without = edits.archive(ejrvs, members={"featurizer_fb.npy": lambda _: None})
    (change,) = changes(diff(without, ejrvs), "members")
    assert (change["name"], change["change"], change["from"]) == (
        "featurizer_fb.npy",
        "added",
        None,
    )
    assert change["to"]["role"] == "asset"


def test_weights_without_a_graph(edits):
    def with_weights(name, values):
        path = edits.folder / f"{name}.ejrvs"
        with path.with_suffix(".safetensors").open("wb") as file:
            write_safetensors(values, file)
        data = path.with_suffix(".safetensors").read_bytes()
        member = Member("model_weights.safetensors", "weights", "", data=data)
        metadata = {"obj_cls": "a.B", "family": "x", "facts": {}, "graphs": [], "runtime": "CKPT"}
        write_archive(path, "ejrvs", metadata, [member])
        return path

    one = with_weights("one", {"a": np.ones(3, "f4"), "b": np.zeros(2, "i8")})
    other = with_weights("other", {"a": np.ones(3, "f4"), "b": np.ones(2, "i8")})
    document = diff(one, other)
    (change,) = changes(document, "weights")
    assert (change["graph"], change["name"]) == ("model_weights.safetensors", "b")
    assert document["weights"]["same"] == 1


@pytest.mark.parametrize("kind", ["ejrvs", "jmir"])
def test_encrypted_and_plain(kind, edits, request):
    source, key = request.getfixturevalue(kind), Key(b"secret")
    plain = edits.archive(source, name=f"plain.{kind}")
    sealed = edits.archive(source, name=f"sealed.{kind}", key=key)
    document = diff(plain, Subject(sealed, kind, key))
    assert document["equal"]
    assert document["weights"]["same"] == 20
    assert document["notes"] == [f"only `{sealed}` is encrypted, which is no difference"]
    document = diff(plain, sealed)
    assert document["equal"]
    assert "not read without a key" in document["notes"][1]
    with pytest.raises(IntegrityError) as raised:
        diff(plain, Subject(sealed, kind, Key(b"other")))
    assert raised.value.slug == "encryption.wrong-key"


def test_a_damaged_member_is_no_difference(ejrvs, edits):
    path = edits.packed(ejrvs, lambda data: data.update({GRAPH: data[GRAPH][:-1] + b"x"}))
    with pytest.raises(IntegrityError) as raised:
        diff(ejrvs, path)
    assert raised.value.slug == "archive.member-digest"


# --- pipelines --------------------------------------------------------------------------------


def test_one_option(jmir, edits):
    def edit(pipeline):
        for option in pipeline["options"]:
            if option["name"] == "offline":
                option["origin"] = "default"

    document = diff(jmir, edits.pipeline(jmir, edit))
    (change,) = changes(document, "values")
    assert (change["section"], change["name"]) == ("options", "offline")
    assert (change["from"], change["to"]) == ("true (given)", "true (default)")


def test_a_module_is_known_by_its_name(jmir, edits):
    def edit(pipeline):
        pipeline["modules"].reverse()
        pipeline["edges"].reverse()
        pipeline["modules"][0]["parameters"]["more"] = 1

    document = diff(jmir, edits.pipeline(jmir, edit))
    (change,) = changes(document, "values")
    assert change["name"] == "modules.ctc_decoder.parameters.more"


# --- repositories -----------------------------------------------------------------------------


def test_equal_repositories(repository, built_repository):
    (repository / "control" / "__pycache__").mkdir()
    (repository / "control" / "__pycache__" / "x.pyc").touch()
    assert diff(built_repository, repository)["equal"]


def test_fields_and_files(repository, built_repository):
    config = next(repository.glob("jarvis-onnx-*/config.pbtxt"))
    config.write_text(config.read_text().replace("max_batch_size: 4", "max_batch_size: 2"))
    (repository / "control" / "1" / "more").write_text("x")
    next(repository.glob("*/1/model.onnx")).unlink()
    document = diff(built_repository, repository)
    model = config.parent.name
    (change,) = changes(document, "values")
    assert (change["section"], change["name"]) == (f"model {model}", "max_batch_size")
    assert (change["from"], change["to"]) == ("4", "2")
    found = {c["name"]: c["change"] for c in changes(document, "members")}
    assert found == {
        f"{model}/config.pbtxt": "changed",
        "control/1/more": "added",
        f"{model}/1/model.onnx": "removed",
    }


@pytest.mark.parametrize("spoil", ["manifest", "config", "pipe"])
def test_a_damaged_repository(spoil, repository, built_repository):
    if spoil == "manifest":
        (repository / "control.repository.json").write_text("[" * 100_000)
    elif spoil == "config":
        (repository / "control" / "config.pbtxt").write_text("name: {")
    else:
        os.mkfifo(repository / "control" / "pipe")
    with pytest.raises(IntegrityError) as raised:
        diff(built_repository, repository)
    slugs = {"manifest": "manifest.invalid", "config": "repository.config"}
    assert raised.value.slug == slugs.get(spoil, "repository.file-kind")


# --- all --------------------------------------------------------------------------------------


def test_the_document_depends_on_nothing_else(nemo, edits):
    def edit(config):
        config["encoder"]["activation"] = "gelu"
        config["x"] = {"b": 1, "a": [1, 2]}

    paths = [str(nemo), str(edits.checkpoint(nemo, config=edit, weights=flip))]
    program = (
        "import json, sys; from jarvis_rules.reporting.diff import diff_subjects as d\n"
        "from jarvis_rules.reporting.subject import find_subject as f\n"
        "print(json.dumps(d(*map(f, sys.argv[1:]))))"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", program, *paths],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "7")
    ]
    assert texts[0] == texts[1]
    assert not json.loads(texts[0])["equal"]


def test_nothing_is_left_behind(ejrvs, edits, tmp_path, monkeypatch):
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    diff(ejrvs, edits.archive(ejrvs))
    with open_archive(ejrvs):
        assert list(folder.iterdir()) == []
