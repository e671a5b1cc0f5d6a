"""Conformers against what NeMo 1.23 recorded, and everything that is refused."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import (
    _conformer_config,
    _ctc_decoder,
    _ctc_model,
    _ctc_tokenizer,
    _mel_features,
)
from jarvis_rules.exporters.conformer_ctc import export_conformer_ctc
from jarvis_rules.exporters.exporter import export_model

from . import exporter_testing
from .exporter_testing import (
    GRAPH,
    Runner,
    alone_logprobs,
    dump,
    largest,
    recorded,
    source,
    variants,
    with_garbage,
)

FAMILY = "conformer_ctc"
VARIANTS = variants(FAMILY)
ALL = ("conformer", *VARIANTS)
SMALL = f"variants/{FAMILY}/streaming"
# In NeMo the subsampling, or a norm over time, lets padding into the items of these.
LEAKING = (
    "causal_unlimited_left",
    "conformer",
    "conv1d_causal_group_norm",
    "dw_conv1d_instance_norm",
    "fast_conformer",
    "reduction_last",
    "reduction_striding",
    "stacking_norm",
    "streaming",
    "striding8_tied",
    "vggnet_abs_pos",
    "wordpiece",
)
TOLERANCE = 1e-4
LAYER = "encoder.layers.0"


# ---- results


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prefix", ["", "edge_"])
def test_the_leak_of_nemo_can_be_reproduced(name, prefix):
    """Every frame of every item of NeMo's batch, those of the padding too."""
    r = recorded(name)
    if f"{prefix}features" not in r:
        assert name == "conformer"
        return
    run = Runner(export_conformer_ctc(source(name), batch_invariant=False))
    logprobs, length = run(r[f"{prefix}features"], r[f"{prefix}features_length"])
    assert length.tolist() == r[f"{prefix}encoded_length"].tolist()
    assert largest(logprobs, r[f"{prefix}logprobs"]) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "prefix"), [("conformer", ""), *((v, p) for v in VARIANTS for p in ("", "edge_"))]
)
def test_every_item_equals_nemo_alone_logprobs(name, prefix):
    """In its batch, and cut to its length: of 18 to 61 frames, and of every length from 0 to 9."""
    features, frames, expected = alone_logprobs(name, prefix)
    assert len(expected) >= (5 if prefix else 3)
    run = Runner(export_model(source(name)))
    together, lengths = run(features, frames)
    assert np.isfinite(together).all()
    for i, logprobs in expected.items():
        n = lengths[i]
        assert largest(together[i, :n], logprobs) <= TOLERANCE
        cut, length = run(features[i : i + 1, :, : frames[i]], frames[i : i + 1])
        assert length.tolist() == [n]
        assert largest(cut[0, :n], logprobs) <= TOLERANCE


@pytest.mark.parametrize("name", ALL)
def test_the_longest_item_equals_nemo_in_the_batch(name):
    """Where it fills the batch, as all items of `logprobs_full_length` do."""
    r = recorded(name)
    run = Runner(export_model(source(name)))
    longest = int(np.argmax(r["features_length"]))
    full = int(r["features_length"][longest])
    logprobs, length = run(r["features"][longest : longest + 1, :, :full], [full])
    _, _, expected = alone_logprobs(name)
    assert largest(logprobs[0, : length[0]], expected[longest]) <= TOLERANCE
    if "logprobs_full_length" in r:
        logprobs, _ = run(r["features"], np.full(3, r["features"].shape[2]))
        assert largest(logprobs, r["logprobs_full_length"]) <= TOLERANCE


@pytest.mark.parametrize("name", ALL)
def test_where_nemo_leaks(name):
    """NeMo's own result changes with the batch exactly where the masks are needed."""
    r = recorded(name)
    _, _, expected = alone_logprobs(name)
    kept = [min(n, len(expected[i])) for i, n in enumerate(r["encoded_length"])]
    leak = max(largest(r["logprobs"][i, :n], expected[i][:n]) for i, n in enumerate(kept))
    assert (leak > 0.01) == (name.rpartition("/")[2] in LEAKING)
    assert leak > 0.01 or leak < 1e-5


