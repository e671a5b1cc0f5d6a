"""The export of two large models, against what only copying their weights would cost.

    python benchmarks/export.py
    python benchmarks/export.py --nemo /path/to/python   # an environment with NeMo 1.23

Prints for each the wall time of the whole NemoExport tool (with the start of its interpreter) as a
ratio to `cp`, `sync` and `sha256sum` of the same `.nemo`, best of each in this run, and its peak
memory beside its largest tensor. The bars are 4 × and 1.5 tensors + 300 MB. The models have random
weights and are written here, without torch or NeMo. With `--nemo` it also prints how long NeMo
takes to import itself, restore the Conformer and export it (its BERT needs a download first).
"""

from __future__ import annotations

import argparse
import io
import json
import math
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

TIME_BAR = 4.0
MEMORY_BAR = (1.5, 300e6)
BASELINE = "cp + sync + sha256sum"
ALIGNMENT = 64  # of the storages in a checkpoint of torch
# The peak is asked of the process itself: what its parent would read includes the parent's own.
TOOL = """
import pathlib, sys
from jarvis_rules.tools.nemo_export import export_nemo
from jarvis_rules.tools.program import run_tool
code = run_tool(export_nemo)
print(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(code)
"""
NEMO = """
import sys
from nemo.collections.asr.models import EncDecCTCModel
EncDecCTCModel.restore_from(sys.argv[1], map_location="cpu").eval().export(sys.argv[2])
"""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Model:
    title: str
    config: dict[str, Any]
    artifacts: dict[str, bytes]
    shapes: dict[str, Shape]


def linear(name: str, outputs: int, inputs: int, *kernel: int) -> dict[str, Shape]:
    return {f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)}


def norm(name: str, size: int) -> dict[str, Shape]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


def bert() -> Model:
    width, inner, words, layers = 768, 3072, 30522, 12
    tables = {"word": words, "position": 512, "token_type": 2}
    prefix = "bert_model.embeddings"
    shapes: dict[str, Shape] = {
        f"{prefix}.{name}_embeddings.weight": (rows, width) for name, rows in tables.items()
    }
    shapes |= norm(f"{prefix}.LayerNorm", width)
    for index in range(layers):
        layer = f"bert_model.encoder.layer.{index}"
        for name in ("query", "key", "value"):
            shapes |= linear(f"{layer}.attention.self.{name}", width, width)
        shapes |= linear(f"{layer}.attention.output.dense", width, width)
        shapes |= norm(f"{layer}.attention.output.LayerNorm", width)
        shapes |= linear(f"{layer}.intermediate.dense", inner, width)
        shapes |= linear(f"{layer}.output.dense", width, inner)
        shapes |= norm(f"{layer}.output.LayerNorm", width)
    shapes |= linear("bert_model.pooler.dense", width, width)
    shapes |= linear("classifier.mlp.layer0", 2, width)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += [f"word{index}" for index in range(words - len(vocabulary))]
    encoder = {"model_type": "bert", "vocab_size": words, "num_hidden_layers": layers}
    config = {
        "target": "nemo.collections.nlp.models.question_answering.qa_model.QAModel",
        "tokenizer": {"tokenizer_name": "bert-base-uncased", "vocab_file": "nemo:vocab.txt"},
        "language_model": {
            "pretrained_model_name": "bert-base-uncased",
            "config_file": "nemo:encoder.json",
        },
        "dataset": {
            "version_2_with_negative": True,
            "doc_stride": 128,
            "max_query_length": 64,
            "max_seq_length": 384,
            "max_answer_length": 30,
            "null_score_diff_threshold": 0.0,
            "n_best_size": 20,
            "do_lower_case": True,
        },
        "token_classifier": {"num_layers": 1, "activation": "relu", "log_softmax": False},
    }
    artifacts = {
        "vocab.txt": "\n".join(vocabulary).encode(),
        "encoder.json": json.dumps(encoder).encode(),
    }
    return Model("BERT", config, artifacts, shapes)


