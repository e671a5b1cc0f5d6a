"""Record what NeMo 1.23.0 computes for small Tacotron 2 models: `record_tacotron2.py MODELS`.

MODELS is `tests/data/models`. Written there is `variants/tacotron2/<name>.nemo` and `.npz` for
every entry of `VARIANTS`, which together put every key at a second value. NeMo fixes the text
embedding, and with it the encoder's LSTM, at 512 channels. So that the files stay small, all large
matrices are mostly zeros with few other levels, and the archive is packed with gzip, as NeMo did
before 1.7. Needs the environment of the reference models; run it in an empty folder. Files are
equal on every run.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20211125
LENGTHS = (9, 13, 5)
STEPS = 3  # single decoder steps that are recorded, behind each other
LARGE = 4096  # matrices with more entries are made sparse
DENSITY = 0.03  # the reader refuses archives that inflate more than 32 times
LABELS = [" ", "!", "'", ",", ".", "?", *"ABCDEabcdefghij"]
TOKENIZERS = "nemo.collections.common.tokenizers.text_to_speech.tts_tokenizers"
G2P = "nemo.collections.tts.g2p.models.en_us_arpabet.EnglishG2p"
MODULES = "nemo.collections.tts.modules.tacotron2"
STATES = (
    *("attention_hidden", "attention_cell", "decoder_hidden", "decoder_cell"),
    *("attention_weights", "attention_weights_cum", "attention_context"),
)
ENCODER = {
    "_target_": f"{MODULES}.Encoder",
    "encoder_embedding_dim": 512,
    "encoder_kernel_size": 3,
    "encoder_n_convolutions": 2,
}
DECODER = {
    "_target_": f"{MODULES}.Decoder",
    "encoder_embedding_dim": 512,
    "decoder_rnn_dim": 9,
    "gate_threshold": 0.5,
    "max_decoder_steps": 30,
    "n_frames_per_step": 1,
    "n_mel_channels": 6,
    "p_attention_dropout": 0.1,
    "p_decoder_dropout": 0.1,
    "prenet_dim": 8,
    "prenet_p_dropout": 0.5,
    "attention_dim": 6,
    "attention_rnn_dim": 10,
    "attention_location_kernel_size": 7,
    "attention_location_n_filters": 4,
    "early_stopping": True,
}
POSTNET = {
    "_target_": f"{MODULES}.Postnet",
    "n_mel_channels": 6,
    "p_dropout": 0.5,
    "postnet_embedding_dim": 5,
    "postnet_kernel_size": 5,
    "postnet_n_convolutions": 3,
}
PREPROCESSOR = {
    "_target_": "nemo.collections.asr.parts.preprocessing.features.FilterbankFeatures",
    "dither": 0.0,
    "nfilt": 6,
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
    "window": "hann",
}
NEWER = {"stft_conv": False, "nb_augmentation_prob": 0, "exact_pad": True, "use_grads": False}
CHARS = {
    "_target_": f"{TOKENIZERS}.EnglishCharsTokenizer",
    "punct": True,
    "apostrophe": True,
    "pad_with_space": True,
}
PHONEMES = {
    "_target_": f"{TOKENIZERS}.EnglishPhonemesTokenizer",
    "punct": True,
    "non_default_punct_list": [",", ".", "?"],
    "stresses": True,
    "chars": False,
    "apostrophe": False,
    "silence": "<sil>",
    "add_blank_at": "last",
    "pad_with_space": False,
    "g2p": {
        "_target_": G2P,
        "phoneme_dict": "cmudict-tiny",
        "heteronyms": "heteronyms-tiny",
        "phoneme_probability": 0.5,
    },
}
FILES = {
    "cmudict-tiny": "HELLO  HH AH0 L OW1\nREAD  R EH1 D\nREAD(1)  R IY1 D\n",
    "heteronyms-tiny": "read\n",
}
# Each entry: keys of the model, of encoder, decoder, postnet and preprocessor.
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "chars": ({"text_tokenizer": CHARS, "sample_rate": 22050}, {}, {}, {}, NEWER),
    # As NeMo 1.0 wrote it: keys of later versions absent.
    "labels_two_frames": (
        {"labels": LABELS},
        {"encoder_n_convolutions": 0, "encoder_kernel_size": 1},
        {
            "n_frames_per_step": 2,
            "n_mel_channels": 4,
            "early_stopping": False,
            "gate_threshold": 0.3,
            "max_decoder_steps": 12,
            "prenet_p_dropout": 0.25,
            "prenet_dim": 11,
            "attention_location_kernel_size": 1,
            "attention_location_n_filters": 3,
            "decoder_rnn_dim": 12,
            "attention_rnn_dim": 7,
        },
        {"n_mel_channels": 4, "postnet_kernel_size": 1, "postnet_n_convolutions": 1},
        {"nfilt": 4, "stft_conv": True, "pad_value": -1.0, "sample_rate": 16000},
    ),
    "phonemes_at_most_8_steps": (
        {"text_tokenizer": PHONEMES, "sample_rate": 22050},
        {"encoder_n_convolutions": 1, "encoder_kernel_size": 5},
        {
            "gate_threshold": 0.7,
            "max_decoder_steps": 8,
            "prenet_p_dropout": None,  # absent: NeMo's default
            "attention_dim": 11,
        },
        {"postnet_embedding_dim": 7, "postnet_n_convolutions": 4, "postnet_kernel_size": 3},
        NEWER,
    ),
}


def configuration(name: str) -> dict[str, Any]:
    top, *parts = VARIANTS[name]
    sections = zip(
        ("encoder", "decoder", "postnet", "preprocessor"),
        (ENCODER, DECODER, POSTNET, PREPROCESSOR),
        parts,
        strict=True,
    )
    config = {"train_ds": None, "validation_ds": None} | top
    for section, plain, changed in sections:
        config[section] = plain | changed
    if config["decoder"]["prenet_p_dropout"] is None:
        del config["decoder"]["prenet_p_dropout"]
    return config


def randomise(model: Any, seed: int) -> None:
    """Give every weight, bias and statistic a value that matters; large matrices are sparse."""
    import torch

    r = np.random.RandomState(seed)
    gains = {
        "encoder.convolutions": 1.5,
        "encoder.lstm": 2.5,
        "decoder.attention_rnn": 6.0,
        "decoder.decoder_rnn": 5.0,
        "decoder.attention_layer": 5.0,
        "decoder.prenet": 3.0,
        "decoder.linear_projection": 4.0,
    }
    with torch.no_grad():
        for name, p in model.state_dict().items():
            if name.startswith("audio") or not p.is_floating_point():
                continue
            leaf = name.rpartition(".")[2]
            if name.startswith("text_embedding"):
                new = r.choice(np.linspace(-1.5, 1.5, 13), p.shape)
            elif leaf == "running_var":
                new = r.uniform(0.5, 1.5, p.shape)
            elif p.dim() == 1 and leaf == "weight":
                new = r.uniform(0.7, 1.3, p.shape)
            elif p.dim() == 1:
                new = r.randn(*p.shape) * 0.2
            else:
                fan = p[0].numel()
                gain = next((g for part, g in gains.items() if name.startswith(part)), 1.0)
                if p.numel() > LARGE:
                    levels = r.choice([-1.25, -1.0, -0.5, 0.5, 1.0, 1.25], p.shape)
                    new = levels * (r.uniform(size=p.shape) < DENSITY)
                    gain /= DENSITY**0.5
                else:
                    new = r.randn(*p.shape)
                new = np.round(new * gain / fan**0.5, 4)
            p.copy_(torch.from_numpy(np.asarray(new, np.float32)))
    model.eval()


@contextmanager
def prenet_masks(model: Any, masks: np.ndarray | None) -> Iterator[None]:
    """Give NeMo's prenet its Bernoulli masks [steps, 2, dim], or switch its dropout off."""
    import torch

    prenet, drawn = model.decoder.prenet, []
    probability, bernoulli = prenet.p_dropout, torch.bernoulli

    def draw(_: Any) -> Any:
        assert masks is not None
        drawn.append(1)
        return torch.from_numpy(masks.reshape(-1, 1, masks.shape[2])[len(drawn) - 1])

    if masks is None:
        prenet.p_dropout = 0.0
    else:
        torch.bernoulli = draw
    try:
        yield
    finally:
        prenet.p_dropout, torch.bernoulli = probability, bernoulli


