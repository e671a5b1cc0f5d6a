"""Record what NeMo 1.23.0 computes for small WaveGlow models: `record_waveglow.py MODELS`.

MODELS is `tests/data/models`. Written there is `variants/waveglow/<name>.nemo` and `.npz` for every
entry of `VARIANTS`, which together put every key at a second value. Needs the environment of the
reference models; run it in an empty folder. Weights, inputs and outputs are equal on every run;
the archives are not (tar times).
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20211124
FRAMES = (5, 2, 1)  # each a batch of two
MODULE = {
    "_target_": "nemo.collections.tts.modules.waveglow.WaveGlowModule",
    "n_early_every": 4,
    "n_early_size": 2,
    "n_flows": 2,
    "n_group": 8,
    "n_mel_channels": 3,
    "n_wn_channels": 4,
    "n_wn_layers": 2,
    "wn_kernel_size": 3,
}
# As in the configurations of NeMo 1.0; `nfilt` follows the module.
PREPROCESSOR = {
    "_target_": "nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
    "dither": 0.0,
    "frame_splicing": 1,
    "highfreq": 8000,
    "log": True,
    "log_zero_guard_type": "clamp",
    "log_zero_guard_value": 1e-05,
    "lowfreq": 0,
    "mag_power": 1.0,
    "n_fft": 1024,
    "n_window_size": 1024,
    "n_window_stride": 256,
    "normalize": None,
    "pad_to": 16,
    "pad_value": -11.52,
    "preemph": None,
    "sample_rate": 22050,
    "stft_conv": True,
    "window": "hann",
}
# Each entry: keys of the module, of the preprocessor, of the model.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "early_every_flow": (
        {"n_flows": 4, "n_early_every": 1, "n_wn_layers": 1, "wn_kernel_size": 5},
        {},
        {"sigma": 0.7},
    ),
    "never_early_group_2": ({"n_group": 2, "n_wn_layers": 3, "n_wn_channels": 6}, {}, {}),
    # Saved after it has been used, with the inverse matrices that NeMo keeps.
    "used_group_16": (
        {"n_group": 16, "n_flows": 5, "n_early_every": 2, "n_early_size": 4, "wn_kernel_size": 1},
        {"highfreq": None, "sample_rate": 16000, "n_fft": None},
        {},
    ),
    "early_size_0": ({"n_flows": 3, "n_early_every": 1, "n_early_size": 0, "n_group": 4}, {}, {}),
}


def disturb(model: Any, seed: int) -> None:
    """Give gains, biases and matrices values that matter; NeMo starts with neutral flows."""
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.waveglow.named_parameters():
            if name.endswith("weight_g"):
                p.mul_(torch.rand(p.shape, generator=g) * 0.8 + 0.6)
            elif name.endswith("bias") or ".end." in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)
            elif name.startswith("convinv"):
                p.add_(torch.randn(p.shape, generator=g) * 0.4 / p.shape[0])
    model.eval()


def record(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.tts.models import WaveGlowModel
    from omegaconf import OmegaConf

    module, mel, top = VARIANTS[name]
    module = MODULE | module
    mel = PREPROCESSOR | {"nfilt": module["n_mel_channels"]} | mel
    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    config = {"sigma": 1.0, "preprocessor": mel, "waveglow": module, "train_ds": None} | top
    model = WaveGlowModel(cfg=OmegaConf.create(config))
    disturb(model, seed + 1)
    found: dict[str, np.ndarray] = {}
    g = torch.Generator().manual_seed(seed + 2)
    inputs = []
    for frames in FRAMES:
        spec = torch.randn(2, module["n_mel_channels"], frames, generator=g) * 1.2 - 3
        groups = 256 * frames // module["n_group"]
        inputs.append((spec, torch.randn(2, module["n_group"], groups, generator=g) * 0.6))
    if name.startswith("used"):
        with torch.no_grad():
            model.waveglow(spec=inputs[0][0], z=inputs[0][1])
    model.save_to(str(folder / f"{name}.nemo"))
    model = WaveGlowModel.restore_from(str(folder / f"{name}.nemo"), map_location="cpu").eval()
    with torch.no_grad():
        for frames, (spec, z) in zip(FRAMES, inputs, strict=True):
            found |= {f"spec_{frames}": spec.numpy(), f"z_{frames}": z.numpy()}
            found[f"audio_{frames}"] = model.waveglow(spec=spec, z=z).numpy()
    np.savez_compressed(folder / f"{name}.npz", **found)
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    audio = found[f"audio_{FRAMES[0]}"]
    sys.stdout.write(f"{name} {sizes} {audio.shape} {audio.std():.2f}\n")


def main(models: Path) -> None:
    import torch

    torch.set_num_threads(1)
    folder = models / "variants" / "waveglow"
    folder.mkdir(parents=True, exist_ok=True)
    for name in VARIANTS:
        record(name, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
