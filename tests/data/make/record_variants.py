"""Record what NeMo 1.23.0 computes for small convolutional models: `record_variants.py MODELS`.

MODELS is `tests/data/models`. Written there:

* `<name>.alone.npz` for the models of `ALONE`: NeMo's features of each recorded utterance when it
  is alone in its batch (`features_0` …, float32 [M, T], and `features_length`, int64);
* `variants/<name>.nemo` and `.npz` for every entry of `VARIANTS`: one configuration each that puts
  documented keys at a second value, with random weights.

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

SEED = 20211123
ALONE = ("quartznet", "jasper", "quartznet_espeak")
LABELS = [" ", "a", "b", "c", "d", "e", "'"]
FRAMES = (41, 29, 12)
EDGE_FRAMES = 8  # a second batch holds one item of every length from 0 to this


def block(filters: int, kernel: int, **keys: Any) -> dict[str, Any]:
    return {
        "filters": filters,
        "repeat": 1,
        "kernel": [kernel],
        "stride": [1],
        "dilation": [1],
        "dropout": 0.1,
        "residual": False,
        "separable": True,
    } | keys


def dense(filters: int, kernel: int, **keys: Any) -> dict[str, Any]:
    return block(filters, kernel, residual=True, residual_dense=True, **keys)


LAST = block(12, 1, separable=False)
# Each entry: the blocks, encoder keys, preprocessor keys.
VARIANTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "hardtanh_dilation": (
        [block(8, 5, stride=[2]), block(8, 5, repeat=2, residual=True, dilation=[2]), LAST],
        {"activation": "hardtanh"},
        {"frame_splicing": 1},
    ),
    "swish_stride3_repeat3": (
        [
            block(8, 5, stride=[3], separable=False),
            block(10, 7, repeat=3, residual=True, separable=False),
            LAST,
        ],
        {"activation": "swish", "init_mode": "kaiming_normal"},
        {},
    ),
    "selu_even_kernel": (
        [
            block(8, 4, stride=[2]),
            block(8, 5, repeat=2, residual=True, kernel_size_factor=1.5),
            block(8, 9, residual=True, kernel_size_factor=0.2, residual_mode="add"),
            LAST,
        ],
        {"activation": "selu"},
        {},
    ),
    "gelu_residual_max": (
        [block(8, 5, stride=[2]), block(10, 5, repeat=2, residual=True), LAST],
        {"activation": "gelu", "residual_mode": "max"},
        {},
    ),
    "identity_stride_repeat": (
        [block(8, 5, repeat=2, stride=[2]), block(8, 3, repeat=2, residual=True), LAST],
        {"activation": "identity"},
        {},
    ),
    "silu_no_mask": (
        [
            block(8, 5, stride=[2]),
            block(8, 5, repeat=2, residual=True),
            block(8, 5, dilation=[2], separable=False),
            LAST,
        ],
        {"activation": "silu", "conv_mask": False},
        {},
    ),
    # A plain residual block after dense ones takes the FIRST pane, not the last, as its residual.
    "dense_separable": (
        [
            block(10, 5, stride=[2]),
            dense(8, 5),
            dense(10, 3, separable=False),
            block(12, 3, residual=True),
        ],
        {"activation": "relu"},
        {},
    ),
    # `residual_mode` sticks: the third block inherits it from the second.
    "stride_add": (
        [
            block(8, 5),
            block(
                8,
                5,
                repeat=3,
                stride=[2],
                stride_last=True,
                residual=True,
                residual_mode="stride_add",
            ),
            block(10, 5, stride=[2], residual=True),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    "future_context": (
        [
            block(8, 5, stride=[2], future_context=1),
            block(8, 7, repeat=2, residual=True, future_context=0),
            block(8, 3, future_context=4),
            block(8, 5, residual=True, future_context=4, separable=False),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    "features_all": (
        [block(8, 5, stride=[2]), LAST],
        {"activation": "relu"},
        {
            "sample_rate": 8000,
            "window_size": False,
            "window_stride": False,
            "n_window_size": 150,
            "n_window_stride": 60,
            "window": "hamming",
            "normalize": "all_features",
            "preemph": None,
            "lowfreq": 100,
            "highfreq": 3800,
            "log_zero_guard_type": "clamp",
            "log_zero_guard_value": 0.001,
            "mag_power": 1.0,
            "pad_to": 0,
            "mel_norm": None,
        },
    ),
    "features_exact_pad": (
        [block(8, 5, stride=[2]), LAST],
        {"activation": "relu"},
        {
            "sample_rate": 8000,
            "window_size": 0.02,
            "window": "blackman",
            "normalize": None,
            "log": False,
            "preemph": 0.9,
            "exact_pad": True,
            "pad_value": -1.5,
            "pad_to": 8,
        },
    ),
    "features_eps": (
        [block(8, 5, stride=[2]), LAST],
        {"activation": "relu"},
        {
            "sample_rate": 8000,
            "window_size": 0.032,
            "n_fft": 512,
            "window": "bartlett",
            "log_zero_guard_value": "eps",
            "pad_to": 4,
            "features": 8,
        },
    ),
}


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
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    with torch.no_grad():
        for m in norms:
            m.weight.copy_(torch.rand(m.weight.shape, generator=g) * 0.6 + 0.7)
            m.bias.copy_(torch.randn(m.bias.shape, generator=g) * 0.3)
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
            audio, samples = utterances([2400, 1701, 723], seed + 2)
            x, n = model.preprocessor(
                input_signal=torch.from_numpy(audio), length=torch.from_numpy(samples)
            )
            alone = features_alone(model, audio, samples)
            alone["alone_features_length"] = alone.pop("features_length")
            found |= {"audio": audio, "audio_length": samples} | alone
        else:
            n = torch.tensor(FRAMES)
            g = torch.Generator().manual_seed(seed + 2)
            x = torch.randn(3, model.cfg.encoder.feat_in, 48, generator=g)
            x = x * (torch.arange(48) < n[:, None])[:, None]
        y, m, _ = model(processed_signal=x, processed_signal_length=n)
        found |= {"features": x.numpy(), "features_length": n.numpy().astype(np.int64)}
        found |= {"logprobs": y.numpy(), "encoded_length": m.numpy().astype(np.int64)}
        for i, k in enumerate(n.tolist()):
            y, _, _ = model(
                processed_signal=x[i : i + 1, :, :k], processed_signal_length=torch.tensor([k])
            )
            found[f"logprobs_{i}"] = y[0].numpy()
        n = torch.arange(EDGE_FRAMES + 1)
        x = x[:1, :, :EDGE_FRAMES] * (torch.arange(EDGE_FRAMES) < n[:, None])[:, None]
        y, m, _ = model(processed_signal=x, processed_signal_length=n)
        found |= {"edge_features": x.numpy(), "edge_features_length": n.numpy()}
        found |= {"edge_logprobs": y.numpy(), "edge_encoded_length": m.numpy().astype(np.int64)}
    np.savez_compressed(folder / f"{name}.npz", **found)
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    sys.stdout.write(f"{name} {sizes} {found['logprobs'].shape} {found['logprobs'].std():.2f}\n")


def main(models: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel

    torch.set_num_threads(1)
    for name in ALONE:
        model = EncDecCTCModel.restore_from(str(models / f"{name}.nemo"), map_location="cpu").eval()
        with np.load(models / f"{name}.npz") as z, torch.no_grad():
            found = features_alone(model, z["audio"], z["audio_length"])
        np.savez_compressed(models / f"{name}.alone.npz", **found)
    (models / "variants").mkdir(exist_ok=True)
    for name in VARIANTS:
        record_variant(name, models / "variants")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
