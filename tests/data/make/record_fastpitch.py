"""Record what NeMo 1.23.0 computes for small FastPitch models: `record_fastpitch.py MODELS`.

MODELS is `tests/data/models`. Written there:

* `<name>.alone.npz` for the models of `ALONE`: each recorded text alone in its batch and unpadded,
  since NeMo lets padding leak into shorter texts;
* `variants/fastpitch/<name>.nemo` and `.npz` for every entry of `VARIANTS`: one configuration each
  that puts documented keys at a second value, with random weights;
* `variants/fastpitch/tokenizers.json`: the token list of tokenizers at several settings.

Needs the environment of `shared/models/make/requirements.lock`; run it in an empty folder.
Weights, inputs and outputs are equal on every run; the archives are not (tar times).
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20211125
ALONE = ("fastpitch", "fastpitch_char")
LENGTHS = (13, 19, 6)
EDGE_LENGTHS = (1, 2, 3)  # further texts, each alone
OUTPUTS = ("spect", "num_frames", "durs_predicted", "log_durs_predicted", "pitch_predicted")
RUNS = {"": ("pitch_zero", "pace_one"), "_shifted": ("pitch", "pace")}
TOKENIZERS = "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers."
ARPABET = "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p"
LABELS = [" ", "!", "'", "a", "b", "c", "d", "e", "f", "g"]


def fft(dim: int, **keys: Any) -> dict[str, Any]:
    return {
        "n_layer": 1,
        "n_head": 1,
        "d_model": dim,
        "d_head": 4,
        "d_inner": 12,
        "kernel_size": 3,
        "dropout": 0.1,
        "dropatt": 0.1,
        "dropemb": 0.0,
    } | keys


def predictor(dim: int, **keys: Any) -> dict[str, Any]:
    module = "nemo.collections.tts.modules.fastpitch.TemporalPredictor"
    return {
        "_target_": module,
        "input_size": dim,
        "kernel_size": 3,
        "filter_size": 6,
        "dropout": 0.1,
        "n_layers": 2,
    } | keys


def characters(**keys: Any) -> dict[str, Any]:
    return {"_target_": TOKENIZERS + "EnglishCharsTokenizer"} | keys


def phonemes(g2p: dict[str, Any], **keys: Any) -> dict[str, Any]:
    dictionary = Path("dictionary-tiny").resolve()
    dictionary.write_text(
        "HELLO  HH AH0 L OW1\nWORLD  W ER1 L D\nREAD  R EH1 D\nREAD(1)  R IY1 D\n"
    )
    heteronyms = Path("heteronyms-tiny").resolve()
    heteronyms.write_text("read\n")
    files = {"phoneme_dict": str(dictionary), "heteronyms": str(heteronyms)}
    return {
        "_target_": TOKENIZERS + "EnglishPhonemesTokenizer",
        "g2p": {"_target_": ARPABET} | files | g2p,
    } | keys


def variants() -> dict[str, dict[str, Any]]:
    """Return the configurations: the keys of the model, and what differs in its sections."""
    return {
        "speakers": {
            "n_speakers": 5,
            "speaker_emb_condition_prosody": True,
            "speaker_emb_condition_decoder": True,
            "speaker_emb_condition_aligner": True,
            "min_token_duration": 1,
            "max_token_duration": 9,
            "pitch_embedding_kernel_size": 5,
            "n_mel_channels": 6,
            "text_tokenizer": characters(punct=False, apostrophe=False),
            "input_fft": fft(8, n_head=2, n_layer=2, kernel_size=5),
            "output_fft": fft(8, n_head=3, d_head=2, d_inner=10, kernel_size=1),
            "duration_predictor": predictor(8, kernel_size=1, filter_size=5),
            "pitch_predictor": predictor(8, kernel_size=5, n_layers=3),
        },
        "conditions": {
            "n_speakers": 3,
            "energy_embedding_kernel_size": 3,
            "text_tokenizer": phonemes(
                {"heteronyms": None, "phoneme_probability": 0.8},
                add_blank_at="last",
                silence="<sil>",
            ),
            "input_fft": fft(8, condition_types=["concat", "layernorm"]),
            "output_fft": fft(8, condition_types=["layernorm"], n_layer=2),
            "duration_predictor": predictor(8, condition_types=["add", "layernorm"]),
            "pitch_predictor": predictor(8, condition_types=["concat"]),
            "energy_predictor": predictor(8, condition_types=["layernorm"], n_layers=1),
        },
        "speaker_in_encoder_only": {
            "n_speakers": 2,
            "text_tokenizer": characters(add_blank_at="last_but_one"),
        },
        "energy": {
            "energy_embedding_kernel_size": 5,
            "use_log_energy": False,
            "text_tokenizer": phonemes(
                {"ignore_ambiguous_words": False, "encoding": "utf-8"},
                stresses=True,
                punct=False,
                apostrophe=False,
                add_blank_at=True,
            ),
            "energy_predictor": predictor(8, filter_size=7, n_layers=3, kernel_size=5),
        },
        # Ids of a plain list of labels; the padding id is that of the space, as in NeMo's example.
        "labels": {
            "learn_alignment": False,
            "labels": LABELS,
            "text_tokenizer": None,
            "alignment_module": None,
            "input_fft": fft(8, n_embed=12, d_embed=8, padding_idx=0),
        },
    }


def configuration(keys: dict[str, Any]) -> dict[str, Any]:
    mels = keys.get("n_mel_channels", 5)
    module = "nemo.collections.tts.modules.transformer.FFTransformer"
    base: dict[str, Any] = {
        "learn_alignment": True,
        "n_mel_channels": mels,
        "max_token_duration": 75,
        "symbols_embedding_dim": 8,
        "pitch_embedding_kernel_size": 3,
        "pitch_mean": 120.5,
        "pitch_std": 30.25,
        "pitch_fmin": 65.0,
        "pitch_fmax": 640.0,
        "train_ds": {"dataset": {"_target_": "nemo.collections.tts.data.dataset.TTSDataset"}},
        "validation_ds": None,
        "alignment_module": {
            "_target_": "nemo.collections.tts.modules.aligner.AlignmentEncoder",
            "n_mel_channels": mels,
            "n_text_channels": 8,
            "n_att_channels": 2,
        },
        "preprocessor": {
            "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
            "features": mels,
            "n_fft": 64,
            "n_window_size": 64,
            "n_window_stride": 16,
            "window_size": None,
            "window_stride": None,
            "sample_rate": 8000,
            "normalize": None,
            "preemph": None,
            "mag_power": 1.0,
        },
        "input_fft": fft(8),
        "output_fft": fft(8),
        "duration_predictor": predictor(8),
        "pitch_predictor": predictor(8),
    }
    merged = base | keys
    merged["input_fft"] = {"_target_": f"{module}Encoder"} | merged["input_fft"]
    merged["output_fft"] = {"_target_": f"{module}Decoder"} | merged["output_fft"]
    return {k: v for k, v in merged.items() if v is not None or k == "validation_ds"}


def disturb(model: Any, seed: int) -> None:
    """Give every gain, bias and projection a value that matters; about five frames a token."""
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.fastpitch.named_parameters():
            leaf = name.rpartition(".")[2]
            if ".layer_norm.weight" in name or ".norm.weight" in name:
                p.copy_(torch.rand(p.shape, generator=g) * 0.6 + 0.7)
            elif "cond_" in name:
                p.add_(torch.randn(p.shape, generator=g) * 0.3)
            elif leaf == "bias":
                p.copy_(torch.randn(p.shape, generator=g) * 0.2)
            elif "word_emb" in name:
                p.copy_(torch.randn(p.shape, generator=g))  # the row of the padding too
        last = model.fastpitch.duration_predictor.fc
        last.bias.fill_(1.6)
        last.weight.copy_(torch.randn(last.weight.shape, generator=g) * 0.2)


def synthesise(model: Any, inputs: dict[str, np.ndarray], run: str) -> dict[str, np.ndarray]:
    import torch

    pitch, pace = RUNS[run]
    t = {k: torch.from_numpy(v) for k, v in inputs.items()}
    with torch.no_grad():
        found = model.forward_for_export(
            text=t["text"], pitch=t[pitch], pace=t[pace], speaker=t.get("speaker")
        )
    return {k: v.numpy() for k, v in zip(OUTPUTS, found, strict=False)}


def draw(model: Any, lengths: tuple[int, ...], seed: int) -> dict[str, np.ndarray]:
    """Return random texts, padded, with pitch and pace."""
    r = np.random.RandomState(seed)
    rows = model.fastpitch.encoder.word_emb.num_embeddings
    pad = model.fastpitch.encoder.padding_idx
    shape = (len(lengths), max(lengths))
    text = np.full(shape, pad, np.int64)
    real = np.zeros(shape, bool)
    for row, inside, n in zip(text, real, lengths, strict=True):
        row[:n] = r.randint(0, rows - 1, n)
        row[:n] += row[:n] >= pad
        if pad == 0 and n > 4:
            row[2] = row[n - 2] = pad  # a space is padding here
        inside[:n] = True
    found = {
        "text": text,
        "text_length": np.array(lengths, np.int64),
        "pitch": (r.randn(*shape) * 0.7 * real).astype(np.float32),
        "pace": (r.rand(*shape) * 0.6 + 0.7).astype(np.float32),
        "pitch_zero": np.zeros(shape, np.float32),
        "pace_one": np.ones(shape, np.float32),
    }
    if model.fastpitch.speaker_emb is not None:
        found["speaker"] = r.randint(0, model.fastpitch.speaker_emb.num_embeddings, len(lengths))
    return found


def items(inputs: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Return the texts one by one, without their padding."""
    return [
        {k: v[i : i + 1, :n] if v.ndim == 2 else v[i : i + 1] for k, v in inputs.items()}
        for i, n in enumerate(inputs["text_length"])
    ]