@pytest.mark.parametrize("name", ALL)
def test_an_item_does_not_depend_on_its_batch(name):
    """Bit for bit at one padded length; at another one onnxruntime adds in another order."""
    r = recorded(name)
    run = Runner(export_model(source(name)))
    features, frames = r["features"], r["features_length"]
    together, lengths = run(features, frames)
    for garbage in (1e3, -1e30, np.inf, np.nan):
        noisy, _ = run(with_garbage(features, frames, garbage), frames)
        for i, n in enumerate(lengths):
            assert noisy[i, :n].tobytes() == together[i, :n].tobytes()
    for i, n in enumerate(lengths):
        single, _ = run(features[i : i + 1], frames[i : i + 1])
        assert single[0, :n].tobytes() == together[i, :n].tobytes()
        cut, _ = run(features[i : i + 1, :, : frames[i]], frames[i : i + 1])
        assert largest(cut[0, :n], together[i, :n]) <= 1e-5


@pytest.mark.parametrize("name", ["conformer", SMALL])
def test_an_empty_item_harms_no_other(name):
    r = recorded(name)
    run = Runner(export_model(source(name)))
    plain, _ = run(r["features"], r["features_length"])
    logprobs, length = run(r["features"], [0, *r["features_length"][1:]])
    assert np.isfinite(logprobs).all()
    for i, n in enumerate(length[1:], 1):
        assert logprobs[i, :n].tobytes() == plain[i, :n].tobytes()


def test_no_input_is_too_long():
    """5203 frames are beyond NeMo's table of 5000 and beyond half precision's integers."""
    r = recorded(f"variants/{FAMILY}/long")
    run = Runner(export_model(source(f"variants/{FAMILY}/long")))
    logprobs, length = run(r["long_features"], [r["long_features"].shape[2]])
    assert length.tolist() == r["long_encoded_length"].tolist() == [2602]
    assert largest(logprobs, r["long_logprobs"]) <= TOLERANCE


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 97)])
@pytest.mark.parametrize("name", ALL)
def test_other_sizes_than_the_recorded_ones(name, size):
    batch, frames = size
    if "pooling" in name and frames == 1:
        frames = 3  # of one frame, pooling leaves none, in NeMo too
    model = export_model(source(name))
    features = np.ones((batch, model.facts["features"]["features"], frames), np.float32)
    logprobs, length = Runner(model)(features, np.full(batch, frames))
    assert logprobs.shape[0] == batch
    assert 0 <= logprobs.shape[1] - length[0] <= 1
    assert np.isfinite(logprobs).all()
    np.testing.assert_allclose(np.exp(logprobs).sum(2), 1, atol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_graph_is_clean(name):
    model = onnx.load_from_string(dump(export_model(source(name)))[GRAPH])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) >= len(model.graph.node) - 2
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]
    assert not any(n.domain for n in model.graph.node)
    assert all(n.name for n in model.graph.node)
    operators = {n.op_type for n in model.graph.node}
    assert not {"BatchNormalization", "NonZero", "Loop", "If", "Scan"} & operators
    # Where nothing is shortened, the lengths of the input are those of the output.
    assert ("Identity" in operators) == name.endswith("no_subsampling")


def test_every_weight_is_stored_once():
    """Large weights go to the graph as they are; only small ones are folded."""
    model = source("conformer")
    graph = onnx.load_from_string(dump(export_model(model))[GRAPH]).graph
    matrices = [i for i in graph.initializer if len(i.dims) >= 2 and np.prod(i.dims) > 1000]
    stored = sorted(sorted(onnx.numpy_helper.to_array(i).ravel().tolist()) for i in matrices)
    needed = [
        sorted(np.asarray(a).ravel().tolist())
        for name, a in model.weights.items()
        if a.size > 1000 and not name.startswith("preprocessor") and "depthwise" not in name
    ]
    assert sorted(needed) == stored


# ---- half precision


def test_what_stays_in_full_precision():
    """Positions and angles, sums over time, the log-softmax, and nothing else."""

    def marked(name):
        graph = export_model(source(name)).graphs[GRAPH]
        kinds = {node.name: node.op for node in graph.nodes}
        return [kinds[node] for node in graph.full_precision_nodes]

    table = ["Cast", "Unsqueeze", "Mul", "Sin", "Unsqueeze", "Cos", "Unsqueeze"]
    table += ["Concat", "Reshape"]
    assert marked("conformer") == [*table, "LogSoftmax"]
    assert marked(f"variants/{FAMILY}/vggnet_abs_pos") == [*table, "LogSoftmax"]
    # Two frame rates have two tables.
    assert marked(f"variants/{FAMILY}/reduction_pooling") == [*table, *table, "LogSoftmax"]
    grouped = marked(f"variants/{FAMILY}/conv1d_causal_group_norm")
    assert grouped.count("ReduceSum") == 5  # of one mask, and two for each of two layers
    assert grouped.count("Sqrt") == 2


