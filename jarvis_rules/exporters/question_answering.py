"""Extractive question answering: BERT with scores of where an answer starts and ends.

Semantics: NeMo 1.23 QAModel; BERTQAModel, its later form, has the same weights and configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from jarvis_rules.exporters._classifier import read_head
from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._language_model import MODEL_KEYS as SHARED_KEYS
from jarvis_rules.exporters._language_model import SHARED_SECTIONS, UNUSED, start_language_model
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel

_SIZES = ("max_seq_length", "max_query_length", "doc_stride", "max_answer_length", "n_best_size")
DATASET_KEYS: tuple[Key, ...] = (
    *used(*_SIZES),
    *used("version_2_with_negative", "null_score_diff_threshold", "do_lower_case"),
    *ignored("which windows training keeps", "keep_doc_spans", "check_if_answer_in_context"),
    *ignored("reading of training data", "use_cache", "num_workers", "pin_memory", "drop_last"),
    *ignored("reading of training data", "num_samples"),
)
HEAD_KEYS: tuple[Key, ...] = (
    *used("num_layers", "activation", "log_softmax"),
    *neutral("num_classes", 2, reason="start and end"),
    *ignored("training only", "dropout", "use_transformer_init"),
)
MODEL_KEYS: tuple[Key, ...] = (*SHARED_KEYS, *used("dataset", "token_classifier"))
SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "": MODEL_KEYS,
    "token_classifier": HEAD_KEYS,
    "dataset": DATASET_KEYS,
    **SHARED_SECTIONS,
}


def export_question_answering(source: SourceModel) -> ExportedModel:
    """Return graph, vocabulary and facts of a question answering model.

    `input_ids`, `attention_mask`, `token_type_ids` int64 [batch, time] give `logits` float32
    [batch, time, 2], start and end; with `log_softmax: true` they are `log_probs`, over start and
    end of each token, and have this name as in NeMo's own export.

    Raises what `start_language_model` raises.
    """
    config = Section("", source.config)
    head_section, dataset = config.section("token_classifier"), config.section("dataset")
    head_section.check(HEAD_KEYS)
    dataset.check(DATASET_KEYS)
    head = replace(
        read_head(head_section, "num_layers"), log_softmax=head_section.boolean("log_softmax")
    )
    facts = {
        **{key: dataset.integer(key, minimum=1) for key in _SIZES},
        "version_2_with_negative": dataset.boolean("version_2_with_negative"),
        "null_score_diff_threshold": dataset.number("null_score_diff_threshold"),
        "do_lower_case": dataset.boolean("do_lower_case"),
    }
    model = start_language_model("question_answering", source, SECTIONS)
    length = facts["max_seq_length"]
    if length > model.encoder.positions:  # NeMo pads every window to it
        other = "the number of position embeddings"
        refuse_contradiction("dataset.max_seq_length", length, other, model.encoder.positions)
    name = "log_probs" if head.log_softmax else "logits"
    model.add_output(name, head, "classifier.mlp", model.hidden, 2)
    return model.finish(facts)


EXPORTER = Exporter(
    family="question_answering",
    classes=(
        "nemo.collections.nlp.models.question_answering.qa_model.QAModel",
        "nemo.collections.nlp.models.question_answering.qa_bert_model.BERTQAModel",
    ),
    unused=UNUSED,
    export=export_question_answering,
    sections=SECTIONS,
)
