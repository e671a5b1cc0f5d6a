"""The CTC decoder as Triton runs it: parameters, vocabulary, tensors, one answer per request."""

from __future__ import annotations

import json
import string

import numpy as np
import pytest
from runtime_testing import recorded

from jarvis_rules.runtime.ctc_decoder import TritonPythonModel, read_labels

LABELS = [" ", *string.ascii_lowercase, "'"]
pytestmark = pytest.mark.usefixtures("triton")

PARAMETERS = {
    "vocab_file": "jarvis_decoder_vocabulary.txt",
    "blank_id": "28",
    "ms_per_timestep": "20",
    "decoder_type": "greedy",
    "word_separator": " ",
}


def write_labels(path, labels):
    lines = "".join(json.dumps(label, ensure_ascii=False) + "\n" for label in labels)
    path.write_bytes(lines.encode())


def arguments(folder, parameters):
    """Return what Triton's python backend hands to `initialize`."""
    values = {key: {"string_value": value} for key, value in parameters.items()}
    config = json.dumps({"name": "asr-ctc-decoder", "parameters": values})
    return {"model_config": config, "model_repository": str(folder), "model_version": "1"}


@pytest.fixture
def folder(tmp_path):
    """Return a model's folder with its vocabulary."""
    (tmp_path / "1").mkdir()
    write_labels(tmp_path / "1" / "jarvis_decoder_vocabulary.txt", LABELS)
    return tmp_path


def load(folder, **changes):
    loaded = TritonPythonModel()
    loaded.initialize(arguments(folder, PARAMETERS | changes))
    return loaded


def request_of(triton, logprobs, lengths):
    return triton.Request(LOGPROBS=logprobs, LOGPROBS_LENGTH=np.array(lengths, np.int64)[:, None])


def saying(*texts):
    """Return log-probabilities that say each text, a blank after every character."""
    logprobs = np.full((len(texts), 2 * max(map(len, texts)), 29), -20.0, np.float32)
    logprobs[:, :, 28] = -0.5
    for row, text in zip(logprobs, texts, strict=True):
        for place, character in enumerate(text):
            row[2 * place, LABELS.index(character)] = -0.25
    return logprobs


def test_tensors_of_a_batch(triton, folder):
    logprobs = saying("ab c", "", "a")
    (response,) = load(folder).execute([request_of(triton, logprobs, [8, 8, 8])])
    assert response.error is None
    found = {name: (array.dtype, array.tolist()) for name, array in response.tensors.items()}
    assert found == {
        "FINAL_TRANSCRIPTS": (np.object_, [[b"ab c"], [b""], [b"a"]]),
        "FINAL_TRANSCRIPTS_SCORE": (np.float32, [[-1.0], [0.0], [-0.25]]),
        "FINAL_WORDS": (np.object_, [[b"ab", b"c"], [b"", b""], [b"a", b""]]),
        "FINAL_WORDS_START_END": (
            np.int32,
            [[[0, 60], [120, 140]], [[-1, -1], [-1, -1]], [[0, 20], [-1, -1]]],
        ),
        "FINAL_WORDS_SCORE": (np.float32, [[-0.5, -0.25], [0.0, 0.0], [-0.25, 0.0]]),
    }


def test_no_word_gives_no_column(triton, folder):
    (response,) = load(folder).execute([request_of(triton, saying("a", "b"), [0, 0])])
    assert response.tensors["FINAL_TRANSCRIPTS"].tolist() == [[b""], [b""]]
    shapes = {name: array.shape for name, array in response.tensors.items()}
    assert shapes["FINAL_WORDS"] == shapes["FINAL_WORDS_SCORE"] == (2, 0)
    assert shapes["FINAL_WORDS_START_END"] == (2, 0, 2)


def test_recorded_transcripts(triton, folder):
    found = recorded("quartznet_espeak")
    request = request_of(triton, found["logprobs"], found["encoded_length"])
    (response,) = load(folder).execute([request])
    expected = [[text.encode()] for text in found["transcripts"].tolist()]
    assert response.tensors["FINAL_TRANSCRIPTS"].tolist() == expected


def test_requests_of_one_call_are_answered_independently(triton, folder):
    logprobs = saying("ab")
    broken = logprobs.copy()
    broken[0, 2, 5] = np.nan
    requests = [
        request_of(triton, logprobs, [4]),
        request_of(triton, broken, [4]),
        request_of(triton, logprobs, [5]),
        request_of(triton, logprobs[:, :, 1:], [4]),
        triton.Request(LOGPROBS=logprobs),
        request_of(triton, logprobs.astype(np.float64), [4]),
        request_of(triton, broken, [2]),
    ]
    responses = load(folder).execute(requests)
    codes = [response.error and response.error.code for response in responses]
    assert codes == [None, *[triton.TritonError.INVALID_ARG] * 5, None]
    assert [response.error.text for response in responses[1:6]] == [
        "item 0: log-probabilities are NaN at frame 2",
        "length must be 0 to 4, got 5",
        "28 classes don't fit 28 labels with blank 28",
        "input `LOGPROBS_LENGTH` is missing",
        "input `LOGPROBS` must be float32 with 3 dimensions, got float64 of shape [1, 4, 29]",
    ]
    assert responses[6].tensors["FINAL_TRANSCRIPTS"].tolist() == [[b"a"]]


def test_delay_and_step_come_from_the_parameters(triton, folder):
    request = request_of(triton, saying("ab c"), [8])
    model = load(folder, ms_per_timestep="12.5", asr_model_delay="2")
    (response,) = model.execute([request])
    assert response.tensors["FINAL_WORDS_START_END"].tolist() == [[[0, 12], [50, 62]]]
    (response,) = load(folder, asr_model_delay="-1").execute([request])
    assert response.tensors["FINAL_WORDS_START_END"].tolist() == [[[0, 60], [120, 140]]]


def test_labels_survive_the_file(tmp_path):
    labels = [" ", "\n", "", '"', "\\", "é", "\u2028", "▁the", "\r", "'"]
    write_labels(tmp_path / "labels", labels)
    assert read_labels(tmp_path / "labels") == labels


@pytest.mark.parametrize(
    ("data", "line"), [(b'"a"\nb\n', 2), (b'"a"\n\n"b"\n', 2), (b"", 1), (b"1\n", 1), (b"\xff", 1)]
)
def test_line_that_is_no_label_is_named(tmp_path, data, line):
    (tmp_path / "labels").write_bytes(data)
    with pytest.raises(ValueError, match=f"line {line}: expected a JSON string"):
        read_labels(tmp_path / "labels")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"decoder_type": "beam"}, "decoder_type must be `greedy`, got `beam`"),
        ({"blank_id": "29"}, "blank_id must be 0 to 28 with 28 labels, got 29"),
        ({"vocab_file": "lost.txt"}, "lost.txt` (parameter `vocab_file`) is missing"),
        ({"ms_per_timestep": "fast"}, "parameter `ms_per_timestep` must be a number"),
        ({"asr_model_delay": "1.5"}, "parameter `asr_model_delay` must be a whole number"),
    ],
)
def test_load_names_what_is_wrong(folder, changes, text):
    with pytest.raises(ValueError) as caught:
        load(folder, **changes)
    assert text in str(caught.value)


def test_module_runs_from_what_it_carries(triton, folder, import_carried):
    loaded = import_carried("ctc_decoder").TritonPythonModel()
    loaded.initialize(arguments(folder, PARAMETERS))
    (response,) = loaded.execute([request_of(triton, saying("hi"), [4])])
    assert response.tensors["FINAL_TRANSCRIPTS"].tolist() == [[b"hi"]]
