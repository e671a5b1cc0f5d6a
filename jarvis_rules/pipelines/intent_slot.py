"""intent_slot: the intent of a sentence, and its slots."""

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

# NeMo's data sets for intents give it to every word that is in no slot.
_OUTSIDE = "O"

PIPELINE = language_pipeline(
    Task(
        name="intent_slot",
        help="the intent of a sentence, and its slots",
        family="intent_slot",
        inputs=TEXT,
        outputs=(
            Tensor("INTENT", "STRING", (1,)),
            Tensor("INTENT_SCORE", "FP32", (1,)),
            Tensor("WORD_LABELS", "STRING", (-1,)),
            Tensor("WORD_SCORES", "FP32", (-1,)),
            *span_tensors("SLOT"),
        ),
        facts={"intent_labels": list, "slot_labels": list},
        engine_outputs=lambda _: ("intent_logits", "slot_logits"),
        parameters=lambda facts, options: {
            "outside_label": _OUTSIDE,
            "max_seq_length": row_length(facts, options),
        },
        files={
            "intent_labels_file": "intent_labels.csv",
            "slot_labels_file": "slot_labels.csv",
        },
        options=(longest_text("a longer one is refused"),),
    )
)
