"""The commands `serve`, `infer` and `serving-environment` against the real server."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jarvis_rules.cli import infer, serve, serving_environment
from jarvis_rules.errors import JarvisError
from jarvis_rules.triton.environment import ServingEnvironment
from jarvis_rules.triton.server import TritonServer

RUN_SERVE = """
import argparse, sys
from jarvis_rules.cli import serve
parser = argparse.ArgumentParser()
serve.add_parser(parser.add_subparsers())
args = parser.parse_args(sys.argv[1:])
sys.exit(args.run(args))
"""
FREE_PORTS = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]


def run(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for command in (infer, serve, serving_environment):
        command.add_parser(subparsers)
    args = parser.parse_args([str(argument) for argument in arguments])
    return int(args.run(args))


@pytest.fixture
def recordings(tmp_path: Path) -> list[Path]:
    """The same loudness at the pipeline's rate and at another."""
    for name, rate in (("a.wav", 16000), ("b.wav", 8000)):
        soundfile.write(tmp_path / name, np.full(rate, 0.25), rate, subtype="FLOAT")
    return [tmp_path / "a.wav", tmp_path / "b.wav"]


@pytest.fixture
def cache(
    serving_environment: ServingEnvironment,
    serving_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> ServingEnvironment:
    monkeypatch.setenv("JARVIS_CACHE", str(serving_cache))
    return serving_environment


def test_one_file_is_its_transcript(
    tiny_server: TritonServer, recordings: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("infer", "tiny", recordings[0], "--url", tiny_server.grpc_url) == 0
    said = capsys.readouterr()
    assert said.out == "peak 0.25\n"
    assert said.err == ""


def test_several_files_name_themselves_and_resampling_is_said(
    tiny_server: TritonServer, recordings: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run("infer", "tiny", *recordings, "--url", tiny_server.grpc_url)
    said = capsys.readouterr()
    first, second = said.out.splitlines()
    assert first == f"{recordings[0]}: peak 0.25"
    assert second.startswith(f"{recordings[1]}: peak 0.")
    assert said.err.count("resampled from 8000 Hz to 16000 Hz") == 1


def test_json_has_words_with_times_in_seconds(
    tiny_server: TritonServer, recordings: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run("infer", "tiny", recordings[0], "--url", tiny_server.grpc_url, "--format", "json")
    assert json.loads(capsys.readouterr().out) == {
        "input": str(recordings[0]),
        "transcript": "peak 0.25",
        "score": 0.25,
        "words": [
            {"word": "peak", "start": 0.0, "end": 0.5, "score": 0.5},
            {"word": "0.25", "start": 0.5, "end": 1.0, "score": 0.5},
        ],
    }


def test_silence_has_no_words(
    tiny_server: TritonServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soundfile.write(tmp_path / "silence.wav", np.zeros(1600), 16000)
    run("infer", "tiny", tmp_path / "silence.wav", "--url", tiny_server.grpc_url)
    assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize(
    ("pipeline", "slug", "part"),
    [
        ("tinny", "infer.unknown-pipeline", "`tiny`"),
        ("tiny-decoder", "infer.wrong-pipeline", "speech_recognition"),
    ],
)
def test_another_pipeline_is_refused(
    tiny_server: TritonServer, recordings: list[Path], pipeline: str, slug: str, part: str
) -> None:
    with pytest.raises(JarvisError) as caught:
        run("infer", pipeline, recordings[0], "--url", tiny_server.grpc_url)
    assert caught.value.slug == slug
    assert part in str(caught.value.hint)


def test_a_fault_in_a_model_is_told(tiny_server: TritonServer, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.ones(13 * 16), 16000)
    with pytest.raises(JarvisError, match="13 ms is refused") as caught:
        run("infer", "tiny", tmp_path / "a.wav", "--url", tiny_server.grpc_url)
    assert caught.value.slug == "infer.failed"


def test_a_repository_is_served_for_one_command(
    cache: ServingEnvironment,
    tiny_repository: Path,
    recordings: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cache.path.exists()
    assert run("infer", "tiny", recordings[0], "--repository", tiny_repository) == 0
    said = capsys.readouterr()
    assert said.out == "peak 0.25\n"
    assert "stand-in" in said.err
    with pytest.raises(JarvisError) as caught:
        run("infer", "tyni", recordings[0], "--repository", tiny_repository)
    assert caught.value.slug == "infer.unknown-pipeline"
    shutil.rmtree(tiny_repository)
    with pytest.raises(JarvisError) as caught:
        run("infer", "tiny", recordings[0], "--repository", tiny_repository)
    assert caught.value.slug == "repository.missing"


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_says_where_and_stops_cleanly(
    number: int,
    tiny_repository: Path,
    recordings: list[Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [sys.executable, "-c", RUN_SERVE, "serve", str(tiny_repository), *FREE_PORTS]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        assert server.stderr is not None
        lines = [server.stderr.readline().decode() for _ in range(2)]
        assert "stand-in" in lines[0]
        assert lines[1].startswith("ready after ")
        assert "serves tiny;" in lines[1]
        url = lines[1].partition("grpc ")[2].partition(",")[0]
        run("infer", "tiny", recordings[0], "--url", url)
        assert capsys.readouterr().out == "peak 0.25\n"

        server.send_signal(number)
        output, errors = server.communicate(timeout=30)

    assert server.returncode == 0
    assert output == b""
    assert errors.decode().splitlines() == ["stopping", "stopped"]


def test_serving_environment_prints_its_path(
    cache: ServingEnvironment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("serving-environment") == 0
    assert capsys.readouterr().out == f"{cache.path}\n"


def test_a_failing_install_is_told_without_a_traceback(
    tmp_path: Path,
    serving_environment: ServingEnvironment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """pip is given an empty folder for its index; the interpreter is one known to work."""
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path))
    for name, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(tmp_path)), ("CONFIG_FILE", "/none")):
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(JarvisError, match="No matching distribution") as caught:
        run("serving-environment", "--python", serving_environment.python)
    assert caught.value.slug == "serving.install-failed"
    assert Path(str(caught.value).rpartition("log: ")[2]).is_file()
