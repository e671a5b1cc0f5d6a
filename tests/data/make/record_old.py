"""Record one model as other releases of NeMo and torch wrote it: `record_old.py FOLDER`.

FOLDER is `tests/data/models/old`. `modern.nemo` is a small model as NeMo 1.23.0 saves it, with
weights that are exact in half precision and in bfloat16; every other file holds the same values in
another form, see `FORMS`. NeMo itself restores each and must find the same state dict, except those
of `NOT_NEMO`, which NeMo does not read and we do.

Needs NeMo 1.23.0 with torch 2.13.0; run it in an empty folder. Weights are equal on every run; the
archives are not (random names of artifacts, and the legacy format keeps addresses).
"""

from __future__ import annotations

import copy
import io
import sys
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

CONFIG, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
TEXT = "there are many words in this text and none of them is long, so it makes a small tokenizer"
PIECES = ("tokenizer.model_path", "tokenizer.vocab_path", "tokenizer.spe_tokenizer_vocab")
NOT_NEMO = ("legacy_lightning",)
Members = dict[str, bytes]
State = OrderedDict[str, Any]


def configuration() -> dict[str, Any]:
    shared = {"repeat": 1, "stride": [1], "dilation": [1], "dropout": 0.0, "residual": False}
    blocks = [
        shared | {"filters": 8, "kernel": [5], "stride": [2], "separable": True},
        shared | {"filters": 10, "kernel": [3], "residual": True, "separable": True},
        shared | {"filters": 12, "kernel": [1]},
    ]
    modules = "nemo.collections.asr.modules"
    return {
        "sample_rate": 8000,
        "preprocessor": {
            "_target_": f"{modules}.AudioToMelSpectrogramPreprocessor",
            "sample_rate": 8000,
            "window_size": 0.01,
            "window_stride": 0.005,
            "features": 8,
            "n_fft": 128,
        },
        "encoder": {
            "_target_": f"{modules}.ConvASREncoder",
            "activation": "relu",
            "feat_in": 8,
            "jasper": blocks,
        },
        "decoder": {
            "_target_": f"{modules}.ConvASRDecoder",
            "feat_in": 12,
            "num_classes": -1,
            "vocabulary": [],
        },
        "tokenizer": {"dir": "tokenizer", "type": "bpe"},
    }


def make_tokenizer(folder: Path) -> None:
    from nemo.collections.common.tokenizers.sentencepiece_tokenizer import SentencePieceTokenizer
    from sentencepiece import SentencePieceTrainer

    folder.mkdir()
    SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=24,
        normalization_rule_name="identity",  # the default brings 240 KB of rules
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = SentencePieceTokenizer(str(folder / "tokenizer.model"))
    names = [pieces.ids_to_tokens([i])[0] for i in range(1, pieces.vocab_size)]
    lines = [name[1:] if name.startswith("▁") else f"##{name}" for name in names]
    (folder / "vocab.txt").write_text("".join(f"{line}\n" for line in lines))


