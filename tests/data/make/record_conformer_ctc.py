"""Record what NeMo 1.23.0 computes for small Conformers: `record_conformer_ctc.py MODELS`.

MODELS is `tests/data/models`. Written there:

* `conformer.alone.npz`: NeMo's result for each utterance of `conformer.npz` alone in its batch,
  from the features of the batch cut to its length (`logprobs_0` …, float32 [T', V + 1]);
* `variants/conformer_ctc/<name>.nemo` and `.npz` for every entry of `VARIANTS`: one configuration
  each that puts documented keys at a second value, with random weights.

Needs the environment of `shared/models/make/requirements.lock`; run it in an empty folder.
Weights, inputs and outputs are equal on every run; the archives are not (tar times).
"""

from __future__ import annotations

import os
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20211124
LABELS = [" ", "a", "b", "c", "d", "e", "'"]
FRAMES = (61, 43, 18)
PADDED = 65
EDGE_FRAMES = 9  # a second batch holds one item of every length from 0 to this
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b", "##c", "turn"]

# Keys of the encoder beside those of `configuration`.
VARIANTS: dict[str, dict[str, Any]] = {
    "striding8_tied": {
        "subsampling_factor": 8,
        "untie_biases": False,
        "xscaling": False,
        "feat_out": 12,
        "n_heads": 4,
        "ff_expansion_factor": 2,
        "pos_emb_max_len": 4,
        "stochastic_depth_drop_prob": 0.3,
        "stochastic_depth_mode": "uniform",
    },
    "fast_conformer": {
        "subsampling": "dw_striding",
        "subsampling_factor": 8,
        "subsampling_conv_chunking_factor": 2,
        "xscaling": False,
        "conv_kernel_size": 9,
    },
    "vggnet_abs_pos": {
        "subsampling": "vggnet",
        "self_attention_model": "abs_pos",
        "att_context_size": [3, 2],
        "subsampling_conv_channels": -1,
    },
    "streaming": {
        "subsampling": "dw_striding",
        "causal_downsampling": True,
        "conv_context_size": "causal",
        "conv_norm_type": "layer_norm",
        "att_context_style": "chunked_limited",
        "att_context_size": [[4, 1], [4, 0]],
        "att_context_probs": [0.75, 0.25],
    },
    "causal_unlimited_left": {
        "causal_downsampling": True,
        "conv_context_size": [3, 1],
        "att_context_style": "chunked_limited",
        "att_context_size": [-1, 2],
    },
    "conv1d_causal_group_norm": {
        "subsampling": "striding_conv1d",
        "causal_downsampling": True,
        "conv_norm_type": "group_norm4",
        "att_context_size": [0, -1],
    },
    "dw_conv1d_instance_norm": {
        "subsampling": "dw_striding_conv1d",
        "causal_downsampling": True,
        "conv_norm_type": "instance_norm",
        "att_context_size": [-1, 0],
    },
    "stacking_fused_norm": {"subsampling": "stacking", "conv_norm_type": "fused_batch_norm"},
    "stacking_norm": {"subsampling": "stacking_norm", "subsampling_factor": 3},
    "no_subsampling": {"subsampling": None, "self_attention_model": "abs_pos", "xscaling": False},
    "reduction_pooling": {
        "subsampling_factor": 2,
        "reduction": "pooling",
        "reduction_position": 0,
        "reduction_factor": 2,
    },
    "reduction_striding": {
        "subsampling_factor": 2,
        "reduction": "striding",
        "reduction_position": 0,
        "reduction_factor": 4,
    },
    "reduction_last": {
        "subsampling_factor": 2,
        "reduction": "striding",
        "reduction_position": -1,
        "reduction_factor": 2,
    },
    "local_attention": {
        "subsampling_factor": 2,
        "self_attention_model": "rel_pos_local_attn",
        "att_context_size": [3, 3],
    },
    "wordpiece": {"n_layers": 1},
    "long": {"n_layers": 1, "subsampling_factor": 2, "n_heads": 1},
}
# Frames of one more item, at a length where a table in half precision would have failed.
LONG = {"long": 5203}


def configuration(name: str) -> dict[str, Any]:
    mel = {
        "_target_": "nemo.collections.asr.modules.AudioToMelSpectrogramPreprocessor",
        "sample_rate": 8000,
        "window_size": 0.02,
        "window_stride": 0.01,
        "features": 10,
        "pad_to": 0,
    }
    labels = WORDS if name == "wordpiece" else LABELS
    encoder = {
        "_target_": "nemo.collections.asr.modules.ConformerEncoder",
        "feat_in": mel["features"],
        "n_layers": 2,
        "d_model": 16,
        "subsampling_conv_channels": 6,
        "n_heads": 2,
        "conv_kernel_size": 5,
    } | VARIANTS[name]
    config = {
        "sample_rate": mel["sample_rate"],
        "train_ds": None,
        "validation_ds": None,
        "test_ds": None,
        "preprocessor": mel,
        "encoder": encoder,
        "decoder": {
            "_target_": "nemo.collections.asr.modules.ConvASRDecoder",
            "feat_in": encoder.get("feat_out", encoder["d_model"]),
            "num_classes": len(labels),
            "vocabulary": labels,
        },
    }
    if name == "wordpiece":
        config["tokenizer"] = {"dir": str(make_wordpiece()), "type": "wpe"}
    return config


