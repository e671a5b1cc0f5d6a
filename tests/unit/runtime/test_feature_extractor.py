"""The feature extractor as Triton runs it: parameters, files, tensors, one answer per request."""

from __future__ import annotations

import json

import numpy as np
import pytest
from runtime_testing import MODELS, featurizer_buffers, recorded

from jarvis_rules.runtime import feature_extractor
from jarvis_rules.runtime.feature_extractor import TritonPythonModel

pytestmark = pytest.mark.usefixtures("triton")

PARAMETERS = {
    "sample_rate": "16000",
    "n_window_size": "320",
    "n_window_stride": "160",
    "n_fft": "512",
    "features": "64",
    "preemph": "0.97",
    "log": "True",
    "log_zero_guard_type": "add",
    "log_zero_guard_value": "5.960464477539063e-08",
    "mag_power": "2.0",
    "normalize": "per_feature",
    "pad_to": "16",
    "pad_value": "0.0",
    "exact_pad": "False",
    "frame_splicing": "1",
    "window_file": "featurizer_window.npy",
    "fb_file": "featurizer_fb.npy",
}


def arguments(folder, parameters):
    """Return what Triton's python backend hands to `initialize`."""
    values = {key: {"string_value": value} for key, value in parameters.items()}
    config = json.dumps({"name": "asr-feature-extractor", "parameters": values})
    return {"model_config": config, "model_repository": str(folder), "model_version": "1"}


@pytest.fixture
def folder(tmp_path):
    """Return a model's folder with the buffers of a recorded model."""
    version = tmp_path / "1"
    version.mkdir()
    window, fb = featurizer_buffers(MODELS / "quartznet.nemo")
    np.save(version / "featurizer_window.npy", window)
    np.save(version / "featurizer_fb.npy", fb)
    return tmp_path


@pytest.fixture
def model(folder):
    loaded = TritonPythonModel()
    loaded.initialize(arguments(folder, PARAMETERS))
    yield loaded
    loaded.finalize()


def request_of(triton, audio, counts):
    return triton.Request(
        AUDIO_SIGNAL=np.asarray(audio, np.float32), SAMPLE_COUNT=np.asarray(counts, np.int64)
    )


def test_batch_gives_features_of_nemo(triton, model):
    found = recorded("quartznet")
    counts = found["audio_length"][:, None]
    (response,) = model.execute([request_of(triton, found["audio"], counts)])
    assert response.error is None
    features = response.tensors["AUDIO_FEATURES"]
    lengths = response.tensors["AUDIO_FEATURES_LENGTH"]
    assert (features.dtype, features.shape) == (np.float32, found["features"].shape)
    assert (lengths.dtype, lengths.tolist()) == (
        np.int64,
        found["features_length"][:, None].tolist(),
    )
    assert np.abs(features[1] - found["features"][1]).max() <= 1e-3


def test_requests_of_one_call_are_answered_independently(triton, model):
    audio = np.random.default_rng(0).normal(0, 0.1, (1, 4000)).astype(np.float32)
    good = request_of(triton, audio, [[4000]])
    broken = audio.copy()
    broken[0, 7] = np.inf
    bad = request_of(triton, broken, [[4000]])
    first, second, third = model.execute([good, bad, good])
    assert first.error is None
    assert third.error is None
    assert second.tensors == {}
    assert second.error.code == triton.TritonError.INVALID_ARG
    assert second.error.text == "item 0: `AUDIO_SIGNAL` is inf at sample 7"
    assert first.tensors["AUDIO_FEATURES"].tobytes() == third.tensors["AUDIO_FEATURES"].tobytes()


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "item 1: `SAMPLE_COUNT` must be 1 to 1000, got 0"),
        (-5, "item 1: `SAMPLE_COUNT` must be 1 to 1000, got -5"),
        (1001, "item 1: `SAMPLE_COUNT` must be 1 to 1000, got 1001"),
        (256, "item 1: audio of 256 samples is shorter than 257 samples (16.1 ms), the least"),
    ],
)
def test_impossible_count_is_named(triton, model, count, text):
    (response,) = model.execute([request_of(triton, np.zeros((2, 1000)), [[900], [count]])])
    assert response.error.code == triton.TritonError.INVALID_ARG
    assert response.error.text.startswith(text)


