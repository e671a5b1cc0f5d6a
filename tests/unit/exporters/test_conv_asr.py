"""QuartzNet, Jasper and Citrinet against what NeMo 1.23 recorded, and what is refused."""

import copy
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import _ctc_decoder, _ctc_model, _jasper_config, _mel_features
from jarvis_rules.exporters.conv_asr import export_conv_asr
from jarvis_rules.exporters.exporter import export_model

from . import exporter_testing
from .exporter_testing import GRAPH, Runner, dump, recorded, source, variants, with_garbage

VARIANTS = variants("conv_asr")
LARGE = ("quartznet", "jasper", "quartznet_espeak", "citrinet")
# Padding changes what NeMo computes for an item of these.
LEAKING = tuple(v for v in VARIANTS if "no_mask" in v or "norm" in v)
SUBWORDS = ("variants/conv_asr/sentencepiece", "variants/conv_asr/wordpiece")
EXACT = tuple(v for v in VARIANTS if v not in LEAKING)
NO_MASK = "variants/conv_asr/silu_no_mask"
TOLERANCE = 1e-5  # measured: 2.9e-6
WIDE = dict.fromkeys(("quartznet", "jasper", "quartznet_espeak"), 1e-4)  # measured: 2.7e-5
WIDE["variants/conv_asr/group_norm_each"] = 1e-4  # measured: 8.3e-6, of few and similar frames
ENCODER = "encoder.encoder"


def largest_difference(logprobs, expected, lengths):
    """Return the largest one over the valid frames; NeMo gives NaN for some empty items."""
    return max(
        float(np.abs(a[:n] - b[:n]).max())
        for a, b, n in zip(logprobs, expected, lengths, strict=True)
        if n and not np.isnan(b).all()
    )


# ---- results


@pytest.mark.parametrize("name", [*LARGE, *EXACT])
def test_ragged_batch_equals_nemo(name):
    r = recorded(name)
    logprobs, length = Runner(export_model(source(name)))(r["features"], r["features_length"])
    assert logprobs.shape == r["logprobs"].shape
    assert length.tolist() == r["encoded_length"].tolist()
    assert largest_difference(logprobs, r["logprobs"], length) <= WIDE.get(name, TOLERANCE)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_item_equals_nemo_alone(name):
    """Where NeMo leaks too: what padding adds in NeMo's batch is not in the graph."""
    r = recorded(name)
    run = Runner(export_model(source(name)))
    together, lengths = run(r["features"], r["features_length"])
    for i, frames in enumerate(r["features_length"]):
        expected = r[f"logprobs_{i}"]
        assert lengths[i] == len(expected)
        assert np.abs(together[i, : lengths[i]] - expected).max() <= TOLERANCE
        alone, _ = run(r["features"][i : i + 1, :, :frames], [frames])
        assert np.abs(alone[0] - expected).max() <= TOLERANCE


@pytest.mark.parametrize("name", [v for v in EXACT if v not in SUBWORDS])
def test_lengths_from_zero_up_equal_nemo(name):
    r = recorded(name)
    logprobs, length = Runner(export_model(source(name)))(
        r["edge_features"], r["edge_features_length"]
    )
    assert length.tolist() == r["edge_encoded_length"].tolist()
    assert np.isfinite(logprobs).all()
    assert largest_difference(logprobs, r["edge_logprobs"], length) <= TOLERANCE


@pytest.mark.parametrize("name", LEAKING)
def test_short_items_equal_nemo_alone(name):
    r = recorded(name)
    logprobs, lengths = Runner(export_model(source(name)))(
        r["edge_features"], r["edge_features_length"]
    )
    assert np.isfinite(logprobs).all()
    # torch has no instance norm of one frame.
    recorded_lengths = [n for n in range(9) if f"edge_logprobs_{n}" in r]
    assert recorded_lengths in (list(range(1, 9)), list(range(3, 9)))
    for n in recorded_lengths:
        expected = r[f"edge_logprobs_{n}"]
        assert lengths[n] == len(expected)
        difference = np.abs(logprobs[n, : lengths[n]] - expected).max()
        assert difference <= WIDE.get(name, TOLERANCE)


