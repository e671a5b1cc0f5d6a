"""text_classification: the class of a text."""

from __future__ import annotations

from jarvis_rules.formats.jmir import Tensor
from jarvis_rules.pipelines._language import (
    TEXT,
    Task,
    language_pipeline,
    longest_text,
    row_length,
)

PIPELINE = language_pipeline(
    Task(
        name="text_classification",
        help="the class of a text",
        family="text_classification",
        inputs=TEXT,
        outputs=(
            Tensor("CLASS", "STRING", (1,)),
            Tensor("SCORE", "FP32", (1,)),
            Tensor("CLASS_NAMES", "STRING", (-1,)),
            Tensor("CLASS_SCORES", "FP32", (-1,)),
        ),
        facts={"labels": list},
        engine_outputs=lambda _: ("logits",),
        parameters=lambda facts, options: {"max_seq_length": row_length(facts, options)},
        files={"labels_file": "class_labels.csv"},
        options=(longest_text("what goes beyond is left out"),),
    )
)
