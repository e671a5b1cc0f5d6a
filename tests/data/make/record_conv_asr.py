"""Record what NeMo 1.23.0 computes for small convolutional CTC models.

As a program: `record_conv_asr.py MODELS [NAME …]`, where MODELS is `tests/data/models`; names of
variants restrict it to these. Written there:

* `<name>.alone.npz` for the models of `ALONE`: NeMo's features of each recorded utterance when it
  is alone in its batch (`features_0` …, float32 [M, T], and `features_length`, int64);
* `variants/conv_asr/<name>.nemo` and `.npz` for every entry of `VARIANTS` and `SUBWORDS`: one
  configuration each that puts documented keys at a second value, with random weights.

Needs the environment of `shared/models/make/requirements.lock`; run it in an empty folder.
Weights, inputs and outputs are equal on every run; the archives are not (tar times).
"""

from __future__ import annotations

import copy
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from conv_variants import CORPUS, SUBWORDS, VARIANTS, WORDS

SEED = 20211123
ALONE = ("quartznet", "jasper", "quartznet_espeak")
LABELS = [" ", "a", "b", "c", "d", "e", "'"]
FRAMES = (41, 29, 12)
EDGE_FRAMES = 8  # a second batch holds one item of every length from 0 to this


def configuration(
    blocks: list[dict[str, Any]], encoder: dict[str, Any], mel: dict[str, Any]
) -> dict[str, Any]:
    mel = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 16000,
        "window_size": 0.01,
        "window_stride": 0.005,
        "features": 16,
    } | mel
    return {
        "sample_rate": mel["sample_rate"],
        "labels": LABELS,
        "train_ds": None,
        "validation_ds": None,
        "test_ds": None,
        "preprocessor": mel,
        "encoder": {
            "_target_": "nemo.collections.asr.modules.ConvASREncoder",
            "feat_in": mel["features"],
            "jasper": copy.deepcopy(blocks),
        }
        | encoder,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": blocks[-1]["filters"],
            "num_classes": len(LABELS),
            "vocabulary": LABELS,
        },
    }


def disturb(model: Any, seed: int) -> None:
    """Give every statistic, gain and bias a value that matters, and keep the signal alive."""
    import torch

    g = torch.Generator().manual_seed(seed)
    kinds = (torch.nn.BatchNorm1d, torch.nn.GroupNorm)
    norms = [m for m in model.modules() if isinstance(m, kinds[0])]
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, kinds):
                m.weight.copy_(torch.rand(m.weight.shape, generator=g) * 0.6 + 0.7)
                m.bias.copy_(torch.randn(m.bias.shape, generator=g) * 0.3)
            elif type(m).__name__ == "SqueezeExcite":
                for layer in (m.fc[0], m.fc[2]):
                    layer.weight.copy_(torch.randn(layer.weight.shape, generator=g))
        for m in norms:
            m.momentum = 1.0
            m.train()
        last = model.decoder.decoder_layers[0]
        last.weight.copy_(torch.randn(last.weight.shape, generator=g) * 0.4)
        last.bias.copy_(torch.randn(last.bias.shape, generator=g) * 0.3)
        x = torch.randn(4, model.cfg.encoder.feat_in, 128, generator=g)
        model(processed_signal=x, processed_signal_length=torch.full((4,), 128))
        for m in norms:
            sd = m.running_var.sqrt()
            m.running_mean.add_(torch.randn(sd.shape, generator=g) * 0.1 * sd)
            m.running_var.mul_(torch.rand(sd.shape, generator=g) + 0.5)
    model.eval()