def make_modern(path: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE
    from omegaconf import OmegaConf

    make_tokenizer(Path("tokenizer"))
    model = EncDecCTCModelBPE(cfg=OmegaConf.create(configuration())).eval()
    g = torch.Generator().manual_seed(20211124)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.startswith("preprocessor") or not value.is_floating_point():
                continue
            # Seven bits of mantissa, all of one exponent: exact in half precision and bfloat16.
            grid = torch.randint(1, 128, value.shape, generator=g) / 128
            sign = torch.randint(0, 2, value.shape, generator=g) * 2 - 1
            value.copy_(grid if "running_var" in name else grid * sign)
        # One value over and over, so that a form may store it once.
        model.encoder.encoder[0].mconv[2].running_var.fill_(0.75)
    model.save_to(str(path))


def read(path: Path) -> Members:
    with tarfile.open(path) as archive:
        return {
            m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()
        }


def write(path: Path, members: Members, mode: str = "w", prefix: str = "./", **how: Any) -> None:
    with tarfile.open(path, mode, **how) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(prefix + name)
            info.size, info.mtime = len(data), 1_600_000_000.5
            archive.addfile(info, io.BytesIO(data))


def saved(value: Any, **how: Any) -> bytes:
    import torch

    out = io.BytesIO()
    torch.save(value, out, **how)
    return out.getvalue()


def repacked(data: bytes, change: Callable[[str, bytes], bytes], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for name in old.namelist():
            info = zipfile.ZipInfo(name)
            info.compress_type = method
            with new.open(info, "w", force_zip64=True) as entry:
                entry.write(change(name, old.read(name)))
    return out.getvalue()


def without_hashes(members: Members) -> Members:
    """Return the members with the artifacts under the names that they had when NeMo read them."""
    names = {name: name[33:] if name[32:33] == "_" else name for name in members}
    return {names[name]: data for name, data in members.items()}


def edited(members: Members, **tokenizer: str | None) -> bytes:
    config = yaml.safe_load(members[CONFIG])
    config["tokenizer"] |= tokenizer
    config["tokenizer"] = {k: v for k, v in config["tokenizer"].items() if v is not None}
    del config["nemo_version"]  # since 1.1
    return yaml.safe_dump(config).encode()


def gzip(path: Path, members: Members, _: State) -> None:
    """A tar.gz, as `save_to` wrote up to NeMo 1.6.2."""
    write(path, members, "w:gz")


def nemo_1_0(path: Path, members: Members, state: State) -> None:
    """Artifacts under bare names and not in the configuration; GNU tar; torch 1.8."""
    members = without_hashes(members)
    none = dict.fromkeys(("model_path", "vocab_path", "spe_tokenizer_vocab"))
    members[CONFIG] = edited(members, dir="/home/user/tokenizer", **none)
    members[WEIGHTS] = saved(state, _disable_byteorder_record=True)
    write(path, members, "w:gz", "", format=tarfile.GNU_FORMAT)


def training_paths(path: Path, members: Members, _: State) -> None:
    """Artifacts by the paths, absolute and relative, of the machine that trained the model."""
    members = without_hashes(members)
    members[CONFIG] = edited(
        members,
        model_path="/home/user/tokenizer/tokenizer.model",
        vocab_path="../data/tokenizer/vocab.txt",
        spe_tokenizer_vocab="tokenizer.vocab",
    )
    write(path, members, "w:gz", format=tarfile.USTAR_FORMAT)


def legacy_torch(path: Path, members: Members, state: State) -> None:
    """The stream of torch before 1.6."""
    data = saved(state, _use_new_zipfile_serialization=False)
    write(path, {**members, WEIGHTS: data}, "w:gz")


def legacy_lightning(path: Path, members: Members, state: State) -> None:
    """The same, of a checkpoint of Lightning, in the pickle protocol 4."""
    import torch

    checkpoint = {
        "epoch": 3,
        "state_dict": state,
        "optimizer_states": [{"state": {0: {"step": 7, "exp_avg": torch.ones(3)}}}],
        "hyper_parameters": {"name": "x", "betas": (0.9, 0.98), "none": None},
    }
    data = saved(checkpoint, _use_new_zipfile_serialization=False, pickle_protocol=4)
    write(path, {**members, WEIGHTS: data})


def strided(path: Path, members: Members, state: State) -> None:
    """Views of one storage, transposed views, a value that is stored once, a shared scalar."""
    import torch

    flat = torch.cat(
        [torch.zeros(3), *(v.flatten() for v in state.values() if v.is_floating_point())]
    )
    at, count, views = 3, torch.tensor(0), OrderedDict()
    for name, value in state.items():
        if not value.is_floating_point():
            views[name] = count
            continue
        views[name] = flat[at : at + value.numel()].view(value.shape)
        at += value.numel()
        if value.dim() == 3:
            views[name] = value.transpose(0, 2).contiguous().transpose(0, 2)
    first = next(name for name in state if "running_var" in name)
    views[first] = torch.tensor([0.75]).expand(state[first].shape)
    write(path, {**members, WEIGHTS: saved(views, pickle_protocol=3)})


def precisions(path: Path, members: Members, state: State) -> None:
    """Half precision, bfloat16 and double precision in turns."""
    import torch

    kinds = (torch.float16, torch.bfloat16, torch.float64)
    names = [n for n, v in state.items() if v.is_floating_point() and "preprocessor" not in n]
    cast = {name: state[name].to(kinds[i % 3]) for i, name in enumerate(names)}
    write(path, {**members, WEIGHTS: saved(OrderedDict(state | cast))})


def big_endian(path: Path, members: Members, state: State) -> None:
    """As torch writes on a big-endian machine."""
    dtypes = {f"data/{i}": value.numpy().dtype for i, value in enumerate(state.values())}

    def swap(name: str, data: bytes) -> bytes:
        key = name.split("/", 1)[1]
        if key in dtypes:
            return np.frombuffer(data, dtypes[key]).byteswap().tobytes()
        return b"big" if key == "byteorder" else data

    data = repacked(saved(state), swap, zipfile.ZIP_STORED)
    write(path, {**members, WEIGHTS: data})


def repacked_zip(path: Path, members: Members, state: State) -> None:
    """The checkpoint packed again with deflate, and with zip64 sizes."""
    data = repacked(saved(state), lambda _, data: data, zipfile.ZIP_DEFLATED)
    write(path, {**members, WEIGHTS: data})


def parameters(path: Path, members: Members, state: State) -> None:
    """Parameters, some with attributes, instead of tensors, in a plain dict."""
    import torch

    values: dict[str, Any] = dict(state)
    for i, (name, value) in enumerate(state.items()):
        if value.is_floating_point():
            values[name] = torch.nn.Parameter(value.clone())
            if i % 2:
                values[name].partition_dim = 0
    write(path, {**members, WEIGHTS: saved(values)})


def hydra_0(path: Path, members: Members, _: State) -> None:
    """The configuration of a whole training, its modules as `cls` and `params`."""

    def old(section: dict[str, Any]) -> dict[str, Any]:
        section = copy.copy(section)
        target = section.pop("_target_")
        return {"cls": target, "params": section}

    config = yaml.safe_load(members[CONFIG])
    for name in ("preprocessor", "encoder", "decoder"):
        config[name] = old(config[name])
    document = {"name": "training", "trainer": {"max_epochs": 5}, "model": config}
    write(path, {**members, CONFIG: yaml.safe_dump(document).encode()})


FORMS: tuple[Callable[[Path, Members, State], None], ...] = (
    *(gzip, nemo_1_0, training_paths, legacy_torch, legacy_lightning, strided, precisions),
    *(big_endian, repacked_zip, parameters, hydra_0),
)


def main(folder: Path) -> None:
    import torch
    from nemo.collections.asr.models import EncDecCTCModelBPE

    folder.mkdir(exist_ok=True)
    modern = folder / "modern.nemo"
    make_modern(modern)
    members = read(modern)
    state = torch.load(io.BytesIO(members[WEIGHTS]))
    for form in FORMS:
        path = folder / f"{form.__name__}.nemo"
        form(path, members, state)
        sys.stdout.write(f"{form.__name__} {path.stat().st_size}\n")
        if form.__name__ in NOT_NEMO:
            continue
        found = EncDecCTCModelBPE.restore_from(str(path), map_location="cpu").state_dict()
        assert list(found) == list(state)
        for name, value in state.items():
            assert found[name].dtype == value.dtype
            assert torch.equal(found[name], value), name


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