def make_wordpiece() -> Path:
    """Write the vocabulary, and the model that NeMo opens by name before it reads that."""
    from transformers import BertConfig, BertTokenizer

    folder = Path("tokenizer_wpe").resolve()
    folder.mkdir(exist_ok=True)
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(vocabulary), do_lower_case=False).save_pretrained("bert-base-cased")
    BertConfig(vocab_size=len(WORDS), hidden_size=8).save_pretrained("bert-base-cased")
    return folder


def disturb(model: Any, seed: int) -> None:
    """Give every statistic, gain and bias a value that matters, and let attention choose."""
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.endswith(".weight"):
                p.copy_(torch.rand(p.shape, generator=g) * 0.6 + 0.7)
            elif p.ndim == 1:
                p.copy_(torch.randn(p.shape, generator=g) * 0.3)
            elif "pos_bias" in name:
                p.copy_(torch.randn(p.shape, generator=g) * 0.5)
            elif any(part in name for part in ("linear_q", "linear_k", "linear_pos")):
                p.mul_(2.0)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape, generator=g) * 0.3)
            elif name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=g) + 0.5)
        last = model.decoder.decoder_layers[0]
        last.weight.copy_(torch.randn(last.weight.shape, generator=g) * 0.7)
    model.eval()


def run(model: Any, x: Any, n: Any) -> tuple[np.ndarray, np.ndarray]:
    y, m, _ = model(processed_signal=x, processed_signal_length=n)
    return y.numpy(), m.numpy().astype(np.int64)


def record_alone(model: Any, x: Any, n: Any, prefix: str) -> dict[str, np.ndarray]:
    """Return the result of each item cut to its length; none where NeMo fails on it."""
    import torch

    found = {}
    for i, k in enumerate(n.tolist()):
        try:
            y, m = run(model, x[i : i + 1, :, :k], torch.tensor([k]))
        except (RuntimeError, ValueError):
            continue
        found[f"{prefix}{i}"] = y[0, : m[0]]
    return found


def draw(generator: Any, items: int, features: int, frames: int) -> Any:
    """Return normal features in steps of 1/8, which compress well."""
    import torch

    return torch.round(torch.randn(items, features, frames, generator=generator) * 8) / 8


def record_variant(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
    from omegaconf import OmegaConf

    kind = EncDecCTCModelBPE if name == "wordpiece" else EncDecCTCModel
    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    model = kind(cfg=OmegaConf.create(configuration(name)))
    disturb(model, seed + 1)
    model.save_to(str(folder / f"{name}.nemo"))
    model = kind.restore_from(str(folder / f"{name}.nemo"), map_location="cpu").eval()
    found: dict[str, np.ndarray] = {}
    features = model.cfg.encoder.feat_in
    with torch.no_grad():
        g = torch.Generator().manual_seed(seed + 2)
        n = torch.tensor(FRAMES)
        x = draw(g, len(FRAMES), features, PADDED)
        x = x * (torch.arange(PADDED) < n[:, None])[:, None]
        found |= {"features": x.numpy(), "features_length": n.numpy().astype(np.int64)}
        found["logprobs"], found["encoded_length"] = run(model, x, n)
        found |= record_alone(model, x, n, "logprobs_")
        n = torch.arange(EDGE_FRAMES + 1)
        x = x[:1, :, :EDGE_FRAMES] * (torch.arange(EDGE_FRAMES) < n[:, None])[:, None]
        found |= {"edge_features": x.numpy(), "edge_features_length": n.numpy()}
        found["edge_logprobs"], found["edge_encoded_length"] = run(model, x, n)
        found |= record_alone(model, x, n, "edge_logprobs_")
        if name in LONG:
            x = draw(g, 1, features, LONG[name])
            y, m = run(model, x, torch.tensor([LONG[name]]))
            found |= {"long_features": x.numpy(), "long_logprobs": y, "long_encoded_length": m}
    np.savez_compressed(folder / f"{name}.npz", **found)
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    sys.stdout.write(f"{name} {sizes} {found['logprobs'].shape} {found['logprobs'].std():.2f}\n")


def main(models: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE

    torch.set_num_threads(1)
    model = EncDecCTCModelBPE.restore_from(str(models / "conformer.nemo"), map_location="cpu")
    with np.load(models / "conformer.npz") as z, torch.no_grad():
        x, n = torch.from_numpy(z["features"]), torch.from_numpy(z["features_length"])
        found = record_alone(model.eval(), x, n, "logprobs_")
    np.savez_compressed(models / "conformer.alone.npz", **found)
    folder = models / "variants" / "conformer_ctc"
    folder.mkdir(parents=True, exist_ok=True)
    for name in VARIANTS:
        record_variant(name, folder)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main(Path(sys.argv[1]).resolve())
