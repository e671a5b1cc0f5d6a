"""Asks the pipelines for text of a running server, over gRPC: one request for each item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import JarvisError
from jarvis_rules.triton.client import REQUEST_SECONDS, connected, require_ready, shown_score

if TYPE_CHECKING:
    from numpy.typing import NDArray

Outputs = Mapping[str, "NDArray[Any]"]
Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TextTask:
    """A kind of pipeline for text.

    `inputs` are the names of its texts in a document, by tensor; `outputs` its tensors that
    `read` makes a document of, one item's each; `render` gives the document as a line of text,
    for the texts that were sent.
    """

    inputs: Mapping[str, str]
    outputs: tuple[str, ...]
    read: Callable[[Outputs], Document]
    render: Callable[[Document, Mapping[str, str]], str]


def pipeline_kind(url: str, pipeline: str) -> str:
    """Return the kind of a pipeline for text, empty for any other one.

    Raises `JarvisError`: `infer.unreachable`, `infer.unknown-pipeline`, `infer.failed`.
    """
    with connected(url) as client:
        config = require_ready(client, url, pipeline)
    return str(config.parameters["kind"].string_value)


def ask_texts(
    url: str, pipeline: str, kind: str, items: Iterable[Mapping[str, str]]
) -> Iterator[Document]:
    """Yield the answer to each item, its texts by name, in order.

    Raises `JarvisError`: `infer.unreachable`, `infer.unknown-pipeline`, `infer.failed`.
    """
    task = TEXT_TASKS[kind]
    with connected(url) as client:
        require_ready(client, url, pipeline)
        for item in items:
            yield task.read(_ask(client, pipeline, task, item))


def _ask(client: Any, pipeline: str, task: TextTask, item: Mapping[str, str]) -> Outputs:
    import numpy as np
    from tritonclient.grpc import InferInput, InferRequestedOutput

    inputs = []
    for tensor, name in task.inputs.items():
        inputs.append(InferInput(tensor, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[encode_text(item[name])]], np.object_))
    wanted = [InferRequestedOutput(name) for name in task.outputs]
    answer = client.infer(pipeline, inputs, outputs=wanted, client_timeout=REQUEST_SECONDS)
    return {name: answer.as_numpy(name)[0] for name in task.outputs}


def encode_text(text: str) -> bytes:
    """Return a text as UTF-8; JarvisError `infer.input` where it has halves of characters."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise JarvisError(
            f"not a text: half of a character at {error.start}",
            slug="infer.input",
            hint="give texts in UTF-8",
        ) from None


def _class(outputs: Outputs) -> Document:
    return {"class": _text(outputs["CLASS"]), "score": shown_score(outputs["SCORE"][0])}


def _intent(outputs: Outputs) -> Document:
    score = shown_score(outputs["INTENT_SCORE"][0])
    return {"intent": _text(outputs["INTENT"]), "score": score, "slots": _spans("SLOT", outputs)}


def _spans(name: str, outputs: Outputs) -> list[Document]:
    rows = zip(
        *(outputs[f"{name}_{part}"] for part in ("LABELS", "TEXTS", "START_END", "SCORES")),
        strict=True,
    )
    return [
        {
            "label": label.decode(),
            "text": text.decode(),
            "start": int(start),
            "end": int(end),
            "score": shown_score(score),
        }
        for label, text, (start, end), score in rows
        if start >= 0
    ]


def _answers(outputs: Outputs) -> Document:
    rows = zip(
        outputs["ANSWERS"], outputs["ANSWERS_START_END"], outputs["ANSWERS_SCORE"], strict=True
    )
    return {
        "answers": [
            {
                "text": text.decode(),
                "start": int(start),
                "end": int(end),
                "score": shown_score(score),
            }
            for text, (start, end), score in rows
            if start >= 0
        ]
    }


def _text(values: NDArray[Any]) -> str:
    return str(values[0].decode())


def _render_intent(document: Document, _: Mapping[str, str]) -> str:
    slots = [f"{slot['label']}={slot['text']}" for slot in document["slots"]]
    return "  ".join([document["intent"], *slots])


def _render_entities(document: Document, item: Mapping[str, str]) -> str:
    """Return the text with `[label]` behind every entity, as NeMo marks them."""
    text, marked, at = item["text"], "", 0
    for entity in document["entities"]:
        marked += f"{text[at : entity['end']]}[{entity['label']}]"
        at = entity["end"]
    return marked + text[at:]


def _span_outputs(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{part}" for part in ("LABELS", "TEXTS", "START_END", "SCORES"))


_TEXT = {"TEXT": "text"}
TEXT_TASKS = {
    "text_classification": TextTask(
        _TEXT, ("CLASS", "SCORE"), _class, lambda document, _: str(document["class"])
    ),
    "token_classification": TextTask(
        _TEXT,
        _span_outputs("ENTITY"),
        lambda outputs: {"entities": _spans("ENTITY", outputs)},
        _render_entities,
    ),
    "intent_slot": TextTask(
        _TEXT, ("INTENT", "INTENT_SCORE", *_span_outputs("SLOT")), _intent, _render_intent
    ),
    "punctuation": TextTask(
        _TEXT,
        ("PUNCTUATED_TEXT",),
        lambda outputs: {"text": _text(outputs["PUNCTUATED_TEXT"])},
        lambda document, _: str(document["text"]),
    ),
    "qa": TextTask(
        {"QUESTION": "question", "CONTEXT": "context"},
        ("ANSWERS", "ANSWERS_START_END", "ANSWERS_SCORE"),
        _answers,
        lambda document, _: next((str(a["text"]) for a in document["answers"]), ""),
    ),
}
"""The kinds of pipelines for text."""
