"""The example pipeline, built by `scons deploy` and served by the real Triton server."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jarvis_rules.triton.client import recognize
from jarvis_rules.triton.environment import ServingEnvironment
from jarvis_rules.triton.server import TritonServer

ROOT = Path(__file__).parents[2]
SPEECH = ROOT / "tests" / "data" / "speech"
BIN = Path(sys.executable).parent
PIPELINE = "voice_commands"


def transcripts() -> dict[str, str]:
    with (SPEECH / "transcripts.tsv").open(encoding="utf-8") as file:
        return {row["file"]: row["nemo_greedy"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a newcomer's first command makes, moved elsewhere: nothing in it is absolute."""
    folder = tmp_path_factory.mktemp("speech")
    for name in ("SConstruct", "site_scons", "examples"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / name)
    environment = {**os.environ, "JARVIS_CACHE": str(folder / "cache")}
    command = [str(BIN / "scons"), "-Q", "deploy"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return (folder / "out" / "cpu" / "models").rename(folder / "moved")


@pytest.fixture(scope="module")
def server(repository: Path, serving_environment: ServingEnvironment) -> Iterator[TritonServer]:
    with TritonServer(repository, serving_environment) as running:
        yield running


def read(name: str) -> np.ndarray:
    samples, rate = soundfile.read(SPEECH / name, dtype="float32")
    assert rate == 16000
    return samples


def ask(server: TritonServer, audio: np.ndarray, counts: list[int]) -> dict[str, np.ndarray]:
    """Send one request with a batch of recordings."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    signal = InferInput("AUDIO_SIGNAL", list(audio.shape), "FP32")
    signal.set_data_from_numpy(audio)
    count = InferInput("SAMPLE_COUNT", [len(counts), 1], "INT64")
    count.set_data_from_numpy(np.array(counts, dtype=np.int64)[:, np.newaxis])
    with InferenceServerClient(server.grpc_url) as client:
        response = client.infer(PIPELINE, [signal, count], client_timeout=60)
    names = ("FINAL_TRANSCRIPTS", "FINAL_TRANSCRIPTS_SCORE", "FINAL_WORDS_START_END", "FINAL_WORDS")
    return {name: response.as_numpy(name) for name in names}


def test_transcripts_are_those_of_nemo(server: TritonServer) -> None:
    expected = transcripts()
    assert len(expected) == 20
    found = recognize(server.grpc_url, PIPELINE, [read(name) for name in expected])
    assert {n: r.transcript for n, r in zip(expected, found, strict=True)} == expected


def test_scores_are_sums_of_recorded_log_probabilities(server: TritonServer) -> None:
    recorded = np.load(SPEECH / "logprobs.npz")
    for name in recorded.files[:5]:
        best = recorded[name].max(1)
        score = best[recorded[name].argmax(1) != recorded[name].shape[1] - 1].sum()
        file = name if name.endswith(".flac") else f"{name}.flac"
        (found,) = recognize(server.grpc_url, PIPELINE, [read(file)])
        assert found.score == pytest.approx(score, abs=1e-2)


def test_words_have_times_inside_the_recording(server: TritonServer) -> None:
    samples = read("known_02.flac")
    (found,) = recognize(server.grpc_url, PIPELINE, [samples])
    assert [word.word for word in found.words] == found.transcript.split()
    times = [time for word in found.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0 <= times[0] < times[-1] <= len(samples) / 16000 + 0.02


def test_an_answer_is_the_same_alone_and_in_a_ragged_batch(server: TritonServer) -> None:
    recordings = [read(name) for name in ("known_00.flac", "known_06.flac", "unheard_05.flac")]
    counts = [len(samples) for samples in recordings]
    padded = np.full((3, max(counts)), 0.5, dtype=np.float32)
    for row, samples in zip(padded, recordings, strict=True):
        row[: len(samples)] = samples
    together = ask(server, padded, counts)
    for index, samples in enumerate(recordings):
        alone = ask(server, samples[np.newaxis], [len(samples)])
        words = alone["FINAL_WORDS"].shape[1]
        for name in ("FINAL_TRANSCRIPTS", "FINAL_WORDS", "FINAL_WORDS_START_END"):
            expected = alone[name][0]
            found = together[name][index]
            assert np.array_equal(found if name == "FINAL_TRANSCRIPTS" else found[:words], expected)
        score = together["FINAL_TRANSCRIPTS_SCORE"][index]
        assert score == pytest.approx(alone["FINAL_TRANSCRIPTS_SCORE"][0], abs=1e-3)


@pytest.mark.parametrize("seconds", [0.02, 0.5, 75.0])
def test_recordings_of_any_length(server: TritonServer, seconds: float) -> None:
    samples = np.tile(read("known_03.flac"), 60)[: int(seconds * 16000)]
    (found,) = recognize(server.grpc_url, PIPELINE, [samples])
    assert (len(found.words) > 100) == (seconds > 60)


@pytest.mark.parametrize(
    ("audio", "counts", "message"),
    [
        (np.zeros((1, 100), np.float32), [100], "shorter than"),
        (np.zeros((1, 4000), np.float32), [4001], "SAMPLE_COUNT"),
        (np.full((1, 4000), np.nan, np.float32), [4000], "is nan at sample 0"),
    ],
    ids=["short", "count", "nan"],
)
def test_a_bad_request_is_refused_and_the_server_lives(
    server: TritonServer, audio: np.ndarray, counts: list[int], message: str
) -> None:
    from tritonclient.utils import InferenceServerException

    with pytest.raises(InferenceServerException, match=message):
        ask(server, audio, counts)
    (found,) = recognize(server.grpc_url, PIPELINE, [read("known_02.flac")])
    assert found.transcript == "set the kitchen light to white"


def test_infer_prints_json(repository: Path, serving_cache: Path) -> None:
    """The command of the README, with a server of its own."""
    files = [SPEECH / "known_02.flac", SPEECH / "known_04.flac"]
    done = subprocess.run(
        [
            str(BIN / "jarvis-rules"), "infer", PIPELINE, *map(str, files),
            "--repository", str(repository), "--format", "json",
        ],
        env={**os.environ, "JARVIS_CACHE": str(serving_cache)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["input"] for line in lines] == list(map(str, files))
    assert [line["transcript"] for line in lines] == [
        "set the kitchen light to white",
        "play song three",
    ]
    assert set(lines[0]["words"][0]) >= {"word", "start", "end"}
    assert "stand-in" in done.stderr
