"""HiFi-GAN against what NeMo 1.23 recorded, and everything that is refused."""

import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters import hifigan
from jarvis_rules.exporters._weight_norm import take_normed_weight
from jarvis_rules.exporters.exporter import export_model

from .exporter_testing import GRAPH, dump, recorded, source, variants

VARIANTS = variants("hifigan")
EVERY = ("hifigan", *VARIANTS)
FIRST, SECOND, TEXT_ONE = (
    f"variants/hifigan/{name}" for name in ("first_block", "second_block", "text_one")
)
TOLERANCE = 1e-5  # measured: 4.2e-7, of audio between -1 and 1
DISCRIMINATORS = ("mpd.", "msd.")


def runner(model):
    """Return a function from a spectrogram to audio, in onnxruntime on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    graph = dump(model)[GRAPH]
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    return lambda spec: session.run(["audio"], {"spec": spec})[0]


# ---- results


@pytest.mark.parametrize("name", EVERY)
def test_audio_equals_nemo(name):
    r = recorded(name)
    audio = runner(export_model(source(name)))(r["spec"])
    assert audio.shape == r["audio"].shape
    assert np.abs(audio - r["audio"]).max() <= TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_other_lengths_equal_nemo(name):
    r = recorded(name)
    run = runner(export_model(source(name)))
    for key in (key for key in r if key.startswith("audio_")):
        audio = run(r["spec"][:, :, : int(key.removeprefix("audio_"))])
        assert audio.shape == r[key].shape
        assert np.abs(audio - r[key]).max() <= TOLERANCE


@pytest.mark.parametrize("name", EVERY)
def test_an_item_does_not_depend_on_its_neighbours(name):
    r = recorded(name)
    run = runner(export_model(source(name)))
    together = run(r["spec"])
    for i, spec in enumerate(r["spec"]):
        assert run(spec[None])[0].tobytes() == together[i].tobytes()


@pytest.mark.parametrize("name", EVERY)
def test_the_context_is_what_a_sample_depends_on(name):
    """Exactly: a frame within it changes the audio, the next one does not."""
    model = export_model(source(name))
    hop, context = model.facts["hop_length"], model.facts["context_frames"]
    run = runner(model)
    frames, middle = 61, 30
    spec = np.random.RandomState(5).randn(1, recorded(name)["spec"].shape[1], frames)
    spec = spec.astype(np.float32)
    plain = run(spec)
    other = spec.copy()
    other[:, :, middle] += 1e4
    changed = np.flatnonzero((run(other) != plain)[0, 0]) // hop
    # A frame is on the left of those that look to the left to see it.
    assert middle - changed.min() <= context["right"]
    assert changed.max() - middle <= context["left"]
    if name != "hifigan":  # its channels die out before the outermost sample
        assert middle - changed.min() == context["right"]
        assert changed.max() - middle == context["left"]


def test_chunks_that_overlap_by_the_context_make_the_whole():
    model = export_model(source(SECOND))
    run, hop = runner(model), model.facts["hop_length"]
    left, right = (model.facts["context_frames"][side] for side in ("left", "right"))
    spec = np.random.RandomState(6).randn(1, 10, 100).astype(np.float32)
    whole = run(spec)
    start, end = 40, 60
    piece = run(spec[:, :, start - left : end + right])[
        :, :, left * hop : (left + end - start) * hop
    ]
    assert np.abs(piece - whole[:, :, start * hop : end * hop]).max() <= 1e-6


# ---- ways to store the same model


def stored_otherwise(name, form):
    """Return a model with the same generator under other names."""
    model = source(name)
    blocks = len(model.config["generator"]["resblock_kernel_sizes"])
    weights = {}
    for key, value in model.weights.items():
        layer, _, leaf = key.rpartition(".")
        if form == "flat" and key.startswith("generator.resblocks."):
            _, _, stage, block, rest = key.split(".", 4)
            weights[f"generator.resblocks.{int(stage) * blocks + int(block)}.{rest}"] = value
        elif form == "parametrised" and leaf in ("weight_g", "weight_v"):
            number = ("weight_g", "weight_v").index(leaf)
            weights[f"{layer}.parametrizations.weight.original{number}"] = value
        elif form == "removed" and leaf == "weight_v" and key.startswith("generator."):
            weights[f"{layer}.weight"] = take_normed_weight(model.weights, layer, value.shape)
        elif form != "removed" or leaf != "weight_g":
            weights[key] = value
    return replace(model, weights=weights)


@pytest.mark.parametrize("form", ["flat", "parametrised", "removed"])
@pytest.mark.parametrize("name", ["hifigan", SECOND])
def test_other_ways_to_store_a_model_give_the_same_bytes(name, form):
    model = stored_otherwise(name, form)
    assert set(model.weights) != set(source(name).weights)
    assert dump(export_model(model)) == dump(export_model(source(name)))


def test_a_text_as_kind_of_block_is_decided_by_the_weights():
    model = source(FIRST)
    model.config["generator"]["resblock"] = "1"
    assert dump(export_model(model)) == dump(export_model(source(FIRST)))
    model = source(TEXT_ONE)
    model.config["generator"]["resblock"] = 2
    assert dump(export_model(model)) == dump(export_model(source(TEXT_ONE)))


# ---- graph and bytes


@pytest.mark.parametrize("name", EVERY)
def test_graph_is_clean(name):
    model = onnx.load_from_string(dump(export_model(source(name)))[GRAPH])
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    assert len(inferred.graph.value_info) >= len(model.graph.node) - 1
    ops = {node.op_type for node in model.graph.node}
    assert ops == {"Conv", "ConvTranspose", "LeakyRelu", "Add", "Div", "Tanh"}
    assert not any(node.domain for node in model.graph.node)
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_nothing_needs_full_precision():
    """Convolutions and a tanh: 11 bits of mantissa are 8e-5 of full scale."""
    assert export_model(source("hifigan")).graphs[GRAPH].full_precision_nodes == ()


GOLDEN = {
    "hifigan": "924b025e1921c23c580870deda9dcd1dccdec42418cd014340bac4f2ce8fd775",
    TEXT_ONE: "bfe0a518e2b3c469a6178a102881d03770e36475d3224680fb87529afcffd213",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_digest(name):
    """A new digest rebuilds every engine of every user: say so in the change log."""
    assert hashlib.sha256(dump(export_model(source(name)))[GRAPH]).hexdigest() == GOLDEN[name]


def test_order_of_weights_and_keys_does_not_matter():
    model = source(SECOND)
    turned = {k: model.weights[k] for k in reversed(list(model.weights))}
    config = json.loads(json.dumps(model.config, sort_keys=True))
    expected = dump(export_model(model))
    assert dump(export_model(replace(model, weights=turned, config=config))) == expected


# ---- facts


def test_facts_of_hifigan():
    model = export_model(source("hifigan"))
    facts = dict(model.facts)
    features = facts.pop("features")
    assert features["features"] == 80
    assert features["highfreq"] == 8000.0
    assert features["exact_pad"] is True
    assert facts == {
        "task": "vocoder",
        "sample_rate": 22050,
        "hop_length": 256,
        "context_frames": {"left": 13, "right": 13},
        "inputs": [{"name": "spec", "dtype": "float32", "shape": ["batch", 80, "frames"]}],
        "outputs": [{"name": "audio", "dtype": "float32", "shape": ["batch", 1, "samples"]}],
    }
    assert model.assets == {}
    json.dumps(model.facts, allow_nan=False)


@pytest.mark.parametrize(("name", "hop"), [(FIRST, 3), (SECOND, 12), (TEXT_ONE, 10)])
def test_facts_of_variants(name, hop):
    facts = export_model(source(name)).facts
    assert facts["hop_length"] == facts["features"]["n_window_stride"] == hop
    assert facts["sample_rate"] == 8000


# ---- configuration: (place, value) in the first model of the list

REFUSED = [
    ("generator", None),
    ("generator._target_", "nemo.collections.tts.modules.univnet_modules.Generator"),
    ("generator.resblock", 3),
    ("generator.resblock", True),
    ("generator.resblock", None),
    ("generator.resblock", [1]),
    ("generator.upsample_rates", []),
    ("generator.upsample_rates", 8),
    ("generator.upsample_rates", [8, 8, 2, 0]),
    ("generator.upsample_rates", [8, 8, 2, 2.0]),
    ("generator.upsample_rates", [8, 8, 2, 10**400]),
    ("generator.upsample_kernel_sizes", [16, 16, 4]),
    ("generator.upsample_kernel_sizes", [16, 16, 4, 5]),
    ("generator.upsample_kernel_sizes", [16, 16, 4, 1]),
    ("generator.upsample_kernel_sizes", [16, 16, 4, 2**20]),
    ("generator.upsample_kernel_sizes", None),
    ("generator.upsample_initial_channel", 8),
    ("generator.upsample_initial_channel", "512"),
    ("generator.resblock_kernel_sizes", [3, 7, 12]),
    ("generator.resblock_kernel_sizes", []),
    ("generator.resblock_dilation_sizes", [[1, 3, 5]]),
    ("generator.resblock_dilation_sizes", [[1, 3], [1, 3], [1, 3]]),
    ("generator.resblock_dilation_sizes", [1, 3, 5]),
    ("generator.resblock_dilation_sizes", None),
    ("generator.initial_input_size", 0),
    ("generator.lrelu_slope", 0.2),
    ("preprocessor", None),
    ("preprocessor._target_", "nemo.x.Features"),
    ("preprocessor.nfilt", "80"),
    ("preprocessor.n_mels", 80),
    ("adapters", {"a": {"_target_": "nemo.x.LinearAdapter"}}),
]


def mutate(config, place, value):
    *parents, last = place.split(".")
    for part in parents:
        config = config[part]
    config[last] = value


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("place", "value"), REFUSED, ids=lambda v: str(v)[:50])
def test_refused_by_name(place, value):
    model = source("hifigan")
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{place}: " in error.value.message
    assert "understood is " in error.value.message


@pytest.mark.parametrize(
    ("place", "value", "named"),
    [
        ("preprocessor.nfilt", 64, "preprocessor.nfilt: 64"),
        ("preprocessor.n_window_stride", 200, "preprocessor.n_window_stride: 200"),
        ("generator.initial_input_size", 81, "preprocessor.nfilt: 80"),
        ("generator.upsample_rates", [8, 8, 2, 4], "preprocessor.n_window_stride: 256"),
    ],
)
def test_contradictions_are_refused(place, value, named):
    model = source("hifigan")
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"
    assert f"`{named}`" in error.value.message


KEYS = [(where, key) for where in ("", "generator") for key in hifigan.EXPORTER.sections[where]]


@pytest.mark.parametrize(
    ("where", "key"), [k for k in KEYS if k[1].treatment == "ignored"], ids=lambda v: str(v)[:60]
)
def test_ignored_keys_have_a_reason_and_change_nothing(where, key):
    model = source(SECOND)
    assert key.reason
    mutate(model.config, f"{where}.{key.name}".lstrip("."), {"_target_": "nemo.anything"})
    assert dump(export_model(model)) == dump(export_model(source(SECOND)))


@pytest.mark.parametrize(
    ("where", "key"), [k for k in KEYS if k[1].treatment == "used"], ids=lambda v: str(v)[:60]
)
def test_no_key_that_matters_is_read_carelessly(where, key):
    if key.name == "target":
        return
    model = source(SECOND)
    place = f"{where}.{key.name}".lstrip(".")
    mutate(model.config, place, {"nonsense": 1})
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert f"`{place}" in error.value.message


def test_old_configurations_have_another_filterbank_and_no_input_size():
    model = source("hifigan")
    model.config["preprocessor"]["_target_"] = (
        "nemo.collections.asr.parts.features.FilterbankFeatures"
    )
    model.config["preprocessor"] |= {"stft_exact_pad": True, "stft_conv": False}
    model.config["generator"]["initial_input_size"] = 80
    assert dump(export_model(model)) == dump(export_model(source("hifigan")))


# ---- weights


@pytest.mark.parametrize("name", VARIANTS)
def test_every_missing_weight_is_named(name):
    full = source(name).weights
    for weight in (w for w in full if w.startswith("generator.")):
        kept = {k: v for k, v in full.items() if k != weight}
        with pytest.raises(IntegrityError) as error:
            export_model(replace(source(name), weights=kept))
        assert error.value.slug == "export.missing-weight"
        assert f"`{weight}`" in error.value.message


@pytest.mark.parametrize("name", [FIRST, SECOND])
def test_every_wrong_shape_is_named(name):
    model = source(name)
    for weight, array in model.weights.items():
        if not weight.startswith("generator."):
            continue
        wrong = model.weights | {weight: np.concatenate([array, array[:1]])}
        with pytest.raises(IntegrityError) as error:
            export_model(replace(model, weights=wrong))
        assert error.value.slug == "export.wrong-shape"
        assert f"`{weight}` must be {list(array.shape)} " in error.value.message


def test_training_alone_needs_the_other_weights():
    model = source("hifigan")
    kept = {k: v for k, v in model.weights.items() if k.startswith("generator.")}
    assert any(k.startswith(DISCRIMINATORS) for k in model.weights)
    expected = dump(export_model(model))
    assert dump(export_model(replace(model, weights=kept))) == expected


def test_weights_left_over_are_named():
    model = source(SECOND)
    model.weights["generator.resblocks.0.0.convs.2.bias"] = np.zeros(6, np.float32)
    with pytest.raises(JarvisError, match=r"`generator\.resblocks\.0\.0\.convs\.2\.bias`") as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"


@pytest.mark.parametrize(
    ("weight", "value"),
    [
        ("generator.conv_pre.weight_v", np.nan),
        ("generator.conv_post.weight_g", np.inf),
        ("generator.ups.0.bias", np.nan),
        ("generator.resblocks.0.0.convs1.0.weight_v", 0.0),  # a row of zeros has no direction
    ],
)
def test_weights_that_are_no_numbers_are_refused(weight, value):
    model = source(FIRST)
    array = model.weights[weight].copy()
    array[0] = value
    model.weights[weight] = array
    with pytest.raises(IntegrityError, match=f"`{weight}`") as error:
        export_model(model)
    assert error.value.slug == "export.invalid-weight"


def test_a_generator_of_endless_stages_ends_at_the_first_missing_weight():
    model = source("hifigan")
    generator = model.config["generator"]
    generator |= {"upsample_rates": [1] * 30, "upsample_kernel_sizes": [1] * 30}
    generator["upsample_initial_channel"] = 2**31 - 1
    model.config["preprocessor"]["n_window_stride"] = 1
    with pytest.raises(IntegrityError, match=r"conv_pre.weight_v` must be \[2147483647, 80, 7\]"):
        export_model(model)


def test_the_graph_can_be_written_twice():
    graph = export_model(source(FIRST)).graphs[GRAPH]
    one, two = io.BytesIO(), io.BytesIO()
    graph.write(one)
    graph.write(two)
    assert one.getvalue() == two.getvalue()
