"""Every model family in 16 bits against itself in float32, on the inputs that NeMo recorded.

    python benchmarks/precision.py
    python benchmarks/precision.py --variants --family conv_asr
    python benchmarks/precision.py --precision bf16
    python benchmarks/precision.py --rtx /path/to/python   # an environment with tensorrt_rtx

Prints one row for each output of each graph of the reference models of `tests/data/models`
(`--variants`: of all others too):

* largest: the largest absolute value of the output in float32, in ONNX Runtime.
* rounded: the largest absolute difference with every value rounded where the graph says so, by
  `onnx.reference`; and that relative to `largest`.
* ORT: the same in ONNX Runtime on the CPU, which removes pairs of casts and computes between them
  in float32. It has no kernels for most of bf16.
* changed: of scores the positions of the largest, of integers the values, that differ, by
  `onnx.reference`, of how many. Frames and tokens of padding do not count.
* kept: nodes that stay float32, of those that could have changed.
* clipped, zeroed: values of the constants beyond the type, and those that became 0.
* RTX: the time to build for compute capability 8.0 with strong typing, dynamic shapes, no GPU.

FastPitch has a run that nobody recorded: a recorded text repeated to 480 tokens, thousands of
frames. Its decoder is given what its encoder gave in float32. Exits 1 where a difference is beyond
`tolerance`, a number is not finite, an integer changed, or TensorRT-RTX refuses a graph.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import families
import numpy as np
from exporters import exporter_testing as recordings
from exporters import fastpitch_testing as fastpitch
from exporters import tacotron2_testing as tacotron2
from exporters.exporter_testing import GRAPH

from jarvis_rules.exporters.exporter import ExportedModel, export_model
from jarvis_rules.onnx_graph.precision import convert_precision, tolerance

Arrays = dict[str, np.ndarray]
Graphs = Mapping[str, Callable[[Arrays], Arrays]]
LONG_TEXT = 480
SCORES = ("logits", "logprobs", "log_probs")


# ---- what each family is run on


def feed_audio(name: str, _: ExportedModel, __: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recordings.recorded(name)
    yield GRAPH, {"audio_signal": r["features"], "length": r["features_length"]}


def feed_language(name: str, model: ExportedModel, _: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recordings.recorded(name)
    yield GRAPH, {value["name"]: r[value["name"]] for value in model.facts["inputs"]}


def feed_fastpitch(name: str, model: ExportedModel, graphs: Graphs) -> Iterator[tuple[str, Arrays]]:
    encoder, decoder = fastpitch.GRAPHS
    r = recordings.recorded(name)
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
        found = graphs[encoder](inputs)
        frames = np.arange(max(1, int(found["num_frames"].max())))
        yield decoder, {k: v for k, v in found.items() if k in wanted} | {"frame_index": frames}


def feed_tacotron2(name: str, model: ExportedModel, _: Graphs) -> Iterator[tuple[str, Arrays]]:
    r = recordings.recorded(name)
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
    r = recordings.recorded(name)
    yield GRAPH, {value["name"]: r[value["name"]] for value in model.facts["inputs"]}


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


def in_reference(path: Path) -> Callable[[Arrays], Arrays]:
    import onnx
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class LogSoftmax(OpRun):
        """Finite, where the logarithm of the softmax, which is what onnx takes, is that of 0."""

        def _run(self, x: np.ndarray, axis: int = -1) -> tuple[np.ndarray]:
            shifted = x - x.max(axis=axis, keepdims=True)
            return (shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True)),)

    evaluator = ReferenceEvaluator(onnx.load(str(path)), new_ops=[LogSoftmax])
    names = evaluator.output_names

    def run(feed: Arrays) -> Arrays:
        with np.errstate(all="ignore"):
            return dict(zip(names, evaluator.run(None, feed), strict=True))

    return run


@dataclass
class Row:
    family: str
    model: str
    graph: str
    output: str
    largest: float = 0.0
    rounded: float = 0.0
    ort: float | None = None
    changed: int | None = None
    of: int = 0
    report: dict[str, Any] = field(default_factory=dict)
    rtx: str = ""

    @property
    def relative(self) -> float:
        return self.rounded / self.largest if self.largest else self.rounded

    def compare(self, wanted: np.ndarray, found: np.ndarray, feed: Arrays, lengths: Any) -> None:
        if wanted.dtype.kind != "f":
            self.changed = (self.changed or 0) + int((wanted != found).sum())
            self.of += wanted.size
            return
        self.largest = max(self.largest, float(np.abs(wanted).max(initial=0.0)))
        self.rounded = families.worst((self.rounded, recordings.largest(found, wanted)))
        if not self.output.endswith(SCORES):
            return
        valid = feed.get("attention_mask")
        if lengths is not None:
            valid = np.arange(wanted.shape[1]) < lengths[:, None]
        axis = 1 if self.family == "question_answering" else -1
        if axis == 1:
            hidden = np.where(np.asarray(valid)[:, :, None] == 0, -np.inf, 0)
            wanted, found, valid = wanted + hidden, found + hidden, None
        differs = wanted.argmax(axis) != found.argmax(axis)
        counted = np.ones(differs.shape, bool)
        if valid is not None and differs.ndim == 2 and valid.shape == differs.shape:
            counted = valid.astype(bool)
        self.changed = (self.changed or 0) + int((differs & counted).sum())
        self.of += int(counted.sum())


def measure(family: str, name: str, precision: str, rtx: Path | None) -> list[Row]:
    model = export_model(recordings.source(name))
    rows: dict[tuple[str, str], Row] = {}
    with tempfile.TemporaryDirectory() as folder:
        exact, rounded, in_ort, reports = {}, {}, {}, {}
        for graph, data in recordings.dump(model).items():
            if graph not in model.graphs:
                continue
            source, target = Path(folder) / graph, Path(folder) / f"{precision}.{graph}"
            source.write_bytes(data)
            marks = model.graphs[graph].full_precision_nodes
            reports[graph] = convert_precision(source, target, precision, marks)
            exact[graph], rounded[graph] = in_onnxruntime(source), in_reference(target)
            if precision == "fp16":
                in_ort[graph] = in_onnxruntime(target)
        built = {} if rtx is None else {g: build(rtx, model, g, precision, folder) for g in exact}
        for graph, feed in FEEDS[family](name, model, exact):
            wanted, found = exact[graph](feed), rounded[graph](feed)
            beside = in_ort[graph](feed) if in_ort else {}
            for output, value in wanted.items():
                row = rows.setdefault(
                    (graph, output),
                    Row(family, name.rpartition("/")[2], graph, output, rtx=built.get(graph, "")),
                )
                row.report = reports[graph].to_json()
                row.compare(value, found[output], feed, wanted.get("encoded_length"))
                if beside and value.dtype.kind == "f":
                    difference = recordings.largest(beside[output], value)
                    row.ort = families.worst((row.ort or 0.0, difference))
    return list(rows.values())


def build(python: Path, model: ExportedModel, graph: str, precision: str, folder: str) -> str:
    profile = json.dumps(families.profile_of(model.facts, graph))
    path = Path(folder) / f"{precision}.{graph}"
    done = subprocess.run(
        [python, "-c", families.RTX, path, profile], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return f"REFUSED: exit status {done.returncode}"
    result = json.loads(done.stdout)
    if "build" not in result:
        return f"REFUSED: {'; '.join(result['errors']) or 'no message'}"
    return f"{1000 * result['build']:.0f} ms"


# ---- the table


def broken(row: Row, precision: str) -> Iterator[str]:
    bound = tolerance(precision, row.largest)
    if not row.rounded <= bound:  # NaN too
        yield f"differs by {row.rounded:.1e}, bound {bound:.1e}"
    if row.changed and not row.output.endswith(SCORES):
        yield f"{row.changed} of {row.of} integers changed"
    if row.rtx.startswith("REFUSED"):
        yield f"TensorRT-RTX {row.rtx}"


HEADER = [
    *("model", "graph", "output", "largest", "rounded", "relative", "ORT", "changed"),
    *("kept", "clipped", "zeroed", "RTX"),
]
LEFT_ALIGNED = 3


def cells(row: Row) -> list[str]:
    kept = sum(map(len, row.report["kept"].values()))
    is_float = row.largest > 0 or row.changed is None
    return [
        row.model,
        row.graph.removesuffix(".onnx"),
        row.output,
        *(
            [f"{row.largest:.3g}", f"{row.rounded:.1e}", f"{row.relative:.1e}"]
            if is_float
            else "---"
        ),
        "-" if row.ort is None else f"{row.ort:.1e}",
        "-" if row.changed is None else f"{row.changed} of {row.of}",
        f"{kept} of {kept + row.report['half']}",
        str(sum(c["count"] for c in row.report["clipped"])),
        str(row.report["zeroed"]),
        row.rtx.partition(":")[0] or "-",
    ]


def table(rows: list[Row]) -> str:
    lines = [HEADER, *map(cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < LEFT_ALIGNED else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=FEEDS, help="these alone")
    parser.add_argument("--variants", action="store_true", help="all recorded models")
    parser.add_argument("--precision", choices=("fp16", "bf16"), default="fp16")
    parser.add_argument("--rtx", type=Path, metavar="PYTHON")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    rtx = arguments.rtx and arguments.rtx.absolute()
    if rtx and not (rtx.is_file() and families.has_rtx(rtx)):
        parser.error(f"--rtx: `{arguments.rtx}` has no tensorrt_rtx")
    rows = [
        row
        for family, name in families.find_models(arguments.variants)
        if not arguments.family or family in arguments.family
        for row in measure(family, name, arguments.precision, rtx)
    ]
    faults = [
        f"{row.family}/{row.model} {row.graph} `{row.output}`: {text}"
        for row in rows
        for text in broken(row, arguments.precision)
    ]
    if arguments.format == "json":
        print(json.dumps({"outputs": [vars(row) for row in rows], "broken": faults}, indent=1))
    else:
        print(table(rows))
        print("\n".join(f"BROKEN {text}" for text in faults) or "all within their tolerances")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