def run(model: Any, text: Any, lengths: Any, masks: np.ndarray | None) -> dict[str, np.ndarray]:
    model.calculate_loss = False
    with prenet_masks(model, masks):
        mel, post, gate, align, count = model(tokens=text, token_len=lengths)
    return {
        "spec_pred_dec": mel.numpy(),
        "spec_pred_postnet": post.numpy(),
        "gate_pred": gate.numpy(),
        "alignments": align.numpy(),
        "mel_length": count.numpy().astype(np.int64),
    }


def record_steps(model: Any, text: Any, lengths: Any) -> dict[str, np.ndarray]:
    decoder, steps = model.decoder, []
    decode = decoder.decode

    def spy(x: Any) -> Any:
        before = {name: getattr(decoder, name).clone() for name in STATES}
        y = decode(x)
        after = {f"{name}_next": getattr(decoder, name).clone() for name in STATES}
        steps.append(before | after | {"mel": y[0], "gate": y[1]})
        return y

    decoder.decode = spy
    run(model, text, lengths, None)
    del decoder.decode
    found = {f"step_{k}": np.stack([s[k].numpy() for s in steps[:STEPS]]) for k in steps[0]}
    first = np.zeros_like(found["step_mel"][:1])
    found["step_decoder_input"] = np.concatenate([first, found["step_mel"][:-1]])
    found["processed_memory"] = decoder.processed_memory.numpy()
    found["memory_mask"] = decoder.mask.numpy()
    return found


