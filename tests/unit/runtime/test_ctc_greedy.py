"""Greedy decoding against what NeMo 1.23 recorded, and its rules on small hand-made cases."""

from __future__ import annotations

import csv
import string

import numpy as np
import pytest
from runtime_testing import SPEECH, recorded

from jarvis_rules.runtime.ctc_greedy import Word, decode

CHARACTERS = [" ", *string.ascii_lowercase, "'"]
LABELS = [" ", "a", "b", "."]
BLANK = len(LABELS)


def logprobs_of(*rows, labels=LABELS):
    """Return log-probabilities whose best class at frame t is row[t] ("_": blank), -0.1 (t + 1)."""
    width = max(map(len, rows))
    logprobs = np.full((len(rows), width, len(labels) + 1), -9.0, np.float32)
    for item, row in enumerate(rows):
        for frame, label in enumerate(row):
            best = len(labels) if label == "_" else labels.index(label)
            logprobs[item, frame, best] = -0.1 * (frame + 1)
    return logprobs, np.array([len(row) for row in rows], np.int64)


def decode_one(row, labels=LABELS, **options):
    return decode(*logprobs_of(row, labels=labels), labels, len(labels), 20, **options)[0]


def test_recorded_speech_decodes_as_nemo_did():
    with (SPEECH / "transcripts.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert len(rows) == 20
    with np.load(SPEECH / "logprobs.npz", allow_pickle=False) as arrays:
        for row in rows:
            logprobs = arrays[row["file"]][None]
            lengths = np.array([logprobs.shape[1]])
            hypothesis = decode(logprobs, lengths, CHARACTERS, 28, 20)[0]
            assert hypothesis.transcript == row["nemo_greedy"]
            assert [word.text for word in hypothesis.words] == row["nemo_greedy"].split()


@pytest.mark.parametrize("name", ["quartznet", "jasper", "quartznet_espeak"])
def test_recorded_ragged_batch_decodes_as_nemo_did(name):
    found = recorded(name)
    hypotheses = decode(found["logprobs"], found["encoded_length"], CHARACTERS, 28, 20)
    assert [h.transcript for h in hypotheses] == found["transcripts"].tolist()


@pytest.mark.parametrize(
    ("frames", "transcript"),
    [
        ("aab_b_", "abb"),
        ("a_a", "aa"),
        ("____", ""),
        ("_ a b_ ", " a b "),
        ("a _ b", "a  b"),
        ("a  b", "a b"),
        ("a .b", "a.b"),
        ("a _ ..", "a."),
        (" .", "."),
    ],
)
def test_transcript(frames, transcript):
    assert decode_one(frames).transcript == transcript


def test_words_have_times_and_scores():
    hypothesis = decode_one("_aa_b_ a__")
    assert hypothesis.words == (
        Word("ab", 20, 100, pytest.approx(-0.2 - 0.3 - 0.5)),
        Word("a", 140, 160, pytest.approx(-0.8)),
    )
    assert hypothesis.score == pytest.approx(-0.2 - 0.3 - 0.5 - 0.7 - 0.8)


def test_word_keeps_the_mark_that_closes_it():
    assert decode_one("a_ _.").words == (Word("a.", 0, 100, pytest.approx(-0.1 - 0.5)),)


def test_delay_moves_words_earlier():
    words = decode_one("_aa_b_ a__", delay=2).words
    assert [(word.start_ms, word.end_ms) for word in words] == [(0, 60), (100, 120)]


def test_step_of_a_fraction_of_a_millisecond():
    logprobs, lengths = logprobs_of("_ab")
    (hypothesis,) = decode(logprobs, lengths, LABELS, BLANK, 11.6)
    assert (hypothesis.words[0].start_ms, hypothesis.words[0].end_ms) == (12, 35)


def test_pieces_of_words():
    labels = ["<unk>", "▁", "▁a", "b", "▁."]

    def transcript(*pieces):
        rows = logprobs_of([*pieces], labels=labels)
        return decode(*rows, labels, len(labels), 80, word_separator="▁")[0]

    assert transcript("▁a", "b", "▁a", "_", "b").transcript == "ab ab"
    assert transcript("▁", "▁a", "▁", "b").transcript == "a b"
    assert transcript("b", "<unk>", "b").transcript == "b ⁇ b"
    assert transcript("b", "▁.").transcript == "b."
    words = transcript("▁a", "b", "_", "▁a").words
    assert [(word.text, word.start_ms, word.end_ms) for word in words] == [
        ("ab", 0, 160),
        ("a", 240, 320),
    ]


def test_first_of_equal_classes_wins():
    logprobs = np.full((1, 3, 5), -1.0, np.float32)
    logprobs[0, :, 0] = -2.0
    assert decode(logprobs, np.array([3]), LABELS, BLANK, 20)[0].transcript == "a"


def test_blank_may_be_any_class():
    logprobs = np.full((1, 2, 3), -9.0, np.float32)
    logprobs[0, 0, 0] = logprobs[0, 1, 2] = -0.5
    hypothesis = decode(logprobs, np.array([2]), ["", "a", "b"], 0, 20)[0]
    assert (hypothesis.transcript, hypothesis.score) == ("b", -0.5)


def test_frames_past_the_length_are_not_looked_at():
    logprobs, _ = logprobs_of("ab ab", "ab ab", "ab ab")
    logprobs[:, 2:] = np.nan
    hypotheses = decode(logprobs, np.array([2, 0, 1]), LABELS, BLANK, 20)
    assert [h.transcript for h in hypotheses] == ["ab", "", "a"]
    assert (hypotheses[1].score, hypotheses[1].words) == (0.0, ())


@pytest.mark.parametrize("shape", [(0, 7, 5), (2, 0, 5)])
def test_nothing_to_decode(shape):
    hypotheses = decode(
        np.zeros(shape, np.float32), np.zeros(shape[0], np.int64), LABELS, BLANK, 20
    )
    assert [h.transcript for h in hypotheses] == [""] * shape[0]


def test_impossible_class_is_no_error():
    logprobs, lengths = logprobs_of("a_")
    logprobs[logprobs == -9] = -np.inf
    assert decode(logprobs, lengths, LABELS, BLANK, 20)[0].transcript == "a"


def test_nan_is_named():
    logprobs, lengths = logprobs_of("ab", "ab")
    logprobs[1, 1, 3] = np.nan
    with pytest.raises(ValueError, match="item 1: log-probabilities are NaN at frame 1"):
        decode(logprobs, lengths, LABELS, BLANK, 20)


@pytest.mark.parametrize(
    ("lengths", "labels", "blank_id", "text"),
    [
        ([2, 3], LABELS, BLANK, "length must be 0 to 2, got 3"),
        ([2, -1], LABELS, BLANK, "length must be 0 to 2, got -1"),
        ([2], LABELS, BLANK, r"lengths \[B\]"),
        ([2, 2], LABELS[1:], BLANK, "5 classes don't fit 3 labels with blank 4"),
        ([2, 2], LABELS, 0, "5 classes don't fit 4 labels with blank 0"),
        ([2, 2], [*LABELS, ""], 5, "5 classes don't fit 5 labels with blank 5"),
    ],
)
def test_what_does_not_fit_is_refused(lengths, labels, blank_id, text):
    logprobs, _ = logprobs_of("ab", "ab")
    with pytest.raises(ValueError, match=text):
        decode(logprobs, np.array(lengths), labels, blank_id, 20)
