"""Triton module: log-probabilities to transcripts and words.

Inputs: `LOGPROBS` FP32 [batch, T, V], `LOGPROBS_LENGTH` INT64 [batch, 1] (frames).
Outputs: `FINAL_TRANSCRIPTS` STRING [batch, 1], `FINAL_TRANSCRIPTS_SCORE` FP32 [batch, 1],
`FINAL_WORDS` STRING [batch, W], `FINAL_WORDS_START_END` INT32 [batch, W, 2] (ms),
`FINAL_WORDS_SCORE` FP32 [batch, W]; W = the most words of an item in the request, shorter rows are
filled with empty strings, -1 and 0.
Parameters: `vocab_file` (in the version folder: one JSON string per line, in UTF-8), `blank_id`,
`ms_per_timestep`, `decoder_type` (`greedy`), `word_separator`, and, if there, `asr_model_delay`
(acoustic steps by which time stamps are moved earlier; -1, the default, stands for 0).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from .ctc_greedy import Hypothesis, decode
from .parameters import Parameters
from .serving import Answer, answer_each, check_tensors, input_array, input_column

REQUIRES = ("numpy",)


class TritonPythonModel:
    """What Triton's python backend runs."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the parameters and labels; an exception here fails the load with its text."""
        check_tensors()
        parameters = Parameters(args)
        decoder_type = parameters.text("decoder_type")
        if decoder_type != "greedy":
            raise ValueError(
                f"model `{parameters.model}`: decoder_type must be `greedy`, got `{decoder_type}`"
            )
        self._labels = read_labels(parameters.file("vocab_file"))
        self._blank_id = parameters.integer("blank_id")
        if not 0 <= self._blank_id <= len(self._labels):
            raise ValueError(
                f"model `{parameters.model}`: blank_id must be 0 to {len(self._labels)} "
                f"with {len(self._labels)} labels, got {self._blank_id}"
            )
        self._ms_per_timestep = parameters.number("ms_per_timestep")
        self._word_separator = parameters.text("word_separator")
        self._delay = max(parameters.integer("asr_model_delay", default=-1), 0)

    def execute(self, requests: list[object]) -> list[object]:
        """Answer every request by itself."""
        return answer_each(requests, self._transcripts, "ctc_decoder")

    def finalize(self) -> None:
        """Nothing is held that needs an end."""

    def _transcripts(self, request: object) -> Answer:
        logprobs = input_array(request, "LOGPROBS", np.float32, 3)
        lengths = input_column(request, "LOGPROBS_LENGTH", len(logprobs))
        return as_tensors(
            decode(
                logprobs,
                lengths,
                self._labels,
                self._blank_id,
                self._ms_per_timestep,
                word_separator=self._word_separator,
                delay=self._delay,
            )
        )


def read_labels(path: Path) -> list[str]:
    r"""Read a vocabulary: one JSON string per line, so that " " and "\n" are labels like others.

    Raises:
        ValueError: a line is not a JSON string, or there is none.

    """
    lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
    labels = []
    for number, line in enumerate(lines, 1):
        try:
            label = json.loads(line)
        except ValueError:
            label = None
        if not isinstance(label, str):
            raise ValueError(f"`{path}` line {number}: expected a JSON string, got {line!r}")
        labels.append(label)
    return labels


def as_tensors(hypotheses: list[Hypothesis]) -> Answer:
    """Lay hypotheses out as the output tensors of one request."""
    items = len(hypotheses)
    width = max((len(hypothesis.words) for hypothesis in hypotheses), default=0)
    transcripts = np.empty((items, 1), np.object_)
    words = np.full((items, width), b"", np.object_)
    times = np.full((items, width, 2), -1, np.int32)
    scores = np.zeros((items, width), np.float32)
    for item, hypothesis in enumerate(hypotheses):
        transcripts[item, 0] = hypothesis.transcript.encode()
        for place, word in enumerate(hypothesis.words):
            words[item, place] = word.text.encode()
            times[item, place] = word.start_ms, word.end_ms
            scores[item, place] = word.score
    return {
        "FINAL_TRANSCRIPTS": transcripts,
        "FINAL_TRANSCRIPTS_SCORE": np.array([[h.score] for h in hypotheses], np.float32),
        "FINAL_WORDS": words,
        "FINAL_WORDS_START_END": times,
        "FINAL_WORDS_SCORE": scores,
    }