def tune_gate(model: Any, seed: int, text: Any, masks: np.ndarray) -> None:
    """Choose gate weights with which items stop at different steps; they do not feed back."""
    import torch

    decoder, gate = model.decoder, model.decoder.gate_layer.linear_layer
    threshold = -np.log(1 / decoder.gate_threshold - 1)
    lengths = torch.tensor(LENGTHS)
    early, decoder.early_stopping = decoder.early_stopping, False
    seen: list[np.ndarray] = []
    handle = gate.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numpy()))
    batches = [(text, lengths, None), (text, lengths, masks)]
    batches += [(text[i : i + 1, :n], lengths[i : i + 1], None) for i, n in enumerate(LENGTHS)]
    runs = []
    for batch in batches:
        run(model, *batch)
        runs.append(np.stack(seen, 1))
        seen.clear()
    handle.remove()
    decoder.early_stopping = early
    r = np.random.RandomState(seed)
    for _ in range(2000):
        weight = np.round(r.randn(gate.in_features), 3)
        for bias in np.round(np.linspace(-8, 8, 81), 3):
            scores = [x @ weight + bias - threshold for x in runs]
            firsts = [[int(np.argmax(g > 0)) for g in x] for x in scores]
            alone = [x[0] for x in firsts[2:]]
            clear = all(np.abs(x).min() > 5e-3 for x in scores)
            ended = decoder.max_decoder_steps < 20 or min(firsts[0] + firsts[1]) >= 2
            distinct = min(len(set(firsts[0])), len(set(alone))) == 3
            if clear and ended and distinct and min(alone) >= 2:
                gate.weight.copy_(torch.from_numpy(weight[None]))
                gate.bias.fill_(float(bias))
                return
    raise RuntimeError("no gate found")


def pack(path: Path) -> None:
    """Write the archive again as tar.gz without times, owners and random names."""
    with tarfile.open(path) as archive:
        members = {
            m.name: archive.extractfile(m).read() for m in archive.getmembers() if m.isfile()
        }
    # NeMo names artifacts by random uuid.
    names = {}
    for name in sorted(members):
        head, _, tail = name.removeprefix("./").partition("_")
        if len(head) == 32:
            names[f"{head}_{tail}"] = f"{zlib.crc32(tail.encode()):032x}_{tail}"
    config = members["./model_config.yaml"].decode()
    for old, new in names.items():
        config = config.replace(old, new)
        members[f"./{new}"] = members.pop(f"./{old}")
    members["./model_config.yaml"] = config.encode()
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in sorted(members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(plain.getvalue(), 9, mtime=0))