# ---- bytes

GOLDEN = {
    "conformer": "cc47deef3a913e4b80ec5904d1aeb257cf6b2af4542964ca5b0377057fa79944",
    "streaming": "a34b4c80b995c63e350a22e6018605eab152ce64e9b6197749dc8f39cfebd0ef",
    "vggnet_abs_pos": "4a70e67e82c08ec9820ac2168ec02ad184a20a69c2e823e25832024abf9a3b0a",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digest(name):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    path = name if name == "conformer" else f"variants/{FAMILY}/{name}"
    assert hashlib.sha256(dump(export_model(source(path)))[GRAPH]).hexdigest() == GOLDEN[name]


def cpu_features():
    """Return the features that numpy dispatches on and this CPU has."""
    try:
        from numpy._core import _multiarray_umath as core
    except ImportError:
        from numpy.core import _multiarray_umath as core
    return [f for f in core.__cpu_dispatch__ if core.__cpu_features__.get(f)]


def test_bytes_depend_on_neither_process_nor_cpu_nor_folder(tmp_path):
    root = Path(exporter_testing.__file__).parents[3]
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        "PYTHONHASHSEED": "77",
        "NPY_DISABLE_CPU_FEATURES": " ".join(cpu_features()),
    }
    folder = tmp_path / "out"
    folder.mkdir()
    program = [sys.executable, exporter_testing.__file__, "conformer", str(folder)]
    done = subprocess.run(program, cwd=tmp_path, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = dump(export_model(source("conformer")))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected


def test_order_of_weights_and_keys_does_not_matter():
    model = source("conformer")
    expected = dump(export_model(model))
    turned = {k: model.weights[k] for k in reversed(list(model.weights))}
    config = json.loads(json.dumps(model.config, sort_keys=True))
    assert dump(export_model(replace(model, weights=turned, config=config))) == expected


def test_the_source_is_left_as_it_was():
    model = source("conformer")
    config = copy.deepcopy(model.config)
    weights = {k: v.copy() for k, v in model.weights.items()}
    dump(export_model(model))
    assert model.config == config
    assert all(np.array_equal(model.weights[k], v) for k, v in weights.items())


# ---- facts and assets


def test_facts_of_the_conformer():
    source_model = source("conformer")
    model = export_model(source_model)
    facts = dict(model.facts)
    features = facts.pop("features")
    assert model.family == FAMILY
    assert facts == {
        "task": "ctc",
        "tokenization": "sentencepiece",
        "tokenizer_files": ["tokenizer.model", "tokenizer.vocab", "vocab.txt"],
        "labels": source_model.config["decoder"]["vocabulary"],
        "blank_id": 64,
        "sample_rate": 16000,
        "stride": 4,
        "ms_per_timestep": 40.0,
        "inputs": [
            {"name": "audio_signal", "dtype": "float32", "shape": ["batch", 80, "time"]},
            {"name": "length", "dtype": "int64", "shape": ["batch"]},
        ],
        "outputs": [
            {"name": "logprobs", "dtype": "float32", "shape": ["batch", "time_out", 65]},
            {"name": "encoded_length", "dtype": "int64", "shape": ["batch"]},
        ],
    }
    assert (features["n_window_size"], features["n_fft"], features["pad_to"]) == (400, 512, 0)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@pytest.mark.parametrize(
    ("name", "stride", "milliseconds"),
    [
        ("striding8_tied", 8, 80.0),
        ("vggnet_abs_pos", 4, 40.0),
        ("conv1d_causal_group_norm", 4, 40.0),
        ("stacking_norm", 3, 30.0),
        ("no_subsampling", 1, 10.0),
        ("reduction_pooling", 4, 40.0),
        ("reduction_striding", 8, 80.0),
    ],
)
def test_strides(name, stride, milliseconds):
    facts = export_model(source(f"variants/{FAMILY}/{name}")).facts
    assert (facts["stride"], facts["ms_per_timestep"]) == (stride, milliseconds)
    assert facts["tokenization"] == "character"
    assert facts["tokenizer_files"] == []
    assert facts["labels"] == [" ", "a", "b", "c", "d", "e", "'"]


def test_tokenizer_files_travel_under_stable_names():
    model = source("conformer")
    assets = export_model(model).assets
    tables = {"featurizer_window.npy", "featurizer_fb.npy"}
    assert set(assets) == tables | {"tokenizer.model", "tokenizer.vocab", "vocab.txt"}
    for name, key in (
        ("tokenizer.model", "model_path"),
        ("tokenizer.vocab", "spe_tokenizer_vocab"),
        ("vocab.txt", "vocab_path"),
    ):
        assert assets[name] == model.artifact(model.config["tokenizer"][key])
    words = export_model(source(f"variants/{FAMILY}/wordpiece"))
    assert words.facts["tokenization"] == "wordpiece"
    assert words.facts["tokenizer_files"] == ["vocab.txt"]
    assert words.assets["vocab.txt"].decode().split() == words.facts["labels"]


# ---- configuration: (place, value); the last part of the place is the key that must be named

REFUSED = [
    ("encoder._target_", "nemo.collections.asr.modules.ConvASREncoder"),
    ("encoder._target_", "nemo.collections.asr.modules.conformer_encoder.ConformerEncoderAdapter"),
    ("encoder.feat_in", "80"),
    ("encoder.feat_in", None),
    ("encoder.feat_out", None),
    ("encoder.n_layers", 0),
    ("encoder.n_layers", 2.0),
    ("encoder.d_model", 33),
    ("encoder.d_model", 0),
    ("encoder.d_model", 2**40),
    ("encoder.n_heads", 5),
    ("encoder.n_heads", True),
    ("encoder.subsampling", "dw-striding"),
    ("encoder.subsampling", True),
    ("encoder.subsampling_factor", 0),
    ("encoder.subsampling_factor", 6),
    ("encoder.subsampling_factor", 3),
    ("encoder.subsampling_conv_channels", 0),
    ("encoder.causal_downsampling", "causal"),
    ("encoder.reduction", "max"),
    ("encoder.reduction_factor", 0),
    ("encoder.reduction_position", 2),
    ("encoder.reduction_position", -2),
    ("encoder.ff_expansion_factor", 0),
    ("encoder.ff_expansion_factor", 1.5),
    ("encoder.self_attention_model", "rope"),
    ("encoder.self_attention_model", None),
    ("encoder.att_context_size", [1]),
    ("encoder.att_context_size", [1, 2, 3]),
    ("encoder.att_context_size", [-2, 1]),
    ("encoder.att_context_size", [1.5, 1]),
    ("encoder.att_context_size", [[1]]),
    ("encoder.att_context_size", [[]]),
    ("encoder.att_context_size", "full"),
    ("encoder.att_context_style", "chunked"),
    ("encoder.xscaling", None),
    ("encoder.conv_kernel_size", 30),
    ("encoder.conv_norm_type", "group_norm"),
    ("encoder.conv_norm_type", "group_norm<N>"),
    ("encoder.conv_norm_type", "group_norm3"),
    ("encoder.conv_norm_type", "group_norm0"),
    ("encoder.conv_norm_type", "group_norm" + 100 * "1"),
    ("encoder.conv_norm_type", "rms_norm"),
    ("encoder.conv_norm_type", None),
    ("encoder.conv_context_size", "Causal"),
    ("encoder.conv_context_size", [15, 14]),
    ("encoder.conv_context_size", [31, -1]),
    ("encoder.global_tokens", 1),
    ("encoder.use_bias", False),
    ("encoder.conv_dual_mode", True),
    ("encoder.adapter", {"one": {}}),
    ("encoder.time_reduce_idx", 3),
    ("encoder", None),
    ("decoder._target_", "nemo.collections.asr.modules.LSTMDecoder"),
    ("decoder.add_blank", False),
    ("decoder.temperature", 2.0),
    ("decoder.vocabulary", None),
    ("decoder", []),
    ("preprocessor._target_", "nemo.collections.asr.modules.AudioToMFCCPreprocessor"),
    ("preprocessor", None),
    ("tokenizer.type", "agg"),
    ("tokenizer.type", None),
    ("tokenizer.model_path", None),
    ("tokenizer.vocab_path", 1),
    ("tokenizer.spe_tokenizer_vocab", ["x"]),
    ("tokenizer.special_tokens", {"bos": "<s>"}),
    ("tokenizer.hf_kwargs", {"mask_token": "[M]"}),
    ("tokenizer.langs", {"en": {}}),
    ("tokenizer", None),
    ("adapters", {"a": {"_target_": "nemo.x.LinearAdapter"}}),
    ("aux_ctc", {"decoder": {"_target_": "nemo.x.Y"}}),
]
# Keys that only matter together: (place, others that are set, value).
REFUSED_TOGETHER = [
    ("reduction_position", {"reduction": "pooling", "reduction_factor": 2}, None),
    ("reduction_factor", {"reduction": "striding", "reduction_position": 0}, 6),
    ("reduction_factor", {"reduction": "pooling", "reduction_position": 0}, 4),
    (
        "reduction_position",
        {"reduction": "striding", "reduction_factor": 2, "feat_out": 16},
        -1,
    ),
    ("att_context_size", {"att_context_style": "chunked_limited"}, [5, 2]),
    ("att_context_size", {"self_attention_model": "rel_pos_local_attn"}, [3, 2]),
    ("att_context_size", {"self_attention_model": "rel_pos_local_attn"}, [-1, -1]),
    ("att_context_size", {"self_attention_model": "rel_pos_local_attn"}, [[3, 3]]),
    ("att_context_size", {"self_attention_model": "rel_pos_local_attn"}, None),
]


def mutate(config, place, value):
    *parents, last = place.split(".")
    for part in parents:
        config = config[part]
    config[last] = value


@pytest.mark.parametrize(("place", "value"), REFUSED, ids=lambda v: str(v)[:50])
def test_refused_by_name(place, value):
    model = source("conformer")
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_conformer_ctc(model)
    assert error.value.slug == "export.unsupported-config"
    assert error.value.exit_code == 1
    assert f"`{place}: " in error.value.message
    assert "understood is " in error.value.message
    assert len(error.value.message) < 600
    assert error.value.hint


@pytest.mark.parametrize(("key", "others", "value"), REFUSED_TOGETHER, ids=str)
def test_refused_together(key, others, value):
    model = source("conformer")
    model.config["encoder"].update(others)
    mutate(model.config, f"encoder.{key}", value)
    with pytest.raises(JarvisError) as error:
        export_conformer_ctc(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`encoder.{key}: " in error.value.message


SECTIONS = {
    "preprocessor": _mel_features.KEYS,
    "encoder": _conformer_config.KEYS,
    "decoder": _ctc_decoder.KEYS,
    "tokenizer": _ctc_tokenizer.KEYS,
}
KEYS = [(section, key) for section, keys in SECTIONS.items() for key in keys]


@pytest.mark.parametrize(
    ("section", "key"), [k for k in KEYS if k[1].treatment != "ignored"], ids=str
)
def test_no_key_that_matters_is_read_carelessly(section, key):
    model = source("conformer")
    mutate(model.config, f"{section}.{key.name}", {"nonsense": 1})
    with pytest.raises(JarvisError) as error:
        export_conformer_ctc(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{section}.{key.name}: " in error.value.message


@pytest.mark.parametrize(("section", "key"), [k for k in KEYS if k[1].treatment != "used"], ids=str)
def test_ignored_keys_and_neutral_values_change_nothing(section, key):
    expected = dump(export_model(source("conformer")))
    assert key.reason
    for value in key.values or ("anything", None, 7):
        model = source("conformer")
        mutate(model.config, f"{section}.{key.name}", value)
        assert dump(export_model(model)) == expected


def test_keys_of_training_and_of_the_project_are_ignored():
    model = source("conformer")
    for key in _ctc_model.KEYS:
        if key.treatment == "ignored":
            model.config[key.name] = {"_target_": "nemo.anything"}
    model.config.update(use_cer=True, model_defaults={"d_model": 9}, log_prediction=True)
    del model.config["sample_rate"]
    assert dump(export_model(model)) == dump(export_model(source("conformer")))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sample_rate", 8000),
        ("encoder.feat_in", 64),
        ("encoder.feat_out", 16),
        ("encoder.d_model", 64),
        ("preprocessor.features", 64),
        ("decoder.num_classes", 63),
        ("decoder.feat_in", 64),
        ("decoder.vocabulary", ["a", "b"]),
    ],
)
def test_contradictions_are_refused(place, value):
    model = source("conformer")
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"
    assert error.value.exit_code == 1


@pytest.mark.parametrize("name", ["conformer", f"variants/{FAMILY}/wordpiece"])
def test_labels_must_be_those_of_the_tokenizer(name):
    model = source(name)
    labels = model.config["decoder"]["vocabulary"]
    labels[3], labels[4] = labels[4], labels[3]
    with pytest.raises(JarvisError, match=r"`decoder.vocabulary\[3\]: .* piece 3 of `") as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"


@pytest.mark.parametrize("data", [b"", b"\xff" * 99, b"\x0a\x7f", b"\x0a\x02\x08\x01", b"\x00"])
def test_a_broken_tokenizer_has_no_pieces(data):
    model = source("conformer")
    with pytest.raises(JarvisError, match=r"'64 labels'.*`tokenizer.model`"):
        export_model(replace(model, artifact=lambda _: data))


def test_a_missing_tokenizer_is_named():
    model = source("conformer")
    model.config["tokenizer"]["model_path"] = "nemo:0123_other.model"
    with pytest.raises(IntegrityError, match=r"0123_other\.model"):
        export_model(model)


def test_older_checkpoints_may_lack_the_scores_of_the_pieces():
    model = source("conformer")
    del model.config["tokenizer"]["spe_tokenizer_vocab"]
    assert "tokenizer.vocab" not in export_model(model).assets


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("encoder._target_", "nemo.collections.asr.modules.conformer_encoder.ConformerEncoder"),
        ("encoder.feat_out", 32),
        ("encoder.feat_out", 0),
        ("encoder.subsampling_conv_channels", 32),
        ("encoder.att_context_size", None),
        ("encoder.att_context_size", []),
        ("encoder.att_context_size", [[-1, -1], [5, 5]]),
        ("encoder.att_context_style", "chunked_limited"),  # without limits
        ("encoder.conv_context_size", [15, 15]),
        ("encoder.conv_context_size", None),
        ("encoder.reduction", None),
        ("encoder.reduction", "pooling"),  # by a factor of 1
        ("encoder.reduction_position", 1),
        ("decoder.num_classes", -1),
        ("decoder.feat_in", None),
        ("tokenizer.type", "BPE"),
        ("tokenizer.dir", None),
    ],
    ids=str,
)
def test_other_ways_to_say_the_same(place, value):
    model = source("conformer")
    mutate(model.config, place, value)
    assert dump(export_model(model)) == dump(export_model(source("conformer")))


def test_defaults_are_those_of_nemo():
    """The configuration of a NeMo 1.0 Conformer says much less."""
    model = source("conformer")
    encoder = model.config["encoder"]
    for key in (
        *("feat_out", "subsampling", "subsampling_factor", "subsampling_conv_channels"),
        *("ff_expansion_factor", "self_attention_model", "n_heads", "att_context_size"),
        *("xscaling", "untie_biases", "pos_emb_max_len", "conv_kernel_size", "conv_norm_type"),
    ):
        del encoder[key]
    assert dump(export_model(model)) == dump(export_model(source("conformer")))


@pytest.mark.parametrize("factor", [0.5, 1, "2"])
def test_factors_of_subsampling_are_whole_numbers_above_none(factor):
    model = source(f"variants/{FAMILY}/no_subsampling")
    model.config["encoder"]["subsampling"] = "striding"
    model.config["encoder"]["subsampling_factor"] = factor
    if factor == 1:
        expected = dump(export_model(source(f"variants/{FAMILY}/no_subsampling")))
        assert dump(export_model(model)) == expected
        return
    with pytest.raises(JarvisError, match=r"encoder\.subsampling_factor"):
        export_model(model)


# ---- weights


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "key", "value", "weight"),
    [
        ("conformer", "n_layers", 10**9, "encoder.layers.2.norm_feed_forward1.weight"),
        ("conformer", "subsampling_factor", 2**30, "encoder.pre_encode.conv.4.weight"),
        ("stacking_norm", "subsampling_factor", 2**31 - 1, "encoder.pre_encode.proj_out.weight"),
        ("streaming", "n_layers", 3, "encoder.layers.2.norm_feed_forward1.weight"),
        ("no_subsampling", "d_model", 2**31 - 2, "encoder.pre_encode.weight"),
    ],
)
def test_sizes_without_weights_end_at_the_first_missing_one(name, key, value, weight):
    model = source(name if name == "conformer" else f"variants/{FAMILY}/{name}")
    model.config["encoder"][key] = value
    model.config["decoder"]["feat_in"] = None
    with pytest.raises(IntegrityError, match=f"`{weight}`"):
        export_model(model)


@pytest.mark.parametrize("name", ALL)
def test_every_missing_weight_is_named(name):
    full = source(name)
    needed = [w for w in full.weights if not w.endswith("num_batches_tracked")]
    # Layers are written alike, so one of them tells for all.
    for weight in (w for w in needed if not w.startswith("encoder.layers.1.")):
        weights = {k: v for k, v in full.weights.items() if k != weight}
        with pytest.raises(IntegrityError) as error:
            export_model(replace(full, weights=weights))
        assert error.value.slug == "export.missing-weight"
        assert error.value.exit_code == 3
        assert f"`{weight}`" in error.value.message


def test_every_wrong_shape_is_named():
    full = source(SMALL)
    for weight, array in full.weights.items():
        if not array.ndim:
            continue
        larger = {weight: np.concatenate([array, array[:1]])}
        with pytest.raises(IntegrityError) as error:
            export_model(replace(full, weights={**full.weights, **larger}))
        assert error.value.slug == "export.wrong-shape"
        assert f"`{weight}` must be {list(array.shape)} " in error.value.message


def test_counters_of_training_are_not_needed():
    model = source("conformer")
    kept = {k: v for k, v in model.weights.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(model.weights)
    assert dump(export_model(replace(model, weights=kept))) == dump(export_model(model))


def test_unused_weights_are_named():
    model = source("conformer")
    model.weights[f"{LAYER}.adapter_layer.one.module.0.weight"] = np.zeros(3)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"
    assert f"`{LAYER}.adapter_layer.one.module.0.weight`" in error.value.message


@pytest.mark.parametrize(
    ("weight", "value", "named"),
    [
        ("encoder.pre_encode.out.weight", np.nan, "encoder.pre_encode.out.weight"),
        (f"{LAYER}.self_attn.linear_q.bias", np.inf, f"{LAYER}.self_attn.linear_q.bias"),
        (f"{LAYER}.self_attn.pos_bias_u", np.nan, f"{LAYER}.self_attn.pos_bias_u"),
        (f"{LAYER}.conv.depthwise_conv.weight", np.nan, f"{LAYER}.conv.depthwise_conv"),
        (f"{LAYER}.conv.batch_norm.running_var", -1.0, f"{LAYER}.conv.batch_norm"),
        ("decoder.decoder_layers.0.bias", -np.inf, "decoder.decoder_layers.0.bias"),
        ("preprocessor.featurizer.fb", np.nan, "preprocessor.featurizer.fb"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(weight, value, named):
    model = source("conformer")
    model.weights[weight] = model.weights[weight].copy()
    model.weights[weight].flat[0] = value
    with pytest.raises(IntegrityError) as error:
        export_model(model)
    assert error.value.slug == "export.invalid-weight"
    assert f"`{named}`" in error.value.message


def test_biases_whose_sum_is_too_large_are_refused():
    model = source("conformer")
    for weight in ("linear_q.bias", "pos_bias_v"):
        array = np.full_like(model.weights[f"{LAYER}.self_attn.{weight}"], 3.4e38)
        model.weights[f"{LAYER}.self_attn.{weight}"] = array
    model.config["encoder"]["n_heads"] = 32
    for layer in (0, 1):
        for weight in ("pos_bias_u", "pos_bias_v"):
            name = f"encoder.layers.{layer}.self_attn.{weight}"
            model.weights[name] = model.weights[name].reshape(32, 1)
    with pytest.raises(IntegrityError, match=rf"biases of `{LAYER}\.self_attn`"):
        export_model(model)


def test_integer_weights_are_refused():
    model = source("conformer")
    weight = "encoder.pre_encode.out.weight"
    model.weights[weight] = model.weights[weight].astype(np.int64)
    with pytest.raises(IntegrityError, match=f"`{weight}` must be floating point, but is int64"):
        export_model(model)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_precision_are_rounded_once(dtype):
    model = source("conformer")
    cast = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in model.weights.items()}
    features, frames, expected = alone_logprobs("conformer")
    exported = export_model(replace(model, weights=cast))
    logprobs, lengths = Runner(exported)(features, frames)
    limit = TOLERANCE if dtype is np.float64 else 1.0
    for i, n in enumerate(lengths):
        assert largest(logprobs[i, :n], expected[i]) <= limit
    graph = onnx.load_from_string(dump(exported)[GRAPH])
    assert {i.data_type for i in graph.graph.initializer} == {1, 7}
