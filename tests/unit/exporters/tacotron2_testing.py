"""Recorded Tacotron 2 models for the tests of their exporter: graphs joined to NeMo's loop."""

import functools

import numpy as np

from jarvis_rules.exporters.tacotron2 import export_tacotron2

from .exporter_testing import load_graphs, recorded, source

ENCODER, STEP, POSTNET = "encoder.onnx", "decoder_step.onnx", "postnet.onnx"


@functools.cache
def exported(name, batch_invariant=True):
    """Return model and graphs; only for tests that change neither."""
    model = export_tacotron2(source(name), batch_invariant=batch_invariant)
    return model, load_graphs(model)


def encode(name, text, lengths, batch_invariant=True):
    _, graphs = exported(name, batch_invariant)
    out = graphs[ENCODER](text=text, text_length=np.asarray(lengths, np.int64))
    return out["encoder_embedding"], out["processed_memory"], out["mask"]


def decode(name, encoded, masks=None):
    """Return mel [batch, n_mel, frames] before the postnet, gates and steps of each item.

    NeMo's loop: `masks` [steps, 2, prenet_dim] are its Bernoulli draws, None means no dropout.
    """
    model, graphs = exported(name)
    facts, (memory, processed, mask) = model.facts, encoded
    (frame, dropout), batch = facts["graphs"][STEP]["inputs"][:2], len(memory)
    states = {
        state: np.zeros((batch, memory.shape[1] if axis == "tokens" else axis), np.float32)
        for state, (_, axis) in facts["states"].items()
    }
    mel = np.zeros((batch, frame["shape"][1]), np.float32)
    factors = np.ones(dropout["shape"], np.float32)
    steps, going = np.zeros(batch, np.int64), np.ones(batch, bool)
    mels, gates = [], []
    while len(mels) < facts["max_decoder_steps"]:
        if masks is not None:
            factors = masks[len(mels)] / np.float32(1 - facts["prenet_dropout"])
        fixed = {"memory": memory, "processed_memory": processed, "mask": mask}
        out = graphs[STEP](decoder_input=mel, prenet_dropout=factors, **fixed, **states)
        going &= 1 / (1 + np.exp(-out["gate"][:, 0])) <= facts["gate_threshold"]
        steps += going
        if facts["early_stopping"] and not going.any() and mels:
            break
        mel, states = out["mel"], {state: out[f"{state}_next"] for state in states}
        mels.append(mel)
        gates.append(out["gate"][:, 0])
    n_mel = mel.shape[1] // facts["n_frames_per_step"]
    frames = np.stack(mels, 1).reshape(batch, -1, n_mel).transpose(0, 2, 1)
    return frames, np.stack(gates, 1), steps


def recorded_steps(name):
    """Yield, for each output of the recorded steps, its name, ours and NeMo's."""
    r = recorded(name)
    model, graphs = exported(name)
    states = list(model.facts["states"])
    fixed = {
        "memory": r["encoder_embedding"],
        "processed_memory": r["processed_memory"],
        "mask": r["memory_mask"],
        "prenet_dropout": np.ones(r["prenet_masks"].shape[1:], np.float32),
    }
    for i, frame in enumerate(r["step_decoder_input"]):
        before = {state: r[f"step_{state}"][i] for state in states}
        out = graphs[STEP](decoder_input=frame, **fixed, **before)
        for key in ("mel", "gate", *(f"{state}_next" for state in states)):
            yield key, out[key], r[f"step_{key}"][i]


def spoken_alone(name):
    """Yield, for each item of the recorded batch, the spectrogram that it has alone, and steps."""
    r = recorded(name)
    model, graphs = exported(name)
    frames, _, steps = decode(name, encode(name, r["text"], r["text_length"]))
    for i, n in enumerate(steps):
        made = n if model.facts["early_stopping"] else model.facts["max_decoder_steps"]
        count = made * model.facts["n_frames_per_step"]
        yield graphs[POSTNET](mel=frames[i : i + 1, :, :count])["mel_postnet"][0], n
