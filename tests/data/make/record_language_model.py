"""Record what NeMo 1.23.0 computes for small language models: `record_language_model.py MODELS`.

MODELS is `tests/data/models`. Written there, into `variants/language_model`:

* `<name>.nemo` and `.npz` for every entry of `VARIANTS`: one configuration each that puts
  documented keys at a second value, with random weights;
* `activations.npz`: `x` and what every function of transformers' `ACT2FN` (`encoder.<name>`) and of
  torch (`head.<name>`) makes of it.

Needs the environment of `shared/models/make/requirements.lock`; run it in an empty folder, where it
makes the pretrained models that NeMo asks for by name before it looks into the archive.
Weights, inputs and outputs are equal on every run; the archives are not (tar times, random names).
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SEED = 20211124
LENGTHS = (13, 9, 4)
EDGE_TOKENS = 6  # a second batch holds one item of every length from 0 to this
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = ("the", "light", "is", "on", "##s", "##ing", "Turn", "é", "京", ",", ".", "?")
SLOTS = ("O", "B-room", "I-room", "B-city")
BERT = {
    "vocab_size": 24,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}
DISTILBERT = {
    "vocab_size": 24,
    "dim": 24,
    "n_layers": 2,
    "n_heads": 2,
    "hidden_dim": 40,
    "max_position_embeddings": 20,
}
NLP = "nemo.collections.nlp.models"
QA = f"{NLP}.question_answering"
TOKENS = f"{NLP}.token_classification"


def qa(**head: Any) -> dict[str, Any]:
    return {
        "dataset": {
            "version_2_with_negative": False,
            "doc_stride": 5,
            "max_query_length": 6,
            "max_seq_length": 18,
            "max_answer_length": 4,
            "null_score_diff_threshold": -1.5,
            "n_best_size": 7,
            "use_cache": False,
            "do_lower_case": False,
            "keep_doc_spans": "all",
        },
        "token_classifier": {
            "num_layers": 1,
            "dropout": 0.1,
            "num_classes": 2,
            "activation": "relu",
            "log_softmax": False,
            "use_transformer_init": True,
        }
        | head,
    }


def token_classification(depth: int, activation: str) -> dict[str, Any]:
    return {
        # In another order than that of the ids, and with the name of a file that is not there.
        "label_ids": {"B-LOC": 2, "O": 0, "B-PER": 1},
        "class_labels": {"class_labels_file": "label_ids.csv"},
        "dataset": {
            "data_dir": None,
            "class_balancing": "weighted_loss",
            "max_seq_length": -1,
            "pad_label": "O",
            "ignore_extra_tokens": True,
            "ignore_start_end": True,
            "use_cache": True,
        },
        "head": {
            "num_fc_layers": depth,
            "fc_dropout": 0.5,
            "activation": activation,
            "use_transformer_init": False,
        },
    }


def text_classification(depth: int, labels: list[str] | None) -> dict[str, Any]:
    file = None
    if labels:
        file = Path("my classes.csv").resolve()
        file.write_text("\n".join(labels) + "\n")
    return {
        "classifier_head": {"num_output_layers": depth, "fc_dropout": 0.1},
        "class_labels": {"class_labels_file": str(file) if file else None},
        "dataset": {
            "num_classes": len(labels or "abcd"),
            "do_lower_case": False,
            "max_seq_length": 16,
            "class_balancing": None,
            "use_cache": False,
        },
        "infer_samples": ["one"],
    }


def intent_slot(depth: int, balancing: str | None) -> dict[str, Any]:
    intents = ["light.on", "weather"]
    return {
        "data_dir": None,
        "data_desc": {
            "intent_labels": intents,
            "intent_label_ids": {name: i for i, name in enumerate(intents)},
            "intent_weights": [0.5, 1.5],
            "slot_labels": list(SLOTS),
            "slot_label_ids": {name: i for i, name in enumerate(SLOTS)},
            "slot_weights": [0.1, 1.0, 2.0, 3.0],
            "pad_label": 0,
        },
        "class_labels": {
            "intent_labels_file": "intent_labels.csv",
            "slot_labels_file": "slot_labels.csv",
        },
        "class_balancing": balancing,
        "intent_loss_weight": 0.3,
        "pad_label": -1,
        "ignore_extra_tokens": True,
        "ignore_start_end": False,
        "head": {"num_output_layers": depth, "fc_dropout": 0.1},
    }


def punctuation(punct: dict[str, Any], capit: dict[str, Any]) -> dict[str, Any]:
    return {
        "class_labels": {
            "punct_labels_file": "punct_label_ids.csv",
            "capit_labels_file": "capit_label_ids.csv",
        },
        "common_dataset_parameters": {
            "pad_label": "O",
            "ignore_extra_tokens": True,
            "ignore_start_end": False,
            "punct_label_ids": {"O": 0, ",": 1, "?": 3, ".": 2},
            "capit_label_ids": {"O": 0, "U": 1},
            "label_vocab_dir": None,
        },
        "punct_head": {"fc_dropout": 0.1, "use_transformer_init": True} | punct,
        "capit_head": {"fc_dropout": 0.1, "use_transformer_init": True} | capit,
    }


def make_legacy(config: dict[str, Any]) -> None:
    """Turn a configuration of punctuation into one of NeMo 1.0, which NeMo 1.23 still reads."""
    common = config.pop("common_dataset_parameters")
    for kind in ("punct", "capit"):
        config[f"{kind}_label_ids"] = common[f"{kind}_label_ids"]
        head = config[f"{kind}_head"]
        head[f"{kind}_num_fc_layers"] = head.pop("num_fc_layers")
    config["dataset"] = {
        "data_dir": "/data/punct",
        "max_seq_length": 20,
        "pad_label": "O",
        "ignore_extra_tokens": True,
        "ignore_start_end": False,
        "use_cache": True,
        "num_workers": 2,
        "pin_memory": False,
        "drop_last": False,
    }


# Each entry: the class, the pretrained name, keys of the encoder, the rest of the configuration.
VARIANTS: dict[str, tuple[str, str, dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "qa_log_softmax": (
        f"{QA}.qa_model.QAModel",
        "bert-base-uncased",
        BERT | {"hidden_act": "relu", "layer_norm_eps": 0.1},
        lambda: qa(num_layers=3, activation="sigmoid", log_softmax=True),
    ),
    "qa_later_class_cased": (
        f"{QA}.qa_bert_model.BERTQAModel",
        "bert-base-cased",
        BERT | {"hidden_act": "gelu_new", "vocab_size": 17, "num_attention_heads": 1},
        lambda: qa(num_layers=2),
    ),
    "token_tanh": (
        f"{TOKENS}.token_classification_model.TokenClassificationModel",
        "bert-base-multilingual-cased",
        BERT | {"hidden_act": "silu", "type_vocab_size": 5, "num_hidden_layers": 3},
        lambda: token_classification(4, "tanh"),
    ),
    "token_distilbert": (
        f"{TOKENS}.token_classification_model.TokenClassificationModel",
        "distilbert-base-cased",
        DISTILBERT | {"activation": "gelu"},
        lambda: token_classification(2, "selu"),
    ),
    "text_one_layer": (
        f"{NLP}.text_classification.text_classification_model.TextClassificationModel",
        "bert-base-uncased",
        BERT | {"hidden_act": "tanh", "type_vocab_size": 1},
        lambda: text_classification(1, None),
    ),
    "text_distilbert": (
        f"{NLP}.text_classification.text_classification_model.TextClassificationModel",
        "distilbert-base-uncased",
        DISTILBERT | {"activation": "relu", "n_layers": 1, "sinusoidal_pos_embds": True},
        lambda: text_classification(3, ["very good", "bad", "neutral"]),
    ),
    "intent_weighted": (
        f"{NLP}.intent_slot_classification.intent_slot_classification_model"
        ".IntentSlotClassificationModel",
        "bert-base-uncased",
        BERT | {"hidden_act": "quick_gelu"},
        lambda: intent_slot(1, "weighted_loss"),
    ),
    "punct_heads": (
        f"{TOKENS}.punctuation_capitalization_model.PunctuationCapitalizationModel",
        "bert-base-uncased",
        BERT | {"hidden_act": "gelu_fast"},
        lambda: punctuation(
            {"num_fc_layers": 3, "activation": "celu"},
            {"num_fc_layers": 2, "activation": "sigmoid"},
        ),
    ),
    "punct_legacy": (
        f"{TOKENS}.punctuation_capitalization_model.PunctuationCapitalizationModel",
        "bert-base-uncased",
        BERT,
        lambda: punctuation(
            {"num_fc_layers": 2, "activation": "tanh"}, {"num_fc_layers": 1, "activation": "relu"}
        ),
    ),
}


def make_pretrained(name: str, config: dict[str, Any]) -> None:
    """Make the folder that transformers takes for the pretrained model `name`."""
    from transformers import BertConfig, BertModel, BertTokenizer, DistilBertConfig, DistilBertModel

    folder = Path(name)
    folder.mkdir(parents=True)
    file = folder / "vocab.txt"
    file.write_text("\n".join((*SPECIAL, *WORDS)) + "\n", encoding="utf-8")
    BertTokenizer(str(file), do_lower_case="uncased" in name).save_pretrained(name)
    if name.startswith("distilbert"):
        DistilBertModel(DistilBertConfig(**config)).save_pretrained(name)
    else:
        BertModel(BertConfig(**config)).save_pretrained(name)


def disturb(model: Any, seed: int) -> None:
    """Give every weight, gain and bias a value that matters, and keep the signal alive."""
    import torch

    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in sorted(model.named_parameters()):
            noise = torch.randn(p.shape, generator=g)
            if p.dim() == 1:
                p.copy_(
                    noise * 0.2 + (1.0 if "LayerNorm.weight" in name or "norm.w" in name else 0)
                )
            elif "embeddings" in name:
                p.copy_(noise * 0.7)
            else:
                p.copy_(noise * 1.5 / p.shape[1] ** 0.5)
    model.eval()


def rewrite_as_legacy(path: Path) -> None:
    """Give an archive the configuration, member names and references of NeMo 1.0."""
    import yaml

    with tarfile.open(path) as tar:
        files = {m.name.removeprefix("./"): tar.extractfile(m).read() for m in tar if m.isfile()}
    config = yaml.safe_load(files.pop("model_config.yaml"))
    make_legacy(config)
    files = {
        name.partition("_")[2] if name[:32].isalnum() else name: d for name, d in files.items()
    }
    text = yaml.safe_dump(config, sort_keys=False)
    for name in list(files):
        text = "\n".join(
            line.partition("nemo:")[0] + name if line.endswith("_" + name) else line
            for line in text.split("\n")
        )
    files["model_config.yaml"] = text.encode()
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def batch(lengths: list[int], time: int, vocabulary: int, types: int, seed: int) -> dict[str, Any]:
    """Return ragged inputs; what lies behind an item's length is garbage that a mask hides."""
    r = np.random.RandomState(seed)
    shape = (len(lengths), time)
    ids, kinds = r.randint(0, vocabulary, shape), r.randint(0, types, shape)
    mask = np.arange(time) < np.array(lengths)[:, None]
    return dict(zip(INPUTS, (a.astype(np.int64) for a in (ids, mask, kinds)), strict=True))


