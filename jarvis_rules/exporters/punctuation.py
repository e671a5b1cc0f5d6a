"""Punctuation and capitals for plain words: BERT with two heads.

Semantics: NeMo 1.23 PunctuationCapitalizationModel, which also reads the configurations of older
releases; they lack `common_dataset_parameters`. A word's labels are those of its first token.
"""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_rules.exporters._classifier import Head, read_head
from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._language_artifacts import (
    agreed_labels,
    labels_by_id,
    labels_in_file,
)
from jarvis_rules.exporters._language_model import MODEL_KEYS as SHARED_KEYS
from jarvis_rules.exporters._language_model import SHARED_SECTIONS, UNUSED, start_language_model
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel

_KINDS = ("punct", "capit")
_LOSS_KEYS = ignored("which tokens the loss counts", "ignore_extra_tokens", "ignore_start_end")
COMMON_KEYS: tuple[Key, ...] = (
    *used("pad_label", "punct_label_ids", "capit_label_ids"),
    *_LOSS_KEYS,
    *ignored("where training took the label files from", "label_vocab_dir"),
)
LEGACY_DATASET_KEYS: tuple[Key, ...] = (
    *used("pad_label"),
    *_LOSS_KEYS,
    *ignored("reading of training data", "data_dir", "use_cache", "num_workers", "pin_memory"),
    *ignored("reading of training data", "drop_last", "max_seq_length", "num_samples"),
)
_TRAINING_KEYS = ignored("training only", "fc_dropout", "use_transformer_init")
HEAD_KEYS: tuple[Key, ...] = (*used("num_fc_layers", "activation"), *_TRAINING_KEYS)
LEGACY_HEAD_KEYS: Mapping[str, tuple[Key, ...]] = {
    kind: (*used(f"{kind}_num_fc_layers", "activation"), *_TRAINING_KEYS) for kind in _KINDS
}
CLASS_LABELS_KEYS: tuple[Key, ...] = used("punct_labels_file", "capit_labels_file")
MODEL_KEYS: tuple[Key, ...] = (
    *SHARED_KEYS,
    *used("punct_head", "capit_head", "class_labels", "common_dataset_parameters"),
    *used("dataset", "punct_label_ids", "capit_label_ids"),
    *neutral("retain_during_legacy_conversion", {}, None),
)
SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "": MODEL_KEYS,
    "punct_head": HEAD_KEYS,
    "capit_head": HEAD_KEYS,
    **{f"{kind}_head (legacy)": keys for kind, keys in LEGACY_HEAD_KEYS.items()},
    "common_dataset_parameters": COMMON_KEYS,
    "dataset": LEGACY_DATASET_KEYS,
    "class_labels": CLASS_LABELS_KEYS,
    **SHARED_SECTIONS,
}


def export_punctuation(source: SourceModel) -> ExportedModel:
    """Return graph, vocabulary, labels and facts of a punctuation and capitalization model.

    `input_ids`, `attention_mask`, `token_type_ids` int64 [batch, time] give `punct_logits`
    float32 [batch, time, marks] and `capit_logits` [batch, time, capitals].

    Raises what `start_language_model` raises.
    """
    config = Section("", source.config)
    legacy = "common_dataset_parameters" not in config.values
    data = config.section("dataset" if legacy else "common_dataset_parameters")
    data.check(LEGACY_DATASET_KEYS if legacy else COMMON_KEYS)
    heads = {kind: _read_head(config, kind, legacy) for kind in _KINDS}
    labels = {kind: _read_labels(source, kind, config if legacy else data) for kind in _KINDS}
    for kind in _KINDS:
        if data.values.get("pad_label") != labels[kind][0]:
            other = f"id 0 of the `{kind}` labels"
            pad_label = data.values.get("pad_label")
            refuse_contradiction(data.at("pad_label"), pad_label, other, labels[kind][0])
    model = start_language_model("punctuation", source, SECTIONS)
    for kind in _KINDS:
        output, weights = f"{kind}_logits", f"{kind}_classifier.mlp"
        model.add_output(output, heads[kind], weights, model.hidden, len(labels[kind]))
        model.add_labels(f"{kind}_label_ids.csv", labels[kind])
    facts = {f"{kind}_labels": names for kind, names in labels.items()}
    return model.finish({**facts, "pad_label": labels["punct"][0]})


def _read_head(config: Section, kind: str, legacy: bool) -> Head:
    """Return a head; in older releases its depth has the head's name in front.

    Source: NeMo 1.23 `legacy_model_config_to_new_model_config`, HeadConfig for the defaults.
    """
    depth = f"{kind}_num_fc_layers" if legacy else "num_fc_layers"
    section = config.section(f"{kind}_head")
    section.check(LEGACY_HEAD_KEYS[kind] if legacy else HEAD_KEYS)
    return read_head(section, depth, default=1)


def _read_labels(source: SourceModel, kind: str, by_id: Section) -> list[str]:
    """Return labels, which NeMo takes from a file in the archive or else from the mapping."""
    config, key = Section("", source.config), f"{kind}_label_ids"
    return agreed_labels(
        by_id.at(key),
        labels_by_id(by_id, key)
        + labels_in_file(config, f"{kind}_labels_file", CLASS_LABELS_KEYS, source.artifact),
    )


EXPORTER = Exporter(
    family="punctuation",
    classes=(
        "nemo.collections.nlp.models.token_classification.punctuation_capitalization_model"
        ".PunctuationCapitalizationModel",
    ),
    unused=UNUSED,
    export=export_punctuation,
    sections=SECTIONS,
)
