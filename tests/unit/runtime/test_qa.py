"""Question answering: the same answers as the plain rule, and slices of the context."""

from __future__ import annotations

import random

import numpy as np
import plain_question_answering as plain
import pytest
from language_testing import VOCABULARY, decoded, install_engine, load, texts, write_model
from tokenizers import pre_tokenizers

from jarvis_rules.runtime import wordpiece
from jarvis_rules.runtime.question_answering import Settings, project

SETTINGS = Settings(
    max_seq_length=24,
    max_query_length=6,
    doc_stride=5,
    max_answer_length=7,
    n_best_size=8,
    version_2_with_negative=True,
    null_score_diff_threshold=0.0,
    do_lower_case=True,
)


def logits(ids, mask, types):
    """Return [rows, tokens, 2]: of each token's surroundings, and of its place."""
    places = np.arange(ids.shape[1])
    key = (ids * 31 + np.roll(ids, 1, 1) * 7 + np.roll(ids, -1, 1) * 101 + places * types) % 8191
    values = np.sin(np.stack([key * 1.7, key * 2.3], axis=-1)) * 5 - (1 - mask)[..., None]
    return values.astype(np.float32)


def engine(input_ids, attention_mask, token_type_ids):
    return {"logits": logits(input_ids, attention_mask, token_type_ids)}


@pytest.fixture
def model(triton, tmp_path):
    calls = install_engine(triton, engine)

    def loaded(settings=SETTINGS):
        model = load("qa", write_model(tmp_path), engine_outputs="logits", **settings._asdict())
        model.calls = calls
        return model

    return loaded


def ask(triton, model, question, context):
    (response,) = model.execute([triton.Request(QUESTION=texts(question), CONTEXT=texts(context))])
    return response


def generated(draw, words):
    """Return a question and a context of so many words, with marks, accents and white space."""
    known = ["vera", "lives", "in", "lima", "town.", "(the)", "playing", "Vera's", "x-ray", "a"]
    odd = ["é", "Éa", "中国", "\u200b", "☃", "a\u00a0b", "ß", "İz", "\ufffd", "don't", "U.S."]
    pool = known * 4 + odd
    context = "".join(
        draw.choice(pool) + draw.choice([" ", " ", " ", "  ", "\n", "\t", "\u202f"])
        for _ in range(words)
    )
    return " ".join(draw.choices(known, k=draw.randint(1, 8))), draw.choice(["", " "]) + context


@pytest.mark.parametrize("negative", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 3.5, -4.0])
def test_answers_are_those_of_the_plain_rule(triton, model, negative, threshold):
    settings = SETTINGS._replace(
        version_2_with_negative=negative, null_score_diff_threshold=threshold
    )
    ours = model(settings)
    ids = {token: number for number, token in enumerate(VOCABULARY)}

    def run(tokens, second):
        row = np.full((1, settings.max_seq_length), ids["[PAD]"])
        row[0, : len(tokens)] = [ids[token] for token in tokens]
        places = np.arange(settings.max_seq_length)
        mask = places < len(tokens)
        return logits(row, mask[None].astype(int), (mask & (places >= second))[None].astype(int))[0]

    def basic_tokens(text):
        normalized = wordpiece.bert_normalizer(True, True).normalize_str(text)
        cut = pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalized)
        return [token for token, _ in cut]

    draw = random.Random(f"{negative}{threshold}")  # noqa: S311  (texts, not secrets)
    nothing = 0
    for words in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233] * 4:
        question, context = generated(draw, words)
        doc = ours.tokenizer.encode([plain.split(context)[0]])[0]
        query = ours.tokenizer.encode([[question]])[0].ids
        answer, nbest = plain.answers(
            context, ours.tokenizer.pieces(query), ours.tokenizer.pieces(doc.ids), doc.words,
            settings, run, basic_tokens,
        )  # fmt: skip
        tensors = ask(triton, ours, question, context).tensors
        found, places = tensors["ANSWERS"][0], tensors["ANSWERS_START_END"][0]
        for text, (start, end) in zip(found, places, strict=True):
            assert context[start:end] == text.decode()
        joined = [" ".join(words_of(text.decode())) for text in found]
        assert joined[:1] == ([answer] if nbest else [])
        expected = dict(nbest)
        assert set(joined) == set(expected)
        scores = dict(zip(joined, tensors["ANSWERS_SCORE"][0].tolist(), strict=True))
        assert scores == pytest.approx(expected, abs=1e-6)
        rest = [text for text, _ in nbest if text != answer]
        assert joined[1:] == rest
        nothing += answer == ""
    assert (0 < nothing < 48) if threshold < 1 and negative else nothing < 48


def words_of(text):
    return plain.split(text)[0]


def test_rows_are_filled_to_the_longest_sequence(triton, model):
    ours = model()
    ask(triton, ours, "the?", "vera lives in lima")
    (call,) = ours.calls
    assert call["input_ids"].shape == (1, SETTINGS.max_seq_length)
    assert call["attention_mask"].sum() == 9
    assert call["token_type_ids"][0].tolist() == [0] * 4 + [1] * 5 + [0] * 15


def test_without_a_span_nothing_is_answered(triton, model):
    """NeMo 1.23 answers `empty` here."""
    ours = model()
    values = np.zeros((1, SETTINGS.max_seq_length, 2), np.float32)
    values[0, : SETTINGS.n_best_size] = 1.0
    install_engine(triton, lambda **_: {"logits": values})
    tensors = ask(triton, ours, "the the the the the the", "vera").tensors
    assert tensors["ANSWERS"].tolist() == [[b""]]
    assert tensors["ANSWERS_START_END"].tolist() == [[[0, 0]]]
    assert tensors["ANSWERS_SCORE"].tolist() == [[1.0]]


def test_an_empty_context_has_no_answer(triton, model):
    ours = model()
    request = triton.Request(QUESTION=texts("the", "the"), CONTEXT=texts(" \n", "vera"))
    (response,) = ours.execute([request])
    assert response.error is None
    assert response.tensors["ANSWERS_START_END"][0].max() == -1
    assert len(decoded(response.tensors["ANSWERS"])[0]) == 0


@pytest.mark.parametrize(
    ("question", "context", "message"),
    [
        ("", "vera", "item 0: `QUESTION` is empty"),
        (b"\xc3", "vera", "item 0: `QUESTION` is not UTF-8: byte 0xc3 at 0"),
        ("the", b"ve\xff", "item 0: `CONTEXT` is not UTF-8: byte 0xff at 2"),
    ],
)
def test_what_cannot_be_asked_is_refused(triton, model, question, context, message):
    response = ask(triton, model(), question, context)
    assert (response.error.code, response.error.text) == ("INVALID_ARG", message)


def test_a_question_may_leave_no_room(triton, model):
    settings = SETTINGS._replace(max_seq_length=9)
    response = ask(triton, model(settings), "vera lives in lima the play", "vera")
    assert "6 tokens, which leaves none of 9" in response.error.text


@pytest.mark.parametrize(
    ("text", "words", "expected"),
    [
        ("vera", "(Vera's)", "Vera"),
        ("vera '", "(Vera's)", "Vera'"),
        ("cafe", "Café!", "Café"),
        ("[UNK]", "☃x", "☃x"),
        ("x", "don\u200bx", "don\u200bx"),
        ("steve smith", "Steve Smith's", "Steve Smith"),
    ],
)
def test_pieces_are_brought_back_to_the_words(text, words, expected):
    start, end = project(text, words, lowercase=True)
    assert words[start:end] == expected
