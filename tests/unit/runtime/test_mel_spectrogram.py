"""Features against what NeMo 1.23 recorded, and the properties that serving relies on."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from runtime_testing import MODELS, featurizer_buffers, recorded

from jarvis_rules.runtime.mel_spectrogram import MelSpectrogram

TOLERANCE = 1e-4
DEFAULTS = {
    "sample_rate": 16000,
    "n_window_size": 320,
    "n_window_stride": 160,
    "n_fft": 512,
    "features": 64,
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
}
SPEECH_MODELS = ("quartznet", "jasper", "quartznet_espeak")
# As `tests/data/make/record_conv_asr.py` configured NeMo.
VARIANTS = {
    "features_all": {
        "sample_rate": 8000,
        "n_window_size": 150,
        "n_window_stride": 60,
        "n_fft": 256,
        "features": 16,
        "normalize": "all_features",
        "preemph": None,
        "log_zero_guard_type": "clamp",
        "log_zero_guard_value": 0.001,
        "mag_power": 1.0,
        "pad_to": 0,
    },
    "features_exact_pad": {
        "sample_rate": 8000,
        "n_window_size": 160,
        "n_window_stride": 40,
        "n_fft": 256,
        "features": 16,
        "normalize": None,
        "log": False,
        "preemph": 0.9,
        "exact_pad": True,
        "pad_value": -1.5,
        "pad_to": 8,
    },
    "features_eps": {
        "sample_rate": 8000,
        "n_window_size": 256,
        "n_window_stride": 40,
        "n_fft": 512,
        "log_zero_guard_value": 2**-23,
        "pad_to": 4,
        "features": 8,
    },
}


def spectrogram(**changes):
    """Return a computation with a Hann window and overlapping triangles as filters."""
    parameters = DEFAULTS | changes
    window = np.hanning(parameters["n_window_size"]).astype(np.float32)
    bins = np.arange(parameters["n_fft"] // 2 + 1)
    centres = np.linspace(2, bins[-1] - 2, parameters["features"])[:, None]
    fb = np.maximum(0, 1 - np.abs(bins - centres) / 6).astype(np.float32)
    return MelSpectrogram(parameters, window, fb)


def noise(samples, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


def of_model(name, **changes):
    return MelSpectrogram(DEFAULTS | changes, *featurizer_buffers(MODELS / f"{name}.nemo"))


@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_longest_item_equals_nemo_batch(name):
    found = recorded(name)
    features, lengths = of_model(name).batch(found["audio"], found["audio_length"])
    assert features.dtype == np.float32
    assert features.shape == found["features"].shape
    assert lengths.tolist() == found["features_length"].tolist()
    longest = int(found["audio_length"].argmax())
    assert np.abs(features[longest] - found["features"][longest]).max() <= TOLERANCE


@pytest.mark.parametrize("name", SPEECH_MODELS)
def test_every_item_equals_nemo_alone(name):
    found, alone = recorded(name), recorded(f"{name}.alone")
    features, lengths = of_model(name).batch(found["audio"], found["audio_length"])
    assert lengths.tolist() == alone["features_length"].tolist()
    for item, length in enumerate(lengths):
        difference = features[item, :, :length] - alone[f"features_{item}"][:, :length]
        assert np.abs(difference).max() <= TOLERANCE


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variants_equal_nemo_alone(name):
    found = recorded(f"variants/conv_asr/{name}")
    computation = of_model(f"variants/conv_asr/{name}", **VARIANTS[name])
    for item, count in enumerate(found["audio_length"]):
        features, lengths = computation.batch(found["audio"][item : item + 1], np.array([count]))
        expected = found[f"features_{item}"]
        assert lengths.tolist() == [found["alone_features_length"][item]]
        assert features[0].shape == expected.shape
        # These are small without a logarithm, so the measure is their own size, not the padding's.
        size = np.abs(expected[:, : lengths[0]]).max()
        assert np.abs(features[0] - expected).max() <= TOLERANCE * size


@pytest.mark.parametrize("normalize", ["per_feature", "all_features", None])
def test_item_is_bit_identical_alone_and_in_any_batch(normalize):
    computation = spectrogram(normalize=normalize)
    counts = np.array([5000, 257, 0, 48123, 20480])
    audio = np.full((5, 50000), np.nan, np.float32)
    for row, count in zip(audio, counts, strict=True):
        row[:count] = noise(count, seed=count)
    for order in (np.arange(5), np.array([3, 0, 4, 1, 2])):
        features, lengths = computation.batch(audio[order], counts[order])
        for row, length, item in zip(features, lengths, order, strict=True):
            alone = computation(audio[item, : counts[item]].copy())
            assert alone.shape[1] == length
            assert row[:, :length].tobytes() == alone.tobytes()


@pytest.mark.parametrize(("pad_to", "frames"), [(0, 7), (1, 7), (4, 8), (7, 7), (16, 16)])
def test_batch_is_padded_to_a_multiple(pad_to, frames):
    audio = noise(2000).reshape(2, 1000)
    features, lengths = spectrogram(pad_to=pad_to, pad_value=-3.0).batch(
        audio, np.array([1000, 400])
    )
    assert features.shape == (2, 64, frames)
    assert lengths.tolist() == [7, 3]
    assert (features[0, :, 7:] == -3.0).all()
    assert (features[1, :, 3:] == -3.0).all()


def test_no_samples_give_no_frames():
    computation = spectrogram()
    assert computation(np.empty(0, np.float32)).shape == (64, 0)
    features, lengths = computation.batch(np.zeros((2, 9), np.float32), np.array([0, 0]))
    assert (features.shape, lengths.tolist()) == ((2, 64, 0), [0, 0])


@pytest.mark.parametrize(
    ("changes", "shortest", "frames"),
    [({}, 257, 2), ({"exact_pad": True}, 177, 1), ({"n_window_stride": 512}, 257, 1)],
)
def test_shortest_audio(changes, shortest, frames):
    computation = spectrogram(**changes)
    assert computation.shortest == shortest
    features = computation(noise(shortest))
    assert features.shape == (64, frames)
    assert np.isfinite(features).all()
    text = f"audio of {shortest - 1} samples is shorter than {shortest} samples"
    with pytest.raises(ValueError, match=text):
        computation(noise(shortest - 1))
    with pytest.raises(ValueError, match=f"item 1: {text}"):
        computation.batch(np.ones((2, shortest), np.float32), np.array([shortest, shortest - 1]))


@pytest.mark.parametrize("normalize", ["per_feature", "all_features"])
def test_nothing_to_normalise_gives_zeros(normalize):
    silence = spectrogram(normalize=normalize)(np.zeros(16000, np.float32))
    assert np.abs(silence).max() == 0
    one_frame = spectrogram(normalize=normalize, n_window_stride=512, features=1)(noise(300))
    assert one_frame.tolist() == [[0.0]]


def test_extreme_samples_give_finite_features():
    for scale in (1e-30, 3e38):
        audio = np.clip(noise(4000).astype(np.float64) * 10, -1, 1) * scale
        assert np.isfinite(spectrogram(preemph=None)(audio.astype(np.float32))).all()


def test_long_audio_needs_little_memory():
    minutes = noise(5 * 60 * 16000)
    computation = spectrogram()
    tracemalloc.start()
    features = computation(minutes)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert features.shape == (64, 30001)
    assert peak < 3 * minutes.nbytes


@pytest.mark.parametrize("counts", [[5, -1], [5, 1001]])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match=f"sample count must be 0 to 1000, got {counts[1]}"):
        spectrogram().batch(np.zeros((2, 1000), np.float32), np.array(counts))


def test_impossible_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\[B, N\]"):
        spectrogram().batch(np.zeros((2, 1000), np.float32), np.array([5]))
    with pytest.raises(ValueError, match="1 dimension"):
        spectrogram()(np.zeros((2, 1000), np.float32))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("n_fft", 0),
        ("n_fft", 512.0),
        ("n_fft", True),
        ("pad_to", "max"),
        ("preemph", "0.97"),
        ("log", "True"),
        ("log_zero_guard_type", "floor"),
        ("log_zero_guard_value", 0),
        ("log_zero_guard_value", "tiny"),
        ("mag_power", float("nan")),
        ("normalize", "fixed_mean"),
        ("frame_splicing", 3),
    ],
)
def test_parameter_that_cannot_be_served_is_named(key, value):
    with pytest.raises(ValueError, match=f"`{key}`"):
        spectrogram(**{key: value})


def test_missing_parameter_is_named():
    parameters = {key: value for key, value in DEFAULTS.items() if key != "mag_power"}
    with pytest.raises(ValueError, match="`mag_power` is missing"):
        MelSpectrogram(parameters, np.ones(320, np.float32), np.ones((64, 257), np.float32))


def test_buffers_that_do_not_fit_are_refused():
    window, fb = np.ones(320, np.float32), np.ones((1, 64, 257), np.float32)
    with pytest.raises(ValueError, match="window must be"):
        MelSpectrogram(DEFAULTS, window[1:], fb)
    with pytest.raises(ValueError, match="fb must be"):
        MelSpectrogram(DEFAULTS, window, fb[:, 1:])
    with pytest.raises(ValueError, match="even n_window_stride"):
        MelSpectrogram(DEFAULTS | {"exact_pad": True, "n_window_stride": 161}, window, fb)
