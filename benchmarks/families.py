"""Every model family against what NeMo recorded: exactness, padding, speed, size, TensorRT-RTX.

    python benchmarks/families.py
    python benchmarks/families.py --variants --family conv_asr
    python benchmarks/families.py --rtx /path/to/python   # an environment with tensorrt_rtx

Prints one row for each reference model of `tests/data/models` (`--variants`: for all others too):

* to NeMo: the largest absolute difference of the items of the recorded ragged batch to what NeMo
  gave: for the item alone where that is recorded, as padding leaks into NeMo's batches, otherwise
  in its batch. Tacotron 2 has four: its encoder, its recorded single steps, its postnet, and its
  whole loop, where each step repeats the error of the one before.
* alone: the largest difference of an item alone to itself in the batch, at one padded length, with
  garbage in the padding of the batch. Models without lengths have none.
* export: the NemoExport tool from the `.nemo` to the `.ejrvs`, without imports, best of `--repeat`.
* ONNX bytes, nodes and number of graphs.
* TensorRT-RTX: the time to parse all graphs, and to build engines for compute capability 8.0 in
  float32 with dynamic shapes; both work without a GPU. Each graph has a process of its own.

Exits 1 when a difference is beyond its bound or TensorRT-RTX refuses a graph.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from jarvis_rules.exporters.exporter import ExportedModel, export_model, find_exporter
from jarvis_rules.tools.nemo_export import export_nemo

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "unit"))
from exporters import exporter_testing as recordings
from exporters import fastpitch_testing as fastpitch
from exporters import language_testing as language
from exporters import tacotron2_testing as tacotron2
from exporters.exporter_testing import GRAPH, MODELS, largest

BOUNDS = {
    "log-probs": 1e-4,
    "logits": 1e-4,
    "spectrum": 1e-4,
    "audio": 1e-5,
    "encoder": 1e-4,
    "step": 1e-4,
    "postnet": 1e-4,
    "loop": 5e-3,
}
ALONE_BOUND = 1e-6
# Smallest, usual and largest size of each symbolic axis in an engine.
SIZES = {
    "batch": (1, 2, 4),
    "time": (32, 128, 512),
    "tokens": (4, 32, 128),
    "frames": (4, 64, 256),
}
RTX_INSTALLED = """
import importlib.util, sys
sys.exit(not any(map(importlib.util.find_spec, ("tensorrt_rtx", "tensorrt_rtx_bindings"))))
"""
# Runs where TensorRT-RTX is installed, and imports nothing of ours.
RTX = """
import json, sys, time
try:
    import tensorrt_rtx as trt
except ImportError:
    import tensorrt_rtx_bindings as trt

class Log(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
        self.errors = []

    def log(self, severity, message):
        # Without a GPU many messages are followed by one on the missing driver.
        if severity <= trt.ILogger.Severity.ERROR and "cudaError" not in message:
            self.errors.append(message)

path, profile = sys.argv[1], json.loads(sys.argv[2])
log, result = Log(), {}
builder = trt.Builder(log)
network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
parser = trt.OnnxParser(network, log)
start = time.perf_counter()
if parser.parse_from_file(path):
    result["parse"] = time.perf_counter() - start
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM80, 0)
    shapes = builder.create_optimization_profile()
    for name, sizes in profile.items():
        shapes.set_shape(name, *sizes)
    config.add_optimization_profile(shapes)
    start = time.perf_counter()
    if builder.build_serialized_network(network, config) is not None:
        result["build"] = time.perf_counter() - start
errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
print(json.dumps({**result, "errors": [*errors, *log.errors]}))
"""


@dataclass
class Row:
    family: str
    model: str
    to_nemo: dict[str, float]
    alone: float | None
    export_ms: float
    onnx_bytes: int
    nodes: int
    graphs: int
    rtx_parse_ms: float | None = None
    rtx_build_ms: float | None = None
    rtx_refusals: dict[str, str] = field(default_factory=dict)

    def broken(self) -> Iterator[str]:
        for quantity, difference in self.to_nemo.items():
            if not difference <= BOUNDS[quantity]:  # NaN too
                yield f"{quantity} {difference:.1e} from NeMo's, bound {BOUNDS[quantity]:.0e}"
        if self.alone is not None and not self.alone <= ALONE_BOUND:
            yield f"an item alone differs by {self.alone:.1e}, bound {ALONE_BOUND:.0e}"
        for graph, error in self.rtx_refusals.items():
            yield f"TensorRT-RTX refuses `{graph}`: {error}"


Differences = tuple[dict[str, float], float | None]


def worst(differences: Iterable[float]) -> float:
    """Return the largest; NaN wherever one is, which `max` would not."""
    return float(np.max(list(differences)))


# ---- what each family is measured by


def measure_ctc(name: str, model: ExportedModel) -> Differences:
    run = recordings.Runner(model)
    features, frames, expected = recordings.alone_logprobs(name)
    if not expected:  # padding does not change what NeMo computes
        r = recordings.recorded(name)
        rows = zip(r["logprobs"], r["encoded_length"], strict=True)
        expected = {i: row[:n] for i, (row, n) in enumerate(rows)}
    together, lengths = run(features, frames)
    noisy, _ = run(recordings.with_garbage(features, frames), frames)
    singles = [run(features[i : i + 1], frames[i : i + 1])[0][0] for i in range(len(frames))]
    to_nemo = worst(largest(together[i, : lengths[i]], expected[i]) for i in expected)
    alone = worst(largest(singles[i][:n], noisy[i, :n]) for i, n in enumerate(lengths))
    return {"log-probs": to_nemo}, alone


def measure_classification(name: str, model: ExportedModel) -> Differences:
    graph = recordings.load_graphs(model)[GRAPH]
    r = recordings.recorded(name)
    features, frames = r["features"], r["features_length"]
    noisy = recordings.with_garbage(features, frames)
    together = graph(audio_signal=noisy, length=frames)["logits"]
    singles = [
        graph(audio_signal=features[i : i + 1], length=frames[i : i + 1])["logits"][0]
        for i in range(len(frames))
    ]
    to_nemo = worst(largest(row, r[f"logits_{i}"]) for i, row in enumerate(together))
    return {"logits": to_nemo}, worst(map(largest, singles, together))


def measure_language(name: str, model: ExportedModel) -> Differences:
    run = language.Runner(model)
    r = recordings.recorded(name)
    to_nemo = worst(largest(value, r[key]) for key, value in run(r).items())
    beside, lengths = run(language.with_garbage(name, r)), r["attention_mask"].sum(axis=1)
    alone = []
    for i, n in enumerate(lengths):
        single = run({key: r[key][i : i + 1] for key in language.INPUTS})
        for key, value in beside.items():
            valid = slice(n if value.ndim == 3 else None)
            alone.append(largest(single[key][0][valid], value[i][valid]))
    return {"logits": to_nemo}, worst(alone)


def measure_fastpitch(name: str, model: ExportedModel) -> Differences:
    graph = fastpitch.Runner(model)
    r = fastpitch.with_alone(name)
    to_nemo, alone = [], []
    for run in fastpitch.RUNS:
        inputs = fastpitch.inputs_of(r, run)
        together = graph(inputs)
        beside = graph(fastpitch.with_garbage(inputs, r["text_length"]))
        for i, n in enumerate(r["text_length"]):
            # Another number of frames is another shape, and so infinitely far away.
            item = fastpitch.cut(fastpitch.item(together, i), n)
            to_nemo.append(largest(item["spect"], fastpitch.alone(r, i, run)["spect"]))
            row = fastpitch.inputs_of(r, run, slice(i, i + 1))
            single = fastpitch.item(graph(row, beside["spect"].shape[2]), 0)
            noisy = fastpitch.cut(fastpitch.item(beside, i), n)
            alone.append(largest(fastpitch.cut(single, n)["spect"], noisy["spect"]))
    return {"spectrum": worst(to_nemo)}, worst(alone)


def measure_tacotron2(name: str, _: ExportedModel) -> Differences:
    r = recordings.recorded(name)
    text, lengths = r["text"], r["text_length"]
    noise = text.copy()
    for row, n in zip(noise, lengths, strict=True):
        row[n:] = 10**6  # beyond every vocabulary
    memory, processed, _ = tacotron2.encode(name, noise, lengths)
    encoder, alone = [], []
    for i, n in enumerate(lengths):
        encoder.append(largest(memory[i, :n], r[f"encoder_embedding_{i}"]))
        single = tacotron2.encode(name, text[i : i + 1], lengths[i : i + 1])
        alone += [largest(a[0], b[i]) for a, b in zip(single[:2], (memory, processed), strict=True)]
    postnet = tacotron2.exported(name)[1][tacotron2.POSTNET]
    loop = [
        largest(mel, r[f"spec_pred_postnet_{i}"])
        for i, (mel, _) in enumerate(tacotron2.spoken_alone(name))
    ]
    # NeMo's batch can be had with its leak alone.
    leaky = tacotron2.encode(name, text, lengths, batch_invariant=False)
    after = []
    for prefix, masks in (("", None), ("dropout_", r["prenet_masks"])):
        frames, gates, _ = tacotron2.decode(name, leaky, masks)
        loop.append(largest(frames, r[f"{prefix}spec_pred_dec"]))
        loop.append(largest(gates, r[f"{prefix}gate_pred"]))
        mel = postnet(mel=r[f"{prefix}spec_pred_dec"])["mel_postnet"]
        after.append(largest(mel, r[f"{prefix}spec_pred_postnet"]))
    steps = (largest(found, wanted) for _, found, wanted in tacotron2.recorded_steps(name))
    quantities = {"encoder": encoder, "step": steps, "postnet": after, "loop": loop}
    return {quantity: worst(values) for quantity, values in quantities.items()}, worst(alone)


def measure_vocoder(name: str, model: ExportedModel) -> Differences:
    """Compare every recorded number of frames; WaveGlow's noise is an input too."""
    graph = recordings.load_graphs(model)[GRAPH]
    r = recordings.recorded(name)
    inputs = [value["name"] for value in model.facts["inputs"]]
    differences = []
    for key, audio in r.items():
        kind, _, ending = key.partition("_")
        if kind != "audio":
            continue
        feed = {name: r.get(f"{name}_{ending}", r.get(name)) for name in inputs}
        if ending == "zero":
            feed["z"] = np.zeros_like(feed["z"])
        elif ending:
            feed["spec"] = feed["spec"][..., : int(ending)]
        differences.append(largest(graph(**feed)["audio"], audio))
    return {"audio": worst(differences)}, None


