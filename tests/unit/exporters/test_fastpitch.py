"""FastPitch against what NeMo 1.23 recorded, and everything that is refused."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import _tts_tokenizer, fastpitch
from jarvis_rules.exporters.exporter import export_model
from jarvis_rules.exporters.fastpitch import export_fastpitch

from .exporter_testing import MODELS, dump, recorded, source, variants
from .fastpitch_testing import (
    GRAPHS,
    OUTPUTS,
    RUNS,
    Runner,
    alone,
    cut,
    inputs_of,
    item,
    with_alone,
    with_garbage,
)

VARIANTS = variants("fastpitch")
LARGE = ("fastpitch", "fastpitch_char")
EVERY = (*LARGE, *VARIANTS)
SPEAKERS, CONDITIONS, ENERGY, LABELS = (
    f"variants/fastpitch/{name}" for name in ("speakers", "conditions", "energy", "labels")
)
TOLERANCE = 1e-4  # measured: 1.3e-6 on spectra, 5e-6 on logarithms, 1.2e-4 on 75 frames
BANNED = {"NonZero", "Loop", "If", "Scan", "DFT", "Range", "Identity", "BatchNormalization"}


def assert_close(found, expected, limit=TOLERANCE):
    """Compare one item; what it has beyond the expected frames or tokens is padding."""
    for key in OUTPUTS:
        want = expected[key]
        got = found[key][..., : want.shape[-1]] if want.ndim else found[key]
        assert got.shape == want.shape, key
        assert np.abs(got - want).max(initial=0) <= limit * max(1, np.abs(want).max(initial=0)), key


# ---- results


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", EVERY)
def test_the_leak_of_nemo_can_be_reproduced(name, run):
    """The recorded ragged batch, padding included."""
    r = recorded(name)
    found = Runner(export_fastpitch(source(name), batch_invariant=False))(inputs_of(r, run))
    assert_close(found, {key: r[f"{key}{run}"] for key in OUTPUTS})
    assert found["num_frames"].tolist() == r[f"num_frames{run}"].tolist()


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", EVERY)
def test_every_item_equals_nemo_alone(name, run):
    r = with_alone(name)
    graph = Runner(export_model(source(name)))
    together = graph(inputs_of(r, run))
    for i, n in enumerate(r["text_length"]):
        expected = alone(r, i, run)
        assert_close(item(together, i), expected)
        assert together["num_frames"][i] == expected["num_frames"]
        assert_close(item(graph(inputs_of(r, run, slice(i, i + 1), n)), 0), expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_tiny_texts_equal_nemo(name):
    r = recorded(name)
    graph = Runner(export_model(source(name)))
    for i, n in enumerate(r["edge_text_length"]):
        found = graph(inputs_of(r, "_shifted", slice(i, i + 1), n, "edge_"))
        assert_close(item(found, 0), alone(r, i, "_shifted", "edge_"))
        assert found["spect"].shape[0] == 1


@pytest.mark.parametrize("name", EVERY)
def test_the_longest_text_equals_the_recorded_batch(name):
    """It has no padding: NeMo's leak cannot reach its durations."""
    r = recorded(name)
    found = Runner(export_model(source(name)))(inputs_of(r, ""))
    i = int(r["text_length"].argmax())
    for key in ("durs_predicted", "log_durs_predicted", "pitch_predicted"):
        np.testing.assert_allclose(found[key][i], r[key][i], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", EVERY)
def test_an_item_does_not_depend_on_its_batch(name):
    """Bit for bit at one padded size; at another onnxruntime adds in another order."""
    r = with_alone(name)
    graph = Runner(export_model(source(name)))
    inputs = inputs_of(r, "_shifted")
    together = graph(inputs)
    frames = together["spect"].shape[2]
    garbage = graph(with_garbage(inputs, r["text_length"]))
    pad = inputs["text"][r["text_length"].argmin(), -1]
    longer = {
        key: np.pad(value, ((0, 0), (0, 7)), constant_values=pad if key == "text" else 1)
        if value.ndim == 2
        else value
        for key, value in inputs.items()
    }
    padded = graph(longer, frames + 50)
    for i, n in enumerate(r["text_length"]):
        expected = cut(item(together, i), n)
        single = graph(inputs_of(r, "_shifted", slice(i, i + 1)), frames)
        for key, value in expected.items():
            assert cut(item(garbage, i), n)[key].tobytes() == value.tobytes()
            assert cut(item(single, 0), n)[key].tobytes() == value.tobytes()
            np.testing.assert_allclose(cut(item(padded, i), n)[key], value, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", ["fastpitch", CONDITIONS, ENERGY, LABELS])
def test_a_text_of_padding_only_is_finite_and_harms_no_other(name):
    r = recorded(name)
    graph = Runner(export_model(source(name)))
    inputs = inputs_of(r, "")
    plain = graph(inputs)
    i = int(r["text_length"].argmin())
    inputs["text"] = inputs["text"].copy()
    inputs["text"][i] = inputs["text"][i, -1]
    found = graph(inputs, plain["spect"].shape[2])
    assert found["num_frames"][i] == 0
    assert all(np.isfinite(value).all() for value in found.values())
    for k, n in enumerate(r["text_length"]):
        for key, value in cut(item(plain, k), n).items():
            assert k == i or cut(item(found, k), n)[key].tobytes() == value.tobytes()


def test_pace_and_speaker_matter():
    r = recorded(SPEAKERS)
    graph = Runner(export_model(source(SPEAKERS)))
    inputs = inputs_of(r, "")
    slow = graph(inputs | {"pace": inputs["pace"] * 0.5})
    assert (slow["num_frames"] > graph(inputs)["num_frames"]).all()
    other = graph(inputs | {"speaker": (inputs["speaker"] + 1) % 5})
    assert np.abs(other["log_durs_predicted"] - slow["log_durs_predicted"]).max() > 0.01


# ---- graphs


@pytest.mark.parametrize("name", EVERY)
def test_graphs_are_clean(name):
    files = dump(export_model(source(name)))
    seen = set()
    for graph in GRAPHS:
        model = onnx.load_from_string(files[graph])
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
        outputs = {output.name for output in model.graph.output}
        known = {value.name for value in inferred.graph.value_info} | outputs
        assert {output for node in model.graph.node for output in node.output} <= known
        assert not any(node.domain for node in model.graph.node)
        used = {node.op_type for node in model.graph.node}
        # The encoder counts its tokens: that size is known from the input.
        assert used & BANNED <= ({"Range"} if graph == "encoder.onnx" else set())
        names = [node.name for node in model.graph.node]
        assert all(names)
        assert len(set(names)) == len(names)
        large = {i.raw_data for i in model.graph.initializer if len(i.raw_data) > 128}
        assert not large & seen  # no weight is in both
        seen |= large


def test_what_must_stay_in_full_precision():
    """Positions, and durations with all that they are computed from; of the decoder no layer."""
    model = export_model(source("fastpitch"))
    ops = {
        name: [node.op for node in graph.nodes if node.name in graph.full_precision_nodes]
        for name, graph in model.graphs.items()
    }
    encoder, decoder = ops["encoder.onnx"], ops["decoder.onnx"]
    assert {"Sin", "Cos", "Exp", "Clip", "Floor", "Div", "ReduceSum"} <= set(encoder)
    for op in ("Gather", "MatMul", "Softmax", "LayerNormalization"):
        every = [n.op for n in model.graphs["encoder.onnx"].nodes if n.op == op]
        lost = 2 if op == "LayerNormalization" else 0  # those of the pitch predictor
        assert encoder.count(op) == len(every) - lost > 0
    assert {"Sin", "Cos", "ReduceSum", "Less"} <= set(decoder)
    assert not {"Softmax", "MatMul"} & set(decoder)
    # Two in each layer; of two predictors the one that gives durations, of two layers and a last.
    assert encoder.count("Conv") == 2 * 2 + 3


# ---- bytes

GOLDEN = {
    (
        "fastpitch",
        "encoder.onnx",
    ): "53b69a3419803f389d5b8602987ef2aa0482648b60a4122e13b2c1618accadd2",
    (
        "fastpitch",
        "decoder.onnx",
    ): "b2ef39b22b18a53ddb2138d804338ea3e1648eb6889befa29c66e4e2c94de68a",
    (
        CONDITIONS,
        "encoder.onnx",
    ): "ddda59f3b1779109061dfa324351f715fb78e491e783a0a6af7576d7cfdf00a5",
    (
        CONDITIONS,
        "decoder.onnx",
    ): "3d195c5d95389d5b645ae6cea4d89f8972edb610000ba53ea58ff30ba20beb3b",
}


@pytest.mark.parametrize(("name", "graph"), GOLDEN)
def test_golden_digest(name, graph):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    digest = hashlib.sha256(dump(export_model(source(name)))[graph]).hexdigest()
    assert digest == GOLDEN[name, graph]


def test_order_of_weights_and_keys_does_not_matter():
    model = source(CONDITIONS)
    turned = {k: model.weights[k] for k in reversed(list(model.weights))}
    config = json.loads(json.dumps(model.config, sort_keys=True))
    expected = dump(export_model(model))
    assert dump(export_model(replace(model, weights=turned, config=config))) == expected


# ---- facts


def test_facts_of_fastpitch():
    model = export_model(source("fastpitch"))
    facts = dict(model.facts)
    known = json.loads((MODELS / "fastpitch.json").read_text(encoding="utf-8"))
    tokenizer = facts.pop("tokenizer")
    assert tokenizer["tokens"] == known["tokens"]
    assert (tokenizer["pad_id"], tokenizer["oov_id"]) == (known["pad"], known["oov"])
    assert tokenizer["kind"] == "english_phonemes"
    assert facts.pop("features")["features"] == 80
    assert facts.pop("graphs") == {
        "encoder.onnx": {
            "inputs": described(
                "text int64 batch tokens", "pitch float32 batch tokens", "pace float32 batch tokens"
            ),
            "outputs": described(
                "num_frames int64 batch",
                "durs_predicted float32 batch tokens",
                "log_durs_predicted float32 batch tokens",
                "pitch_predicted float32 batch tokens",
                "encoded float32 batch tokens 32",
                "token_frames int64 batch tokens",
            ),
        },
        "decoder.onnx": {
            "inputs": described(
                "encoded float32 batch tokens 32",
                "token_frames int64 batch tokens",
                "frame_index int64 frames",
            ),
            "outputs": described("spect float32 batch 80 frames"),
        },
    }
    assert facts == {
        "task": "text_to_spectrogram",
        "sample_rate": 22050,
        "hop_length": 256,
        "speakers": 1,
        "pitch": {"mean": 212.36, "std": 68.53, "fmin": 65.4, "fmax": 2093.0},
        "min_token_duration": 0,
        "max_token_duration": 75,
    }
    json.dumps(model.facts, allow_nan=False)


@pytest.mark.parametrize("name", LARGE)
def test_ids_equal_those_of_the_tokenizer(name):
    known = json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8"))
    facts = export_model(source(name)).facts["tokenizer"]
    assert facts["tokens"] == known["tokens"]
    assert (facts["pad_id"], facts["oov_id"]) == (known["pad"], known["oov"])
    assert facts["pad_with_space"] is True


def described(*values):
    """Return descriptions from `name dtype size size`."""
    parts = [value.split() for value in values]
    return [
        {"name": name, "dtype": dtype, "shape": [int(n) if n.isdigit() else n for n in shape]}
        for name, dtype, *shape in parts
    ]


def test_speakers_are_inputs_where_they_are_heard():
    facts = export_model(source(SPEAKERS)).facts
    assert (facts["speakers"], facts["min_token_duration"]) == (5, 1)
    graphs = facts["graphs"]
    assert described("speaker int64 batch")[0] in graphs["encoder.onnx"]["inputs"]
    embedding = described("speaker_embedding float32 batch 8")[0]
    assert embedding in graphs["encoder.onnx"]["outputs"]
    assert embedding in graphs["decoder.onnx"]["inputs"]
    graphs = export_model(source("variants/fastpitch/speaker_in_encoder_only")).facts["graphs"]
    assert embedding not in graphs["encoder.onnx"]["outputs"]


def test_dictionaries_are_assets():
    model = source("fastpitch")
    assets = export_model(model).assets
    g2p = model.config["text_tokenizer"]["g2p"]
    named = export_model(model).facts["tokenizer"]["g2p"]
    for key in ("phoneme_dict", "heteronyms"):
        assert assets[named[key]] == model.artifact(g2p[key])
    assert export_model(source("fastpitch_char")).assets == {}


TOKENIZERS = json.loads((MODELS / "variants/fastpitch/tokenizers.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("i", range(len(TOKENIZERS)))
def test_tokens_equal_those_of_nemo(i):
    known = TOKENIZERS[i]
    config = dict(known["config"])
    if "g2p" in config:
        config["g2p"] = config["g2p"] | {"phoneme_dict": "d"}
    facts, _ = _tts_tokenizer.read_tts_tokenizer(section(config), lambda _: b"")
    assert facts["tokens"] == known["tokens"]
    for key in ("pad", "oov", "blank"):
        assert facts[f"{key}_id"] == known[key]


def section(values, where="text_tokenizer"):
    from jarvis_rules.exporters._config import Section

    return Section(where, values)


def test_a_dictionary_has_a_largest_size(monkeypatch):
    monkeypatch.setattr(_tts_tokenizer, "_LARGEST_FILE", 100)
    with pytest.raises(JarvisError, match=r"text_tokenizer\.g2p\.phoneme_dict: .* at most 100"):
        export_model(source("fastpitch"))


def test_labels_are_facts():
    facts = export_model(source(LABELS)).facts["tokenizer"]
    assert facts == {
        "kind": "fastpitch_labels",
        "tokens": [" ", "!", "'", "a", "b", "c", "d", "e", "f", "g"],
        "pad_id": 0,
    }


VOCABS = [
    # The example of NeMo 1.4; `None` is a text in YAML, so there is a blank.
    (
        {"notation": "phonemes", "punct": True, "spaces": True, "stresses": True}
        | {"add_blank_at": "None", "pad_with_space": True, "chars": True}
        | {"improved_version_g2p": True},
        112,
        115,
        {"pad_id": 112, "blank_id": 113, "oov_id": 114},
    ),
    ({"notation": "phonemes"}, 56, 59, {"pad_id": 56, "blank_id": 57, "oov_id": 58}),
    (
        {"notation": "chars", "punct": False, "add_blank_at": "last"},
        28,
        31,
        {"pad_id": 28, "oov_id": 29, "blank_id": 30},
    ),
    (
        {"notation": "chars", "add_blank_at": None, "phoneme_dict_path": "x"},
        43,
        45,
        {"pad_id": 43, "oov_id": 44, "blank_id": None},
    ),
]


@pytest.mark.parametrize(("vocab", "count", "rows", "ids"), VOCABS)
def test_the_vocabulary_of_old_versions(vocab, count, rows, ids):
    """NeMo 1.0 to 1.6 made it from the training set; NeMo 1.23 does not read that any more."""
    model = source("fastpitch")
    del model.config["text_tokenizer"]
    model.config["train_ds"]["dataset"] = {"_target_": "old", "vocab": vocab}
    name = "fastpitch.encoder.word_emb.weight"
    model.weights[name] = np.zeros((rows, 32), np.float32)
    facts = export_model(model).facts["tokenizer"]
    assert len(facts["tokens"]) == rows
    assert {key: facts[key] for key in ids} == ids
    assert facts["tokens"][count] == "<pad>"
    assert facts["kind"] == f"vocab_{vocab['notation']}"


def test_the_tokenizer_of_nemo_1_7_lies_in_the_training_set():
    model = source("fastpitch")
    model.config["train_ds"]["dataset"]["text_tokenizer"] = model.config.pop("text_tokenizer")
    assert dump(export_model(model)) == dump(export_model(source("fastpitch")))


def test_configurations_of_old_versions_lack_keys():
    model = source("fastpitch_char")
    for key in ("max_token_duration", "n_speakers", "sample_rate", "n_fft", "pitch_mean"):
        del model.config[key]
    model.config["pitch_avg"] = 212.36
    assert dump(export_model(model)) == dump(export_model(source("fastpitch_char")))


# ---- configuration: (model, place, value); the place is what must be named

REFUSED = [
    ("fastpitch", "speaker_encoder", {"_target_": "nemo.x.SpeakerEncoder"}),
    ("fastpitch", "adapters", {"a": {"_target_": "nemo.x.LinearAdapter"}}),
    ("fastpitch", "learn_alignment", "yes"),
    ("fastpitch", "n_speakers", -1),
    ("fastpitch", "n_speakers", None),
    ("fastpitch", "symbols_embedding_dim", 0),
    ("fastpitch", "n_mel_channels", "80"),
    ("fastpitch", "min_token_duration", -1),
    ("fastpitch", "min_token_duration", 76),
    ("fastpitch", "max_token_duration", 0),
    ("fastpitch", "max_token_duration", 75.5),
    ("fastpitch", "pitch_embedding_kernel_size", 4),
    ("fastpitch", "pitch_std", "wide"),
    ("fastpitch", "energy_predictor", []),
    ("fastpitch", "preprocessor", None),
    ("fastpitch", "preprocessor.window", "kaiser"),
    ("fastpitch", "text_tokenizer", None),
    ("fastpitch", "text_tokenizer", "chars"),
    ("fastpitch", "text_tokenizer._target_", "nemo.x.IPATokenizer"),
    ("fastpitch", "text_tokenizer.locale", "en-US"),
    ("fastpitch", "text_tokenizer.punct", 1),
    ("fastpitch", "text_tokenizer.add_blank_at", 3),
    ("fastpitch", "text_tokenizer.g2p._target_", "nemo.x.IpaG2p"),
    ("fastpitch", "text_tokenizer.g2p.apply_to_oov_word", {"_target_": "f"}),
    ("fastpitch", "text_tokenizer.non_default_punct_list", [1]),
    ("fastpitch", "input_fft", None),
    ("fastpitch", "input_fft._target_", "nemo.collections.tts.modules.transformer.FFTransformer"),
    ("fastpitch", "input_fft.pre_lnorm", True),
    ("fastpitch", "input_fft.kernel_size", 2),
    ("fastpitch", "input_fft.kernel_size", [3, 3]),
    ("fastpitch", "input_fft.n_layer", 0),
    ("fastpitch", "input_fft.n_head", 0),
    ("fastpitch", "input_fft.d_head", None),
    ("fastpitch", "input_fft.d_model", 33),
    ("fastpitch", "input_fft.d_inner", 2**40),
    ("fastpitch", "input_fft.condition_types", ["add"]),  # one speaker
    ("fastpitch", "input_fft.rel_pos", True),
    ("fastpitch", "output_fft.n_embed", 4),
    ("fastpitch", "output_fft.condition_types", "add"),
    ("fastpitch", "duration_predictor.kernel_size", 2),
    ("fastpitch", "duration_predictor._target_", "nemo.x.Other"),
    ("fastpitch", "pitch_predictor.n_layers", 0),
    ("fastpitch", "pitch_predictor.condition_types", ["layernorm"]),
    ("fastpitch", "pitch_predictor.filter_size", None),
    ("fastpitch", "pitch_predictor.activation", "gelu"),
    ("fastpitch", "speaker_emb_condition_prosody", True),
    ("fastpitch", "speaker_emb_condition_decoder", True),
    ("fastpitch", "speaker_emb_condition_decoder", 1),
    (SPEAKERS, "output_fft.condition_types", ["multiply"]),
    (SPEAKERS, "output_fft.condition_types", {"add": 1}),
    (ENERGY, "energy_embedding_kernel_size", 0),
    (ENERGY, "energy_predictor.condition_types", ["add"]),
    (LABELS, "labels", None),
    (LABELS, "labels", [1, 2]),
    (LABELS, "input_fft.padding_idx", 12),
    (LABELS, "input_fft.n_embed", None),
]


def mutate(config, place, value):
    *parents, last = place.split(".")
    for part in parents:
        config = config[part]
    config[last] = value


@pytest.mark.parametrize(("name", "place", "value"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_by_name(name, place, value):
    model = source(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{place}: " in error.value.message
    assert "understood is " in error.value.message


@pytest.mark.parametrize(
    ("vocab", "key"),
    [({}, "notation"), ({"notation": "mfa"}, "notation"), ({"notation": "chars", "x": 1}, "x")],
)
def test_an_old_vocabulary_is_refused_by_name(vocab, key):
    model = source("fastpitch")
    del model.config["text_tokenizer"]
    model.config["train_ds"]["dataset"]["vocab"] = vocab
    with pytest.raises(JarvisError, match=rf"`train_ds\.dataset\.vocab\.{key}: "):
        export_model(model)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("fastpitch", "sample_rate", 16000),
        ("fastpitch", "n_mel_channels", 64),
        ("fastpitch", "n_window_stride", 200),
        ("fastpitch", "preprocessor.n_fft", 2048),
        ("fastpitch", "symbols_embedding_dim", 64),
        ("fastpitch", "input_fft.d_model", 34),
        ("fastpitch", "input_fft.d_embed", 16),
        ("fastpitch", "output_fft.d_model", 34),
        ("fastpitch", "duration_predictor.input_size", 33),
        ("fastpitch", "pitch_predictor.input_size", 33),
        (ENERGY, "energy_predictor.input_size", 33),
        (LABELS, "input_fft.n_embed", 9),
    ],
)
def test_contradictions_are_refused(name, place, value):
    model = source(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"


OWN_SECTIONS = (
    "",
    "input_fft",
    "output_fft",
    "duration_predictor",
    "pitch_predictor",
    "energy_predictor",
    "text_tokenizer",
    "text_tokenizer.g2p",
)
KEYS = [(where, key) for where in OWN_SECTIONS for key in fastpitch.EXPORTER.sections[where]]


@pytest.mark.parametrize(
    ("where", "key"), [k for k in KEYS if k[1].treatment != "used"], ids=lambda v: str(v)[:60]
)
def test_other_keys_have_no_effect(where, key):
    model = source(ENERGY)
    expected = dump(export_model(model))
    assert key.reason
    values = key.values if key.treatment == "neutral" else ("anything", {"_target_": "nemo.x"})
    for value in values:
        mutate(model.config, f"{where}.{key.name}".lstrip("."), value)
        assert dump(export_model(model)) == expected
    if key.treatment == "neutral":
        mutate(model.config, f"{where}.{key.name}".lstrip("."), {"nonsense": 1})
        with pytest.raises(JarvisError, match=f"{key.name}: "):
            export_model(model)


# Read for another kind of model only.
_UNREAD = {"labels", "target", "train_ds", "n_embed", "padding_idx", "pitch_avg"}


@pytest.mark.parametrize(
    ("where", "key"),
    [k for k in KEYS if k[1].treatment == "used" and k[1].name not in _UNREAD],
    ids=lambda v: str(v)[:60],
)
def test_no_key_that_matters_is_read_carelessly(where, key):
    model = source(ENERGY)
    model.config["text_tokenizer"]["punct"] = True
    place = f"{where}.{key.name}".lstrip(".")
    mutate(model.config, place, {"nonsense": 1})
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug in ("export.unsupported-config", "export.contradicting-config")
    assert f"`{place}" in error.value.message


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("input_fft.n_layer", "fastpitch.encoder.layers.2.dec_attn.qkv_net.weight"),
        ("output_fft.n_layer", "fastpitch.decoder.layers.2.dec_attn.qkv_net.weight"),
        ("pitch_predictor.n_layers", "fastpitch.pitch_predictor.layers.2.conv.weight"),
    ],
)
def test_endless_layers_end_at_the_first_missing_weight(place, named):
    model = source("fastpitch")
    mutate(model.config, place, 10**9)
    with pytest.raises(IntegrityError, match=f"`{named}`") as error:
        export_model(model)
    assert error.value.slug == "export.missing-weight"


def test_a_billion_speakers_are_not_allocated():
    model = source("fastpitch")
    model.config["n_speakers"] = 10**9
    with pytest.raises(IntegrityError, match=r"`fastpitch.speaker_emb.weight` \[1000000000, 32\]"):
        export_model(model)


# ---- weights

STATISTICS = ("fastpitch.pitch_mean", "fastpitch.pitch_std")
UNUSED = ("aligner.", "fastpitch.aligner.", "preprocessor.", *STATISTICS)


def taken(name):
    return [weight for weight in source(name).weights if not weight.startswith(UNUSED)]


@pytest.mark.parametrize("name", [CONDITIONS, SPEAKERS, ENERGY])
def test_every_missing_weight_is_named(name):
    full = source(name).weights
    for weight in taken(name):
        kept = {k: v for k, v in full.items() if k != weight}
        with pytest.raises(IntegrityError) as error:
            export_model(replace(source(name), weights=kept))
        assert error.value.slug == "export.missing-weight"
        assert f"`{weight}`" in error.value.message


@pytest.mark.parametrize("name", [CONDITIONS, ENERGY])
def test_every_wrong_shape_is_named(name):
    model = source(name)
    for weight in taken(name):
        array = model.weights[weight]
        wrong = model.weights | {weight: np.concatenate([array, array[:1]])}
        with pytest.raises(IntegrityError) as error:
            export_model(replace(model, weights=wrong))
        assert error.value.slug == "export.wrong-shape"
        assert f"`{weight}` must be {list(array.shape)} " in error.value.message


@pytest.mark.parametrize("prefix", UNUSED)
def test_what_training_alone_needs_may_be_absent(prefix):
    model = source("fastpitch")
    kept = {k: v for k, v in model.weights.items() if not k.startswith(prefix)}
    assert len(kept) < len(model.weights)
    expected = dump(export_model(model))
    assert dump(export_model(replace(model, weights=kept))) == expected


@pytest.mark.parametrize(
    "name", ["fastpitch.encoder.layers.0.adapter_layer.a.weight", "fastpitch.energy_emb.weight"]
)
def test_weights_left_over_are_named(name):
    model = source("fastpitch")
    model.weights[name] = np.zeros(3, np.float32)
    with pytest.raises(JarvisError, match=f"`{name}`") as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("weight", ["encoder.word_emb.weight", "proj.bias", "pitch_emb.weight"])
def test_weights_that_are_no_numbers_are_refused(weight, value):
    model = source("fastpitch")
    array = model.weights[f"fastpitch.{weight}"].copy()
    array.flat[0] = value
    model.weights[f"fastpitch.{weight}"] = array
    with pytest.raises(IntegrityError, match=f"`fastpitch.{weight}` holds 1 of") as error:
        export_model(model)
    assert error.value.slug == "export.invalid-weight"


def test_integer_weights_are_refused():
    model = source("fastpitch")
    model.weights["fastpitch.proj.bias"] = np.zeros(80, np.int64)
    with pytest.raises(IntegrityError, match="must be floating point, but is int64"):
        export_model(model)


def test_a_tokenizer_of_another_size_does_not_fit_the_embedding():
    model = source("fastpitch")
    model.config["text_tokenizer"]["add_blank_at"] = "last"
    with pytest.raises(
        IntegrityError, match=r"word_emb.weight` must be \[115, 32\] .* \[114, 32\]"
    ):
        export_model(model)
