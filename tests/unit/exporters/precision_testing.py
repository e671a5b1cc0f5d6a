"""What each recorded model is run on, graph by graph, and runtimes to compare precisions with."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from jarvis_rules.exporters.exporter import ExportedModel

from . import fastpitch_testing as fastpitch
from . import tacotron2_testing as tacotron2
from .exporter_testing import GRAPH, recorded

Arrays = dict[str, np.ndarray]
Graphs = Mapping[str, Callable[[Arrays], Arrays]]
LONG_TEXT = 480


def feed_audio(name: str, _: ExportedModel, __: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recorded(name)
    yield GRAPH, {"audio_signal": r["features"], "length": r["features_length"]}


def feed_language(name: str, model: ExportedModel, _: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recorded(name)
    yield GRAPH, {value["name"]: r[value["name"]] for value in model.facts["inputs"]}


def feed_fastpitch(name: str, model: ExportedModel, graphs: Graphs) -> Iterator[tuple[str, Arrays]]:
    encoder, decoder = fastpitch.GRAPHS
    r = recorded(name)
    runs = [fastpitch.inputs_of(r, run) for run in fastpitch.RUNS]
    longest = int(r["text_length"].argmax())
    tokens = int(r["text_length"][longest])
    first = fastpitch.inputs_of(r, "", slice(longest, longest + 1), tokens)
    times = -(-LONG_TEXT // first["text"].shape[1])
    runs.append(
        {k: v if k == "speaker" else np.tile(v, times)[:, :LONG_TEXT] for k, v in first.items()}
    )
    wanted = [value["name"] for value in model.facts["graphs"][decoder]["inputs"]]
    for inputs in runs:
        yield encoder, inputs
        # onnx needs minutes for the longest of these.
        if inputs is runs[-1] and "/" in name:
            return
        found = graphs[encoder](inputs)
        frames = np.arange(max(1, int(found["num_frames"].max())))
        yield decoder, {k: v for k, v in found.items() if k in wanted} | {"frame_index": frames}


def feed_tacotron2(name: str, model: ExportedModel, _: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recorded(name)
    yield tacotron2.ENCODER, {"text": r["text"], "text_length": r["text_length"]}
    fixed = {
        "memory": r["encoder_embedding"],
        "processed_memory": r["processed_memory"],
        "mask": r["memory_mask"],
        "prenet_dropout": np.ones(r["prenet_masks"].shape[1:], np.float32),
    }
    for i, frame in enumerate(r["step_decoder_input"]):
        states = {state: r[f"step_{state}"][i] for state in model.facts["states"]}
        yield tacotron2.STEP, {"decoder_input": frame, **fixed, **states}
    yield tacotron2.POSTNET, {"mel": r["spec_pred_dec"]}


def feed_vocoder(name: str, model: ExportedModel, _: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recorded(name)
    names = [value["name"] for value in model.facts["inputs"]]
    for key in r:
        kind, _, ending = key.partition("_")
        if kind == "audio" and ending != "zero":
            feed = {name: r.get(f"{name}_{ending}", r.get(name)) for name in names}
            if ending:
                feed["spec"] = feed["spec"][..., : int(ending)]
            yield GRAPH, feed


FEEDS: dict[str, Callable[[str, ExportedModel, Graphs], Iterator[tuple[str, Arrays]]]] = {
    "conformer_ctc": feed_audio,
    "conv_asr": feed_audio,
    "fastpitch": feed_fastpitch,
    "hifigan": feed_vocoder,
    "intent_slot": feed_language,
    "punctuation": feed_language,
    "question_answering": feed_language,
    "speech_classification": feed_audio,
    "tacotron2": feed_tacotron2,
    "text_classification": feed_language,
    "token_classification": feed_language,
    "waveglow": feed_vocoder,
}


# ---- running


def in_onnxruntime(path: Path) -> Callable[[Arrays], Arrays]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, feed), strict=True))


def valid_positions(feed: Arrays, outputs: Arrays, name: str) -> np.ndarray:
    """Return bool [batch, time] for an output that has these axes first: where is no padding.

    What an attention makes of queries that see no key depends on the last bit of their scores.
    For other outputs the scalar true, which takes everything.
    """
    found = outputs[name]
    valid = feed.get("attention_mask")
    if "encoded_length" in outputs and found.ndim == 3:
        valid = np.arange(found.shape[1]) < outputs["encoded_length"][:, None]
    if valid is None or found.shape[:2] != valid.shape:
        return np.array(True)
    return valid.astype(bool)
