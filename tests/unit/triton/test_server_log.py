"""Logs as Triton 2.51.0 writes them, shortened."""

from __future__ import annotations

from pathlib import Path

import pytest

from jarvis_rules.triton import server_log

NOISE = """\
W1122 18:00:00.000001 10 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"
E1122 18:00:00.000002 10 server.cc:241] "CudaDriverHelper has not been initialized."
I1122 18:00:00.000003 10 model_lifecycle.cc:472] "loading: net:1"
I1122 18:00:00.000003 10 model_lifecycle.cc:472] "loading: text:1"
I1122 18:00:00.000004 10 model_lifecycle.cc:839] "successfully loaded 'net'"
E1122 18:00:00.000005 10 ensemble_scheduler.cc:1468] "unable to create stream for e: CUDA driver"
Error: Failed to initialize NVML
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "server.log"


def test_the_root_cause_is_told_once_and_readably(log: Path) -> None:
    cause = (
        "Internal: ValueError: no vocabulary\\n\\nAt:\\n  /m/1/model.py(3): initialize\\n"
        "  <frozen importlib._bootstrap>(241): _call_with_frames_removed\\n"
    )
    log.write_text(
        f"{NOISE}"
        f"E1122 18:00:01.0 10 a.cc:642] \"failed to load 'text' version 1: {cause}\"\n"
        f'E1122 18:00:01.0 10 model_repository_manager.cc:703] "Invalid argument: e: {cause};"\n'
        f"+---+---+\n| text | UNAVAILABLE: {cause} |\n"
        f"error: creating server: Invalid argument - load failed for model 'e': {cause}\n"
    )
    assert server_log.reasons(log) == [
        "`text`: ValueError: no vocabulary",
        "At:",
        "  /m/1/model.py(3): initialize",
    ]


def test_a_complaint_of_the_repository_is_told(log: Path) -> None:
    complaint = "Poll failed for model directory 'e': ensemble tensor 'x' is unused"
    log.write_text(
        f'{NOISE}E1122 18:00:01.0 10 model_repository_manager.cc:1460] "{complaint}"\n'
        "error: creating server: Internal - failed to load all models\n"
    )
    assert server_log.reasons(log) == [complaint]


def test_without_complaints_the_end_of_the_log_is_told(log: Path) -> None:
    log.write_text(NOISE)
    assert server_log.reasons(log)[-1].endswith("\"successfully loaded 'net'\"")
    assert server_log.still_loading(log) == ["text"]


def test_a_taken_port_is_recognised(log: Path) -> None:
    log.write_text(
        'E1122 18:00:01.0 10 main.cc:257] "failed to start HTTP service: '
        "Unavailable - Socket '127.0.0.1:8000' already in use \"\n"
    )
    assert server_log.port_in_use(log) == 8000


def test_a_missing_log_is_empty(log: Path) -> None:
    assert server_log.reasons(log) == []
    assert server_log.port_in_use(log) is None