@pytest.mark.parametrize("prefix", ["", "edge_"])
@pytest.mark.parametrize("name", LEAKING)
def test_the_leak_of_nemo_can_be_reproduced(name, prefix):
    r = recorded(name)
    run = Runner(export_conv_asr(source(name), batch_invariant=False))
    logprobs, length = run(r[f"{prefix}features"], r[f"{prefix}features_length"])
    expected = r[f"{prefix}logprobs"]
    assert length.tolist() == r[f"{prefix}encoded_length"].tolist()
    for i, item in enumerate(expected):
        if prefix and not i and np.isnan(item).all():
            continue  # NeMo divides by the length of an empty item
        assert np.abs(logprobs[i] - item).max() <= TOLERANCE


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_an_item_does_not_depend_on_its_batch(name):
    """Bit for bit at one padded length; at another one onnxruntime adds in another order."""
    r = recorded(name)
    run = Runner(export_model(source(name)))
    features, frames = r["features"], r["features_length"]
    together, lengths = run(features, frames)
    noisy, _ = run(with_garbage(features, frames), frames)
    for i, n in enumerate(lengths):
        valid = together[i, :n]
        alone, _ = run(features[i : i + 1], frames[i : i + 1])
        short, _ = run(features[i : i + 1, :, : frames[i]], frames[i : i + 1])
        assert noisy[i, :n].tobytes() == valid.tobytes()
        assert alone[0, :n].tobytes() == valid.tobytes()
        assert np.abs(short[0] - valid).max() <= WIDE.get(name, TOLERANCE)


@pytest.mark.parametrize("name", ["quartznet", "citrinet"])
def test_an_empty_item_harms_no_other(name):
    r = recorded(name)
    run = Runner(export_model(source(name)))
    plain, _ = run(r["features"], r["features_length"])
    logprobs, length = run(r["features"], [0, *r["features_length"][1:]])
    assert length.tolist() == [1, *r["encoded_length"][1:]]  # a stride makes it one frame
    assert np.isfinite(logprobs).all()
    assert logprobs[1:].tobytes() == plain[1:].tobytes()


@pytest.mark.parametrize("name", [*LARGE, *VARIANTS])
def test_graph_is_clean(name):
    files = dump(export_model(source(name)))
    model = onnx.load_from_string(files[GRAPH])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) >= len(model.graph.node) - 2
    assert not any(n.domain for n in model.graph.node)
    assert len({n.name for n in model.graph.node}) == len(model.graph.node)
    assert {n.op_type for n in model.graph.node} <= OPERATORS


OPERATORS = {
    *("Add", "Cast", "Clip", "Conv", "Div", "Erf", "Less", "LogSoftmax", "Max", "Mul", "Range"),
    *("ReduceSum", "Relu", "Reshape", "Selu", "Shape", "Sigmoid", "Sqrt", "Squeeze", "Sub"),
    *("Transpose", "Unsqueeze"),
}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("quartznet", {"LogSoftmax"}),
        # Averages over time and the gates that scale a whole item.
        (
            "citrinet",
            {"LogSoftmax", "ReduceSum", "Max", "Div", "Conv", "Relu", "Sigmoid"},
        ),
        (
            "variants/conv_asr/layer_norm",
            {"LogSoftmax", "ReduceSum", "Max", "Mul", "Div", "Sub", "Add", "Sqrt"}
            | {"Reshape", "Unsqueeze"},
        ),
    ],
)
def test_what_stays_in_full_precision(name, expected):
    graph = export_model(source(name)).graphs[GRAPH]
    kept = {n.op for n in graph.nodes if n.name in graph.full_precision_nodes}
    assert kept == expected
    large = [n for n in graph.nodes if n.op == "Conv" and n.name in graph.full_precision_nodes]
    assert len(large) == (12 if name == "citrinet" else 0)


# ---- bytes

GOLDEN = {
    "quartznet": "00e30d9776e8bc7fa632f37be552ba521617247133de7becb81739ce86c29b10",
    "jasper": "86386da8e768806363e47672d1a8ffc701bfa59eab740d8196a6a6b04ec099ef",
    "quartznet_espeak": "a3a05691929a8638cba1b52637d86801c1f53b7ab362807f1c74fc393dcdfbea",
    "citrinet": "1b8b003e003d4430e1254f5c3e2d2f5473aea09c3544ef82ca1773bc9f4e2eaf",
}


@pytest.mark.parametrize("name", LARGE)
def test_golden_digest(name):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    assert hashlib.sha256(dump(export_model(source(name)))[GRAPH]).hexdigest() == GOLDEN[name]