def test_not_a_number_counts_only_among_the_samples(triton, model):
    audio = np.zeros((2, 1000))
    audio[1, 600] = np.nan
    (response,) = model.execute([request_of(triton, audio, [[1000], [600]])])
    assert response.error is None
    (response,) = model.execute([request_of(triton, audio, [[1000], [601]])])
    assert response.error.text == "item 1: `AUDIO_SIGNAL` is nan at sample 600"


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"AUDIO_SIGNAL": np.zeros((1, 0), np.float32)}, "there is no audio"),
        ({"AUDIO_SIGNAL": np.zeros(900, np.float32)}, "2 dimensions"),
        ({"AUDIO_SIGNAL": np.zeros((1, 900), np.int16)}, "must be float32"),
        ({"SAMPLE_COUNT": np.zeros((2, 1), np.int64)}, "shape [1, 1]"),
        ({"SAMPLE_COUNT": np.zeros((1, 1), np.int32)}, "must be int64"),
        ({"AUDIO_SIGNAL": None}, "input `AUDIO_SIGNAL` is missing"),
    ],
)
def test_impossible_input_is_named(triton, model, arrays, text):
    usual = {"AUDIO_SIGNAL": np.zeros((1, 900), np.float32), "SAMPLE_COUNT": np.array([[0]])}
    given = {name: array for name, array in (usual | arrays).items() if array is not None}
    (response,) = model.execute([triton.Request(**given)])
    assert response.error.code == triton.TritonError.INVALID_ARG
    assert text in response.error.text


def test_our_own_mistake_fails_one_request_and_is_logged(triton, model, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(feature_extractor, "check_audio", fail)
    (response,) = model.execute([request_of(triton, np.zeros((1, 900)), [[900]])])
    assert response.error.code == triton.TritonError.INTERNAL
    assert response.error.text == "feature_extractor failed: ZeroDivisionError: a mistake"
    assert "check_audio" in triton.logged[0]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"n_fft": None}, "parameter `n_fft` is missing"),
        ({"n_fft": "512.5"}, "parameter `n_fft` must be a whole number, got `512.5`"),
        ({"mag_power": "two"}, "parameter `mag_power` must be a number"),
        ({"pad_value": "nan"}, "parameter `pad_value` must be a finite number"),
        ({"log": "yes"}, "parameter `log` must be `True` or `False`, got `yes`"),
        ({"normalize": "both"}, "parameter `normalize` must be one of"),
        ({"features": "80"}, "fb must be"),
        ({"window_file": "lost.npy"}, "lost.npy` (parameter `window_file`) is missing"),
        ({"fb_file": "/etc/hostname"}, "must be a name inside the model's version folder"),
        ({"fb_file": "../1/featurizer_fb.npy"}, "must be a name inside"),
    ],
)
def test_load_names_what_is_wrong(folder, changes, text):
    parameters = {key: value for key, value in (PARAMETERS | changes).items() if value is not None}
    with pytest.raises(ValueError) as caught:
        TritonPythonModel().initialize(arguments(folder, parameters))
    assert text in str(caught.value)


def test_nothing_is_none(triton, folder):
    changes = {"preemph": "None", "normalize": "None"}
    loaded = TritonPythonModel()
    loaded.initialize(arguments(folder, PARAMETERS | changes))
    (response,) = loaded.execute([request_of(triton, np.zeros((1, 900)), [[900]])])
    assert response.tensors["AUDIO_FEATURES"][0, 0, 0] == pytest.approx(np.log(2**-24))


def test_pickled_buffers_are_refused(folder):
    np.save(folder / "1" / "featurizer_fb.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle"):
        TritonPythonModel().initialize(arguments(folder, PARAMETERS))


def test_stub_that_garbles_tensors_is_refused_at_load(triton, folder, monkeypatch):
    monkeypatch.setattr(
        triton.Tensor, "from_dlpack", lambda name, array: triton.Tensor(name, array * 0)
    )
    monkeypatch.setattr(np, "__version__", "2.1.0")
    with pytest.raises(RuntimeError, match="numpy < 2"):
        TritonPythonModel().initialize(arguments(folder, PARAMETERS))


def test_module_runs_from_what_it_carries(triton, folder, import_carried):
    loaded = import_carried("feature_extractor").TritonPythonModel()
    loaded.initialize(arguments(folder, PARAMETERS))
    (response,) = loaded.execute([request_of(triton, np.zeros((1, 900)), [[900]])])
    assert response.tensors["AUDIO_FEATURES_LENGTH"].tolist() == [[6]]