def is_clear(
    inputs: dict[str, np.ndarray], durations: np.ndarray, run: str, margin: float = 0.01
) -> bool:
    """Tell whether no number of frames is near a rounding threshold."""
    part = (durations / inputs[RUNS[run][1]] + 0.5) % 1
    part = part[durations > 0]
    return bool(((part > margin) & (part < 1 - margin)).all())


def record_alone(
    model: Any, inputs: dict[str, np.ndarray], margin: float = 0.01
) -> dict[str, np.ndarray] | None:
    """Return the outputs of each text alone, or nothing where rounding could go either way."""
    found = {}
    for i, item in enumerate(items(inputs)):
        for run in RUNS:
            outputs = synthesise(model, item, run)
            if not is_clear(item, outputs["durs_predicted"], run, margin):
                return None
            found |= {f"{k}{run}_{i}": v[0] for k, v in outputs.items()}
    return found


def record(model: Any, seed: int) -> dict[str, np.ndarray]:
    """Return a ragged batch, its texts alone, and tiny texts alone, clear of all thresholds."""
    # NeMo's energy predictor squeezes a text of one token away.
    lengths = EDGE_LENGTHS[1:] if model.fastpitch.energy_predictor else EDGE_LENGTHS
    for attempt in range(200):
        inputs = draw(model, LENGTHS, seed + attempt)
        found = dict(inputs)
        alone = record_alone(model, inputs)
        for run in RUNS:
            outputs = synthesise(model, inputs, run)
            if not is_clear(inputs, outputs["durs_predicted"], run):
                alone = None
            found |= {f"{k}{run}": v for k, v in outputs.items()}
        edge = draw(model, lengths, seed + 1000 + attempt)
        edge_alone = record_alone(model, edge)
        if alone is not None and edge_alone is not None:
            return found | alone | {f"edge_{k}": v for k, v in (edge | edge_alone).items()}
    raise RuntimeError("no texts clear of the rounding thresholds")