def record(name: str, folder: Path) -> None:
    import torch
    from nemo.collections.tts.models import Tacotron2Model
    from omegaconf import OmegaConf

    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    config = configuration(name)
    model = Tacotron2Model(cfg=OmegaConf.create(config))
    randomise(model, seed + 1)
    labels = config.get("labels")
    pad = len(labels) + 2 if labels else model.tokenizer.pad
    r = np.random.RandomState(seed + 2)
    text = np.full((len(LENGTHS), max(LENGTHS)), pad)
    for row, n in zip(text, LENGTHS, strict=True):
        row[:n] = r.randint(0, pad - 1, n)
    steps, dim = model.decoder.max_decoder_steps, model.decoder.prenet.layers[1].linear_layer
    keep = 1 - model.decoder.prenet.p_dropout
    masks = (r.uniform(size=(steps, 2, dim.in_features)) < keep).astype(np.float32)
    tokens = torch.from_numpy(text)
    with torch.no_grad():
        tune_gate(model, seed + 3, tokens, masks)
    path = folder / f"{name}.nemo"
    model.save_to(str(path))
    pack(path)
    model = Tacotron2Model.restore_from(str(path), map_location="cpu").eval()
    lengths = torch.tensor(LENGTHS)
    found = {"text": text, "text_length": np.array(LENGTHS), "prenet_masks": masks}
    if not labels:
        found["tokens"] = np.array(model.tokenizer.tokens)
        found["token_ids"] = np.array([model.tokenizer.pad, model.tokenizer.oov])
    with torch.no_grad():
        embedded = model.text_embedding(tokens).transpose(1, 2)
        memory = model.encoder(token_embedding=embedded, token_len=lengths)
        found |= {"encoder_embedding": memory.numpy()} | record_steps(model, tokens, lengths)
        found |= run(model, tokens, lengths, None)
        dropped = run(model, tokens, lengths, masks)
        found |= {f"dropout_{k}": v for k, v in dropped.items() if k != "alignments"}
        frames = min(found[k].shape[2] for k in ("spec_pred_dec", "dropout_spec_pred_dec"))
        changed = found["spec_pred_dec"][..., :frames] - dropped["spec_pred_dec"][..., :frames]
        if np.abs(changed).max(axis=(1, 2)).min() < 0.01:
            raise RuntimeError("the prenet is dead")
        for i, n in enumerate((*LENGTHS, 1, 2)):
            row = tokens[i % len(LENGTHS), :n][None]
            embedded = model.text_embedding(row).transpose(1, 2)
            memory = model.encoder(token_embedding=embedded, token_len=torch.tensor([n]))
            found[f"encoder_embedding_{i}"] = memory[0].numpy()
            alone = run(model, row, torch.tensor([n]), None)
            found[f"mel_length_{i}"] = alone["mel_length"]
            found[f"spec_pred_postnet_{i}"] = alone["spec_pred_postnet"][0]
    np.savez_compressed(folder / f"{name}.npz", **found)
    sizes = [(folder / f"{name}.{e}").stat().st_size for e in ("nemo", "npz")]
    counts = [found[k].tolist() for k in ("mel_length", "dropout_mel_length")]
    counts += [found[f"mel_length_{i}"].tolist() for i in range(5)]
    spread = [float(found[k].std()) for k in ("encoder_embedding", "spec_pred_dec", "alignments")]
    sys.stdout.write(f"{name} {sizes} {counts} {spread}\n")


def main(models: Path) -> None:
    import torch

    torch.set_num_threads(1)
    for name, text in FILES.items():
        Path(name).write_text(text, "latin-1")
    folder = models / "variants" / "tacotron2"
    folder.mkdir(parents=True, exist_ok=True)
    for name in VARIANTS:
        record(name, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
