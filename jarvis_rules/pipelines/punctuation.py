"""punctuation: punctuation and capitals for plain lower-case words, of any length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.engine_inputs import Scalar
from jarvis_rules.formats.jmir import Tensor
from jarvis_rules.pipelines._language import OURS, TEXT, Task, language_pipeline, row_length
from jarvis_rules.pipelines.pipeline import Option, OptionValues

# The defaults are those of NeMo 1.23's add_punctuation_capitalization.
_OPTIONS = (
    Option(
        "max_seq_length", int, 64, f"tokens of a window, with [CLS] and [SEP] {OURS}", minimum=3
    ),
    Option("step", int, 8, f"tokens from one window to the next {OURS}", minimum=1),
    Option(
        "margin", int, 16,
        f"tokens at the inner ends of a window that are not looked at {OURS}",
        minimum=0,
    ),
)  # fmt: skip


def _parameters(facts: Mapping[str, Any], options: OptionValues) -> Mapping[str, Scalar]:
    """Return how windows lie; UsageError where margins leave nothing of one."""
    # NeMo's default suits every model but one with fewer positions.
    if "max_seq_length" not in options.given:
        options.derived["max_seq_length"] = min(64, facts["max_position_embeddings"])
    length, margin = row_length(facts, options), options.integer("margin")
    if length - 2 - 2 * margin < 1:
        raise UsageError(
            f"margins of {margin} tokens leave nothing of a window of {length}",
            slug="option.invalid",
            where="option `margin`",
            hint="lower `margin` below half of `max_seq_length` - 2",
        )
    return {
        "pad_label": facts["pad_label"],
        "max_seq_length": length,
        "step": options.integer("step"),
        "margin": margin,
    }


PIPELINE = language_pipeline(
    Task(
        name="punctuation",
        help="punctuation and capitals for plain words",
        family="punctuation",
        inputs=TEXT,
        outputs=(
            Tensor("PUNCTUATED_TEXT", "STRING", (1,)),
            Tensor("PUNCTUATION_LABELS", "STRING", (-1,)),
            Tensor("CAPITALIZATION_LABELS", "STRING", (-1,)),
        ),
        facts={"punct_labels": list, "capit_labels": list, "pad_label": str},
        engine_outputs=lambda _: ("punct_logits", "capit_logits"),
        parameters=_parameters,
        files={
            "punct_labels_file": "punct_label_ids.csv",
            "capit_labels_file": "capit_label_ids.csv",
        },
        options=_OPTIONS,
        domain=False,
    )
)