def record_variant(name: str, keys: dict[str, Any], folder: Path) -> None:
    import torch
    from nemo.collections.tts.models import FastPitchModel
    from nemo.utils.app_state import AppState
    from omegaconf import OmegaConf

    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    AppState().is_model_being_restored = True  # sets up no training data
    model = FastPitchModel(cfg=OmegaConf.create(configuration(keys)))
    disturb(model, seed + 1)
    model.save_to(str(folder / f"{name}.nemo"))
    model = FastPitchModel.restore_from(str(folder / f"{name}.nemo"), map_location="cpu").eval()
    found = record(model, seed + 2)
    np.savez_compressed(folder / f"{name}.npz", **found)
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    spread = found["spect"].std()
    sys.stdout.write(f"{name} {sizes} {found['num_frames']} {spread:.2f}\n")


def record_tokenizers(file: Path) -> None:
    """Write the tokens of each tokenizer in the order of their ids."""
    from hydra.utils import instantiate

    heteronyms = {"heteronyms": None}
    entries = [
        {"_target_": TOKENIZERS + kind} | keys
        for kind in ("EnglishCharsTokenizer", "GermanCharsTokenizer", "SpanishCharsTokenizer")
        for keys in (
            {},
            {"punct": False, "apostrophe": False, "add_blank_at": "last"},
            {"non_default_punct_list": [".", "?", "#"], "add_blank_at": "last_but_one"},
        )
    ]
    entries.append({"_target_": TOKENIZERS + "GermanCharsTokenizer", "chars": "abc"})
    for keys in (
        {},
        {"stresses": True, "chars": True, "add_blank_at": True},
        {"silence": "sil", "space": "sp", "oov": "spn", "punct": False, "apostrophe": False},
        {"non_default_punct_list": ["."], "add_blank_at": "last"},
    ):
        entries.append(phonemes(heteronyms, **keys))
    entries.append(phonemes(heteronyms | {"phoneme_probability": 0.5}))
    found = []
    for entry in entries:
        parts = {k: v for k, v in entry.items() if k != "g2p"}
        if "g2p" in entry:
            parts["g2p"] = instantiate(entry["g2p"])
        tokenizer = instantiate(parts)
        ids = {k: getattr(tokenizer, k) for k in ("pad", "oov", "blank", "space")}
        known = entry | ({"g2p": {"_target_": ARPABET}} if "g2p" in entry else {})
        if "g2p" in entry and "phoneme_probability" in entry["g2p"]:
            known["g2p"] = known["g2p"] | {"phoneme_probability": 0.5}
        found.append({"config": known, "tokens": list(tokenizer.tokens)} | ids)
    file.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


def main(models: Path) -> None:
    import torch
    from nemo.collections.tts.models import FastPitchModel

    torch.set_num_threads(1)
    folder = models / "variants" / "fastpitch"
    folder.mkdir(parents=True, exist_ok=True)
    record_tokenizers(folder / "tokenizers.json")
    for name in ALONE:
        model = FastPitchModel.restore_from(str(models / f"{name}.nemo"), map_location="cpu").eval()
        with np.load(models / f"{name}.npz") as z:
            inputs = {k: z[k] for k in ("text", "text_length", "pitch", "pace")}
            inputs |= {k: z[k] for k in ("pitch_zero", "pace_one")}
        found = record_alone(model, inputs, margin=0.001)
        if found is None:
            raise RuntimeError(f"{name} has durations on a rounding threshold")
        np.savez_compressed(models / f"{name}.alone.npz", **found)
    for name, keys in variants().items():
        record_variant(name, keys, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