def utterances(lengths: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Zero-padded sums of three decaying sines with a little noise, on a 10-bit grid."""
    r = np.random.RandomState(seed)
    audio = np.zeros((len(lengths), max(lengths)), np.float32)
    for row, n in zip(audio, lengths, strict=True):
        t = np.arange(n) / 8000
        waves = [np.sin(2 * np.pi * r.uniform(150, 3000) * t + r.uniform(0, 6)) for _ in range(3)]
        x = sum(waves) * np.exp(-t * r.uniform(1, 6)) * 0.2 + r.randn(n) * 0.01
        row[:n] = np.round(x * 512) / 512
    return audio, np.array(lengths, np.int64)


def features_alone(model: Any, audio: np.ndarray, length: np.ndarray) -> dict[str, np.ndarray]:
    import torch

    found, frames = {}, []
    for i, n in enumerate(length):
        f, m = model.preprocessor(
            input_signal=torch.from_numpy(audio[i : i + 1, :n]), length=torch.tensor([int(n)])
        )
        found[f"features_{i}"] = f[0].numpy()
        frames.append(int(m[0]))
    return found | {"features_length": np.array(frames, np.int64)}


def leaks(encoder: dict[str, Any]) -> bool:
    """Return whether padding changes what NeMo computes for an item."""
    return (
        not encoder.get("conv_mask", True) or encoder.get("normalization_mode", "batch") != "batch"
    )


def features_of(model: Any, seed: int) -> tuple[Any, Any]:
    """Return random features [3, M, 48], zero beyond the lengths, and the lengths."""
    import torch

    n = torch.tensor(FRAMES)
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(3, model.cfg.encoder.feat_in, 48, generator=g)
    return x * (torch.arange(48) < n[:, None])[:, None], n


def edge_features(x: Any) -> tuple[Any, Any]:
    """Return the beginning of the first item of `x` cut to every length from 0 on."""
    import torch

    n = torch.arange(EDGE_FRAMES + 1)
    return x[:1, :, :EDGE_FRAMES] * (torch.arange(EDGE_FRAMES) < n[:, None])[:, None], n


def save(folder: Path, name: str, found: dict[str, np.ndarray]) -> None:
    np.savez_compressed(folder / f"{name}.npz", **found)
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    sys.stdout.write(f"{name} {sizes}\n")


def record_features(model: Any, seed: int) -> tuple[Any, Any, dict[str, np.ndarray]]:
    """Return NeMo's features of three utterances and their lengths, and what led to them."""
    import torch

    audio, samples = utterances([2400, 1701, 723], seed)
    x, n = model.preprocessor(
        input_signal=torch.from_numpy(audio), length=torch.from_numpy(samples)
    )
    alone = features_alone(model, audio, samples)
    alone["alone_features_length"] = alone.pop("features_length")
    return x, n, {"audio": audio, "audio_length": samples} | alone


def record_variant(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel
    from omegaconf import OmegaConf

    blocks, encoder, mel = VARIANTS[name]
    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    model = EncDecCTCModel(cfg=OmegaConf.create(configuration(blocks, encoder, mel)))
    disturb(model, seed + 1)
    model.save_to(str(folder / f"{name}.nemo"))
    model = EncDecCTCModel.restore_from(str(folder / f"{name}.nemo"), map_location="cpu").eval()
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        if name.startswith("features"):
            x, n, found = record_features(model, seed + 2)
        else:
            x, n = features_of(model, seed + 2)
        found |= record_outputs(model, x, n)
        x, n = edge_features(x)
        y, m, _ = model(processed_signal=x, processed_signal_length=n)
        found |= {"edge_features": x.numpy(), "edge_features_length": n.numpy()}
        found |= {"edge_logprobs": y.numpy(), "edge_encoded_length": m.numpy().astype(np.int64)}
        for i in range(1, len(n)) if leaks(encoder) else ():
            try:
                found[f"edge_logprobs_{i}"] = logprobs_alone(model, x[i], int(n[i]))
            except ValueError as error:  # torch has no instance norm of one frame alone
                sys.stdout.write(f"{name}: {i} frames: {error}\n")
    save(folder, name, found)


def logprobs_alone(model: Any, item: Any, frames: int) -> np.ndarray:
    import torch

    y, _, _ = model(
        processed_signal=item[None, :, :frames], processed_signal_length=torch.tensor([frames])
    )
    return y[0].numpy()


def record_outputs(model: Any, x: Any, n: Any) -> dict[str, np.ndarray]:
    """Return features and log-probabilities of the batch, and of each item alone."""
    y, m, _ = model(processed_signal=x, processed_signal_length=n)
    found = {"features": x.numpy(), "features_length": n.numpy().astype(np.int64)}
    found |= {"logprobs": y.numpy(), "encoded_length": m.numpy().astype(np.int64)}
    for i, k in enumerate(n.tolist()):
        found[f"logprobs_{i}"] = logprobs_alone(model, x[i], k)
    return found


def tokenizer_folder(kind: str) -> str:
    """Return a new folder with the files of a small tokenizer."""
    folder = Path(f"tokenizer_{kind}")  # relative, for it is written into the files
    folder.mkdir(exist_ok=True)
    if kind == "wpe":
        from transformers import BertConfig

        # NeMo 1.23 asks for this model by name; the current folder comes before any download.
        BertConfig().save_pretrained("bert-base-cased")
        for path in (Path("bert-base-cased"), folder):
            (path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
        return str(folder)
    import sentencepiece

    Path("corpus.txt").write_text("".join(f"{line}\n" for line in CORPUS * 5))
    sentencepiece.SentencePieceTrainer.Train(
        f"--input=corpus.txt --model_prefix={folder}/tokenizer --vocab_size=40 --model_type=bpe "
        "--normalization_rule_name=identity --bos_id=1 --eos_id=-1 --user_defined_symbols=! "
        "--num_threads=1 --minloglevel=2"
    )
    lines = (folder / "tokenizer.vocab").read_text(encoding="utf-8").splitlines()
    pieces = [line.split("\t")[0] for line in lines]
    words = [p[1:] or p if p[0] == "\u2581" else f"##{p}" for p in pieces if p[0] != "<"]
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in words))
    return str(folder)


def record_subwords(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE
    from omegaconf import OmegaConf

    kind, blocks = SUBWORDS[name]
    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    config = configuration(blocks, {"activation": "relu"}, {})
    del config["labels"]
    config["decoder"] |= {"num_classes": -1, "vocabulary": []}
    config["tokenizer"] = {"dir": tokenizer_folder(kind), "type": kind}
    model = EncDecCTCModelBPE(cfg=OmegaConf.create(config))
    disturb(model, seed + 1)
    model.save_to(str(folder / f"{name}.nemo"))
    model = EncDecCTCModelBPE.restore_from(str(folder / f"{name}.nemo"), map_location="cpu").eval()
    with torch.no_grad():
        found = record_outputs(model, *features_of(model, seed + 2))
    texts, _ = model.decoding.ctc_decoder_predictions_tensor(
        torch.from_numpy(found["logprobs"]),
        decoder_lengths=torch.from_numpy(found["encoded_length"]),
    )
    save(folder, name, found | {"transcripts": np.array(texts)})


def main(models: Path, names: list[str]) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel

    torch.set_num_threads(1)
    for name in () if names else ALONE:
        model = EncDecCTCModel.restore_from(str(models / f"{name}.nemo"), map_location="cpu").eval()
        with np.load(models / f"{name}.npz") as z, torch.no_grad():
            found = features_alone(model, z["audio"], z["audio_length"])
        np.savez_compressed(models / f"{name}.alone.npz", **found)
    folder = models / "variants" / "conv_asr"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or [*VARIANTS, *SUBWORDS]:
        record = record_variant if name in VARIANTS else record_subwords
        record(name, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
