"""speech_recognition: what it makes of a model's facts and of options."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path

import pytest

from jarvis_rules.errors import IntegrityError, UsageError
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.jmir import PIPELINE_NODE, dump_pipeline, load_pipeline
from jarvis_rules.pipelines.pipeline import ModelSource
from jarvis_rules.pipelines.speech_recognition import PIPELINE
from jarvis_rules.rules.rules import build_pipeline
from jarvis_rules.triton.repository import carried_modules


@pytest.fixture(scope="session")
def golden(ejrvs):
    with open_archive(ejrvs) as archive:
        return ModelSource(
            family="conv_asr",
            obj_cls="x",
            content_digest="0" * 64,
            facts=archive.manifest.metadata["facts"],
            members=tuple(archive.manifest.files),
        )


@pytest.fixture
def compose(golden):
    def compose(name="asr", facts=None, **options):
        model = golden if facts is None else dataclasses.replace(golden, facts=facts)
        given = PIPELINE.parse_options({key.replace("__", "."): v for key, v in options.items()})
        return PIPELINE.compose(name, {"acoustic_model": model}, PIPELINE.values(given))

    return compose


def test_the_document_follows_the_schema(compose):
    pipeline = compose().pipeline
    assert load_pipeline(dump_pipeline(pipeline), "x") == pipeline


def test_every_input_has_one_source_of_its_type(compose):
    pipeline = compose().pipeline
    modules = pipeline.modules
    sources = {f"{m.name}.{t.name}": t for m in modules for t in m.outputs}
    sources |= {f"{PIPELINE_NODE}.{t.name}": t for t in pipeline.inputs}
    targets = {f"{m.name}.{t.name}": t for m in modules for t in m.inputs}
    targets |= {f"{PIPELINE_NODE}.{t.name}": t for t in pipeline.outputs}
    assert sorted(target for _, target in pipeline.edges) == sorted(targets)
    for source, target in pipeline.edges:
        assert sources[source].dtype == targets[target].dtype
        assert sources[source].dims == targets[target].dims


def test_it_uses_what_it_declares(compose):
    """The backends are part of the key of the repository: one left out would never be rebuilt."""
    composition = compose()
    modules = composition.pipeline.modules
    assert {m.backend for m in modules if m.backend} == set(PIPELINE.backends)
    assert {m.engine for m in modules if m.engine} == set(PIPELINE.engines)
    graphs = {f"{engine}/model_graph.onnx" for engine in PIPELINE.engines}
    named = {member for m in modules for member in m.files.values()} | graphs
    assert set(composition.members) == named
    assert all(carried_modules(backend) for backend in PIPELINE.backends)


def test_members_exist_in_the_archive(compose, golden):
    for source in compose().members.values():
        assert isinstance(source, bytes) or source.member in golden.members


def test_model_names(compose):
    pipeline = compose("jarvis-asr").pipeline
    assert (pipeline.name, *(m.model for m in pipeline.modules)) == PIPELINE.model_names(
        "jarvis-asr"
    )
    assert PIPELINE.model_names("jarvis-asr") == (
        "jarvis-asr",
        "jarvis-asr-feature-extractor-streaming-offline",
        "jarvis-asr-am-streaming-offline",
        "jarvis-asr-ctc-decoder-cpu-streaming-offline",
    )


@pytest.mark.parametrize("name", ["../x", "a b", ""])
def test_a_bad_name_is_the_user_s_error(compose, name):
    with pytest.raises(UsageError, match="cannot be named"):
        compose(name)


def test_the_vocabulary_survives_any_label(compose, golden):
    labels = [" ", "'", '"', "\\", "ä", "\u2028", "\n", "a b"]
    composition = compose(facts={**golden.facts, "labels": labels})
    text = composition.members["ctc_decoder/jarvis_decoder_vocabulary.txt"].decode()
    assert [json.loads(line) for line in text.split("\n")[:-1]] == labels


def batches(composition):
    return [module.max_batch_size for module in composition.pipeline.modules]


def test_batch_sizes(compose):
    assert batches(compose()) == [8, 8, 8]
    assert batches(compose(max_batch_size=2)) == [2, 2, 2]
    larger = compose(max_batch_size=2, nn__max_batch_size=16)
    assert batches(larger) == [2, 16, 2]
    assert larger.pipeline.max_batch_size == 2
    origins = {o.name: o.origin for o in larger.pipeline.options if o.name.endswith("batch_size")}
    assert origins == {
        "max_batch_size": "given",
        "nn.max_batch_size": "given",
        "featurizer.max_batch_size": "derived",
        "greedy_decoder.max_batch_size": "derived",
    }


def test_a_component_s_batch_below_the_pipeline_s_is_refused(compose):
    with pytest.raises(UsageError, match="4 of acoustic_model is below the pipeline's 8"):
        compose(nn__max_batch_size=4)


def test_options_reach_the_modules(compose):
    pipeline = compose(
        instance_group_count=3, greedy_decoder__asr_model_delay=2, language_code="de-DE"
    ).pipeline
    assert {m.instance_group_count for m in pipeline.modules} == {3}
    assert pipeline.modules[2].parameters["asr_model_delay"] == 2
    assert pipeline.language_code == pipeline.parameters["language_code"] == "de-DE"


def test_the_model_s_time_step_may_not_be_contradicted(compose):
    assert compose(ms_per_timestep=20).pipeline.modules[2].parameters["ms_per_timestep"] == 20.0
    with pytest.raises(UsageError, match="contradicts the model"):
        compose(ms_per_timestep=80)


@pytest.mark.parametrize("options", [{"offline": False}, {"streaming": True}])
def test_streaming_is_refused(compose, options):
    with pytest.raises(UsageError, match="not available yet") as caught:
        compose(**options)
    assert caught.value.slug == "option.planned"


def test_old_options_are_accepted_and_marked(compose):
    pipeline = compose(chunk_size="1.6", padding_factor=2, streaming="false").pipeline
    marked = {o.name: o.value for o in pipeline.options if o.origin == "no-effect"}
    assert marked == {"chunk_size": 1.6, "padding_factor": 2.0, "streaming": False}


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (
            lambda f: f.clear(),
            "sample_rate, ms_per_timestep, blank_id, tokenization, labels, features",
        ),
        (lambda f: f.pop("labels"), "labels"),
        (lambda f: f.update(labels=[1]), "labels"),
        (lambda f: f.update(sample_rate="16000"), "sample_rate"),
        (lambda f: f.update(features=[]), "features"),
        (lambda f: f["features"].pop("preemph"), r"features\.preemph"),
    ],
)
def test_facts_that_serving_needs_must_be_there(compose, golden, damage, named):
    facts = copy.deepcopy(dict(golden.facts))
    damage(facts)
    with pytest.raises(IntegrityError, match=f"misstate: {named}$") as caught:
        compose(facts=facts)
    assert caught.value.slug == "ejrvs.facts"


def test_a_model_of_another_family_is_refused(executor, ejrvs, tmp_path):

    from jarvis_rules.formats.archive_writing import Member, write_archive

    with open_archive(ejrvs) as archive:
        metadata = {**archive.manifest.metadata, "family": "fastpitch"}
        members = [Member(n, "graph", "", data=archive.read(n)) for n in archive.manifest.files]
    other = tmp_path / "tts.ejrvs"
    write_archive(other, "ejrvs", metadata, members)
    spec = build_pipeline(
        "speech_recognition", "asr", {"acoustic_model": other}, {}, Path("x.jmir")
    )[1].spec
    with pytest.raises(UsageError, match="family `fastpitch` does not fit") as caught:
        executor.run(spec)
    assert (caught.value.slug, caught.value.where) == ("pipeline.wrong-family", str(other))


@pytest.mark.parametrize("models", [{}, {"other": Path("x")}])
def test_the_wrong_models_are_refused(models):
    with pytest.raises(UsageError, match="takes 1 models"):
        build_pipeline("speech_recognition", "asr", models, {}, Path("x.jmir"))


@pytest.mark.parametrize(
    ("tokenization", "labels", "expected", "separator"),
    [
        ("character", [" ", "a"], [" ", "a"], " "),
        ("sentencepiece", ["\u2581the", "re"], ["\u2581the", "re"], "\u2581"),
        ("wordpiece", ["the", "##re", "[UNK]"], ["\u2581the", "re", "\u2581[UNK]"], "\u2581"),
    ],
)
def test_labels_say_where_words_begin(compose, golden, tokenization, labels, expected, separator):
    facts = {**golden.facts, "tokenization": tokenization, "labels": labels}
    composition = compose(facts=facts)
    written = composition.members["ctc_decoder/jarvis_decoder_vocabulary.txt"]
    assert [json.loads(line) for line in written.decode().splitlines()] == expected
    decoder = composition.pipeline.modules[2]
    assert decoder.parameters["word_separator"] == separator


@pytest.mark.parametrize("tokenization", [None, "agg"])
def test_labels_of_an_unknown_kind_are_refused(compose, golden, tokenization):
    with pytest.raises(IntegrityError, match="tokenization"):
        compose(facts={**golden.facts, "tokenization": tokenization})