MEASURES: dict[str, Callable[[str, ExportedModel], Differences]] = {
    "conformer_ctc": measure_ctc,
    "conv_asr": measure_ctc,
    "fastpitch": measure_fastpitch,
    "hifigan": measure_vocoder,
    "intent_slot": measure_language,
    "punctuation": measure_language,
    "question_answering": measure_language,
    "speech_classification": measure_classification,
    "tacotron2": measure_tacotron2,
    "text_classification": measure_language,
    "token_classification": measure_language,
    "waveglow": measure_vocoder,
}


# ---- export and TensorRT-RTX


def export_ms(name: str, repeat: int) -> float:
    """Return the best time of the tool, which writes below the current folder."""
    before, best = Path.cwd(), float("inf")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("outputs").mkdir()
            for _ in range(repeat):
                start = time.perf_counter()
                export_nemo({"model": str(MODELS / f"{name}.nemo"), "format": "ONNX"})
                best = min(best, time.perf_counter() - start)
        finally:
            os.chdir(before)
    return 1000 * best


def profile_of(facts: Mapping[str, Any], graph: str) -> dict[str, list[list[int]]]:
    """Return smallest, usual and largest shape of each input that has a symbolic axis."""
    described = facts["graphs"][graph] if "graphs" in facts else facts
    sizes: dict[str, tuple[int, ...]] = dict(SIZES)
    if "max_position_embeddings" in facts:
        longest = facts["max_position_embeddings"]
        sizes["time"] = tuple(min(size, longest) for size in SIZES["time"])
    if "groups_per_frame" in facts:
        sizes["groups"] = tuple(facts["groups_per_frame"] * size for size in SIZES["frames"])
    return {
        value["name"]: [
            [sizes[axis][i] if isinstance(axis, str) else axis for axis in value["shape"]]
            for i in range(3)
        ]
        for value in described["inputs"]
        if any(isinstance(axis, str) for axis in value["shape"])
    }


def try_rtx(row: Row, model: ExportedModel, files: Mapping[str, bytes], python: Path) -> None:
    row.rtx_parse_ms = row.rtx_build_ms = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for graph in model.graphs:
            path = Path(folder) / graph
            path.write_bytes(files[graph])
            profile = json.dumps(profile_of(model.facts, graph))
            done = subprocess.run(
                [python, "-c", RTX, path, profile], capture_output=True, text=True, check=False
            )
            if done.returncode:
                last = (done.stderr.strip().splitlines() or ["no message"])[-1]
                row.rtx_refusals[graph] = f"exit status {done.returncode}, {last}"
                continue
            result = json.loads(done.stdout)
            row.rtx_parse_ms += 1000 * result.get("parse", 0)
            row.rtx_build_ms += 1000 * result.get("build", 0)
            if "build" not in result:
                stage = "building" if "parse" in result else "parsing"
                row.rtx_refusals[graph] = f"{stage}: {'; '.join(result['errors']) or 'no message'}"


