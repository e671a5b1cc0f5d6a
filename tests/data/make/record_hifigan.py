"""Record what NeMo 1.23.0 computes for small HiFi-GAN models: `record_hifigan.py MODELS`.

MODELS is `tests/data/models`. Written there is `variants/hifigan/<name>.nemo` and `.npz` for every
entry of `VARIANTS`: one generator each that puts documented keys at a second value, with random
weights. The discriminators, which are nine tenths of such a file, are taken out after the outputs
were recorded: NeMo itself would not restore these archives.

Needs the environment of `shared/models/make/requirements.lock`; run it in an empty folder.
Weights, inputs and outputs are equal on every run; the archives are not (tar times).
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20211126
FRAMES = 17
EDGE_FRAMES = (1, 2, 5)
VARIANTS: dict[str, dict[str, Any]] = {
    "second_block": {
        "resblock": 2,
        "upsample_rates": [4, 3],
        "upsample_kernel_sizes": [8, 5],
        "upsample_initial_channel": 12,
        "resblock_kernel_sizes": [3, 5, 7],
        "resblock_dilation_sizes": [[1, 2], [2, 6], [3, 12]],
        "initial_input_size": 10,
    },
    # NeMo compares with the number: the text `1` means the second kind, and of three dilations it
    # takes two. An even kernel keeps the length at even dilations only.
    "text_one": {
        "resblock": "1",
        "upsample_rates": [2, 5, 1],
        "upsample_kernel_sizes": [2, 11, 3],
        "upsample_initial_channel": 8,
        "resblock_kernel_sizes": [4, 1],
        "resblock_dilation_sizes": [[2, 4, 6], [1, 3, 5]],
        "initial_input_size": 7,
        "apply_weight_init_conv_pre": True,
    },
    "first_block": {
        "resblock": 1,
        "upsample_rates": [3],
        "upsample_kernel_sizes": [7],
        "upsample_initial_channel": 6,
        "resblock_kernel_sizes": [5],
        "resblock_dilation_sizes": [[1, 2, 4]],
        "initial_input_size": 4,
    },
}


def configuration(generator: dict[str, Any]) -> dict[str, Any]:
    rates = generator["upsample_rates"]
    return {
        "preprocessor": {
            "_target_": "nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
            "nfilt": generator["initial_input_size"],
            "n_fft": 64,
            "n_window_size": 64,
            "n_window_stride": int(np.prod(rates)),
            "sample_rate": 8000,
            "normalize": None,
            "preemph": None,
            "pad_to": 0,
            "log_zero_guard_type": "clamp",
            "log_zero_guard_value": 1e-5,
            "mag_power": 1.0,
            "use_grads": False,
        },
        "generator": {"_target_": "nemo.collections.tts.modules.hifigan_modules.Generator"}
        | generator,
        "train_ds": {"dataset": {"_target_": "nemo.collections.tts.data.dataset.VocoderDataset"}},
        "optim": {"_target_": "torch.optim.AdamW", "lr": 2e-4},
        "max_steps": 10,
        "debug": True,
    }


def disturb(model: Any, seed: int) -> None:
    """Give every gain and bias a value that matters, and the audio a size between 0.1 and 1."""
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.generator.named_parameters():
            if name.endswith("weight_g"):
                p.copy_(torch.rand(p.shape, generator=g) * 0.6 + 0.7)
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)


def record_variant(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.tts.models import HifiGanModel
    from nemo.utils.app_state import AppState
    from omegaconf import OmegaConf

    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    AppState().is_model_being_restored = True  # sets up no training data
    model = HifiGanModel(cfg=OmegaConf.create(configuration(VARIANTS[name]))).eval()
    disturb(model, seed + 1)
    model.save_to("whole.nemo")
    model = HifiGanModel.restore_from("whole.nemo", map_location="cpu").eval()
    g = torch.Generator().manual_seed(seed + 2)
    spec = torch.randn(2, VARIANTS[name]["initial_input_size"], FRAMES, generator=g)
    found = {"spec": spec.numpy()}
    with torch.no_grad():
        found["audio"] = model(spec=spec).numpy()
        for n in EDGE_FRAMES:
            found[f"audio_{n}"] = model(spec=spec[:, :, :n]).numpy()
    np.savez_compressed(folder / f"{name}.npz", **found)
    del model.mpd, model.msd
    model.save_to(str(folder / f"{name}.nemo"))
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    sys.stdout.write(f"{name} {sizes} {found['audio'].shape} {found['audio'].std():.2f}\n")


def main(models: Path) -> None:
    import torch

    torch.set_num_threads(1)
    folder = models / "variants" / "hifigan"
    folder.mkdir(parents=True, exist_ok=True)
    for name in VARIANTS:
        record_variant(name, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
