"""Punctuation: windows of any text as NeMo multiplies them; nothing is lost or doubled."""

from __future__ import annotations

import random

import numpy as np
import pytest
from language_testing import (
    LETTERS,
    decoded,
    install_engine,
    load,
    scrambled,
    texts,
    write_model,
)

MARKS, CAPITALS = ["O", ",", ".", "?"], ["O", "U"]
PUNCT, CAPIT = scrambled(4, seed=1), scrambled(2, seed=2)
LIMITS = {"max_seq_length": 20, "step": 4, "margin": 5}


def engine(input_ids, attention_mask, token_type_ids):
    assert not token_type_ids.any()
    return {
        "punct_logits": PUNCT(input_ids, attention_mask),
        "capit_logits": CAPIT(input_ids, attention_mask),
    }


@pytest.fixture
def model(triton, tmp_path):
    calls = install_engine(triton, engine)
    folder = write_model(tmp_path, punct="\n".join(MARKS), capit="\n".join(CAPITALS))

    def loaded(**changes):
        parameters = {
            "engine_outputs": "punct_logits,capit_logits",
            "punct_labels_file": "punct.csv",
            "capit_labels_file": "capit.csv",
            "pad_label": "O",
            **LIMITS,
            **changes,
        }
        model = load("punctuation", folder, **parameters)
        model.calls = calls
        return model

    return loaded


def ask(triton, model, *values):
    (response,) = model.execute([triton.Request(TEXT=texts(*values))])
    assert response.error is None, response.error.text
    return response.tensors


def plain_labels(ids_of_words, start, end, max_seq_length, step, margin):
    """Return mark and capital of every word, after NeMo 1.23, one window after another.

    Source: get_features_infer and add_punctuation_capitalization.
    """
    tokens = [token for word in ids_of_words for token in word]
    first = [place == 0 for word in ids_of_words for place in range(len(word))]
    length = max_seq_length - 2
    step = min(length - margin * 2, step)
    result = []
    for logits, labels in ((PUNCT, MARKS), (CAPIT, CAPITALS)):
        done, kept = [], None
        starts = range(0, max(len(tokens), length) - length + step, step)
        for number, at in enumerate(starts):
            row = np.array([[start, *tokens[at : at + length], end]])
            scores = logits(row, np.ones_like(row))[0].astype(np.float64)
            chosen = np.array([False, *first[at : at + length], False])
            word = sum(first[:at])
            if number > 0:
                word += chosen[: margin + 1].sum()
                scores, chosen = scores[margin + 1 :], chosen[margin + 1 :]
            if number < len(starts) - 1:
                scores, chosen = scores[: -margin - 1], chosen[: -margin - 1]
            found = np.exp(scores[chosen])
            found /= found.sum(axis=1, keepdims=True)
            if kept is None:
                kept = found
                continue
            moved = word - len(done)
            assert moved <= len(kept)
            done += list(kept[:moved].argmax(axis=1))
            kept = kept[moved:]
            kept = np.concatenate([kept * found[: len(kept)], found[len(kept) :]])
        done += list(kept.argmax(axis=1))
        result.append([labels[label] for label in done])
    return result


def generated(draw, words):
    pool = ["vera", "lives", "in", "lima", "the", "playing", "don't", "x", "qzj", "中国", "ß", "é"]
    made = []
    for _ in range(words):
        if draw.random() < 0.7:
            made.append(draw.choice(pool))
        else:
            made.append("".join(draw.choices(LETTERS, k=draw.randint(1, 9))))
    return made


def test_labels_are_those_of_the_plain_rule(triton, model):
    draw = random.Random(7)  # noqa: S311  (texts, not secrets)
    ours = model()
    for words in [1, 2, 5, 9, 10, 17, 18, 19, 20, 30, 55, 90, 200, 400]:
        text = generated(draw, words)
        ids = [ours.tokenizer.encode([[word]])[0].ids for word in text]
        expected = plain_labels(ids, ours.tokenizer.start, ours.tokenizer.end, **LIMITS)
        found = ask(triton, ours, " ".join(text))
        assert decoded(found["PUNCTUATION_LABELS"]) == [expected[0]]
        assert decoded(found["CAPITALIZATION_LABELS"]) == [expected[1]]


def undone(text):
    """Return a text without the marks that were added, in lower case."""
    words = [word[:-1] if word[-1] in ",.?" else word for word in text.split(" ")]
    return " ".join(words).lower()


def test_no_word_is_lost_or_doubled(triton, model):
    """500 texts of 1 to 2,000 words, several in a batch, at NeMo's own sizes of windows."""
    draw = random.Random(500)  # noqa: S311  (texts, not secrets)
    sizes = [1, 2, 3, 30, 60, 61, 62, 63, 64, 65, 2000, 1999]
    sizes += [int(2000 ** draw.random()) for _ in range(500 - len(sizes))]
    ours = model(max_seq_length=64, step=8, margin=16, engine_max_batch_size=32)
    for at in range(0, len(sizes), 10):
        values = [" ".join(generated(draw, size)) for size in sizes[at : at + 10]]
        found = decoded(ask(triton, ours, *values)["PUNCTUATED_TEXT"])
        assert [[undone(text) for text in row] for row in found] == [[text] for text in values]


def test_white_space_and_words_without_pieces(triton, model):
    """A lone control character has no pieces; NeMo 1.23 loses the place of the words behind it."""
    ours = model()
    found = ask(triton, ours, "", " \n", "  vera\t\u200b\x00 \u2603\n lima ")
    assert found["PUNCTUATED_TEXT"][:2].tolist() == [[b""], [b""]]
    assert undone(found["PUNCTUATED_TEXT"][2, 0].decode()) == "vera \u200b\x00 \u2603 lima"
    assert [len(row) for row in decoded(found["PUNCTUATION_LABELS"])] == [0, 0, 4]


def test_capitals_that_cannot_be_undone_are_not_made(triton, model):
    install_engine(triton, lambda input_ids, **_: capitals_everywhere(input_ids.shape))
    found = ask(triton, model_after(triton, model), "ﬁne éa ßa nVIDIA ŉ ͅa")
    text = found["PUNCTUATED_TEXT"][0, 0].decode()
    assert text == "ﬁne Éa ßa Nvidia ŉ ͅa"


def model_after(triton, model):
    """Return a model whose engine stays the one that was installed last."""
    request = triton.InferenceRequest
    ours = model()
    triton.InferenceRequest = request
    return ours


def capitals_everywhere(shape):
    capitals = np.zeros((*shape, 2), np.float32)
    capitals[..., 1] = 1
    return {"punct_logits": np.zeros((*shape, 4), np.float32), "capit_logits": capitals}


def test_a_text_that_asks_too_much_is_refused_alone(triton, model):
    ours = model(step=1)
    responses = ours.execute(
        [triton.Request(TEXT=texts("a " * 5000)), triton.Request(TEXT=texts("vera"))]
    )
    assert "item 0: the text needs 4983 windows, at most 4096" in responses[0].error.text
    assert responses[1].error is None
    assert len(ours.calls) == 1


@pytest.mark.parametrize("changes", [{"margin": 9}, {"margin": -1}, {"step": 0}])
def test_windows_that_leave_words_out_are_refused(model, changes):
    with pytest.raises(ValueError, match="leave nothing of a window of 20 tokens"):
        model(**changes)
