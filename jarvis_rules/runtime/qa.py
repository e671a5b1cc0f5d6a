"""Triton module: answers to questions about a context.

Inputs: `QUESTION` STRING [batch, 1], `CONTEXT` STRING [batch, 1].
Outputs: `ANSWERS` STRING [batch, N], `ANSWERS_SCORE` FP32 [batch, N], `ANSWERS_START_END` INT32
[batch, N, 2] (characters of the context); the first is the answer, the others follow by score. An
empty text at 0, 0 says that there is no answer. N: the most of an item in the request; shorter
rows are filled with empty strings, 0 and -1.
Parameters: those of `LanguageModule` and `LanguageEngine`, and of `Settings`, each by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from .language_module import LanguageModule, float_rows, place_rows, string_rows
from .parameters import Parameters
from .question_answering import (
    Answer,
    Question,
    Settings,
    context_words,
    find_answers,
    prepare_question,
)
from .serving import Answer as Tensors
from .wordpiece import Pieces, Word

REQUIRES = ("numpy",)


class TritonPythonModel(LanguageModule):
    """What Triton's python backend runs."""

    name = "qa"
    inputs = ("QUESTION", "CONTEXT")

    def load(self, parameters: Parameters) -> None:
        """Read the settings."""
        self._settings = Settings(
            max_seq_length=parameters.integer("max_seq_length"),
            max_query_length=parameters.integer("max_query_length"),
            doc_stride=parameters.integer("doc_stride"),
            max_answer_length=parameters.integer("max_answer_length"),
            n_best_size=parameters.integer("n_best_size"),
            version_2_with_negative=parameters.boolean("version_2_with_negative"),
            null_score_diff_threshold=parameters.number("null_score_diff_threshold"),
            do_lower_case=parameters.boolean("do_lower_case"),
        )
        # As NeMo fills it: which candidates there are depends on the places of the padding too.
        self.row_width = self._settings.max_seq_length

    def prepare(self, items: Sequence[tuple[str, ...]]) -> list[Question | ValueError]:
        """Return the windows of every question that can be asked."""
        words = [context_words(context) for _, context in items]
        asked = self.tokenizer.encode([[text] for text, _ in items])
        pieces = self.tokenizer.encode([[word.text for word in found] for found in words])
        return [
            self._question(text, context, found, question, tokens)
            for (text, context), found, question, tokens in zip(
                items, words, asked, pieces, strict=True
            )
        ]

    def finish(
        self, items: Sequence[Question], outputs: Sequence[list[list[NDArray[Any]]]]
    ) -> list[list[Answer]]:
        """Return the answers of every question."""
        return [
            find_answers(item, [logits for (logits,) in rows], self.tokenizer, self._settings)
            for item, rows in zip(items, outputs, strict=True)
        ]

    def tensors(self, results: Sequence[list[Answer]]) -> Tensors:
        """Lay the results of one request out."""
        return {
            "ANSWERS": string_rows([[answer.text for answer in row] for row in results]),
            "ANSWERS_SCORE": float_rows([[answer.score for answer in row] for row in results]),
            "ANSWERS_START_END": place_rows([[(a.start, a.end) for a in row] for row in results]),
        }

    def _question(
        self, text: str, context: str, words: list[Word], question: Pieces, tokens: Pieces
    ) -> Question | ValueError:
        if not text.strip():
            return ValueError("`QUESTION` is empty")
        try:
            return prepare_question(
                self.tokenizer, context, words, question, tokens, self._settings
            )
        except ValueError as error:
            return error
