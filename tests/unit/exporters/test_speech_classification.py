"""Models that classify utterances against what NeMo 1.23 recorded, and what is refused."""

import hashlib
import io
import json

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import _mfcc_features, speech_classification
from jarvis_rules.exporters.exporter import export_model
from jarvis_rules.exporters.speech_classification import export_speech_classification

from .exporter_testing import GRAPH, dump, recorded, source, variants, with_garbage

FOLDER = "variants/speech_classification"
VARIANTS = variants("speech_classification")
AVERAGE, MAXIMUM, MFCC = (f"{FOLDER}/{name}" for name in ("average", "maximum", "mfcc"))
WINDOWS = f"{FOLDER}/mfcc_windows"
TOLERANCE = 1e-5  # measured: 1.9e-6
WIDE = {WINDOWS: 1e-4}  # features of some hundred; measured: 3.8e-5


def runner(model):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        dump(model)[GRAPH], options, providers=["CPUExecutionProvider"]
    )

    def run(features, length):
        feed = {"audio_signal": features, "length": np.asarray(length, np.int64)}
        return session.run(["logits"], feed)[0]

    return run


# ---- results


@pytest.mark.parametrize("name", VARIANTS)
def test_every_item_equals_nemo_alone(name):
    r = recorded(name)
    run = runner(export_model(source(name)))
    together = run(r["features"], r["features_length"])
    for i, frames in enumerate(r["features_length"]):
        alone = run(r["features"][i : i + 1, :, :frames], [frames])
        for logits in (together[i], alone[0]):
            assert np.abs(logits - r[f"logits_{i}"]).max() <= WIDE.get(name, TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_leak_of_nemo_can_be_reproduced(name):
    r = recorded(name)
    run = runner(export_speech_classification(source(name), batch_invariant=False))
    logits = run(r["features"], r["features_length"])
    assert logits.shape == r["logits"].shape
    assert np.abs(logits - r["logits"]).max() <= WIDE.get(name, TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_short_items_equal_nemo_alone(name):
    r = recorded(name)
    logits = runner(export_model(source(name)))(r["edge_features"], r["edge_features_length"])
    assert np.isfinite(logits).all()
    for n in range(1, 9):
        assert np.abs(logits[n] - r[f"edge_logits_{n}"]).max() <= WIDE.get(name, TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_item_does_not_depend_on_its_batch(name):
    """Bit for bit at one padded length, whatever the padding holds."""
    r = recorded(name)
    run = runner(export_model(source(name)))
    features, frames = r["features"], r["features_length"]
    together = run(features, frames)
    noise = with_garbage(features, frames)
    assert run(noise, frames).tobytes() == together.tobytes()
    for i in range(len(frames)):
        alone = run(noise[i : i + 1], frames[i : i + 1])
        assert alone[0].tobytes() == together[i].tobytes()


def test_cropping_and_padding_belong_to_the_features():
    """NeMo's export has them neither; the facts say how many frames the graph must get."""
    r = recorded(MAXIMUM)
    model = export_model(source(MAXIMUM))
    assert r["cropped_features"].shape[2] == model.facts["crop_or_pad_frames"]
    assert set(r["cropped_length"]) == {model.facts["crop_or_pad_frames"]}
    logits = runner(model)(r["cropped_features"], r["cropped_length"])
    assert np.abs(logits - r["cropped_logits"]).max() <= TOLERANCE


def mfcc(samples, facts, window, bank, cosines):
    size, hop = facts["n_fft"], facts["n_window_stride"]
    left = (size - len(window)) // 2
    window = np.pad(window, (left, size - len(window) - left))
    padded = np.pad(samples, size // 2, mode="reflect")
    count = -(-len(samples) // hop)
    frames = np.stack([padded[i * hop : i * hop + size] for i in range(count)])
    power = np.abs(np.fft.rfft(frames * window)) ** facts["mag_power"]
    return cosines @ np.log(bank @ power.T + facts["log_offset"])


@pytest.mark.parametrize("name", [MFCC, WINDOWS])
def test_tables_and_facts_are_enough_to_compute_mfcc(name):
    r = recorded(name)
    model = export_model(source(name))
    tables = [
        np.load(io.BytesIO(model.assets[f"featurizer_{table}.npy"])).astype(np.float64)
        for table in ("window", "fb", "dct")
    ]
    for i, count in enumerate(r["audio_length"]):
        expected = r[f"features_{i}"]
        found = mfcc(r["audio"][i, :count].astype(np.float64), model.facts["features"], *tables)
        assert found.shape[1] == r["alone_features_length"][i]
        difference = found - expected[:, : found.shape[1]]
        assert np.abs(difference).max() <= 1e-5 * np.abs(expected).max()


# ---- the graph and its bytes


@pytest.mark.parametrize("name", VARIANTS)
def test_graph_is_clean(name):
    model = onnx.load_from_string(dump(export_model(source(name)))[GRAPH])
    onnx.checker.check_model(model, full_check=True)
    onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert not any(n.domain for n in model.graph.node)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)
    assert {n.op_type for n in model.graph.node} <= OPERATORS


OPERATORS = {
    *("Add", "Cast", "Conv", "Div", "Less", "Max", "Mul", "Range", "ReduceMax", "ReduceSum"),
    *("Relu", "Reshape", "Selu", "Shape", "Sigmoid", "Softmax", "Sqrt", "Squeeze", "Sub"),
    *("Unsqueeze", "Where"),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (AVERAGE, {"Where", "Cast", "ReduceSum", "Div"}),
        (MAXIMUM, {"Where", "ReduceMax", "Softmax"}),
    ],
)
def test_pooling_stays_in_full_precision(name, expected):
    graph = export_model(source(name)).graphs[GRAPH]
    kept = {n.op for n in graph.nodes if n.name in graph.full_precision_nodes}
    assert expected <= kept
    assert "Conv" not in kept


GOLDEN = {
    AVERAGE: "0b633ef61f96f83cf959e6500352dfda0235ba7ac49ae7c5f525d9e19240127d",
    MAXIMUM: "e8cae078186b4f2bbad84e37184d991b639d0355eab674d61df4f7927b43985a",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digest(name):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    assert hashlib.sha256(dump(export_model(source(name)))[GRAPH]).hexdigest() == GOLDEN[name]


# ---- facts and assets


def test_facts():
    model = export_model(source(AVERAGE))
    facts = dict(model.facts)
    assert model.family == "speech_classification"
    assert facts.pop("features")["n_window_size"] == 160
    assert facts == {
        "task": "speech_classification",
        "labels": ["yes", "no", "on", "background"],
        "scores": "logits",
        "sample_rate": 16000,
        "stride": 2,
        "feature_kind": "mel",
        "crop_or_pad_frames": None,
        "inputs": [
            {"name": "audio_signal", "dtype": "float32", "shape": ["batch", 16, "time"]},
            {"name": "length", "dtype": "int64", "shape": ["batch"]},
        ],
        "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 4]}],
    }
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


def test_facts_of_variants():
    facts = export_model(source(MAXIMUM)).facts
    assert (facts["scores"], facts["crop_or_pad_frames"]) == ("probabilities", 56)
    assert export_model(source(MFCC)).facts["features"] == {
        "sample_rate": 8000,
        "n_window_size": 160,
        "n_window_stride": 80,
        "window": "hamming",
        "n_fft": 256,
        "n_mels": 20,
        "features": 13,
        "lowfreq": 0.0,
        "highfreq": 4000.0,
        "mag_power": 2.0,
        "log_offset": 1e-6,
    }
    facts = export_model(source(WINDOWS)).facts
    assert facts["feature_kind"] == "mfcc"
    assert [facts["features"][k] for k in ("window", "n_window_size", "n_fft", "features")] == [
        "ones",
        150,
        256,
        10,
    ]


def test_tables_are_those_of_the_checkpoint():
    model = source(MFCC)
    assets = export_model(model).assets
    prefix = "preprocessor.featurizer"
    for table, weight in (
        ("window", f"{prefix}.MelSpectrogram.spectrogram.window"),
        ("fb", f"{prefix}.MelSpectrogram.mel_scale.fb"),
        ("dct", f"{prefix}.dct_mat"),
    ):
        found = np.load(io.BytesIO(assets[f"featurizer_{table}.npy"]))
        np.testing.assert_array_equal(found, model.weights[weight].T)
    tables = {"featurizer_window.npy", "featurizer_fb.npy"}
    assert set(export_model(source(AVERAGE)).assets) == tables


# ---- configuration: (model, place, value); the last part of the place must be named

REFUSED = [
    (AVERAGE, "labels", None),
    (AVERAGE, "labels", []),
    (AVERAGE, "labels", ["a", True, "b", "c"]),
    (AVERAGE, "is_regression_task", True),
    (AVERAGE, "crop_or_pad_augment", 128),
    (MAXIMUM, "crop_or_pad_augment._target_", "nemo.x.Crop"),
    (MAXIMUM, "crop_or_pad_augment.audio_length", 0),
    (MAXIMUM, "crop_or_pad_augment.audio_length", None),
    (MAXIMUM, "crop_or_pad_augment.mode", "center"),
    (AVERAGE, "decoder._target_", "nemo.collections.asr.modules.ConvASRDecoder"),
    (AVERAGE, "decoder.pooling_type", "attention"),
    (AVERAGE, "decoder.return_logits", None),
    (AVERAGE, "decoder.num_classes", "4"),
    (AVERAGE, "decoder.feat_in", None),
    (AVERAGE, "decoder.angular", True),
    (AVERAGE, "encoder._target_", "nemo.collections.asr.modules.ECAPAEncoder"),
    (AVERAGE, "encoder.jasper.0.groups", 3),
    (AVERAGE, "preprocessor._target_", "nemo.collections.asr.modules.AudioToSpectrogram"),
    (AVERAGE, "preprocessor.n_mfcc", 16),
    (AVERAGE, "second", {"_target_": "nemo.x.Y"}),
    (MFCC, "preprocessor.log", False),
    (MFCC, "preprocessor.dct_type", 3),
    (MFCC, "preprocessor.n_mfcc", 21),  # of 20 filters
    (MFCC, "preprocessor.n_mels", 0),
    (MFCC, "preprocessor.window", "none"),
    (MFCC, "preprocessor.n_fft", 128),
    (MFCC, "preprocessor.n_window_size", 160),  # beside window_size
    (MFCC, "preprocessor.sample_rate", 0),
    (MFCC, "preprocessor.lowfreq", None),
    (MFCC, "preprocessor.highfreq", "high"),
    (MFCC, "preprocessor.features", 13),
]


def mutate(config, place, value):
    *parents, last = [int(p) if p.isdigit() else p for p in place.split(".")]
    for part in parents:
        config = config[part]
    config[last] = value


@pytest.mark.parametrize(("name", "place", "value"), REFUSED, ids=lambda v: str(v)[-50:])
def test_refused_by_name(name, place, value):
    model = source(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{place.replace('.0', '[0]')}: " in error.value.message
    assert "understood is " in error.value.message
    assert error.value.hint


@pytest.mark.parametrize(
    ("name", "place", "value", "other"),
    [
        (AVERAGE, "labels", ["a", "b"], "`labels`"),
        (AVERAGE, "decoder.num_classes", 5, "`labels`"),
        (AVERAGE, "decoder.feat_in", 64, "`filters`"),
        (AVERAGE, "encoder.feat_in", 64, "`preprocessor.features`"),
        (AVERAGE, "sample_rate", 8000, "`preprocessor.sample_rate`"),
        (MFCC, "encoder.feat_in", 20, "`preprocessor.n_mfcc`"),
        (MFCC, "sample_rate", 16000, "`preprocessor.sample_rate`"),
    ],
)
def test_contradictions_are_refused(name, place, value, other):
    model = source(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"
    assert other in error.value.message


SECTIONS = [
    (AVERAGE, "decoder", speech_classification.DECODER_KEYS),
    (MAXIMUM, "crop_or_pad_augment", speech_classification.CROP_OR_PAD_KEYS),
    (MFCC, "preprocessor", _mfcc_features.KEYS),
]
KEYS = [(name, section, key) for name, section, keys in SECTIONS for key in keys]


@pytest.mark.parametrize(
    ("name", "section", "key"), [k for k in KEYS if k[2].treatment != "ignored"], ids=str
)
def test_no_key_that_matters_is_read_carelessly(name, section, key):
    model = source(name)
    model.config[section][key.name] = {"nonsense": 1}
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{section}.{key.name}: " in error.value.message


@pytest.mark.parametrize(
    ("name", "section", "key"), [k for k in KEYS if k[2].treatment != "used"], ids=str
)
def test_other_keys_change_nothing(name, section, key):
    expected = dump(export_model(source(name)))
    assert key.reason
    for value in key.values or ("anything",):
        model = source(name)
        model.config[section][key.name] = value
        assert dump(export_model(model)) == expected


def test_keys_of_training_and_of_the_project_are_ignored():
    model = source(AVERAGE)
    expected = dump(export_model(model))
    for key in speech_classification.MODEL_KEYS:
        if key.treatment == "ignored":
            model.config[key.name] = {"_target_": "nemo.anything"}
    model.config.update(timesteps=64, repeat=1, kernel_size_factor=1.0, is_regression_task=False)
    del model.config["sample_rate"]
    assert dump(export_model(model)) == expected


# ---- weights


@pytest.mark.parametrize("name", [AVERAGE, MFCC, f"{FOLDER}/no_mask"])
def test_every_missing_and_every_wrong_weight_is_named(name):
    for weight, array in source(name).weights.items():
        if weight.endswith("num_batches_tracked"):
            continue
        model = source(name)
        del model.weights[weight]
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.missing-weight"
        assert f"`{weight}`" in error.value.message
        model.weights[weight] = np.concatenate([array, array[:1]])
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.wrong-shape"
        assert f"`{weight}`" in error.value.message


def test_unused_weights_are_named():
    model = source(AVERAGE)
    model.weights["decoder.second.weight"] = np.zeros(3)
    with pytest.raises(JarvisError, match=r"`decoder\.second\.weight`") as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"


@pytest.mark.parametrize("weight", ["decoder.decoder_layers.0.bias", "preprocessor.featurizer.fb"])
def test_weights_that_are_no_numbers_are_refused(weight):
    model = source(AVERAGE)
    model.weights[weight] = np.full_like(model.weights[weight], np.nan)
    with pytest.raises(IntegrityError, match=f"`{weight}`") as error:
        export_model(model)
    assert error.value.slug == "export.invalid-weight"