def cpu_features():
    """Return the features that numpy dispatches on and this CPU has."""
    try:
        from numpy._core import _multiarray_umath as core
    except ImportError:
        from numpy.core import _multiarray_umath as core
    return [f for f in core.__cpu_dispatch__ if core.__cpu_features__.get(f)]


@pytest.mark.parametrize("variable", ["PYTHONHASHSEED", "NPY_DISABLE_CPU_FEATURES", "cwd"])
def test_bytes_depend_on_neither_process_nor_cpu_nor_folder(tmp_path, variable):
    value = {"PYTHONHASHSEED": "77", "NPY_DISABLE_CPU_FEATURES": " ".join(cpu_features())}
    if variable.startswith("NPY") and not value[variable]:
        pytest.skip("numpy dispatches on no feature of this CPU")
    root = Path(exporter_testing.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    if variable in value:
        environment[variable] = value[variable]
    folder = tmp_path / "out"
    folder.mkdir()
    program = [sys.executable, exporter_testing.__file__, "quartznet_espeak", str(folder)]
    work = tmp_path if variable == "cwd" else root
    done = subprocess.run(program, cwd=work, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    expected = dump(export_model(source("quartznet_espeak")))
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == expected


def test_order_of_weights_and_keys_does_not_matter():
    model = source("quartznet")
    expected = dump(export_model(model))
    turned = {k: model.weights[k] for k in reversed(list(model.weights))}
    config = json.loads(json.dumps(model.config, sort_keys=True))
    assert dump(export_model(replace_parts(model, turned, config))) == expected


def replace_parts(model, weights=None, config=None):
    from dataclasses import replace

    return replace(model, weights=weights or model.weights, config=config or model.config)


# ---- facts and assets


def test_facts_of_quartznet():
    model = export_model(source("quartznet"))
    facts = dict(model.facts)
    labels = [" ", *"abcdefghijklmnopqrstuvwxyz", "'"]
    assert model.family == "conv_asr"
    assert facts == {
        "task": "ctc",
        "tokenization": "character",
        "tokenizer_files": [],
        "labels": labels,
        "blank_id": 28,
        "sample_rate": 16000,
        "stride": 2,
        "ms_per_timestep": 20.0,
        "features": {
            "sample_rate": 16000,
            "n_window_size": 320,
            "n_window_stride": 160,
            "window": "hann",
            "n_fft": 512,
            "features": 64,
            "lowfreq": 0.0,
            "highfreq": 8000.0,
            "preemph": 0.97,
            "log": True,
            "log_zero_guard_type": "add",
            "log_zero_guard_value": 2**-24,
            "mag_power": 2.0,
            "normalize": "per_feature",
            "pad_to": 16,
            "pad_value": 0.0,
            "exact_pad": False,
            "frame_splicing": 1,
        },
        "inputs": [
            {"name": "audio_signal", "dtype": "float32", "shape": ["batch", 64, "time"]},
            {"name": "length", "dtype": "int64", "shape": ["batch"]},
        ],
        "outputs": [
            {"name": "logprobs", "dtype": "float32", "shape": ["batch", "time_out", 29]},
            {"name": "encoded_length", "dtype": "int64", "shape": ["batch"]},
        ],
    }
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts


@pytest.mark.parametrize(
    ("name", "stride", "milliseconds", "expected"),
    [
        (
            "features_all",
            2,
            15.0,
            {
                "n_window_size": 150,
                "n_window_stride": 60,
                "n_fft": 256,
                "window": "hamming",
                "normalize": "all_features",
                "preemph": None,
                "lowfreq": 100.0,
                "highfreq": 3800.0,
                "log_zero_guard_type": "clamp",
                "log_zero_guard_value": 0.001,
                "mag_power": 1.0,
                "pad_to": 0,
            },
        ),
        (
            "features_exact_pad",
            2,
            10.0,
            {
                "n_window_size": 160,
                "window": "blackman",
                "normalize": None,
                "log": False,
                "exact_pad": True,
                "pad_value": -1.5,
                "pad_to": 8,
            },
        ),
        (
            "features_eps",
            2,
            10.0,
            {"n_fft": 512, "log_zero_guard_value": 2**-23, "features": 8, "highfreq": 4000.0},
        ),
        ("identity_stride_repeat", 4, 20.0, {"sample_rate": 16000}),
        ("stride_add", 4, 20.0, {"n_window_stride": 80}),
        ("swish_stride3_repeat3", 3, 15.0, {}),
    ],
)
def test_facts_of_variants(name, stride, milliseconds, expected):
    facts = export_model(source(f"variants/conv_asr/{name}")).facts
    assert (facts["stride"], facts["ms_per_timestep"]) == (stride, milliseconds)
    assert {k: facts["features"][k] for k in expected} == expected


def test_mel_tables_are_those_of_the_checkpoint():
    model = source("quartznet")
    assets = export_model(model).assets
    window, bank = (np.load(io.BytesIO(assets[f"featurizer_{n}.npy"])) for n in ("window", "fb"))
    assert (window.dtype, window.shape) == (np.float32, (320,))
    assert (bank.dtype, bank.shape) == (np.float32, (64, 257))
    np.testing.assert_array_equal(window, model.weights["preprocessor.featurizer.window"])
    np.testing.assert_array_equal(bank, model.weights["preprocessor.featurizer.fb"][0])


@pytest.mark.parametrize("shape", [(), (0,), (320,), (64, 257), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<i8"])
def test_npy_files_are_of_format_1_0(shape, dtype):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    data = _mel_features.dump_npy(array)
    assert data[:8] == b"\x93NUMPY\x01\x00"
    assert (10 + int.from_bytes(data[8:10], "little")) % 64 == 0
    back = np.load(io.BytesIO(data))
    np.testing.assert_array_equal(back, array)
    assert back.dtype.str == dtype.replace(">", "<")


# ---- configuration: (place, value); the last part of the place is the key that must be named

REFUSED = [
    ("encoder.jasper.0.se", "yes"),
    ("encoder.jasper.1.groups", 3),  # of 32 filters
    ("encoder.jasper.1.groups", 0),
    ("encoder.jasper.1.groups", True),
    ("encoder.jasper.1.heads", 5),  # of 32 channels
    ("encoder.jasper.1.heads", 0),
    ("encoder.jasper.1.heads", -2),
    ("encoder.jasper.0.kernel", [3, 3]),
    ("encoder.jasper.0.kernel", []),
    ("encoder.jasper.0.kernel", "11"),
    ("encoder.jasper.0.kernel", 0),
    ("encoder.jasper.0.kernel_size_factor", 0),
    ("encoder.jasper.0.kernel_size_factor", 1e300),
    ("encoder.jasper.0.stride", 2),
    ("encoder.jasper.0.stride", [0]),
    ("encoder.jasper.0.stride", [True]),
    ("encoder.jasper.0.dilation", [2]),  # at stride 2
    ("encoder.jasper.1.dilation", [1.5]),
    ("encoder.jasper.0.filters", 0),
    ("encoder.jasper.0.filters", 2**40),
    ("encoder.jasper.0.repeat", 0),
    ("encoder.jasper.0.residual", "yes"),
    ("encoder.jasper.0.separable", 1),
    ("encoder.jasper.1.residual_mode", "stride-add"),
    ("encoder.jasper.1.stride_last", None),
    ("encoder.jasper.0.squeeze_excite", True),
    ("encoder.jasper.0.normalization", "group"),
    ("encoder.jasper", []),
    ("encoder.jasper", None),
    ("encoder.jasper.0", "conv"),
    ("encoder.activation", "mish"),
    ("encoder.activation", None),
    ("encoder.normalization_mode", "rms"),
    ("encoder.normalization_mode", None),
    ("encoder.residual_mode", "mul"),
    ("encoder.frame_splicing", 3),
    ("encoder.quantize", True),
    ("encoder.conv_mask", "true"),
    ("encoder.feat_in", "64"),
    ("encoder._target_", "nemo.collections.asr.modules.RNNEncoder"),
    ("encoder.adapters", {"one": {}}),
    ("encoder.params", {}),
    ("encoder", None),
    ("decoder.add_blank", False),
    ("decoder.temperature", 2.0),
    ("decoder.num_classes", "28"),
    ("decoder.vocabulary", None),
    ("decoder.vocabulary", ["a", 1]),
    ("decoder.vocabulary", []),
    ("decoder._target_", "nemo.collections.asr.modules.LSTMDecoder"),
    ("decoder", []),
    ("preprocessor._target_", "nemo.collections.asr.modules.AudioToMFCCPreprocessor"),
    ("preprocessor.frame_splicing", 3),
    ("preprocessor.use_torchaudio", True),
    ("preprocessor.window", "none"),
    ("preprocessor.window", "kaiser"),
    ("preprocessor.normalize", {"fixed_mean": [0.0], "fixed_std": [1.0]}),
    ("preprocessor.normalize", "NA"),
    ("preprocessor.pad_to", "max"),
    ("preprocessor.pad_to", -1),
    ("preprocessor.log_zero_guard_type", "max"),
    ("preprocessor.log_zero_guard_value", "small"),
    ("preprocessor.log_zero_guard_value", 0),
    ("preprocessor.log_zero_guard_value", float("nan")),
    ("preprocessor.mag_power", -1),
    ("preprocessor.preemph", "off"),
    ("preprocessor.preemph", float("inf")),
    ("preprocessor.lowfreq", None),
    ("preprocessor.highfreq", "high"),
    ("preprocessor.log", None),
    ("preprocessor.pad_value", None),
    ("preprocessor.n_fft", 256),  # shorter than the window
    ("preprocessor.n_window_size", 320),  # beside window_size
    ("preprocessor.n_window_stride", 160),
    ("preprocessor.window_size", 1e-6),
    ("preprocessor.window_size", 1e308),
    ("preprocessor.sample_rate", 0),
    ("preprocessor.sample_rate", 10**400),
    ("preprocessor.features", 0),
    ("preprocessor.n_mels", 64),
    ("preprocessor", None),
    ("adapters", {"a": {"_target_": "nemo.x.LinearAdapter"}}),
    ("second", [{"_target_": "nemo.x.Y"}]),
]


def mutate(config, place, value):
    *parents, last = [int(p) if p.isdigit() else p for p in place.split(".")]
    for part in parents:
        config = config[part]
    config[last] = value


def dotted(place):
    return place.replace(".0", "[0]").replace(".1", "[1]").replace(".4", "[4]")


@pytest.mark.parametrize(("place", "value"), REFUSED, ids=lambda v: str(v)[:50])
def test_refused_by_name(place, value):
    model = source("quartznet")
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert error.value.exit_code == 1
    assert f"`{dotted(place)}: " in error.value.message
    assert "understood is " in error.value.message
    assert len(error.value.message) < 600
    assert error.value.hint


SECTIONS = {
    "preprocessor": _mel_features.KEYS,
    "encoder": _jasper_config.ENCODER_KEYS,
    "encoder.jasper.1": _jasper_config.BLOCK_KEYS,
    "decoder": _ctc_decoder.KEYS,
}
# Models that read a key which others do not look at.
READERS = {"se_reduction_ratio": "citrinet", "norm_groups": "variants/conv_asr/group_norm"}
KEYS = [(section, key) for section, keys in SECTIONS.items() for key in keys]


@pytest.mark.parametrize(
    ("section", "key"), [k for k in KEYS if k[1].treatment != "ignored"], ids=str
)
def test_no_key_that_matters_is_read_carelessly(section, key):
    model = source(READERS.get(key.name, "quartznet"))
    mutate(model.config, f"{section}.{key.name}", {"nonsense": 1})
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{dotted(section)}.{key.name}: " in error.value.message


@pytest.mark.parametrize(
    ("section", "key"), [k for k in KEYS if k[1].treatment == "neutral"], ids=str
)
def test_neutral_values_change_nothing(section, key):
    expected = dump(export_model(source("quartznet")))
    for value in key.values:
        model = source("quartznet")
        mutate(model.config, f"{section}.{key.name}", value)
        assert dump(export_model(model)) == expected


@pytest.mark.parametrize(
    ("section", "key"), [k for k in KEYS if k[1].treatment == "ignored"], ids=str
)
def test_ignored_keys_have_a_reason_and_change_nothing(section, key):
    assert key.reason
    name = "citrinet" if section.startswith("encoder") else "quartznet"
    model = source(name)
    mutate(model.config, f"{section}.{key.name}", "anything")
    assert dump(export_model(model)) == dump(export_model(source(name)))


def test_keys_of_training_and_of_the_project_are_ignored():
    model = source("quartznet")
    builds = {"_target_": "nemo.anything"}
    for key in _ctc_model.KEYS:
        if key.treatment == "ignored":
            model.config[key.name] = builds
    model.config.update(repeat=5, model_defaults={"se": True}, my_notes=["x"])
    del model.config["sample_rate"]
    assert dump(export_model(model)) == dump(export_model(source("quartznet")))


@pytest.mark.timeout(30)
def test_shared_and_circular_values_of_other_keys_do_no_harm():
    model = source("quartznet")
    shared = ["x"]
    for _ in range(100):
        shared = [shared, shared]
    circle = {}
    circle["again"] = circle
    model.config.update(notes=shared, circle=circle)
    export_model(model)
    mutate(model.config, "encoder.quantize", shared)
    with pytest.raises(JarvisError, match=r"encoder\.quantize"):
        export_model(model)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("sample_rate", 8000),
        ("encoder.feat_in", 80),
        ("preprocessor.features", 80),
        ("decoder.num_classes", 27),
        ("decoder.feat_in", 32),
        ("decoder.vocabulary", ["a", "b"]),
    ],
)
def test_contradictions_are_refused(place, value):
    model = source("quartznet")
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        # A strided block whose residual does not stride, and the reverse.
        ("encoder.jasper.1.stride", [2], "encoder.jasper[1].residual_mode"),
        ("encoder.jasper.0.residual", True, "encoder.jasper[0].residual_mode"),
        # Four dense branches and one pane.
        ("encoder.jasper.3.residual_dense", True, "encoder.jasper[3].residual_dense"),
    ],
)
def test_blocks_that_do_not_fit_together_are_refused(place, value, named):
    model = source("quartznet")
    if named.endswith("dense"):
        model.config["encoder"]["jasper"][1]["residual_dense"] = True
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{named}: " in error.value.message


