"""Text classification, token classification and intents: tensors, spans, errors."""

from __future__ import annotations

import numpy as np
import pytest
from language_testing import (
    EngineError,
    decoded,
    install_engine,
    load,
    scrambled,
    texts,
    write_model,
)

from jarvis_rules.runtime.language_engine import Row, fill
from jarvis_rules.runtime.word_labels import Span, find_spans
from jarvis_rules.runtime.wordpiece import split_words

TAGS = ["O", "B-PER", "B-LOC", "I-LOC"]
TAG_OF = {"vera": 1, "lima": 2, "cape": 2, "to": 3, "town": 3}
CLASSES = ["negative", "neutral", "positive"]
LOADS = {
    "text_classification": {
        "engine_outputs": "logits", "labels_file": "classes.csv", "max_seq_length": 16,
    },
    "token_classification": {
        "engine_outputs": "logits", "labels_file": "tags.csv", "outside_label": "O",
        "max_seq_length": 16,
    },
    "intent_slot": {
        "engine_outputs": "intent_logits,slot_logits", "intent_labels_file": "classes.csv",
        "slot_labels_file": "tags.csv", "outside_label": "O", "max_seq_length": 16,
    },
}  # fmt: skip


@pytest.fixture
def model(triton, tmp_path):
    """Return a loader of a model whose engine knows the tags of a few words."""
    folder = write_model(tmp_path, tags="\n".join(TAGS), classes="\n".join(CLASSES))

    def loaded(backend, **changes):
        ours = load(backend, folder, **{**LOADS[backend], **changes})
        tokens = ours.tokenizer.pieces(range(150))
        tags = np.array([TAG_OF.get(token, 0) for token in tokens])

        def engine(input_ids, attention_mask, token_type_ids):
            if (input_ids == tokens.index("!")).any():
                raise EngineError("out of memory")
            assert attention_mask.shape == token_type_ids.shape == input_ids.shape
            logits = 4.0 * np.eye(4, dtype=np.float32)[tags[input_ids]]
            pooled = scrambled(3)(input_ids * attention_mask, attention_mask)[:, 0]
            if backend == "text_classification":
                return {"logits": pooled}
            return {"logits": logits, "slot_logits": logits, "intent_logits": pooled}

        ours.calls = install_engine(triton, engine)
        return ours

    return loaded


def ask(triton, model, *values):
    (response,) = model.execute([triton.Request(TEXT=texts(*values))])
    assert response.error is None, response.error.text
    return response.tensors


def test_classes_stand_in_the_order_of_the_file(triton, model):
    ours = model("text_classification")
    found = ask(triton, ours, "vera lives in lima", "", "x" * 10_000)
    assert decoded(found["CLASS_NAMES"]) == [CLASSES] * 3
    assert found["CLASS_SCORES"].sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-6)
    best = found["CLASS_SCORES"].argmax(axis=1)
    assert [row[0] for row in decoded(found["CLASS"])] == [CLASSES[place] for place in best]
    assert found["SCORE"][:, 0].tolist() == found["CLASS_SCORES"].max(axis=1).tolist()
    assert {name: array.dtype for name, array in found.items()} == {
        "CLASS": np.object_, "SCORE": np.float32, "CLASS_NAMES": np.object_,
        "CLASS_SCORES": np.float32,
    }  # fmt: skip


def test_a_long_text_is_cut_as_nemo_cuts_it(triton, model):
    ours = model("text_classification", max_seq_length=6)
    ask(triton, ours, "vera lives in lima the town")
    row = ours.tokenizer.pieces(ours.calls[0]["input_ids"][0].tolist())
    assert row == ["[CLS]", "vera", "lives", "in", "lima", "[SEP]"]


def test_entities_are_slices_of_the_original(triton, model):
    ours = model("token_classification")
    text = " VÉRA  lives in\nCape\u2003Town, 中"
    found = ask(triton, ours, text, "")
    assert decoded(found["WORD_LABELS"])[0] == ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"]
    assert decoded(found["ENTITY_LABELS"])[0] == ["PER", "LOC"]
    assert decoded(found["ENTITY_TEXTS"])[0] == ["VÉRA", "Cape\u2003Town"]
    for span, (start, end) in zip(
        decoded(found["ENTITY_TEXTS"])[0], found["ENTITY_START_END"][0], strict=True
    ):
        assert text[start:end] == span
    assert found["ENTITY_START_END"][1].tolist() == [[-1, -1], [-1, -1]]
    assert found["ENTITY_SCORES"][1].tolist() == [0, 0]
    expected = np.exp(4) / (np.exp(4) + 3)
    assert found["ENTITY_SCORES"][0] == pytest.approx([expected] * 2, abs=1e-6)


def test_intent_and_slots(triton, model):
    ours = model("intent_slot")
    found = ask(triton, ours, "play vera lima lima", "vera")
    assert decoded(found["SLOT_LABELS"]) == [["PER", "LOC", "LOC"], ["PER"]]
    assert found["SLOT_START_END"][0].tolist() == [[5, 9], [10, 14], [15, 19]]
    assert all(row[0] in CLASSES for row in decoded(found["INTENT"]))
    assert found["INTENT_SCORE"].shape == (2, 1)


@pytest.mark.parametrize("backend", ["token_classification", "intent_slot"])
def test_a_text_that_is_too_long_is_refused(triton, model, backend):
    ours = model(backend)
    long = triton.Request(TEXT=texts("vera", "the " * 15))
    responses = ours.execute([triton.Request(TEXT=texts("lima")), long])
    assert responses[0].error is None
    assert responses[1].error.code == "INVALID_ARG"
    assert responses[1].error.text == "item 1: the text has 17 tokens, at most 16: divide it"
    assert responses[0].tensors["WORD_LABELS"].tolist() == [[b"B-LOC"]]


