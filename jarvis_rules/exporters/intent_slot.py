"""Intent of a sentence and slots of its words: BERT with two heads.

Semantics: NeMo 1.23 IntentSlotClassificationModel. A word's slot is that of its first token.
"""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_rules.exporters._bert_config import LANGUAGE_MODEL_KEYS
from jarvis_rules.exporters._classifier import Head, first_token
from jarvis_rules.exporters._config import Key, Section, ignored, used
from jarvis_rules.exporters._language_artifacts import (
    agreed_labels,
    labels_by_id,
    labels_in_file,
    labels_in_order,
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

DATA_KEYS: tuple[Key, ...] = (
    *used("intent_labels", "intent_label_ids", "slot_labels", "slot_label_ids"),
    *ignored("weights of the loss", "intent_weights", "slot_weights"),
    *ignored("slot that training gives to tokens without one", "pad_label"),
)
HEAD_KEYS: tuple[Key, ...] = (
    *used("num_output_layers"),
    *ignored("training only", "fc_dropout", "use_transformer_init"),
    *ignored("NeMo does not read it and takes relu", "activation"),
)
CLASS_LABELS_KEYS: tuple[Key, ...] = used("intent_labels_file", "slot_labels_file")
MODEL_KEYS: tuple[Key, ...] = (
    *SHARED_KEYS,
    *used("data_desc", "head", "class_labels"),
    *ignored("training and its data", "data_dir", "class_balancing", "intent_loss_weight"),
    *ignored("training and its data", "pad_label", "ignore_extra_tokens", "ignore_start_end"),
)
SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "": MODEL_KEYS,
    "head": HEAD_KEYS,
    "data_desc": DATA_KEYS,
    "class_labels": CLASS_LABELS_KEYS,
    **SHARED_SECTIONS,
    "language_model": (*LANGUAGE_MODEL_KEYS, *used("max_seq_length")),
}


def export_intent_slot(source: SourceModel) -> ExportedModel:
    """Return graph, vocabulary, labels and facts of a joint intent and slot model.

    `input_ids`, `attention_mask`, `token_type_ids` int64 [batch, time] give `intent_logits`
    float32 [batch, intents] and `slot_logits` [batch, time, slots].

    Raises what `start_language_model` raises.
    """
    config = Section("", source.config)
    head_section, data = config.section("head"), config.section("data_desc")
    head_section.check(HEAD_KEYS)
    data.check(DATA_KEYS)
    head = Head(head_section.integer("num_output_layers", minimum=1), "relu")
    labels = {
        kind: agreed_labels(
            data.at(f"{kind}_labels"),
            labels_in_order(data, f"{kind}_labels")
            + labels_by_id(data, f"{kind}_label_ids")
            + labels_in_file(config, f"{kind}_labels_file", CLASS_LABELS_KEYS, source.artifact),
        )
        for kind in ("intent", "slot")
    }
    model = start_language_model("intent_slot", source, SECTIONS)
    first = first_token(model.graph, model.hidden)
    model.add_output("intent_logits", head, "classifier.intent_mlp", first, len(labels["intent"]))
    model.add_output("slot_logits", head, "classifier.slot_mlp", model.hidden, len(labels["slot"]))
    for kind, names in labels.items():
        model.add_labels(f"{kind}_labels.csv", names)
    facts = {f"{kind}_labels": names for kind, names in labels.items()}
    length = trained_length(config.section("language_model"))
    return model.finish({**facts, "max_seq_length": length})


EXPORTER = Exporter(
    family="intent_slot",
    classes=(
        "nemo.collections.nlp.models.intent_slot_classification.intent_slot_classification_model"
        ".IntentSlotClassificationModel",
    ),
    unused=(
        *UNUSED,
        UnusedWeight("intent_loss.weight", CLASS_WEIGHTS),
        UnusedWeight("slot_loss.weight", CLASS_WEIGHTS),
    ),
    export=export_intent_slot,
    sections=SECTIONS,
)