@pytest.mark.parametrize(
    ("name", "place", "value", "named"),
    [
        ("citrinet", "encoder.jasper.1.se_reduction_ratio", 33, "se_reduction_ratio: 33`"),
        ("citrinet", "encoder.jasper.1.se_reduction_ratio", 0, "se_reduction_ratio: 0`"),
        ("variants/conv_asr/group_norm", "encoder.norm_groups", 3, "encoder.norm_groups: 3`"),
        ("variants/conv_asr/group_norm", "encoder.norm_groups", 0, "encoder.norm_groups: 0`"),
        # NeMo makes the frames of the block more than those of its branch.
        ("variants/conv_asr/future_dilation", "encoder.jasper.1.residual", True, "future_context"),
    ],
)
def test_sizes_that_nemo_cannot_build_are_refused(name, place, value, named):
    model = source(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert named in error.value.message


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("encoder.jasper.1.repeat", 2**31 - 1),
        ("encoder.jasper.1.filters", 2**31 - 1),
        ("encoder.jasper.1.groups", 2**31 - 1),
        ("encoder.jasper.1.kernel", [2**31 - 1]),
        ("preprocessor.features", 2**31 - 1),
    ],
)
def test_monstrous_sizes_end_at_once(place, value):
    model = source("quartznet")
    model.config["encoder"]["jasper"][0]["heads"] = 1
    mutate(model.config, place, value)
    if place == "preprocessor.features":
        model.config["encoder"]["feat_in"] = value
    with pytest.raises((JarvisError, IntegrityError)):
        export_model(model)


