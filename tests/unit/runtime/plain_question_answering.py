"""The rule for answers, written down plainly: one window after another, one span after another.

After NeMo 1.23's SquadDataset (convert_examples_to_features, get_predictions) and get_final_text,
in its order and with its names, without its caches. Where NeMo inserts `empty`, this does not.
"""

from __future__ import annotations

import math

import numpy as np

WHITE = " \t\r\n\u202f"


def split(context):
    """Return the words of a context and where each begins."""
    words, starts, fresh = [], [], True
    for place, letter in enumerate(context):
        if letter in WHITE:
            fresh = True
        elif fresh:
            words.append(letter)
            starts.append(place)
            fresh = False
        else:
            words[-1] += letter
    return words, starts


def windows_of(tokens, longest, stride):
    spans, start = [], 0
    while start < tokens:
        length = min(tokens - start, longest)
        spans.append((start, length))
        if start + length == tokens:
            break
        start += min(length, stride)
    return spans


def widest_window(spans, position):
    best_score, best = None, None
    for index, (start, length) in enumerate(spans):
        end = start + length - 1
        if not start <= position <= end:
            continue
        score = min(position - start, end - position) + 0.01 * length
        if best_score is None or score > best_score:
            best_score, best = score, index
    return best


def final_text(pred_text, orig_text, basic_tokens):
    """Return `get_final_text(pred_text, orig_text, …)`; `basic_tokens` is BasicTokenizer's."""
    tok_text = " ".join(basic_tokens(orig_text))
    start = tok_text.find(pred_text)
    if start == -1:
        return orig_text
    end = start + len(pred_text) - 1
    orig_map = [i for i, letter in enumerate(orig_text) if letter != " "]
    tok_map = [i for i, letter in enumerate(tok_text) if letter != " "]
    if len(orig_map) != len(tok_map):
        return orig_text
    return orig_text[orig_map[tok_map.index(start)] : orig_map[tok_map.index(end)] + 1]


def window_spans(index, spans, offset, starts, ends, settings):
    """Return logits and tokens of the spans of one window that may be an answer."""
    found = []
    inside = range(offset, offset + spans[index][1])
    for first in np.argsort(starts, kind="stable")[::-1][: settings.n_best_size]:
        for last in np.argsort(ends, kind="stable")[::-1][: settings.n_best_size]:
            if first not in inside or last not in inside or last < first:
                continue
            position = first - offset + spans[index][0]
            if widest_window(spans, position) != index:
                continue
            if last - first + 1 > settings.max_answer_length:
                continue
            found.append((starts[first], ends[last], position, position + last - first))
    return found


def answers(context, query, doc, token_to_word, settings, run, basic_tokens):
    """Return texts and probabilities, the answer first, then NeMo's n-best list in its order.

    `query` and `doc` are tokens; `run(tokens)` gives the logits [max_seq_length, 2] of a window.
    """
    words, _ = split(context)
    query = query[: settings.max_query_length]
    spans = windows_of(len(doc), settings.max_seq_length - len(query) - 3, settings.doc_stride)
    prelim, score_null, null = [], 1e6, (0.0, 0.0)
    for index, (start, length) in enumerate(spans):
        head = ["[CLS]", *query, "[SEP]"]
        logits = run([*head, *doc[start : start + length], "[SEP]"], len(head))
        starts, ends = logits[:, 0].astype(float), logits[:, 1].astype(float)
        if starts[0] + ends[0] < score_null:
            score_null, null = starts[0] + ends[0], (starts[0], ends[0])
        prelim += window_spans(index, spans, len(head), starts, ends, settings)
    if settings.version_2_with_negative:
        prelim.append((*null, None, None))
    prelim.sort(key=lambda span: span[0] + span[1], reverse=True)
    seen, nbest = set(), []
    for start_logit, end_logit, first, last in prelim:
        if len(nbest) >= settings.n_best_size:
            break
        text = ""
        if first is not None:
            joined = " ".join(doc[first : last + 1]).replace(" ##", "").replace("##", "")
            chosen = words[token_to_word[first] : token_to_word[last] + 1]
            text = final_text(" ".join(joined.split()), " ".join(chosen), basic_tokens)
            if text in seen:
                continue
        seen.add(text)
        nbest.append((text, start_logit + end_logit))
    if settings.version_2_with_negative and "" not in seen:
        nbest.append(("", sum(null)))
    best = next((entry for entry in nbest if entry[0]), None)
    answer = best[0] if best else ""
    if best and settings.version_2_with_negative:
        difference = score_null - best[1]
        answer = "" if difference > settings.null_score_diff_threshold else answer
    total = math.fsum(math.exp(score - nbest[0][1]) for _, score in nbest)
    return answer, [(text, math.exp(score - nbest[0][1]) / total) for text, score in nbest]
