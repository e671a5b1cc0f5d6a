"""Recorded FastPitch models for the tests of their exporter: both graphs joined, and their runs."""

import numpy as np

from .exporter_testing import MODELS, dump, recorded

GRAPHS = ("encoder.onnx", "decoder.onnx")
OUTPUTS = ("spect", "num_frames", "durs_predicted", "log_durs_predicted", "pitch_predicted")
RUNS = {"": ("pitch_zero", "pace_one"), "_shifted": ("pitch", "pace")}


class Runner:
    """Both graphs in onnxruntime on one thread, joined as a server joins them."""

    def __init__(self, model):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        files = dump(model)
        self.encoder, self.decoder = (
            onnxruntime.InferenceSession(files[name], options, providers=["CPUExecutionProvider"])
            for name in GRAPHS
        )

    def __call__(self, inputs, frames=None):
        names = [output.name for output in self.encoder.get_outputs()]
        found = dict(zip(names, self.encoder.run(names, inputs), strict=True))
        index = np.arange(frames or max(1, int(found["num_frames"].max())))
        given = {i.name: found[i.name] for i in self.decoder.get_inputs() if i.name in found}
        (found["spect"],) = self.decoder.run(["spect"], given | {"frame_index": index})
        return found


def inputs_of(record, run, rows=slice(None), tokens=None, prefix=""):
    """Return the inputs of a recorded run, of some rows, cut to a number of tokens."""
    pitch, pace = RUNS[run]
    names = {"text": "text", "pitch": pitch, "pace": pace}
    inputs = {name: record[prefix + key][rows, :tokens] for name, key in names.items()}
    if f"{prefix}speaker" in record:
        inputs["speaker"] = record[f"{prefix}speaker"][rows]
    return inputs


def with_garbage(inputs, lengths):
    """Return `inputs` with a pitch and a pace in the padding that no text has."""
    noisy = {key: value.copy() for key, value in inputs.items()}
    for i, n in enumerate(lengths):
        noisy["pitch"][i, n:] = np.nan
        noisy["pace"][i, n:] = 0
    return noisy


def with_alone(name):
    """Return a record with the outputs of each text alone."""
    beside = (MODELS / f"{name}.alone.npz").is_file()
    return recorded(name) | (recorded(f"{name}.alone") if beside else {})


def item(found, i):
    return {key: found[key][i] for key in OUTPUTS}


def alone(record, i, run, prefix=""):
    return {key: record[f"{prefix}{key}{run}_{i}"] for key in OUTPUTS}


def cut(outputs, tokens):
    """Return the outputs of one item without its padding."""
    frames = int(outputs["num_frames"])
    return {k: v[..., : frames if k == "spect" else tokens] for k, v in outputs.items() if v.ndim}
