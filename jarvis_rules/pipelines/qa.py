"""qa: answers to questions, as slices of a context of any length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jarvis_rules.formats.engine_inputs import Scalar
from jarvis_rules.formats.jmir import Tensor
from jarvis_rules.pipelines._language import (
    Task,
    language_pipeline,
    option_of_the_model,
    row_length,
)
from jarvis_rules.pipelines.pipeline import OptionValues

_SIZES = (
    ("max_seq_length", "tokens of a window: question, piece of the context, three marks", 5),
    ("max_query_length", "tokens of the question; what goes beyond is left out", 1),
    ("doc_stride", "tokens of the context from one window to the next", 1),
    ("max_answer_length", "tokens of the longest answer", 1),
    ("n_best_size", "starts and ends that are tried in a window, and answers that are given", 1),
)
_OPTIONS = (
    *(option_of_the_model(name, int, text, minimum) for name, text, minimum in _SIZES),
    option_of_the_model(
        "version_2_with_negative", bool, "whether there may be no answer"
    ),
    option_of_the_model(
        "null_score_diff_threshold", float,
        "by how much no answer must score above the best answer to be given",
    ),
)  # fmt: skip
_NAMES = tuple(option.name for option in _OPTIONS)


def _engine_outputs(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the only output: `logits`, or `log_probs` where the model says so."""
    return tuple(tensor["name"] for tensor in facts["outputs"])[:1]


def _parameters(facts: Mapping[str, Any], options: OptionValues) -> Mapping[str, Scalar]:
    options.derived |= {name: facts[name] for name in _NAMES}
    row_length(facts, options)
    return {
        **{name: options[name] for name in _NAMES},
        "do_lower_case": facts["do_lower_case"],
    }


PIPELINE = language_pipeline(
    Task(
        name="qa",
        help="answers to questions about a context",
        family="question_answering",
        inputs=(Tensor("QUESTION", "STRING", (1,)), Tensor("CONTEXT", "STRING", (1,))),
        outputs=(
            Tensor("ANSWERS", "STRING", (-1,)),
            Tensor("ANSWERS_SCORE", "FP32", (-1,)),
            Tensor("ANSWERS_START_END", "INT32", (-1, 2)),
        ),
        facts={
            **{name: int for name, _, _ in _SIZES},
            "version_2_with_negative": bool,
            "null_score_diff_threshold": (int, float),
            "do_lower_case": bool,
        },
        engine_outputs=_engine_outputs,
        parameters=_parameters,
        options=_OPTIONS,
        domain=False,
    )
)
