"""Record what NeMo 1.23.0 computes for small models that classify utterances.

As a program: `record_speech_classification.py MODELS [NAME …]`, where MODELS is
`tests/data/models`; names restrict it to these. Written there:
`variants/speech_classification/<name>.nemo` and `.npz` for every entry of `VARIANTS`.

Run it as `record_conv_asr.py`. The MFCC features need torchaudio, whose transforms are plain torch:
any version does, its compiled library is not used.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from conv_variants import block
from record_conv_asr import (
    SEED,
    configuration,
    disturb,
    edge_features,
    features_of,
    record_features,
    save,
)

LABELS = ["yes", "no", "on", "background"]
BLOCKS = [block(8, 5, stride=[2]), block(10, 5, repeat=2, residual=True), block(12, 1)]
CROP_OR_PAD = "nemo.collections.asr.modules.CropOrPadSpectrogramAugmentation"
MFCC = {
    "_target_": "nemo.collections.asr.modules.AudioToMFCCPreprocessor",
    "sample_rate": 8000,
    "window_size": 0.02,
    "window_stride": 0.01,
    "window": "hamming",
    "n_mels": 20,
    "n_mfcc": 13,
    "n_fft": 256,
}


@dataclass
class Variant:
    """Blocks, and keys of the sections and of the model itself."""

    blocks: list[dict[str, Any]]
    encoder: dict[str, Any]
    preprocessor: dict[str, Any] = field(default_factory=dict)
    decoder: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)


VARIANTS = {
    "average": Variant(BLOCKS, {"activation": "relu"}),
    # 56 frames: longer than every recorded item, so that NeMo pads and never cuts at random.
    "maximum": Variant(
        BLOCKS,
        {"activation": "selu"},
        decoder={"pooling_type": "max", "return_logits": False},
        model={"crop_or_pad_augment": {"_target_": CROP_OR_PAD, "audio_length": 56}},
    ),
    "no_mask": Variant(
        [block(8, 5, se=True), block(12, 5, residual=True)],
        {"activation": "swish", "conv_mask": False, "normalization_mode": "layer"},
        decoder={"pooling_type": "avg"},
        model={"crop_or_pad_augment": None},
    ),
    "mfcc": Variant(BLOCKS, {"activation": "relu", "feat_in": 13}, MFCC),
    "mfcc_windows": Variant(
        BLOCKS,
        {"activation": "relu", "feat_in": 10},
        MFCC
        | {
            "window_size": None,
            "n_window_size": 150,
            "window": None,
            "lowfreq": 100,
            "highfreq": 3800,
            "n_mfcc": 10,
            "norm": None,
            "n_fft": None,
        },
        {"pooling_type": "max"},
    ),
}


def configured(name: str) -> dict[str, Any]:
    variant = VARIANTS[name]
    config = configuration(variant.blocks, variant.encoder, {})
    if mfcc := variant.preprocessor:
        config |= {"preprocessor": mfcc, "sample_rate": mfcc["sample_rate"]}
    config["decoder"] = {
        "_target_": "nemo.collections.asr.modules.ConvASRDecoderClassification",
        "feat_in": variant.blocks[-1]["filters"],
        "num_classes": len(LABELS),
    } | variant.decoder
    return config | {"labels": LABELS} | variant.model


def logits(model: Any, x: Any, n: Any) -> np.ndarray:
    """Return what NeMo's own export computes, which has no `crop_or_pad_augment`."""
    encoded, _ = model.encoder(audio_signal=x, length=n)
    return model.decoder(encoder_output=encoded).numpy()


def record(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecClassificationModel
    from omegaconf import OmegaConf

    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    model = EncDecClassificationModel(cfg=OmegaConf.create(configured(name)))
    crop_or_pad, model.crop_or_pad = model.crop_or_pad, None
    disturb(model, seed + 1)
    model.crop_or_pad = crop_or_pad
    model.save_to(str(folder / f"{name}.nemo"))
    file = str(folder / f"{name}.nemo")
    model = EncDecClassificationModel.restore_from(file, map_location="cpu").eval()
    found: dict[str, np.ndarray] = {}
    with torch.no_grad():
        if name.startswith("mfcc"):
            x, n, found = record_features(model, seed + 2)
        else:
            x, n = features_of(model, seed + 2)
        found |= {"features": x.numpy(), "features_length": n.numpy().astype(np.int64)}
        found["logits"] = logits(model, x, n)
        for i, k in enumerate(n.tolist()):
            found[f"logits_{i}"] = logits(model, x[i : i + 1, :, :k], torch.tensor([k]))[0]
        if model.crop_or_pad is not None:
            padded, length = model.crop_or_pad(input_signal=x, length=n)
            found |= {"cropped_features": padded.numpy(), "cropped_length": length.numpy()}
            scores = model(processed_signal=x, processed_signal_length=n)
            found["cropped_logits"] = scores.numpy()
        x, n = edge_features(x)
        found |= {"edge_features": x.numpy(), "edge_features_length": n.numpy()}
        for k in range(1, len(n)):
            alone = logits(model, x[k : k + 1, :, :k], torch.tensor([k]))
            found[f"edge_logits_{k}"] = alone[0]
    save(folder, name, found)


def main(models: Path, names: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    folder = models / "variants" / "speech_classification"
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or VARIANTS:
        record(name, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2:])
