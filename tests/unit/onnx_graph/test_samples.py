"""Sample inputs: their sizes, what they hold, and that they are the same everywhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.formats.engine_inputs import (
    EngineInput,
    Extent,
    dump_engine_inputs,
    dump_precision_hints,
    load_engine_inputs,
    load_precision_hints,
)
from jarvis_rules.onnx_graph.samples import make_samples, valid_shares

ROWS, TOKENS = Extent(1, 8, 32), Extent(1, 128, 512)
TEXT = (
    EngineInput("input_ids", "INT64", (ROWS, TOKENS), {"kind": "integers", "below": 100}),
    EngineInput("attention_mask", "INT64", (ROWS, TOKENS), {"kind": "mask"}),
)
FRAMES, WIDTH = Extent(8, 1000, 6000), Extent(64, 64, 64)
LENGTHS = {"kind": "lengths", "input": "audio_signal", "axis": 2}
SPEECH = (
    EngineInput("audio_signal", "FP32", (ROWS, WIDTH, FRAMES)),
    EngineInput("length", "INT64", (ROWS,), LENGTHS),
)


def test_text():
    ids, mask = make_samples(TEXT).values()
    assert ids.shape == mask.shape == (3, 96)
    assert ids.dtype == mask.dtype == np.int64
    assert mask.sum(axis=1).tolist() == [96, 89, 82]
    assert (ids[mask == 0] == 0).all()
    assert 0 <= ids.min() < 10
    assert 90 < ids.max() < 100


def test_speech():
    samples = make_samples(SPEECH)
    signal, length = samples["audio_signal"], samples["length"]
    assert signal.shape == (3, 64, 96)
    assert signal.dtype == np.float32
    assert length.tolist() == [96, 89, 82]
    assert (signal[1, :, 89:] == 0).all()
    assert abs(signal[0].mean()) < 0.1
    assert 0.9 < signal[0].std() < 1.1


def test_shares_are_those_of_the_lengths():
    assert valid_shares(TEXT) == valid_shares(SPEECH[::-1]) == [1.0, 89 / 96, 82 / 96]
    assert valid_shares(SPEECH[1:]) == [1.0, 1.0, 1.0]


def test_sizes_stay_within_bounds():
    fixed, least = Extent(5, 5, 5), Extent(200, 300, 400)
    (values,) = make_samples([EngineInput("x", "FP16", (fixed, least))]).values()
    assert (values.shape, values.dtype) == ((5, 200), np.float16)


def test_they_are_the_same_everywhere():
    """The reports of two machines are compared by digest."""
    state = hashlib.sha256()
    for name, values in sorted({**make_samples(TEXT), **make_samples(SPEECH)}.items()):
        state.update(name.encode() + values.tobytes())
    assert state.hexdigest() == GOLDEN


GOLDEN = "50da0a67a5edf9b1a474866a9843e3efe6cd430af6e6aa0540c3116a8fa54465"


def test_lengths_of_nothing_are_refused():
    alone = [EngineInput("length", "INT64", (ROWS,), LENGTHS)]
    with pytest.raises(JarvisError, match="`audio_signal`, axis 2, which is not there") as caught:
        make_samples(alone)
    assert caught.value.slug == "engine.inputs"


@pytest.mark.parametrize("inputs", [TEXT, SPEECH])
def test_documents_round_trip(inputs):
    data = dump_engine_inputs(inputs)
    assert load_engine_inputs(data, "x") == inputs
    assert dump_engine_inputs(load_engine_inputs(data, "x")) == data


def test_hints_round_trip():
    assert load_precision_hints(dump_precision_hints(["b", "a"]), "x") == ("b", "a")


@pytest.mark.parametrize(
    "data",
    [
        b"{}",
        b'{"version": 2, "inputs": []}',
        dump_engine_inputs(TEXT).replace(b'"INT64"', b'"STRING"'),
        dump_engine_inputs(TEXT).replace(b'"mask"', b'"guess"'),
        dump_engine_inputs(TEXT).replace(b'"below": 100', b'"below": 0'),
    ],
)
def test_other_documents_are_refused(data):
    with pytest.raises(IntegrityError) as caught:
        load_engine_inputs(data, "x.jmir!nn/inputs.json")
    assert (caught.value.slug, caught.value.where) == ("schema.invalid", "x.jmir!nn/inputs.json")