def test_future_context_needs_masks():
    model = source("variants/conv_asr/future_context")
    model.config["encoder"]["conv_mask"] = False
    with pytest.raises(JarvisError, match=r"encoder\.jasper\[0\]\.future_context"):
        export_model(model)


def test_exact_pad_needs_an_even_stride():
    model = source("variants/conv_asr/features_exact_pad")
    model.config["preprocessor"]["window_stride"] = 0.005125
    with pytest.raises(JarvisError, match="odd stride of 41 samples"):
        export_model(model)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("decoder.num_classes", -1),
        ("decoder.feat_in", None),
        ("preprocessor.highfreq", 8000),
        ("preprocessor.lowfreq", "0"),
        ("preprocessor.log_zero_guard_value", "5.9604644775390625e-08"),
        ("encoder.jasper.0.kernel", 33),
        ("encoder.jasper.0.kernel", [32]),
        ("encoder.jasper.0.future_context", 40),  # beyond the kernel means symmetric
        ("encoder.jasper.0.groups", 1),
        ("encoder.jasper.0.heads", -1),
        ("encoder.jasper.0.heads", 64),  # as many as channels
        ("encoder.jasper.5.heads", 3),  # not separable
        ("encoder.jasper.0.se", False),
        ("encoder.normalization_mode", "batch"),
        ("encoder._target_", "nemo.collections.asr.modules.conv_asr.ConvASREncoder"),
        ("labels", ["other"]),
        ("preprocessor.log_zero_guard_type", "add"),
    ],
)
def test_other_ways_to_say_the_same(place, value):
    model = source("quartznet")
    mutate(model.config, place, value)
    assert dump(export_model(model)) == dump(export_model(source("quartznet")))


