"""Citrinet and Conformer, characters and subwords, from checkpoint to transcript on the server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jarvis_rules.triton.client import recognize
from jarvis_rules.triton.environment import ServingEnvironment
from jarvis_rules.triton.server import TritonServer

MODELS = Path(__file__).parents[1] / "data" / "models"
NAMES = ("citrinet", "conformer", "quartznet")
SCONSTRUCT = """
import jarvis_rules
env = Environment(tools=[jarvis_rules.tool])
for name in {names}:
    env.Pipeline(name, "speech_recognition", env.NemoModel(f"{{name}}.nemo"))
env.Default("deploy")
"""


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, serving_environment: ServingEnvironment
) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("subwords")
    for name in NAMES:
        shutil.copy(MODELS / f"{name}.nemo", folder)
    (folder / "SConstruct").write_text(SCONSTRUCT.format(names=NAMES))
    environment = {**os.environ, "JARVIS_CACHE": str(folder / "cache")}
    command = [str(Path(sys.executable).with_name("scons")), "-Q"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    repository = folder / "out" / "cpu" / "models"
    with TritonServer(repository, serving_environment) as running:
        yield running


@pytest.mark.parametrize("name", NAMES)
def test_transcript_of_the_longest_utterance_is_nemos(server: TritonServer, name: str) -> None:
    """Of shorter ones NeMo's features see the padding of their batch, ours never do."""
    recorded = np.load(MODELS / f"{name}.npz")
    longest = int(recorded["audio_length"].argmax())
    audio = recorded["audio"][longest, : recorded["audio_length"][longest]]
    (found,) = recognize(server.grpc_url, name, [audio])
    assert found.transcript == recorded["transcripts"][longest]
    assert found.transcript


@pytest.mark.parametrize("name", NAMES)
def test_an_utterance_is_the_same_alone_and_among_others(server: TritonServer, name: str) -> None:
    recorded = np.load(MODELS / f"{name}.npz")
    pairs = zip(recorded["audio"], recorded["audio_length"], strict=True)
    utterances = [audio[:length] for audio, length in pairs]
    together = recognize(server.grpc_url, name, utterances)
    alone = [recognize(server.grpc_url, name, [audio])[0] for audio in utterances]
    assert [found.transcript for found in together] == [found.transcript for found in alone]
