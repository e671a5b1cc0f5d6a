"""Labels for words, such as named entities: BERT with scores of a label for each token.

Semantics: NeMo 1.23 TokenClassificationModel. A word's label is that of its first token.
"""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_rules.exporters._classifier import read_head
from jarvis_rules.exporters._config import Key, Section, ignored, refuse, used
from jarvis_rules.exporters._language_artifacts import (
    agreed_labels,
    labels_by_id,
    labels_in_file,
)
from jarvis_rules.exporters._language_model import (
    CLASS_WEIGHTS,
    SHARED_SECTIONS,
    UNUSED,
    start_language_model,
    trained_length,
)
from jarvis_rules.exporters._language_model import MODEL_KEYS as SHARED_KEYS
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight

DATASET_KEYS: tuple[Key, ...] = (
    *used("pad_label", "max_seq_length"),
    *ignored("which tokens the loss counts", "ignore_extra_tokens", "ignore_start_end"),
    *ignored("weights of the loss", "class_balancing"),
    *ignored("reading of training data", "data_dir", "use_cache", "num_workers", "pin_memory"),
    *ignored("reading of training data", "drop_last", "num_samples"),
)
HEAD_KEYS: tuple[Key, ...] = (
    *used("num_fc_layers", "activation"),
    *ignored("training only", "fc_dropout", "use_transformer_init"),
)
CLASS_LABELS_KEYS: tuple[Key, ...] = used("class_labels_file")
MODEL_KEYS: tuple[Key, ...] = (
    *SHARED_KEYS,
    *used("dataset", "head", "label_ids", "class_labels"),
)
SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "": MODEL_KEYS,
    "head": HEAD_KEYS,
    "dataset": DATASET_KEYS,
    "class_labels": CLASS_LABELS_KEYS,
    **SHARED_SECTIONS,
}


def export_token_classification(source: SourceModel) -> ExportedModel:
    """Return graph, vocabulary, labels and facts of a token classification model.

    `input_ids`, `attention_mask`, `token_type_ids` int64 [batch, time] give `logits` float32
    [batch, time, labels].

    Raises what `start_language_model` raises.
    """
    config = Section("", source.config)
    head_section, dataset = config.section("head"), config.section("dataset")
    head_section.check(HEAD_KEYS)
    dataset.check(DATASET_KEYS)
    head = read_head(head_section, "num_fc_layers")
    labels = agreed_labels(
        "label_ids",
        labels_by_id(config, "label_ids")
        + labels_in_file(config, "class_labels_file", CLASS_LABELS_KEYS, source.artifact),
    )
    pad_label = dataset.values.get("pad_label", "O")
    if pad_label not in labels:
        refuse(dataset.at("pad_label"), pad_label, "one of the labels")
    facts = {
        "labels": labels,
        "pad_label": pad_label,
        "max_seq_length": trained_length(dataset),
    }
    model = start_language_model("token_classification", source, SECTIONS)
    model.add_labels("label_ids.csv", labels)
    model.add_output("logits", head, "classifier.mlp", model.hidden, len(labels))
    return model.finish(facts)


EXPORTER = Exporter(
    family="token_classification",
    classes=(
        "nemo.collections.nlp.models.token_classification.token_classification_model"
        ".TokenClassificationModel",
    ),
    unused=(*UNUSED, UnusedWeight("loss.weight", CLASS_WEIGHTS)),
    export=export_token_classification,
    sections=SECTIONS,
)
