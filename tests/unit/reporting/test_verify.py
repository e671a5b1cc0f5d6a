"""What is wrong with a file or a repository: all of it, each with slug, place and hint."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.engine_inputs import dump_precision_hints
from jarvis_rules.formats.key_source import Key
from jarvis_rules.formats.schema import validate
from jarvis_rules.reporting.subject import Subject, find_subject
from jarvis_rules.reporting.verification import MAX_PROBLEMS, Problem, Verification
from jarvis_rules.reporting.verify import verify_document, verify_subject

sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))

from hostile.make import CASES

GRAPH = "model_graph.onnx"
ENGINE_GRAPH = "acoustic_model/model_graph.onnx"
FB = "featurizer_fb.npy"
WINDOW = "featurizer_window.npy"
MODELS = Path(__file__).parents[2] / "data" / "models"
SUFFIXES = (".nemo", ".tlt", ".ejrvs", ".jmir")


def verify(path):
    found = verify_subject(path if isinstance(path, Subject) else find_subject(str(path)))
    validate(verify_document([found]), "verify", "x")
    return found


def slugs(path):
    return [(problem.slug, problem.place) for problem in verify(path).problems]


# --- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted(MODELS.glob("*.nemo")), ids=lambda path: path.stem)
def test_good_checkpoints(path):
    found = verify(path)
    assert (found.problems, found.not_checked) == ([], [])
    assert found.checked["tensors"] > 10


def test_every_weight_that_is_not_finite_and_the_configuration(nemo, edits):
    spoilt = []

    def spoil(name, data):
        values = np.frombuffer(data, "<f4").copy() if len(data) % 4 == 0 else np.zeros(0, "f4")
        if "/data/" in name and values.size > 30:
            values[1] = np.nan if len(spoilt) % 2 else np.inf
            spoilt.append(name)
            return values.tobytes()
        return data

    path = edits.checkpoint(nemo, weights=spoil, config=lambda config: config.pop("target"))
    found = [slug for slug, _ in slugs(path)]
    assert found[0] == "nemo.target"
    assert len(spoilt) > 5
    assert sorted(found[1:]) == sorted(
        ["checkpoint.inf"] * -(-len(spoilt) // 2) + ["checkpoint.nan"] * (len(spoilt) // 2)
    )


def test_an_artifact_that_is_not_there(nemo, edits):
    def edit(config):
        config["labels_file"] = "nemo:0123_labels.txt"

    assert slugs(edits.checkpoint(nemo, config=edit)) == [
        ("nemo.missing-artifact", "model_config.yaml")
    ]


# --- archives ---------------------------------------------------------------------------------


def test_good_archives(ejrvs, jmir):
    found = verify(ejrvs)
    assert found.is_sound
    assert {"members": 4, "graphs": 1, "weights": 20}.items() <= found.checked.items()
    found = verify(jmir)
    assert found.is_sound
    assert {"members": 7, "graphs": 1, "pipelines": 1}.items() <= found.checked.items()


def test_every_damaged_member(ejrvs, edits):
    def spoil(data):
        for name in (FB, GRAPH):
            data[name] = data[name][:-1] + bytes([data[name][-1] ^ 1])

    assert slugs(edits.packed(ejrvs, spoil)) == [
        ("archive.member-digest", FB),
        ("archive.member-digest", GRAPH),
    ]


def test_swapped_members(jmir, edits):
    one, other = "feature_extractor/featurizer_fb.npy", "feature_extractor/featurizer_window.npy"

    def swap(data):
        data[one], data[other] = data[other], data[one]

    assert slugs(edits.packed(jmir, swap)) == [
        ("archive.member-size", one),
        ("archive.member-size", other),
    ]


def test_missing_and_unlisted_members(ejrvs, edits):
    def spoil(data):
        data["more"] = data.pop(FB)
        data[WINDOW] = data[WINDOW][::-1]

    assert slugs(edits.packed(ejrvs, spoil)) == [
        ("archive.missing", FB),
        ("archive.unlisted", "more"),
        ("archive.member-digest", WINDOW),
    ]


def test_a_manifest_that_was_edited(ejrvs, edits):
    def spoil(data):
        data["manifest.yaml"] = data["manifest.yaml"].replace(b"16000", b"8000")

    assert slugs(edits.packed(ejrvs, spoil)) == [("archive.content-digest", "")]


def test_a_graph_that_is_none(ejrvs, edits):
    path = edits.archive(ejrvs, members={GRAPH: lambda _: b"\xff" * 99})
    assert slugs(path) == [("graph.unreadable", GRAPH)]


def invalid_node(model):
    model.graph.node[0].input[0] = "nowhere"


def first_weight(model):
    return next(tensor for tensor in model.graph.initializer if len(tensor.raw_data) > 64)


def negative_size(model):
    first_weight(model).dims[0] = -1


def too_few_bytes(model):
    first_weight(model).raw_data = b"\0"


def unknown_type(model):
    model.graph.output[0].type.tensor_type.elem_type = 999


def outside_weights(location):
    def change(model):
        tensor = first_weight(model)
        tensor.ClearField("raw_data")
        tensor.data_location = 1
        tensor.external_data.add(key="location", value=location)

    return change


def deep(model):
    graph = model.graph
    for _ in range(60):
        node = graph.node.add(op_type="If")
        attribute = node.attribute.add(name="then_branch", type=5)
        attribute.g.name = "x"
        graph = attribute.g


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (invalid_node, ["graph.invalid"]),
        (negative_size, ["graph.unreadable"]),
        (too_few_bytes, ["graph.unreadable"]),
        (unknown_type, ["graph.tensors", "graph.invalid"]),
        (outside_weights("/etc/passwd"), ["graph.weights-file"]),
        (outside_weights("../manifest.yaml"), ["graph.weights-file"]),
        (outside_weights(".."), ["graph.weights-file"]),
        (outside_weights("model_graph.onnx"), ["graph.weights-file"]),
        (outside_weights("\0\x1b[31m"), ["graph.weights-file"]),
        (deep, ["graph.unreadable"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_hostile_graphs(change, expected, ejrvs, edits):
    found = verify(edits.graph(ejrvs, GRAPH, change))
    assert [problem.slug for problem in found.problems] == expected
    assert all(c.isprintable() for problem in found.problems for c in problem.message)


def test_a_name_that_is_no_text(ejrvs, edits):
    path = edits.archive(
        ejrvs, members={GRAPH: lambda data: data.replace(b"logprobs", b"\xff" * 8)}
    )
    assert slugs(path) == [("graph.unreadable", GRAPH)]


def test_weights_beside_a_graph(ejrvs, edits):
    import onnx

    from jarvis_rules.formats.archive import open_archive

    with open_archive(ejrvs) as archive:
        metadata = archive.manifest.metadata
        model = onnx.load_model_from_string(archive.read(GRAPH))
        rest = {n: archive.read(n) for n in archive.manifest.files if n != GRAPH}
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weights = bytes(64) + tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = 1
    for key, value in (("location", f"{GRAPH}.data"), ("offset", "64"), ("length", None)):
        tensor.external_data.add(key=key, value=value or str(len(weights) - 64))

    def write(name, weights):
        members = [Member(n, "asset", "", data=data) for n, data in rest.items()]
        members.append(Member(GRAPH, "graph", "", data=model.SerializeToString()))
        members.append(Member(f"{GRAPH}.data", "weights", "", data=weights))
        kept = {k: v for k, v in metadata.items() if k not in ("archive_format", "archive_version")}
        del kept["content_digest"]
        write_archive(edits.folder / name, "ejrvs", kept, members)
        return edits.folder / name

    assert slugs(write("whole.ejrvs", weights)) == []
    (slug, place), *_ = slugs(write("short.ejrvs", weights[:-4]))
    assert (slug, place) == ("graph.unreadable", GRAPH)


def test_facts_that_are_not_the_graphs(ejrvs, edits):
    def edit(metadata):
        metadata["facts"]["inputs"][0]["shape"][1] = 80
        metadata["facts"]["tokenizer_files"] = ["vocab.txt"]
        metadata["full_precision"] = {GRAPH: ["no such node"]}

    found = verify(edits.archive(ejrvs, metadata=edit)).problems
    assert [problem.slug for problem in found] == [
        "archive.missing",
        "graph.tensors",
        "graph.full-precision",
    ]
    assert "audio_signal float32 ['batch', 80, 'time']" in found[1].message


def test_what_lies_beside_a_graph_is_of_that_graph(jmir, edits):
    changed = edits.archive(
        jmir,
        members={
            "acoustic_model/inputs.json": lambda data: data.replace(b'"length"', b'"sizes"'),
            "acoustic_model/precision_hints.json": lambda _: dump_precision_hints(["no such node"]),
        },
    )
    assert slugs(changed) == [
        ("graph.tensors", "acoustic_model/inputs.json"),
        ("graph.full-precision", "acoustic_model/precision_hints.json"),
    ]
    garbage = edits.archive(jmir, members={"acoustic_model/inputs.json": lambda _: b"{}"})
    assert slugs(garbage) == [("schema.invalid", "acoustic_model/model_graph.onnx")]
    lost = edits.archive(jmir, members={"acoustic_model/precision_hints.json": lambda _: None})
    assert slugs(lost) == [("jmir.missing-member", "pipeline.json")]


# --- pipelines --------------------------------------------------------------------------------


def edit_document(**changes):
    def edit(pipeline):
        modules = {module["name"]: module for module in pipeline["modules"]}
        for name, change in changes.items():
            change(pipeline if name == "pipeline" else modules[name])

    return edit


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            edit_document(pipeline=lambda p: p["edges"].pop()),
            [("jmir.edge", "nothing makes the pipeline's output `FINAL_WORDS_SCORE`")],
        ),
        (
            edit_document(pipeline=lambda p: p["edges"].extend([["a.B", "c.D"], p["edges"][0]])),
            [
                ("jmir.edge", "the edge `a.B` → `c.D` begins at no output"),
                ("jmir.edge", "the edge `a.B` → `c.D` ends at no input"),
                ("jmir.edge", "is the second that ends there"),
            ],
        ),
        (
            edit_document(
                ctc_decoder=lambda m: m["inputs"][0].update(dims=[-1, 31]),
                acoustic_model=lambda m: m["outputs"][1].update(dtype="INT32"),
            ),
            [
                ("jmir.edge", "joins FP32 [-1, 29] with FP32 [-1, 31]"),
                ("jmir.edge", "joins INT32 [1] with INT64 [1]"),
                ("graph.tensors", "output `encoded_length` is configured as TYPE_INT32"),
            ],
        ),
        (
            edit_document(
                ctc_decoder=lambda m: m["files"].update({"a.txt": "not/there"}),
                acoustic_model=lambda m: m.update(uses="engine:other"),
                feature_extractor=lambda m: m["parameters"].update(calls="nobody"),
            ),
            [
                ("jmir.unknown-call", "`feature_extractor` calls `nobody`"),
                ("jmir.missing-member", "needs `other/model_graph.onnx`"),
                ("jmir.missing-member", "needs `not/there`"),
            ],
        ),
        (
            edit_document(
                pipeline=lambda p: p["edges"].__setitem__(
                    slice(2), [["ctc_decoder.FINAL_WORDS", f"feature_extractor.{name}"]
                               for name in ("AUDIO_SIGNAL", "SAMPLE_COUNT")]
                ),
            ),
            [
                ("jmir.edge", "joins STRING [-1] with FP32 [-1]"),
                ("jmir.edge", "joins STRING [-1] with"),
                ("jmir.cycle", "wait for each other: `acoustic_model`, `ctc_decoder`"),
            ],
        ),
        (edit_document(pipeline=lambda p: p.pop("kind")), [("schema.invalid", "kind")]),
        (
            edit_document(acoustic_model=lambda m: m.update(name="ctc_decoder")),
            [("jmir.duplicate-name", "two of it")],
        ),
    ],
)  # fmt: skip
def test_a_pipeline_that_does_not_hold_together(change, expected, jmir, edits):
    found = verify(edits.pipeline(jmir, change)).problems
    for slug, message in expected:
        assert any(p.slug == slug and message in p.message for p in found), found
    assert {problem.slug for problem in found} <= {slug for slug, _ in expected} | {"jmir.edge"}
    assert {problem.place for problem in found} <= {"pipeline.json", ENGINE_GRAPH}


# --- encryption -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ejrvs", "jmir"])
def test_encrypted_archives(kind, edits, request):
    path = edits.archive(request.getfixturevalue(kind), key=Key(b"secret"))
    found = verify(Subject(path, kind, Key(b"secret")))
    assert (found.problems, found.not_checked) == ([], [])
    assert found.checked["graphs"] == 1
    found = verify(path)
    assert found.is_sound
    assert found.checked == {"manifests": 1}
    ((what, reason),) = found.not_checked
    assert "members" in what
    assert "no key was given" in reason
    assert slugs(Subject(path, kind, Key(b"other"))) == [("encryption.wrong-key", "")]
    data = bytearray(path.read_bytes())
    data[-3000] ^= 1
    path.write_bytes(data)
    assert verify(Subject(path, kind, Key(b"secret"))).problems


def test_a_key_for_what_needs_none(ejrvs, nemo):
    assert slugs(Subject(ejrvs, "ejrvs", Key(b"x"))) == [("encryption.not-encrypted", "")]
    with pytest.raises(UsageError) as raised:
        find_subject(f"{nemo}:secret")
    assert raised.value.slug == "key.checkpoint"
    assert "secret" not in raised.value.render()


# --- repositories -----------------------------------------------------------------------------


def test_a_good_repository(repository):
    (repository / "control" / "__pycache__").mkdir()
    (repository / "control" / "__pycache__" / "x.pyc").touch()
    found = verify(repository)
    assert (found.problems, found.not_checked) == ([], [])
    assert found.checked["files"] > 10


def test_everything_that_is_wrong_with_a_repository(repository):
    model = next(repository.glob("jarvis-onnx-*"))
    (model / "1" / "model.onnx").unlink()
    decoder = next(repository.glob("*-ctc-decoder-*"))
    with (decoder / "1" / "model.py").open("a") as file:
        file.write("import os\n")
    (decoder / "1" / "more.py").touch()
    (repository / "hand-made").mkdir()
    (repository / "hand-made" / "config.pbtxt").write_text('name: "hand-made" backend: "python"')
    found = verify(repository)
    assert [(p.slug, p.place) for p in found.problems] == [
        ("repository.file-changed", f"{decoder.name}/1/model.py"),
        ("repository.file-missing", f"{model.name}/1/model.onnx"),
        ("repository.unlisted", f"{decoder.name}/1/more.py"),
        ("version.missing", "hand-made"),
        ("model.file-missing", model.name),
    ]
    assert found.not_checked == [("the files of `hand-made`", "no manifest lists the folder")]


@pytest.mark.parametrize("text", ["", "{}", "[" * 100_000, '{"files": {"../x": 1}}', "\xff"])
def test_a_damaged_manifest(repository, text):
    (repository / "control.repository.json").write_text(text, encoding="latin-1")
    found = verify(repository)
    assert [p.place for p in found.problems] == ["control.repository.json"]
    assert found.problems[0].slug in ("manifest.invalid", "schema.invalid")
    assert found.not_checked


def test_a_manifest_that_leads_out(repository):
    import json

    path = repository / "control.repository.json"
    document = json.loads(path.read_text())
    document["files"]["../../etc/passwd"] = {"sha256": "0" * 64, "size": 1}
    path.write_text(json.dumps(document))
    assert slugs(repository) == [("manifest.path", "control.repository.json")]


def test_two_manifests_of_one_file(repository):
    text = (repository / "control.repository.json").read_text()
    (repository / "other.repository.json").write_text(text)
    found = slugs(repository)
    assert set(found) == {("repository.claimed-twice", "other.repository.json")}


@pytest.mark.parametrize("kind", ["pipe", "folder", "nowhere"])
def test_what_is_no_plain_file_is_never_opened(repository, kind):
    model = next(repository.glob("jarvis-onnx-*")) / "1" / "model.onnx"
    model.unlink()
    if kind == "pipe":
        os.mkfifo(model)
    else:
        model.symlink_to("/tmp" if kind == "folder" else "/does/not/exist")
    found = verify(repository)
    name = model.relative_to(repository).as_posix()
    assert [(p.slug, p.place) for p in found.problems] == [("repository.file-kind", name)]
    assert found.not_checked[0][0] == "what the linter checks"


# --- hostile files ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in CASES if Path(n).suffix in SUFFIXES])
def test_hostile_files(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(CASES[name].make())
    found = verify(path)
    expected = CASES[name].slug
    if expected:
        assert expected in [problem.slug for problem in found.problems]
    else:
        assert found.is_sound


def test_very_many_problems_are_counted(nemo):
    found = Verification(find_subject(str(nemo)))
    for number in range(MAX_PROBLEMS + 7):
        found.add(Problem("archive.missing", str(number), "not there"))
        found.add(Problem("archive.missing", "0", "not there"))
    assert (len(found.problems), found.left_out) == (MAX_PROBLEMS, 7)