SPANS = [
    ("a b c", "B-X I-X O", [("X", "a b")]),
    ("a b c", "I-X I-X B-X", [("X", "a b"), ("X", "c")]),
    ("a b c", "B-X I-Y O", [("X", "a"), ("Y", "b")]),
    ("a b c", "X X Y", [("X", "a b"), ("Y", "c")]),
    ("a b c", "O O O", []),
    ("a, b. .", "B-X B-X B-X", [("X", "a"), ("X", "b"), ("X", ".")]),
    ("a (b)", "B-X I-X", [("X", "a (b")]),
    ("2021 x", "B-X O", [("X", "2021")]),
    ("a b", "B-X-Y I-X-Y", [("X-Y", "a b")]),
    ("a b", "C-X C-X", [("C-X", "a b")]),
    ("a b c", "B-X O I-X", [("X", "a"), ("X", "c")]),
]


@pytest.mark.parametrize(("text", "labels", "expected"), SPANS)
def test_spans(text, labels, expected):
    words = split_words(text)
    scores = [0.25, 0.75, 0.5][: len(words)]
    spans = find_spans(text, words, labels.split(), scores, "O")
    assert [(span.label, span.text) for span in spans] == expected
    assert all(text[span.start : span.end] == span.text for span in spans)


def test_the_score_of_a_span_is_the_mean_of_its_words():
    words = split_words("a b")
    assert find_spans("a b", words, ["B-X", "I-X"], [0.5, 1.0], "O") == [
        Span("X", "a b", 0, 3, 0.75)
    ]


@pytest.mark.parametrize("backend", LOADS)
def test_requests_of_one_call_are_answered_independently(triton, model, backend):
    ours = model(backend)
    requests = [
        triton.Request(TEXT=texts("vera")),
        triton.Request(TEXT=texts(b"ok", b"\xe4")),
        triton.Request(),
        triton.Request(TEXT=np.zeros((1, 1), np.float32)),
        triton.Request(TEXT=np.array([[b"a", b"b"]], np.object_)),
        triton.Request(TEXT=texts("lima", "")),
    ]
    responses = ours.execute(requests)
    assert [response.error and response.error.code for response in responses] == [
        None, *["INVALID_ARG"] * 4, None,
    ]  # fmt: skip
    assert [response.error.text for response in responses[1:5]] == [
        "item 1: `TEXT` is not UTF-8: byte 0xe4 at 0",
        "input `TEXT` is missing",
        "input `TEXT` must be object with 2 dimensions, got float32 of shape [1, 1]",
        "input `TEXT` must have shape [items, 1], got [1, 2]",
    ]
    alone = ours.execute([requests[5]])[0].tensors
    for name, array in responses[5].tensors.items():
        assert array.tolist() == alone[name].tolist()
    (first, *_) = ours.calls
    assert first["input_ids"].shape[0] == 3, "the texts of all requests run together"


def test_a_text_without_end_is_refused_before_it_is_cut(triton, model):
    ours = model("text_classification")
    (response,) = ours.execute([triton.Request(TEXT=texts("a", "x" * (1 << 22) + "x"))])
    assert response.error.text == "item 1: `TEXT` has 4194305 characters, at most 4194304"


def test_a_fault_of_the_engine_is_that_of_its_request(triton, model):
    ours = model("token_classification")
    responses = ours.execute(
        [triton.Request(TEXT=texts("vera")), triton.Request(TEXT=texts("lima !"))]
    )
    assert responses[0].error is None
    assert responses[1].error.code == "INTERNAL"
    assert responses[1].error.text == (
        "token_classification failed: RuntimeError: engine `the-engine`: out of memory"
    )
    assert "out of memory" in triton.logged[-1]


def test_many_rows_go_to_the_engine_in_parts(triton, model):
    ours = model("token_classification")
    values = ["vera " * count for count in (9, 1, 5, 2, 8, 3, 7, 4, 6)]
    found = ask(triton, ours, *values)
    assert [call["input_ids"].shape for call in ours.calls] == [(4, 6), (4, 10), (1, 11)]
    assert [len(row) for row in decoded(found["WORD_LABELS"])] == [9, 1, 5, 2, 8, 3, 7, 4, 6]


def test_an_engine_gets_the_inputs_that_it_has(triton, model):
    """DistilBERT has no token types."""
    ours = model("text_classification", engine_inputs="input_ids,attention_mask")
    calls = install_engine(
        triton,
        lambda attention_mask, input_ids: {
            "logits": np.zeros((len(attention_mask), len(input_ids[0])))
        },
    )
    ask(triton, ours, "vera")
    assert list(calls[0]) == ["input_ids", "attention_mask"]


def test_rows_are_filled():
    filled = fill([Row([5, 6, 7], 2), Row([8])], padding=9, width=4)
    assert {name: array.tolist() for name, array in filled.items()} == {
        "input_ids": [[5, 6, 7, 9], [8, 9, 9, 9]],
        "attention_mask": [[1, 1, 1, 0], [1, 0, 0, 0]],
        "token_type_ids": [[0, 0, 1, 0], [0, 0, 0, 0]],
    }
    assert all(array.dtype == np.int64 for array in filled.values())


@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("backend", [*LOADS, "punctuation", "qa"])
def test_modules_are_imported_from_what_they_carry(import_carried, backend):
    assert import_carried(backend).TritonPythonModel.name == backend
