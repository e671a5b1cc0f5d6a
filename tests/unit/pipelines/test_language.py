"""The five pipelines for text: what they make of a model's facts and of options."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest

from jarvis_rules.errors import IntegrityError, UsageError
from jarvis_rules.exporters.exporter import SourceModel, export_model
from jarvis_rules.formats.jmir import dump_pipeline, load_pipeline
from jarvis_rules.formats.nemo import open_nemo
from jarvis_rules.pipelines.pipeline import ModelSource, find_pipeline
from jarvis_rules.triton.repository import EngineFile, carried_modules, compose_repository

EXAMPLES = Path(__file__).parents[3] / "examples"
KINDS = ("text_classification", "token_classification", "intent_slot", "punctuation", "qa")
WITH_ROW_LENGTH = KINDS[:3]


@pytest.fixture(scope="session")
def sources():
    """Return what a pipeline is told of each example's model."""
    found = {}
    for kind in KINDS:
        with open_nemo(EXAMPLES / kind / f"{kind}.nemo") as archive:
            model = export_model(
                SourceModel(archive.target, archive.config, archive.state_dict(), archive.artifact)
            )
        members = ("model_config.yaml", *model.graphs, *model.assets)
        found[kind] = ModelSource(model.family, archive.target, "0" * 64, model.facts, members)
    return found


@pytest.fixture
def compose(sources):
    def compose(kind, facts=None, name="jarvis_x", **options):
        pipeline = find_pipeline(kind)
        source = sources[kind]
        model = source if facts is None else dataclasses.replace(source, facts=facts)
        given = pipeline.parse_options({key.replace("__", "."): v for key, v in options.items()})
        return pipeline.compose(name, {"language_model": model}, pipeline.values(given))

    return compose


def processor(composition):
    return composition.pipeline.modules[0]


@pytest.mark.parametrize("kind", KINDS)
def test_the_document_follows_the_schema(compose, kind):
    pipeline = compose(kind).pipeline
    assert load_pipeline(dump_pipeline(pipeline), "x") == pipeline
    assert pipeline.parameters["kind"] == pipeline.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_it_uses_what_it_declares(compose, sources, kind):
    declared, composition = find_pipeline(kind), compose(kind)
    modules = composition.pipeline.modules
    assert {m.backend for m in modules if m.backend} == set(declared.backends)
    assert {m.engine for m in modules if m.engine} == set(declared.engines)
    graphs = {f"{engine}/model_graph.onnx" for engine in declared.engines}
    named = {member for m in modules for member in m.files.values()} | graphs
    assert set(composition.members) == named
    assert {source.member for source in composition.members.values()} <= set(sources[kind].members)
    assert "wordpiece" in carried_modules(declared.backends[0])
    assert tuple(m.model for m in modules) == declared.model_names("jarvis_x")[1:]
    assert declared.slots[0].families == (sources[kind].family,)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ensemble_runs_the_processor_which_calls_the_engine(compose, kind):
    pipeline = compose(kind, name="p").pipeline
    _, engine = pipeline.modules
    tensors = {
        side: [
            {"name": t.name, "dtype": t.dtype, "dims": [-1, *t.dims]} for t in getattr(engine, side)
        ]
        for side in ("inputs", "outputs")
    }
    description = {"file": "model.onnx", "backend": "onnxruntime", **tensors}
    built = {"language_model": EngineFile("onnx", description, Path("x"))}
    data = compose_repository(pipeline, built).data
    called = 'key: "calls"\n  value {\n    string_value: "jarvis-onnx-p-nn"\n'
    assert called in data["p-processor/config.pbtxt"].decode()
    ensemble = data["p/config.pbtxt"].decode()
    assert ensemble.count("step {") == 1
    assert 'model_name: "p-processor"' in ensemble


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_the_engine_are_the_graph_s(compose, sources, kind):
    _, engine = compose(kind).pipeline.modules
    names = [tensor["name"] for tensor in sources[kind].facts["inputs"]]
    assert [tensor.name for tensor in engine.inputs] == names
    parameters = processor(compose(kind)).parameters
    assert parameters["engine_inputs"] == ",".join(names)
    assert parameters["engine_outputs"] == ",".join(tensor.name for tensor in engine.outputs)


def test_defaults_come_from_the_model(compose):
    values = {
        kind: {o.name: (o.value, o.origin) for o in compose(kind).pipeline.options}
        for kind in KINDS
    }
    assert values["qa"]["doc_stride"] == (32, "derived")
    assert values["qa"]["max_answer_length"] == (8, "derived")
    assert values["qa"]["version_2_with_negative"] == (True, "derived")
    assert values["punctuation"]["max_seq_length"] == (64, "derived")
    assert values["punctuation"]["step"] == (8, "default")
    assert values["text_classification"]["max_seq_length"] == (512, "derived")
    for kind in KINDS:
        assert values[kind]["tokenizer.to_lower"] == (True, "derived")
        assert values[kind]["nn.max_batch_size"] == (32, "default")
    assert processor(compose("token_classification")).parameters["outside_label"] == "O"


