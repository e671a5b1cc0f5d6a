"""WaveGlow against what NeMo 1.23 recorded, and everything that is refused."""

import copy
import hashlib
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import _filterbank, waveglow
from jarvis_rules.exporters.exporter import export_model
from jarvis_rules.exporters.waveglow import export_waveglow
from jarvis_rules.onnx_graph.folding import fold_weight_norm

from .exporter_testing import GRAPH, dump, load_graphs, recorded, source, variants

SAMPLE = "waveglow"
VARIANTS = variants("waveglow")
TOLERANCE = 1e-5  # of audio; measured: 1.0e-6 at most, with samples up to 2.6
WAVENET = "waveglow.wavenet"


def run(model):
    graph = load_graphs(model)[GRAPH]
    return lambda spec, z: graph(spec=spec, z=z)["audio"]


# ---- results


@pytest.mark.parametrize(("noise", "expected"), [(1.0, "audio"), (0.0, "audio_zero")])
def test_audio_equals_nemo(noise, expected):
    r = recorded(SAMPLE)
    audio = run(export_waveglow(source(SAMPLE)))(r["spec"], r["z"] * np.float32(noise))
    assert audio.shape == r[expected].shape
    assert np.abs(audio - r[expected]).max() <= TOLERANCE


@pytest.mark.parametrize("frames", [5, 2, 1])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_equal_nemo(name, frames):
    r = recorded(name)
    audio = run(export_waveglow(source(name)))(r[f"spec_{frames}"], r[f"z_{frames}"])
    assert audio.shape == r[f"audio_{frames}"].shape == (2, 256 * frames)
    assert np.abs(audio - r[f"audio_{frames}"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", [SAMPLE, *VARIANTS])
def test_an_item_does_not_depend_on_its_batch(name):
    r = recorded(name)
    spec, z = (r.get(key, r.get(f"{key}_5")) for key in ("spec", "z"))
    audio = run(export_waveglow(source(name)))
    together = audio(spec, z)
    for i in range(len(spec)):
        assert np.abs(audio(spec[i : i + 1], z[i : i + 1])[0] - together[i]).max() <= 1e-6


@pytest.mark.parametrize("name", [SAMPLE, *VARIANTS])
def test_samples_depend_on_no_more_frames_than_the_facts_say(name):
    model = export_waveglow(source(name))
    left, right = (model.facts["context_frames"][side] for side in ("left", "right"))
    group, audio = model.facts["n_group"], run(model)
    r = np.random.RandomState(7)
    frames, middle = left + right + 3, left + 1
    spec = r.randn(1, model.facts["features"]["features"], frames).astype(np.float32)
    z = r.randn(1, group, frames * 256 // group).astype(np.float32)
    whole = audio(spec, z)[0, 256 * middle : 256 * middle + 256]
    before, after = middle - left, middle + right + 1
    cut = audio(spec[..., before:after], z[..., before * 256 // group : after * 256 // group])
    assert np.abs(cut[0, 256 * left : 256 * left + 256] - whole).max() <= TOLERANCE


# ---- the graph


@pytest.mark.parametrize("name", [SAMPLE, *VARIANTS])
def test_graph_is_clean(name):
    files = dump(export_waveglow(source(name)))
    model = onnx.load_from_string(files[GRAPH])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    names = {value.name for value in inferred.graph.value_info}
    assert names >= {o for n in model.graph.node[:-1] for o in n.output}
    assert all(n.name and not n.domain for n in model.graph.node)
    assert {n.op_type for n in model.graph.node} <= {
        *("Add", "Concat", "Conv", "ConvTranspose", "Div", "Exp", "Mul", "Reshape", "Sigmoid"),
        *("Split", "Sub", "Tanh", "Transpose"),
    }


def test_samples_stay_in_single_precision_and_networks_do_not():
    graph = export_waveglow(source(SAMPLE)).graphs[GRAPH]
    kinds = {node.name: node.op for node in graph.nodes}
    marked = [kinds[name] for name in graph.full_precision_nodes]
    flows = 4
    assert {marked.count(op) for op in ("Exp", "Div", "Sub", "Conv")} == {flows}
    assert not {"Tanh", "Sigmoid", "ConvTranspose"} & set(marked)
    assert list(kinds.values()).count("Conv") == flows * (1 + 7)


EARLY, USED = "variants/waveglow/early_every_flow", "variants/waveglow/used_group_16"
GOLDEN = {
    SAMPLE: "e8ba25c1a5203c3deeb6294c6f3caec11a2d25df01f97916e0596850b4fe3543",
    EARLY: "39e635afe30f004400acd8121aac0a22b5067ef410c07df5edf4a27cca4e0076",
    USED: "34c9fee65d4259eecedf6b28b9014dfd7e248d709c1aca8bcdd9e3834ce8097f",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digest(name):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    assert hashlib.sha256(dump(export_waveglow(source(name)))[GRAPH]).hexdigest() == GOLDEN[name]


def test_order_of_weights_and_keys_does_not_matter():
    model = source(SAMPLE)
    turned = {k: model.weights[k] for k in reversed(list(model.weights))}
    config = json.loads(json.dumps(model.config, sort_keys=True))
    again = dump(export_waveglow(replace(model, weights=turned, config=config)))
    assert again == dump(export_waveglow(model))


# ---- facts


def test_facts():
    model = export_model(source(SAMPLE))
    assert (model.family, model.assets) == ("waveglow", {})
    facts = dict(model.facts)
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    assert facts == {
        "task": "vocoder",
        "sample_rate": 22050,
        "hop_length": 256,
        "n_group": 8,
        "groups_per_frame": 32,
        "sigma": 1.0,
        "training_sigma": 1.0,
        "denoiser": {"in_graph": False, "strength": 0.01, "bias_frames": 88, "bias_sigma": 0.0},
        "context_frames": {"left": 4, "right": 1},
        "features": {
            "sample_rate": 22050,
            "n_window_size": 1024,
            "n_window_stride": 256,
            "window": "hann",
            "n_fft": 1024,
            "features": 16,
            "lowfreq": 0.0,
            "highfreq": 8000.0,
            "preemph": None,
            "log": True,
            "log_zero_guard_type": "clamp",
            "log_zero_guard_value": 1e-5,
            "mag_power": 1.0,
            "mel_norm": "slaney",
            "normalize": None,
            "pad_to": 16,
            "pad_value": -11.52,
            "exact_pad": False,
            "frame_splicing": 1,
        },
        "inputs": [
            {"name": "spec", "dtype": "float32", "shape": ["batch", 16, "frames"]},
            {"name": "z", "dtype": "float32", "shape": ["batch", 8, "groups"]},
        ],
        "outputs": [{"name": "audio", "dtype": "float32", "shape": ["batch", "samples"]}],
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "early_every_flow",
            {"training_sigma": 0.7, "context_frames": {"left": 4, "right": 1}},
        ),
        ("never_early_group_2", {"n_group": 2, "groups_per_frame": 128}),
        (
            "used_group_16",
            {"n_group": 16, "sample_rate": 16000, "context_frames": {"left": 3, "right": 0}},
        ),
    ],
)
def test_facts_of_variants(name, expected):
    facts = export_waveglow(source(f"variants/waveglow/{name}")).facts
    assert {key: facts[key] for key in expected} == expected


def test_context_of_the_published_size():
    """12 flows of 8 layers: 12 * 255 groups of 8 samples at either side."""
    published = waveglow.Module(80, 12, 8, 4, 2, 512, 8, 3)
    assert published.context() == -(-12 * 255 * 8 // 256) == 96
    assert [published.channels_at(flow) for flow in (0, 3, 4, 8, 11)] == [8, 8, 6, 4, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"n_fft": None}, {"n_fft": 1024}),
        ({"n_fft": 2048}, {"n_fft": 2048}),
        ({"n_window_size": 600, "n_fft": 0}, {"n_window_size": 600, "n_fft": 1024}),
        ({"highfreq": None}, {"highfreq": 11025.0}),
        ({"preemph": 0.97}, {"preemph": 0.97}),
        ({"normalize": "per_feature"}, {"normalize": "per_feature"}),
        ({"normalize": "all_features"}, {"normalize": "all_features"}),
        ({"log_zero_guard_value": "tiny"}, {"log_zero_guard_value": 2.0**-126}),
        ({"log_zero_guard_value": "eps"}, {"log_zero_guard_value": 2.0**-23}),
        ({"log_zero_guard_type": "add"}, {"log_zero_guard_type": "add"}),
        ({"log": False, "window": "hamming"}, {"log": False, "window": "hamming"}),
        ({"mag_power": 2, "lowfreq": 40}, {"mag_power": 2.0, "lowfreq": 40.0}),
        ({"mel_norm": None}, {"mel_norm": None}),
        ({"mel_norm": 1}, {"mel_norm": 1.0}),
        ({"pad_to": "max", "pad_value": 0}, {"pad_to": "max", "pad_value": 0.0}),
        ({"exact_pad": True}, {"exact_pad": True}),
    ],
    ids=str,
)
def test_features_follow_the_preprocessor(changes, expected):
    model = source(SAMPLE)
    model.config["preprocessor"].update(changes)
    features = export_waveglow(model).facts["features"]
    assert {key: features[key] for key in expected} == expected


def test_features_that_are_not_given_have_the_defaults_of_nemo():
    model = source(SAMPLE)
    given = ("_target_", "nfilt", "n_window_stride")
    model.config["preprocessor"] = {k: model.config["preprocessor"][k] for k in given}
    features = export_waveglow(model).facts["features"]
    assert features == {
        "sample_rate": 16000,
        "n_window_size": 320,
        "n_window_stride": 256,
        "window": "hann",
        "n_fft": 512,
        "features": 16,
        "lowfreq": 0.0,
        "highfreq": 8000.0,
        "preemph": 0.97,
        "log": True,
        "log_zero_guard_type": "add",
        "log_zero_guard_value": 2**-24,
        "mag_power": 2.0,
        "mel_norm": "slaney",
        "normalize": "per_feature",
        "pad_to": 16,
        "pad_value": 0.0,
        "exact_pad": False,
        "frame_splicing": 1,
    }


# ---- configuration: (place, value); the place is the key that must be named

REFUSED = [
    ("waveglow", None),
    ("waveglow._target_", "nemo.collections.tts.modules.uniglow.UniGlowModule"),
    ("waveglow.n_mel_channels", 0),
    ("waveglow.n_mel_channels", 2**40),
    ("waveglow.n_flows", 0),
    ("waveglow.n_flows", "4"),
    ("waveglow.n_group", 1),
    ("waveglow.n_group", 7),
    ("waveglow.n_group", 24),  # NeMo would add samples to every item
    ("waveglow.n_group", 512),
    ("waveglow.n_group", True),
    ("waveglow.n_early_every", 0),
    ("waveglow.n_early_size", 3),
    ("waveglow.n_early_size", -2),
    ("waveglow.n_wn_channels", 33),
    ("waveglow.n_wn_channels", 0),
    ("waveglow.n_wn_layers", 0),
    ("waveglow.n_wn_layers", 25),
    ("waveglow.n_wn_layers", 10**9),
    ("waveglow.wn_kernel_size", 4),
    ("waveglow.wn_kernel_size", 0),
    ("waveglow.wn_kernel_size", 3.0),
    ("waveglow.n_speakers", 4),
    ("sigma", 0),
    ("sigma", "loud"),
    ("sigma", float("nan")),
    ("preprocessor", None),
    ("preprocessor._target_", "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor"),
    ("preprocessor.frame_splicing", 2),
    ("preprocessor.sample_rate", 0),
    ("preprocessor.sample_rate", 10**400),
    ("preprocessor.nfilt", 0),
    ("preprocessor.n_fft", 512),  # shorter than the window
    ("preprocessor.n_window_size", None),
    ("preprocessor.n_window_size", 0.02),
    ("preprocessor.n_window_stride", 0),
    ("preprocessor.window", "none"),
    ("preprocessor.window", None),
    ("preprocessor.lowfreq", None),
    ("preprocessor.highfreq", "high"),
    ("preprocessor.preemph", "on"),
    ("preprocessor.log", 1),
    ("preprocessor.log_zero_guard_type", "max"),
    ("preprocessor.log_zero_guard_value", 0),
    ("preprocessor.mag_power", 0),
    ("preprocessor.mel_norm", "htk"),
    ("preprocessor.normalize", "per_item"),
    ("preprocessor.pad_to", -1),
    ("preprocessor.pad_value", None),
    ("preprocessor.exact_pad", "no"),
    ("preprocessor.features", 16),
    ("preprocessor.params", {}),
]


def mutate(config, place, value):
    *parents, last = place.split(".")
    for part in parents:
        config = config[part]
    config[last] = value


@pytest.mark.parametrize(("place", "value"), REFUSED, ids=lambda v: str(v)[:50])
def test_refused_by_name(place, value):
    model = source(SAMPLE)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_waveglow(model)
    assert error.value.slug == "export.unsupported-config"
    assert error.value.exit_code == 1
    assert f"`{place}: " in error.value.message
    assert "understood is " in error.value.message
    assert len(error.value.message) < 600


def test_early_outputs_must_leave_samples():
    model = source(SAMPLE)
    model.config["waveglow"].update(n_early_every=1)  # 8 - 3 * 2 are left
    with pytest.raises(IntegrityError, match=r"wavenet\.3\.start\.weight_v` must be \[32, 1, 1\]"):
        export_waveglow(model)
    model.config["waveglow"].update(n_early_size=4)
    with pytest.raises(JarvisError, match=r"waveglow\.n_early_size: 4"):
        export_waveglow(model)


SECTIONS = {"preprocessor": _filterbank.KEYS, "waveglow": waveglow.MODULE_KEYS}
KEYS = [(section, key) for section, keys in SECTIONS.items() for key in keys]


@pytest.mark.parametrize(
    ("section", "key"), [k for k in KEYS if k[1].treatment != "ignored"], ids=str
)
def test_no_key_that_matters_is_read_carelessly(section, key):
    model = source(SAMPLE)
    mutate(model.config, f"{section}.{key.name}", {"nonsense": 1})
    with pytest.raises(JarvisError) as error:
        export_waveglow(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{section}.{key.name}: " in error.value.message


@pytest.mark.parametrize(
    ("section", "key"), [k for k in KEYS if k[1].treatment == "ignored"], ids=str
)
def test_ignored_keys_have_a_reason_and_change_nothing(section, key):
    assert key.reason
    model = source(SAMPLE)
    mutate(model.config, f"{section}.{key.name}", "anything")
    assert dump(export_waveglow(model)) == dump(export_waveglow(source(SAMPLE)))


def test_keys_of_training_and_of_the_project_are_ignored():
    model = source(SAMPLE)
    for key in waveglow.MODEL_KEYS:
        assert key.treatment == "used" or key.reason
        if key.treatment == "ignored":
            model.config[key.name] = {"_target_": "nemo.anything"}
    model.config.update(notes=["x"])
    del model.config["sigma"]
    assert dump(export_waveglow(model)) == dump(export_waveglow(source(SAMPLE)))


@pytest.mark.parametrize(
    ("place", "value"),
    [("_target_", "nemo.collections.tts.modules.WaveGlowModule"), ("n_early_every", 5)],
)
def test_other_ways_to_say_the_same(place, value):
    name = "variants/waveglow/never_early_group_2"
    model = source(name)
    model.config["waveglow"][place] = value
    assert dump(export_waveglow(model)) == dump(export_waveglow(source(name)))


@pytest.mark.parametrize(
    ("place", "value", "other"),
    [
        ("preprocessor.nfilt", 80, "`waveglow.n_mel_channels` says 16"),
        ("preprocessor.n_window_stride", 128, "upsampling of WaveGlowModule says 256"),
    ],
)
def test_contradictions_are_refused(place, value, other):
    model = source(SAMPLE)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_waveglow(model)
    assert error.value.slug == "export.contradicting-config"
    assert f"`{place}: {value}`" in error.value.message
    assert other in error.value.message


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("n_flows", 10**9, "wavenet.999999999.start.weight_v"),
        ("n_wn_layers", 24, "wavenet.3.cond_layer.weight_v"),
        ("n_wn_channels", 10**9, "wavenet.3.start.weight_v"),
        ("wn_kernel_size", 10**9 + 1, "wavenet.3.in_layers.0.weight_v"),
    ],
)
def test_sizes_that_no_checkpoint_has_end_at_the_first_weight(key, value, named):
    model = source(SAMPLE)
    model.config["waveglow"][key] = value
    if key == "n_flows":
        model.config["waveglow"]["n_early_size"] = 0
    with pytest.raises(IntegrityError, match=named):
        export_waveglow(model)


# ---- weights


@pytest.mark.parametrize("name", [SAMPLE, EARLY])
def test_every_missing_weight_is_named(name):
    full = source(name).weights
    needed = [w for w in full if w.startswith("waveglow") and "inv_conv" not in w]
    for weight in needed:
        model = source(name)
        del model.weights[weight]
        with pytest.raises(IntegrityError) as error:
            export_waveglow(model)
        assert error.value.slug == "export.missing-weight"
        assert f"`{weight}`" in error.value.message


def test_every_wrong_shape_is_named():
    full = source(SAMPLE).weights
    for weight, array in full.items():
        if weight.startswith("audio"):
            continue
        model = source(SAMPLE)
        model.weights[weight] = np.concatenate([array, array[:1]])
        with pytest.raises(IntegrityError) as error:
            export_waveglow(model)
        assert error.value.slug == "export.wrong-shape"
        expected, got = list(array.shape), list(model.weights[weight].shape)
        assert f"`{weight}` must be {expected} " in error.value.message
        assert f"is {got}" in error.value.message


def test_weights_that_are_left_over_are_named():
    model = source(SAMPLE)
    model.weights[f"{WAVENET}.4.start.bias"] = np.zeros(4)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"
    assert f"`{WAVENET}.4.start.bias`" in error.value.message


def test_features_and_kept_inverses_are_not_needed():
    model = source(USED)
    extra = [k for k in model.weights if k.startswith("audio") or "inv_conv" in k]
    assert len(extra) == 2 + 5
    expected = dump(export_model(model))
    kept = {k: v for k, v in model.weights.items() if k not in extra}
    assert dump(export_model(replace(model, weights=kept))) == expected


@pytest.mark.parametrize("form", ["parametrizations", "plain"])
def test_other_forms_of_weight_norm_give_the_same_bytes(form):
    model = source(SAMPLE)
    weights = dict(model.weights)
    for name in [n for n in weights if n.endswith("weight_v")]:
        layer = name.removesuffix("_v")
        v, g = weights.pop(name), weights.pop(f"{layer}_g")
        if form == "plain":
            weights[layer] = fold_weight_norm(v, g)
        else:
            stem = layer.removesuffix("weight") + "parametrizations.weight.original"
            weights |= {f"{stem}0": g, f"{stem}1": v}
    expected = dump(export_model(model))
    assert dump(export_model(replace(model, weights=weights))) == expected


def test_two_forms_at_once_are_refused():
    model = source(SAMPLE)
    model.weights[f"{WAVENET}.0.start.weight"] = model.weights[f"{WAVENET}.0.start.weight_v"]
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"
    assert f"`{WAVENET}.0.start.weight`" in error.value.message


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        ("waveglow.upsample.weight", np.nan),
        ("waveglow.upsample.bias", np.inf),
        (f"{WAVENET}.1.start.weight_v", np.nan),
        (f"{WAVENET}.1.in_layers.1.weight_g", np.inf),
        (f"{WAVENET}.1.cond_layer.bias", np.nan),
        (f"{WAVENET}.1.end.weight", np.nan),
        ("waveglow.convinv.2.conv.weight", np.nan),
    ],
)
def test_weights_that_are_no_numbers_are_refused(weight, value):
    model = source(SAMPLE)
    model.weights[weight] = model.weights[weight].copy()
    model.weights[weight].flat[0] = value
    with pytest.raises(IntegrityError) as error:
        export_waveglow(model)
    assert error.value.slug == "export.invalid-weight"
    assert f"`{weight}`" in error.value.message