# ---- weights

CONV = f"{ENCODER}.0.mconv.1.conv.weight"


@pytest.mark.parametrize(
    "name",
    [
        "quartznet",
        "jasper",
        NO_MASK,
        *(f"variants/conv_asr/{v}" for v in ("group_norm", "squeeze_excite")),
    ],
)
def test_every_missing_weight_is_named(name):
    full = source(name).weights
    needed = [w for w in full if not w.endswith("num_batches_tracked")]
    for weight in needed:
        model = source(name)
        del model.weights[weight]
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.missing-weight"
        assert error.value.exit_code == 3
        assert f"`{weight}`" in error.value.message


def test_counters_of_training_are_not_needed():
    model = source("quartznet")
    kept = {k: v for k, v in model.weights.items() if not k.endswith("num_batches_tracked")}
    assert len(kept) < len(model.weights)
    expected = dump(export_model(model))
    assert dump(export_model(replace_parts(model, kept))) == expected


def test_unused_weights_are_named():
    model = source("quartznet")
    for i in range(10):
        model.weights[f"{ENCODER}.0.adapter.{i}.weight"] = np.zeros(3)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"
    assert error.value.exit_code == 1
    assert f"`{ENCODER}.0.adapter.7.weight` and 2 more" in error.value.message


def test_every_wrong_shape_is_named():
    full = source("quartznet").weights
    for weight, array in full.items():
        if not array.ndim:
            continue
        model = source("quartznet")
        model.weights[weight] = np.concatenate([array, array[:1]])
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.wrong-shape"
        assert error.value.exit_code == 3
        expected, got = list(array.shape), list(model.weights[weight].shape)
        assert f"`{weight}` must be {expected} " in error.value.message
        assert f"is {got}" in error.value.message