def has_rtx(python: Path) -> bool:
    return subprocess.run([python, "-c", RTX_INSTALLED], check=False).returncode == 0


# ---- the table


def find_models(variants: bool) -> Iterator[tuple[str, str]]:
    """Yield family and name of recorded models, the variants of a family after its references.

    A family all of whose models are variants has them for references.
    """
    found = []
    for path in (*MODELS.glob("*.nemo"), *MODELS.glob("variants/*/*.nemo")):
        name = path.relative_to(MODELS).with_suffix("").as_posix()
        source = recordings.source(name)
        found.append((find_exporter(source.target, source.config).family, "/" in name, name))
    references = {family for family, variant, _ in found if not variant}
    for family, variant, name in sorted(found):
        if variants or not variant or family not in references:
            yield family, name


def measure(family: str, name: str, repeat: int, rtx: Path | None) -> Row:
    model = export_model(recordings.source(name))
    files = recordings.dump(model)
    to_nemo, alone = MEASURES[family](name, model)
    row = Row(
        family=family,
        model=name.rpartition("/")[2],
        to_nemo=to_nemo,
        alone=alone,
        export_ms=export_ms(name, repeat),
        onnx_bytes=sum(len(files[graph]) for graph in model.graphs),
        nodes=sum(len(graph.nodes) for graph in model.graphs.values()),
        graphs=len(model.graphs),
    )
    if rtx is not None:
        try_rtx(row, model, files, rtx)
    return row


HEADER = [
    *("family", "model", "quantity", "to NeMo", "alone", "export ms", "ONNX bytes", "nodes"),
    *("graphs", "RTX parse ms", "RTX build ms"),
]
LEFT_ALIGNED = 3


def cells(row: Row) -> Iterator[list[str]]:
    """Yield a line for each quantity, the first of which has the rest."""
    refused = "REFUSED" if row.rtx_refusals else None
    rtx = [
        "not installed" if took is None else refused or f"{took:.0f}"
        for took in (row.rtx_parse_ms, row.rtx_build_ms)
    ]
    rest = [
        "-" if row.alone is None else f"{row.alone:.1e}",
        f"{row.export_ms:.1f}",
        *(str(value) for value in (row.onnx_bytes, row.nodes, row.graphs)),
        *rtx,
    ]
    for i, (quantity, difference) in enumerate(row.to_nemo.items()):
        named = [row.family, row.model] if i == 0 else ["", ""]
        yield [*named, quantity, f"{difference:.1e}", *(rest if i == 0 else [""] * len(rest))]


def table(rows: Iterable[Row]) -> str:
    lines = [HEADER, *(line for row in rows for line in cells(row))]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < LEFT_ALIGNED else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def summary(rows: list[Row]) -> str:
    worst_of: dict[str, float] = {}
    for row in rows:
        for quantity, difference in row.to_nemo.items():
            worst_of[quantity] = worst((difference, worst_of.get(quantity, 0.0)))
    found = ", ".join(f"{quantity} {value:.1e}" for quantity, value in worst_of.items())
    alone = worst([0.0, *(row.alone for row in rows if row.alone is not None)])
    families = len({row.family for row in rows})
    return f"{len(rows)} models of {families} families: at most {found}; alone {alone:.1e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", action="append", choices=MEASURES, help="these alone")
    parser.add_argument("--variants", action="store_true", help="all recorded models")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--rtx", type=Path, metavar="PYTHON")
    parser.add_argument("--format", choices=("text", "json"), default="text")
    arguments = parser.parse_args()
    # The tool changes the folder, and a link to an interpreter is what makes an environment.
    rtx = (arguments.rtx or Path(sys.executable)).absolute()
    installed = rtx.is_file() and has_rtx(rtx)
    if arguments.rtx and not installed:
        parser.error(f"--rtx: `{arguments.rtx}` has no tensorrt_rtx")
    rows = [
        measure(family, name, arguments.repeat, rtx if installed else None)
        for family, name in find_models(arguments.variants)
        if not arguments.family or family in arguments.family
    ]
    broken = [f"{row.family}/{row.model}: {text}" for row in rows for text in row.broken()]
    if arguments.format == "json":
        print(json.dumps({"models": [vars(row) for row in rows], "broken": broken}, indent=1))
    else:
        print(table(rows))
        print(summary(rows))
        print("\n".join(f"BROKEN {text}" for text in broken) or "all within their bounds")
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
