"""token_classification: labels of words, and the entities that they make."""

from __future__ import annotations

from jarvis_rules.formats.jmir import Tensor
from jarvis_rules.pipelines._language import (
    TEXT,
    Task,
    language_pipeline,
    longest_text,
    row_length,
    span_tensors,
)

PIPELINE = language_pipeline(
    Task(
        name="token_classification",
        help="labels of words, and named entities",
        family="token_classification",
        inputs=TEXT,
        outputs=(
            Tensor("WORD_LABELS", "STRING", (-1,)),
            Tensor("WORD_SCORES", "FP32", (-1,)),
            *span_tensors("ENTITY"),
        ),
        facts={"labels": list, "pad_label": str},
        engine_outputs=lambda _: ("logits",),
        parameters=lambda facts, options: {
            "outside_label": facts["pad_label"],
            "max_seq_length": row_length(facts, options),
        },
        files={"labels_file": "label_ids.csv"},
        options=(longest_text("a longer one is refused"),),
    )
)