def test_a_direction_of_zeros_is_refused():
    model = source(SAMPLE)
    weight = f"{WAVENET}.2.res_skip_layers.0.weight_v"
    model.weights[weight] = np.zeros_like(model.weights[weight])
    with pytest.raises(IntegrityError, match=f"`{weight}` with the gain `.*weight_g` holds 2048"):
        export_waveglow(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (np.ones_like, "has no inverse"),
        (lambda m: m * np.float32(1e-39), "the inverse of `waveglow.convinv.3.conv.weight` holds"),
    ],
)
def test_a_flow_that_cannot_be_turned_is_refused(change, message):
    model = source(SAMPLE)
    weight = "waveglow.convinv.3.conv.weight"
    model.weights[weight] = change(model.weights[weight])
    with pytest.raises(IntegrityError) as error:
        export_waveglow(model)
    assert error.value.slug == "export.invalid-weight"
    assert f"`{weight}`" in error.value.message
    assert message in error.value.message


def test_integer_weights_are_refused():
    model = source(SAMPLE)
    weight = f"{WAVENET}.0.start.weight_g"
    model.weights[weight] = model.weights[weight].astype(np.int64)
    with pytest.raises(IntegrityError, match=f"`{weight}` must be floating point, but is int64"):
        export_waveglow(model)


def test_weights_of_double_precision_are_rounded_once():
    model = source(SAMPLE)
    double = {k: v.astype(np.float64) for k, v in model.weights.items()}
    assert dump(export_waveglow(replace(model, weights=double))) == dump(export_waveglow(model))


def test_the_source_is_left_as_it_was():
    model = source(SAMPLE)
    config = copy.deepcopy(model.config)
    weights = {k: v.copy() for k, v in model.weights.items()}
    dump(export_waveglow(model))
    assert model.config == config
    assert all(np.array_equal(model.weights[k], v) for k, v in weights.items())