def test_options_reach_the_processor(compose):
    given = compose("qa", doc_stride=9, null_score_diff_threshold=-1.5, n_best_size=3)
    parameters = processor(given).parameters
    assert (parameters["doc_stride"], parameters["n_best_size"]) == (9, 3)
    assert parameters["null_score_diff_threshold"] == -1.5
    marked = {o.name: o.origin for o in given.pipeline.options if o.origin == "given"}
    assert set(marked) == {"doc_stride", "null_score_diff_threshold", "n_best_size"}
    windows = processor(compose("punctuation", step=3, margin=2, max_seq_length=10)).parameters
    assert (windows["step"], windows["margin"], windows["max_seq_length"]) == (3, 2, 10)
    named = compose("intent_slot", domain_name="home", language_code="de-DE").pipeline
    assert named.parameters["domain_name"] == "home"
    assert named.language_code == named.parameters["language_code"] == "de-DE"
    assert "domain_name" not in compose("intent_slot").pipeline.parameters


@pytest.mark.parametrize("kind", KINDS)
def test_batch_sizes(compose, kind):
    changed = compose(kind, max_batch_size=4, nn__max_batch_size=2, instance_group_count=3)
    assert [module.max_batch_size for module in changed.pipeline.modules] == [4, 2]
    assert {module.instance_group_count for module in changed.pipeline.modules} == {3}
    assert processor(changed).parameters["engine_max_batch_size"] == 2
    with pytest.raises(UsageError, match="4 of processor is below the pipeline's 8") as caught:
        compose(kind, processor__max_batch_size=4)
    assert caught.value.slug == "option.batch-size"


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_may_not_be_contradicted(compose, kind):
    assert compose(kind, tokenizer__to_lower=True)
    with pytest.raises(UsageError, match="contradicts the model"):
        compose(kind, tokenizer__to_lower=False)
    with pytest.raises(UsageError, match="10000 tokens, and the model knows") as caught:
        compose(kind, max_seq_length=10_000)
    assert caught.value.slug == "option.contradicts-model"


def test_margins_must_leave_something_of_a_window(compose):
    with pytest.raises(UsageError, match="margins of 16 tokens leave nothing of a window of 34"):
        compose("punctuation", max_seq_length=34)


def test_windows_fit_a_model_with_few_positions(compose, sources):
    facts = {**sources["punctuation"].facts, "max_position_embeddings": 48}
    assert processor(compose("punctuation", facts)).parameters["max_seq_length"] == 48


@pytest.mark.parametrize("kind", KINDS)
def test_old_options_are_accepted_and_marked(compose, kind):
    options = {"tokenizer__max_batch_size": 4, "postprocessor__max_batch_size": 4}
    pipeline = compose(kind, **options).pipeline
    marked = {o.name for o in pipeline.options if o.origin == "no-effect"}
    assert marked == {"tokenizer.max_batch_size", "postprocessor.max_batch_size"}


DAMAGES = [
    (lambda f: f.clear(), "max_position_embeddings"),
    (lambda f: f.pop("tokenizer"), "tokenizer"),
    (lambda f: f["tokenizer"].update(kind="bpe"), "tokenizer"),
    (lambda f: f["tokenizer"].pop("lowercase"), r"tokenizer\.lowercase"),
    (lambda f: f.update(inputs=[]), "inputs"),
    (lambda f: f["inputs"][0].update(dtype="string"), "inputs"),
    (lambda f: f.update(outputs=[]), "outputs"),
    (lambda f: f.update(max_position_embeddings="512"), "max_position_embeddings"),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("damage", "named"), DAMAGES, ids=[name for _, name in DAMAGES])
def test_facts_that_serving_needs_must_be_there(compose, sources, kind, damage, named):
    facts = copy.deepcopy(dict(sources[kind].facts))
    damage(facts)
    with pytest.raises(IntegrityError, match=named) as caught:
        compose(kind, facts)
    assert caught.value.slug == "ejrvs.facts"


# What the processors need beside the shared facts.
NEEDED = {
    "text_classification": ["labels"],
    "token_classification": ["labels", "pad_label"],
    "intent_slot": ["intent_labels", "slot_labels"],
    "punctuation": ["punct_labels", "capit_labels", "pad_label"],
    "qa": [
        "max_seq_length", "max_query_length", "doc_stride", "max_answer_length", "n_best_size",
        "version_2_with_negative", "null_score_diff_threshold", "do_lower_case",
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_fact_may_be_missing(compose, sources, kind):
    for name in NEEDED[kind]:
        facts = {key: value for key, value in sources[kind].facts.items() if key != name}
        with pytest.raises(IntegrityError, match=f"misstate: {name}$"):
            compose(kind, facts)


def test_a_threshold_may_be_any_number(compose):
    assert compose("qa", null_score_diff_threshold=3).pipeline
    with pytest.raises(UsageError, match="expected a number"):
        compose("qa", null_score_diff_threshold=math.inf)


def test_log_probabilities_are_an_output_too(compose, sources):
    facts = copy.deepcopy(dict(sources["qa"].facts))
    facts["outputs"][0]["name"] = "log_probs"
    assert processor(compose("qa", facts)).parameters["engine_outputs"] == "log_probs"
