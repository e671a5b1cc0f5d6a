"""The pipeline document: round trip, and refusal of what no writer of ours makes."""

from __future__ import annotations

import json

import pytest

from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.jmir import (
    MAX_PIPELINE_SIZE,
    PIPELINE_MEMBER,
    Tensor,
    dump_pipeline,
    load_pipeline,
    read_pipeline,
)


@pytest.fixture(scope="session")
def data(jmir):
    with open_archive(jmir) as archive:
        return archive.read(PIPELINE_MEMBER)


def test_round_trip(data):
    pipeline = load_pipeline(data, "x")
    assert dump_pipeline(pipeline) == data
    by_name = {module.name: module for module in pipeline.modules}
    assert (by_name["acoustic_model"].engine, by_name["acoustic_model"].backend) == (
        "acoustic_model",
        None,
    )
    assert by_name["ctc_decoder"].backend == "ctc_decoder"
    assert by_name["acoustic_model"].inputs[1] == Tensor("length", "INT64", (1,), reshape=())


def module(index, **changes):
    return lambda document: document["modules"][index].update(changes)


def top(**changes):
    return lambda document: document.update(changes)


VIOLATIONS = {
    "newer version": (top(version=2), "version"),
    "unknown key": (top(more=1), "'more' was unexpected"),
    "no modules": (top(modules=[]), "modules"),
    "key missing": (lambda d: d.pop("edges"), "'edges' is a required"),
    "name is a path": (top(name="../x"), "name"),
    "name is hidden": (top(name=".x"), "name"),
    "name and newline": (top(name="x\n"), "name"),
    "name has a space": (top(name="a b"), "name"),
    "batch of none": (top(max_batch_size=0), "max_batch_size"),
    "batch no int32": (top(max_batch_size=2**31), "max_batch_size"),
    "batch a float": (top(max_batch_size=8.0), "max_batch_size"),
    "batch a bool": (top(max_batch_size=True), "max_batch_size"),
    "model is a path": (module(0, model="a/b"), "modules/0/model"),
    "unknown use": (module(0, uses="shell:rm"), "modules/0/uses"),
    "use is a path": (module(0, uses="backend:../x"), "modules/0/uses"),
    "instances no int32": (module(0, instance_group_count=2**40), "instance_group_count"),
    "file is a path": (module(0, files={"../../x": "m"}), "modules/0/files"),
    "file is absolute": (module(0, files={"/etc/x": "m"}), "modules/0/files"),
    "file in a folder": (module(0, files={"jarvis_runtime/x.txt": "m"}), "modules/0/files"),
    "file is code": (module(0, files={"numpy.py": "m"}), "modules/0/files"),
    "file is compiled": (module(0, files={"numpy.pyc": "m"}), "modules/0/files"),
    "file is a library": (module(0, files={"numpy.abi3.so": "m"}), "modules/0/files"),
    "parameter is a list": (module(0, parameters={"x": [1]}), "modules/0/parameters/x"),
    "dims too large": (
        module(0, inputs=[{"name": "x", "dtype": "FP32", "dims": [2**63]}]), "inputs/0/dims"
    ),
    "unknown dtype": (
        module(0, inputs=[{"name": "x", "dtype": "FP8", "dims": [1]}]), "inputs/0/dtype"
    ),
    "edge of three": (top(edges=[["a.b", "c.d", "e.f"]]), "edges/0"),
    "option of no origin": (
        top(options=[{"name": "x", "value": 1, "origin": "magic"}]), "options/0/origin"
    ),
}  # fmt: skip


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_violations_are_named(data, violation):
    change, text = VIOLATIONS[violation]
    document = json.loads(data)
    change(document)
    with pytest.raises(IntegrityError) as caught:
        load_pipeline(json.dumps(document).encode(), "x.jmir!pipeline.json")
    assert caught.value.slug == "schema.invalid"
    assert caught.value.where == "x.jmir!pipeline.json"
    assert text in caught.value.message


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (module(1, name="feature_extractor"), "the module `feature_extractor`"),
        (module(1, name="pipeline"), "the module `pipeline`"),
        (module(1, model="control"), "the Triton model `control`"),
    ],
)
def test_no_name_is_given_twice(data, change, text):
    document = json.loads(data)
    change(document)
    with pytest.raises(IntegrityError, match=text) as caught:
        load_pipeline(json.dumps(document).encode(), "x")
    assert caught.value.slug == "jmir.duplicate-name"


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a": NaN}', b'{"a": "\\ud800"}', b"9" * 5000],
)
def test_what_is_no_json_is_refused(text):
    with pytest.raises(IntegrityError, match="not JSON") as caught:
        load_pipeline(text, "x")
    assert caught.value.slug == "jmir.pipeline-json"


def test_nesting_that_nothing_can_show_is_refused(data):
    nested = "[" * 900 + "]" * 900
    text = data.decode().replace('"parameters": {', f'"parameters": {{"x": {nested},', 1)
    with pytest.raises(IntegrityError):
        load_pipeline(text.encode(), "x")


def test_a_document_too_large_is_refused_unread():
    with pytest.raises(IntegrityError, match="at most"):
        load_pipeline(bytes(MAX_PIPELINE_SIZE + 1), "x")


@pytest.mark.parametrize("change", [{"name": "other"}, {"kind": "qa"}])
def test_the_manifest_must_name_the_same_pipeline(data, tmp_path, change):
    """Who deploys goes by the manifest, what is served by the document."""
    metadata = {"name": "control", "kind": "speech_recognition", **change}
    member = Member(PIPELINE_MEMBER, "pipeline", "", data=data)
    write_archive(tmp_path / "x.jmir", "jmir", metadata, [member])
    with open_archive(tmp_path / "x.jmir") as archive:
        with pytest.raises(IntegrityError, match="the manifest says") as caught:
            read_pipeline(archive)
        assert caught.value.slug == "jmir.manifest-mismatch"


def test_a_pipeline_of_ours_that_breaks_the_schema_is_not_written(data):
    import dataclasses

    pipeline = dataclasses.replace(load_pipeline(data, "x"), max_batch_size=0)
    with pytest.raises(IntegrityError, match="max_batch_size"):
        dump_pipeline(pipeline)