def test_labels_must_fit_the_decoder():
    model = source("quartznet")
    model.config["decoder"]["vocabulary"].append("x")
    model.config["decoder"]["num_classes"] = 29
    with pytest.raises(IntegrityError, match=r"must be \[30, 64, 1\] .* is \[29, 64, 1\]"):
        export_model(model)


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        (CONV, np.nan),
        (CONV, np.inf),
        (f"{ENCODER}.0.mconv.0.conv.weight", np.nan),
        (f"{ENCODER}.0.mconv.2.running_var", -1.0),
        (f"{ENCODER}.0.mconv.2.running_mean", np.nan),
        ("decoder.decoder_layers.0.bias", -np.inf),
        ("preprocessor.featurizer.fb", np.nan),
    ],
)
def test_weights_that_are_no_numbers_are_refused(weight, value):
    model = source("quartznet")
    model.weights[weight] = model.weights[weight].copy()
    model.weights[weight].flat[0] = value
    with pytest.raises(IntegrityError) as error:
        export_model(model)
    assert error.value.slug == "export.invalid-weight"
    assert f"`{weight.rpartition('.')[0]}" in error.value.message


def test_integer_weights_are_refused():
    model = source("quartznet")
    model.weights[CONV] = model.weights[CONV].astype(np.int64)
    with pytest.raises(IntegrityError, match=f"`{CONV}` must be floating point, but is int64"):
        export_model(model)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_precision_are_rounded_once(dtype):
    model = source("quartznet")
    cast = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in model.weights.items()}
    r = recorded("quartznet")
    logprobs, length = Runner(export_model(replace_parts(model, cast)))(
        r["features"], r["features_length"]
    )
    limit = TOLERANCE if dtype is np.float64 else 1.0
    assert largest_difference(logprobs, r["logprobs"], length) <= limit
    graph = onnx.load_from_string(dump(export_model(replace_parts(model, cast)))[GRAPH])
    assert {i.data_type for i in graph.graph.initializer} == {1, 7}


def test_the_source_is_left_as_it_was():
    model = source("jasper")
    config = copy.deepcopy(model.config)
    weights = {k: v.copy() for k, v in model.weights.items()}
    dump(export_model(model))
    assert model.config == config
    assert all(np.array_equal(model.weights[k], v) for k, v in weights.items())
