"""The five BERT families against what NeMo 1.23 recorded: results, graphs, bytes and facts."""

import hashlib
import io
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import JarvisError
from jarvis_rules.exporters import _activations
from jarvis_rules.exporters.exporter import export_model
from jarvis_rules.onnx_graph.graph import Graph

from . import exporter_testing
from .exporter_testing import GRAPH, dump, recorded
from .language_testing import (
    FOLDER,
    INPUTS,
    LARGE,
    VARIANTS,
    load,
    runner,
    with_encoder,
    with_garbage,
)

TOLERANCE = 1e-4


# ---- results


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_ragged_batch_equals_nemo(name):
    """Behind the lengths too: what a hidden token attends to is as well defined as the rest."""
    r = recorded(name)
    found = runner(name)(r)
    for key, value in found.items():
        assert value.shape == r[key].shape
        assert np.abs(value - r[key]).max() <= TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_every_item_equals_nemo_alone(name):
    r = recorded(name)
    run = runner(name)
    assert run.outputs == r["output_names"].tolist()
    for i, n in enumerate(r["attention_mask"].sum(axis=1)):
        alone = run({key: r[key][i : i + 1, :n] for key in INPUTS})
        for key, value in alone.items():
            assert np.abs(value[0] - r[f"{key}_{i}"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_lengths_from_zero_up_equal_nemo(name):
    """A row that hides all its tokens gives what it gives in NeMo, and numbers."""
    r = recorded(name)
    edge = {key: r[f"edge_{key}"] for key in INPUTS}
    assert edge["attention_mask"].sum(axis=1).tolist() == list(range(7))
    for key, value in runner(name)(edge).items():
        assert np.isfinite(value).all()
        assert np.abs(value - r[f"edge_{key}"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_an_item_does_not_depend_on_its_batch(name):
    """Nor on what is hidden, bit for bit; in other shapes onnxruntime may add in another order."""
    r = recorded(name)
    run = runner(name)
    together = run(r)
    noisy = with_garbage(name, r)
    beside = run(noisy)
    for i, n in enumerate(r["attention_mask"].sum(axis=1)):
        alone = run({key: noisy[key][i : i + 1] for key in INPUTS})
        short = run({key: r[key][i : i + 1, :n] for key in INPUTS})
        for key, value in together.items():
            valid = value[i, :n] if value.ndim == 3 else value[i]
            cut = slice(None, len(valid))
            assert beside[key][i][cut].tobytes() == valid.tobytes()
            assert np.abs(alone[key][0][cut] - valid).max() <= 1e-6
            assert np.abs(short[key][0] - valid).max() <= 1e-5


@pytest.mark.parametrize("name", ["qa", f"{FOLDER}/text_distilbert"])
def test_inputs_beyond_the_position_table_fail(name):
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

    longest = export_model(load(name)).facts["max_position_embeddings"]
    run = runner(name)
    for time in (1, longest):
        feed = {key: np.ones((2, time), np.int64) for key in INPUTS}
        assert all(np.isfinite(value).all() for value in run(feed).values())
    with pytest.raises((Fail, InvalidArgument)):
        run({key: np.ones((1, longest + 1), np.int64) for key in INPUTS})


@pytest.mark.parametrize("kind", ["encoder", "head"])
def test_activations_equal_those_of_transformers_and_torch(kind):
    """Each name alone, from -10000 to 10000; the rest of transformers' names is refused."""
    import onnxruntime

    r = recorded(f"{FOLDER}/activations")
    table = getattr(_activations, f"{kind.upper()}_ACTIVATIONS")
    for name, activation in table.items():
        graph = Graph(name)
        graph.output(activation(graph, graph.input("x", "float32", ("n",))), "y")
        file = io.BytesIO()
        graph.write(file)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        (y,) = session.run(["y"], {"x": r["x"]})
        np.testing.assert_allclose(y, r[f"{kind}.{name}"], rtol=2e-6, atol=2e-6)
    assert {f"{kind}.{name}" for name in table} <= set(r)


def test_every_other_activation_of_transformers_is_refused():
    names = [k.removeprefix("encoder.") for k in recorded(f"{FOLDER}/activations") if "enc" in k]
    others = set(names) - set(_activations.ENCODER_ACTIVATIONS)
    assert len(others) >= 5
    for name in others:
        with pytest.raises(JarvisError, match=f"hidden_act: '{name}'"):
            export_model(with_encoder(load("qa"), hidden_act=name))


# ---- graphs


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_graph_is_clean(name):
    model = onnx.load_from_string(dump(export_model(load(name)))[GRAPH])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) >= len(model.graph.node) - 2
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    assert not any(node.domain for node in model.graph.node)
    assert {node.op_type for node in model.graph.node} <= {
        *("Add", "Cast", "Celu", "Erf", "Gather", "LayerNormalization", "LogSoftmax", "MatMul"),
        *("Mul", "Range", "Relu", "Reshape", "Selu", "Shape", "Sigmoid", "Softmax", "Squeeze"),
        *("Tanh", "Transpose", "Unsqueeze", "Where"),
    }


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_weights_are_written_once(name):
    model = load(name)
    graph = onnx.load_from_string(dump(export_model(model))[GRAPH]).graph
    written = sum(math.prod(i.dims) for i in graph.initializer if i.data_type == 1)
    unused = ("pooler", "loss.weight")
    if name.endswith("distilbert"):
        unused += ("token_type",)
    held = sum(w.size for k, w in model.weights.items() if not any(u in k for u in unused))
    assert held - 2000 <= written <= held + 20


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_norms_and_log_probabilities_stay_in_full_precision(name):
    graph = export_model(load(name)).graphs[GRAPH]
    marked = [n.name for n in graph.nodes if n.op in ("LayerNormalization", "LogSoftmax")]
    assert len(marked) >= 3
    assert list(graph.full_precision_nodes) == marked


# ---- bytes

GOLDEN = {
    "qa": "52e52d421eef53be3d8466a43de035eb4bbf7c5a3e1d4373f588e18318b26926",
    "token_classification": "445cda5f81f6a33f90792fa7b3dde9522b59340a70da732e075fbbe52bd609c0",
    "text_classification": "114aa5b11274f8fa1443dcef21793bbe6e27f35810dbe9a1febb8d488a890d6c",
    "intent_slot": "ac564efc6d88707dc9bedc766b0e8cfaf25f9c65e431afb1a898cf241865bc3b",
    "punctuation": "e822943e7395247b20b5309ca9c8aaf5a2df3028a399087acc6b91b005013198",
}


@pytest.mark.parametrize("name", LARGE)
def test_golden_digest(name):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    assert hashlib.sha256(dump(export_model(load(name)))[GRAPH]).hexdigest() == GOLDEN[name]


def test_bytes_depend_on_neither_process_nor_folder(tmp_path):
    root = Path(exporter_testing.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONHASHSEED": "77"}
    folder = tmp_path / "out"
    folder.mkdir()
    program = [sys.executable, exporter_testing.__file__, "intent_slot", str(folder)]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = dump(export_model(load("intent_slot")))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected


@pytest.mark.parametrize("name", LARGE)
def test_order_of_weights_and_keys_does_not_matter(name):
    model = load(name)
    expected = dump(export_model(model))
    weights = dict(reversed(model.weights.items()))
    config = dict(reversed(model.config.items()))
    assert dump(export_model(replace(model, weights=weights, config=config))) == expected


# ---- facts and assets

TOKENIZER = {
    "kind": "wordpiece",
    "vocab": "vocab.txt",
    "lowercase": True,
    "strip_accents": True,
    "pad_id": 0,
    "unk_id": 2000,
    "cls_id": 2001,
    "sep_id": 2002,
}
FACTS = {
    "qa": {
        "task": "question_answering",
        "max_seq_length": 64,
        "max_query_length": 16,
        "doc_stride": 32,
        "max_answer_length": 8,
        "n_best_size": 20,
        "version_2_with_negative": True,
        "null_score_diff_threshold": 0.0,
        "do_lower_case": True,
    },
    "token_classification": {
        "task": "token_classification",
        "labels": ["O", "B-LOC", "B-ORG", "B-PER", "I-LOC"],
        "pad_label": "O",
        "max_seq_length": 64,
    },
    "text_classification": {
        "task": "text_classification",
        "labels": ["negative", "neutral", "positive"],
        "max_seq_length": 64,
    },
    "intent_slot": {
        "task": "intent_slot",
        "intent_labels": ["light.on", "light.off", "weather.query", "music.play"],
        "slot_labels": [
            "O",
            *(f"{p}-{x}" for x in ("room", "device", "city", "date", "song") for p in "BI"),
        ],
        "max_seq_length": 50,
    },
    "punctuation": {
        "task": "punctuation",
        "punct_labels": ["O", ",", ".", "?"],
        "capit_labels": ["O", "U"],
        "pad_label": "O",
    },
}


@pytest.mark.parametrize("name", LARGE)
def test_facts(name):
    facts = dict(export_model(load(name)).facts)
    run = runner(name)
    for side, values in (
        ("inputs", run.session.get_inputs()),
        ("outputs", run.session.get_outputs()),
    ):
        dtypes = {"tensor(int64)": "int64", "tensor(float)": "float32"}
        found = [{"name": v.name, "dtype": dtypes[v.type], "shape": v.shape} for v in values]
        assert facts.pop(side) == found
    assert run.inputs == list(INPUTS)
    shared = {
        "encoder": "bert",
        "max_position_embeddings": 512,
        "vocabulary_size": 2218,
        "token_types": 2,
        "tokenizer": TOKENIZER,
    }
    assert facts == FACTS[name] | shared


def test_distilbert_has_no_token_types():
    """As in NeMo's own export, which drops the input that nothing reads."""
    facts = export_model(load(f"{FOLDER}/token_distilbert")).facts
    assert facts["encoder"] == "distilbert"
    assert [i["name"] for i in facts["inputs"]] == ["input_ids", "attention_mask"]


def test_facts_of_variants():
    facts = {name: export_model(load(f"{FOLDER}/{name}")).facts for name in (
        "token_tanh", "text_one_layer", "text_distilbert", "intent_weighted", "punct_legacy",
        "qa_later_class_cased",
    )}  # fmt: skip
    assert facts["token_tanh"]["labels"] == ["O", "B-PER", "B-LOC"]
    assert facts["token_tanh"]["max_seq_length"] is None
    assert facts["text_one_layer"]["labels"] == ["0", "1", "2", "3"]
    assert facts["text_distilbert"]["labels"] == ["very good", "bad", "neutral"]
    assert facts["intent_weighted"]["max_seq_length"] == 12
    assert facts["punct_legacy"]["punct_labels"] == ["O", ",", ".", "?"]
    assert facts["qa_later_class_cased"]["null_score_diff_threshold"] == -1.5
    assert not facts["qa_later_class_cased"]["tokenizer"]["lowercase"]
    assert not facts["qa_later_class_cased"]["tokenizer"]["strip_accents"]


@pytest.mark.parametrize("name", LARGE)
def test_assets_are_the_files_of_the_archive(name):
    model = load(name)
    assets = export_model(model).assets
    expected = {"vocab.txt": model.artifact(model.config["tokenizer"]["vocab_file"])}
    for reference in model.config.get("class_labels", {}).values():
        # NeMo ends its files without a line feed; the labels of texts are a file of the user.
        expected[reference.partition("_")[2]] = model.artifact(reference).rstrip(b"\n")
    assert assets == expected


@pytest.mark.parametrize(
    ("name", "lowercase"),
    [
        ("bert-base-uncased", True),
        ("bert-large-cased", False),
        ("bert-base-multilingual-cased", False),
        ("bert-base-chinese", False),
        ("bert-base-german-dbmdz-uncased", True),
        ("TurkuNLP/bert-base-finnish-cased-v1", False),
        ("bert-large-uncased-whole-word-masking-finetuned-squad", True),
        ("/data/uncased/distilbert-base-cased", False),
    ],
)
def test_letter_case_follows_the_name(name, lowercase):
    """As `do_lower_case` of transformers 4.36 does for the names that it lists."""
    model = load("qa")
    model.config["tokenizer"]["tokenizer_name"] = name
    assert export_model(model).facts["tokenizer"]["lowercase"] is lowercase
