"""A label for a whole text: BERT with scores of a label from its first token.

Semantics: NeMo 1.23 TextClassificationModel.
"""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_rules.exporters._classifier import Head, first_token
from jarvis_rules.exporters._config import Key, Section, ignored, refuse_contradiction, used
from jarvis_rules.exporters._language_artifacts import labels_in_file
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
    *used("num_classes", "max_seq_length"),
    *ignored("NeMo leaves letter case to the tokenizer", "do_lower_case"),
    *ignored("weights of the loss", "class_balancing"),
    *ignored("reading of training data", "use_cache", "num_workers", "pin_memory", "drop_last"),
    *ignored("reading of training data", "data_dir", "num_samples"),
)
HEAD_KEYS: tuple[Key, ...] = (
    *used("num_output_layers"),
    *ignored("training only", "fc_dropout", "use_transformer_init"),
    *ignored("NeMo does not read it and takes relu", "activation"),
)
CLASS_LABELS_KEYS: tuple[Key, ...] = used("class_labels_file")
MODEL_KEYS: tuple[Key, ...] = (
    *SHARED_KEYS,
    *used("dataset", "classifier_head", "class_labels"),
    *ignored("examples that training prints", "infer_samples"),
)
SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "": MODEL_KEYS,
    "classifier_head": HEAD_KEYS,
    "dataset": DATASET_KEYS,
    "class_labels": CLASS_LABELS_KEYS,
    **SHARED_SECTIONS,
}


def export_text_classification(source: SourceModel) -> ExportedModel:
    """Return graph, vocabulary, labels and facts of a text classification model.

    `input_ids`, `attention_mask`, `token_type_ids` int64 [batch, time] give `logits` float32
    [batch, labels]. Without a file of labels they are the numbers 0, 1, 2 …, as in NeMo.

    Raises what `start_language_model` raises.
    """
    config = Section("", source.config)
    head_section, dataset = config.section("classifier_head"), config.section("dataset")
    head_section.check(HEAD_KEYS)
    dataset.check(DATASET_KEYS)
    head = Head(head_section.integer("num_output_layers", minimum=1), "relu")
    classes = dataset.integer("num_classes", minimum=1)
    found = labels_in_file(config, "class_labels_file", CLASS_LABELS_KEYS, source.artifact)
    if found and len(found[0].names) != classes:
        other = f"the number of labels in `{found[0].where}`"
        refuse_contradiction(dataset.at("num_classes"), classes, other, len(found[0].names))
    model = start_language_model("text_classification", source, SECTIONS)
    model.add_output(
        "logits", head, "classifier.mlp", first_token(model.graph, model.hidden), classes
    )
    labels = found[0].names if found else [str(number) for number in range(classes)]
    model.add_labels("class_labels.csv", labels)
    return model.finish({"labels": labels, "max_seq_length": trained_length(dataset)})


EXPORTER = Exporter(
    family="text_classification",
    classes=(
        "nemo.collections.nlp.models.text_classification.text_classification_model"
        ".TextClassificationModel",
    ),
    unused=(*UNUSED, UnusedWeight("loss.weight", CLASS_WEIGHTS)),
    export=export_text_classification,
    sections=SECTIONS,
)