def compute(model: Any, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    import torch

    with torch.no_grad():
        y = model(**{name: torch.from_numpy(inputs[name]) for name in INPUTS})
    outputs = y if isinstance(y, tuple) else (y,)
    return {n: o.numpy() for n, o in zip(model.output_names, outputs, strict=True)}


def record_variant(name: str, folder: Path) -> None:
    import torch
    from nemo.core import ModelPT
    from nemo.utils.model_utils import import_class_by_path
    from omegaconf import OmegaConf

    target, pretrained, encoder, make = VARIANTS[name]
    seed = SEED + zlib.crc32(name.encode()) % 100000
    torch.manual_seed(seed)
    Path(name).mkdir()
    os.chdir(name)
    make_pretrained(pretrained, encoder)
    language_model = {"pretrained_model_name": pretrained, "config": None}
    if name == "intent_weighted":
        language_model |= {"config": dict(encoder), "max_seq_length": 12}
    config = make() | {
        "tokenizer": {"tokenizer_name": pretrained, "vocab_file": None}
        | {"tokenizer_model": None, "special_tokens": None},
        "language_model": language_model | {"lm_checkpoint": None, "config_file": None},
        "optim": {"name": "adam", "lr": 0.001},
        "train_ds": None,
        "validation_ds": None,
        "test_ds": None,
    }
    model = import_class_by_path(target)(cfg=OmegaConf.create(config))
    disturb(model, seed + 1)
    path = folder / f"{name}.nemo"
    model.save_to(str(path))
    if name == "punct_legacy":
        rewrite_as_legacy(path)
    model = ModelPT.restore_from(str(path), map_location="cpu").eval()
    sizes = (encoder["vocab_size"], encoder.get("type_vocab_size", 2))
    found: dict[str, Any] = batch(list(LENGTHS), max(LENGTHS), *sizes, seed + 2)
    found["output_names"] = np.array(model.output_names)
    outputs = compute(model, found)
    for i, n in enumerate(LENGTHS):
        alone = compute(model, {key: found[key][i : i + 1, :n] for key in INPUTS})
        outputs |= {f"{key}_{i}": value[0] for key, value in alone.items()}
    edge = batch(list(range(EDGE_TOKENS + 1)), EDGE_TOKENS, *sizes, seed + 3)
    for key, value in (edge | compute(model, edge)).items():
        found[f"edge_{key}"] = value
    np.savez_compressed(folder / f"{name}.npz", **found, **outputs)
    os.chdir("..")
    spread = {key: round(float(value.std()), 2) for key, value in outputs.items()}
    note = {"nemo": path.stat().st_size} | spread
    sys.stdout.write(f"{name} {json.dumps(note)}\n")


def record_activations(folder: Path) -> None:
    import torch
    from transformers.activations import ACT2FN

    x = torch.cat([torch.linspace(-12, 12, 97), torch.tensor([-1e4, -1e-6, 1e-6, 1e4])])
    found = {"x": x.numpy()}
    for name in sorted(ACT2FN):
        found[f"encoder.{name}"] = ACT2FN[name](x).numpy()
    for name in ("relu", "tanh", "sigmoid", "selu", "celu"):
        found[f"head.{name}"] = getattr(torch, name)(x).numpy()
    np.savez_compressed(folder / "activations.npz", **found)


def main(models: Path) -> None:
    import torch

    torch.set_num_threads(1)
    folder = models / "variants" / "language_model"
    folder.mkdir(parents=True, exist_ok=True)
    record_activations(folder)
    for name in VARIANTS:
        record_variant(name, folder)


if __name__ == "__main__":
    # NeMo's scratch folder lies beside this cache and has fixed file names: one for each process.
    os.environ.update(HF_HOME=str(Path("hf").resolve()), HF_HUB_OFFLINE="1")
    main(Path(sys.argv[1]).resolve())