def conformer() -> Model:
    width, layers, features, labels = 512, 18, 80, [" ", *"abcdefghijklmnopqrstuvwxyz'"]
    shapes: dict[str, Shape] = {
        "preprocessor.featurizer.window": (400,),
        "preprocessor.featurizer.fb": (1, features, 257),
        **linear("encoder.pre_encode.out", width, width * features // 4),
        **linear("encoder.pre_encode.conv.0", width, 1, 3, 3),
        **linear("encoder.pre_encode.conv.2", width, width, 3, 3),
    }
    for index in range(layers):
        layer = f"encoder.layers.{index}"
        for name in ("feed_forward1", "conv", "self_att", "feed_forward2", "out"):
            shapes |= norm(f"{layer}.norm_{name}", width)
        for name in ("feed_forward1", "feed_forward2"):
            shapes |= linear(f"{layer}.{name}.linear1", 4 * width, width)
            shapes |= linear(f"{layer}.{name}.linear2", width, 4 * width)
        shapes |= linear(f"{layer}.conv.pointwise_conv1", 2 * width, width, 1)
        shapes |= linear(f"{layer}.conv.depthwise_conv", width, 1, 31)
        shapes |= linear(f"{layer}.conv.pointwise_conv2", width, width, 1)
        shapes |= norm(f"{layer}.conv.batch_norm", width)
        shapes |= dict.fromkeys(
            (f"{layer}.conv.batch_norm.running_{kind}" for kind in ("mean", "var")), (width,)
        )
        for name in ("q", "k", "v", "out"):
            shapes |= linear(f"{layer}.self_attn.linear_{name}", width, width)
        shapes[f"{layer}.self_attn.linear_pos.weight"] = (width, width)
        for name in ("u", "v"):
            shapes[f"{layer}.self_attn.pos_bias_{name}"] = (8, width // 8)
    shapes |= linear("decoder.decoder_layers.0", len(labels) + 1, width, 1)
    modules = "nemo.collections.asr.modules"
    config = {
        "target": "nemo.collections.asr.models.ctc_models.EncDecCTCModel",
        "sample_rate": 16000,
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 16000,
            "window_size": 0.025,
            "window_stride": 0.01,
            "features": features,
            "n_fft": 512,
        },
        "encoder": {
            "_target_": f"{modules}.ConformerEncoder",
            "feat_in": features,
            "n_layers": layers,
            "d_model": width,
            "n_heads": 8,
        },
        "decoder": {
            "_target_": f"{modules}.ConvASRDecoder",
            "feat_in": width,
            "num_classes": len(labels),
            "vocabulary": labels,
        },
    }
    return Model("Conformer", config, {}, shapes)


def opcodes(value: Any) -> bytes:
    """Return `value` as torch pickles it, a name of a global given as `@module name`."""
    if isinstance(value, tuple):
        return b"(" + b"".join(map(opcodes, value)) + b"t"
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"J" + struct.pack("<i", value)
    if value.startswith("@"):
        return b"c" + value[1:].replace(" ", "\n").encode() + b"\n"
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def pickled(shapes: dict[str, Shape]) -> bytes:
    """Return the pickle of a state dict of float32 tensors, each with a storage of its own."""
    out = b"\x80\x02}("
    for index, (name, shape) in enumerate(shapes.items()):
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        storage = ("storage", "@torch FloatStorage", str(index), "cpu", math.prod(shape))
        out += opcodes(name) + opcodes("@torch._utils _rebuild_tensor_v2") + b"("
        out += opcodes(storage) + b"Q" + b"".join(map(opcodes, (0, shape, strides, False)))
        out += opcodes("@collections OrderedDict") + b")RtR"
    return out + b"u."


def contents(shapes: dict[str, Shape]) -> Iterator[tuple[str, bytes]]:
    """Yield the records of a checkpoint with random weights, in the order of torch."""
    chance = np.random.default_rng(20211125)
    yield "data.pkl", pickled(shapes)
    for index, (name, shape) in enumerate(shapes.items()):
        values = chance.standard_normal(math.prod(shape), np.float32) * np.float32(0.05)
        yield f"data/{index}", (np.abs(values) if "running_var" in name else values).tobytes()
    yield "version", b"3\n"


def write_nemo(path: Path, model: Model) -> None:
    checkpoint = path.with_suffix(".ckpt")
    with zipfile.ZipFile(checkpoint, "w") as archive:
        for name, data in contents(model.shapes):
            info = zipfile.ZipInfo(f"model_weights/{name}")
            # The local header has 30 bytes, the name, and this field of 4 bytes and its padding.
            start = archive.fp.tell() + 30 + len(info.filename) + 4
            padding = bytes(-start % ALIGNMENT)
            info.extra = struct.pack("<2sH", b"FB", len(padding)) + padding
            archive.writestr(info, data)
    files = {"model_config.yaml": yaml.safe_dump(model.config).encode(), **model.artifacts}
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        archive.add(checkpoint, "./model_weights.ckpt")
    checkpoint.unlink()


def timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def copy_and_hash(source: Path) -> None:
    copy = source.with_suffix(".copy")
    subprocess.run(["cp", source, copy], check=True)
    subprocess.run(["sync", copy], check=True)
    subprocess.run(["sha256sum", copy], check=True, stdout=subprocess.DEVNULL)
    copy.unlink()


def run_tool(source: Path) -> int:
    """Run NemoExport in a folder like that of an action and return its peak memory in bytes."""
    with tempfile.TemporaryDirectory(dir=source.parent) as name:
        folder = Path(name)
        (folder / "outputs").mkdir()
        request = {"model": str(source), "format": "ONNX"}
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-c", TOOL, "request.json"]
        done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit((folder / "error.json").read_text())
        return int(done.stdout) * 1024


def run_nemo(python: Path, source: Path) -> None:
    """Let NeMo import itself, restore the model and export it."""
    subprocess.run(
        [python, "-c", NEMO, source, source.with_suffix(".onnx")],
        cwd=source.parent,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )


def compare(model: Model, source: Path, repeat: int) -> float:
    """Print both ratios of one model and return the wall time of its export."""
    peaks: list[int] = []
    # In turns, so that a busy moment of the machine hits both.
    pairs = [
        (timed(lambda: copy_and_hash(source)), timed(lambda: peaks.append(run_tool(source))))
        for _ in range(repeat)
    ]
    base, wall = (min(times) for times in zip(*pairs, strict=True))
    sizes = [math.prod(shape) for shape in model.shapes.values()]
    tensor, peak = 4 * max(sizes), max(peaks)
    bar = MEMORY_BAR[0] * tensor + MEMORY_BAR[1]
    print(
        f"{model.title} of {sum(sizes) / 1e6:.0f} M parameters: export {wall:.2f} s = "
        f"{wall / base:.2f} × {BASELINE} ({base:.2f} s), {verdict(wall / base, TIME_BAR)} the bar "
        f"of {TIME_BAR:.0f}; peak memory {peak / 1e6:.0f} MB, largest tensor {tensor / 1e6:.0f} MB,"
        f" {verdict(peak, bar)} the bar of {bar / 1e6:.0f} MB"
    )
    return wall


def verdict(value: float, bar: float) -> str:
    return "within" if value <= bar else "OVER"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--nemo", type=Path, metavar="PYTHON")
    parser.add_argument("--folder", type=Path, help="where to put 2 GB of temporary files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for model in (bert(), conformer()):
            source = Path(name) / f"{model.title}.nemo"
            write_nemo(source, model)
            wall = compare(model, source, arguments.repeat)
            if arguments.nemo and model.title == "Conformer":
                nemo = timed(partial(run_nemo, arguments.nemo.absolute(), source))
                print(f"NeMo's own import and export: {nemo:.1f} s, {nemo / wall:.0f} × ours")
            source.unlink()


if __name__ == "__main__":
    main()
