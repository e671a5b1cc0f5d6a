"""Asks a speech recognition pipeline of a running server, over gRPC.

The pipeline's ensemble takes `AUDIO_SIGNAL` FP32 [batch, samples] and `SAMPLE_COUNT` INT64
[batch, 1], gives `FINAL_TRANSCRIPTS`, `FINAL_TRANSCRIPTS_SCORE`, `FINAL_WORDS`,
`FINAL_WORDS_START_END` (milliseconds) and `FINAL_WORDS_SCORE`, and has the parameter
`sample_rate`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import JarvisError, did_you_mean
from jarvis_rules.triton.audio import Audio, check_audio, read_audio

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "Audio",
    "Recognition",
    "Word",
    "check_audio",
    "pipeline_sample_rate",
    "read_audio",
    "recognize",
]

OUTPUTS = (
    "FINAL_TRANSCRIPTS",
    "FINAL_TRANSCRIPTS_SCORE",
    "FINAL_WORDS",
    "FINAL_WORDS_START_END",
    "FINAL_WORDS_SCORE",
)
INPUTS = ("AUDIO_SIGNAL", "SAMPLE_COUNT")
CONNECT_SECONDS = 10.0
REQUEST_SECONDS = 600.0
MAX_MESSAGE_BYTES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Word:
    """A recognised word, its start and end in seconds and its score."""

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, slots=True)
class Recognition:
    """What was recognised in one recording."""

    transcript: str
    score: float
    words: tuple[Word, ...]


def pipeline_sample_rate(url: str, pipeline: str) -> int:
    """Return the sample rate in Hz that a pipeline's audio must have.

    Raises `JarvisError`: `infer.unreachable`, `infer.unknown-pipeline`, `infer.failed`,
    `infer.wrong-pipeline` when the pipeline is no speech recognition.
    """
    with connected(url) as client:
        config = require_ready(client, url, pipeline)
    rate = config.parameters["sample_rate"].string_value
    names = {tensor.name for tensor in (*config.input, *config.output)}
    lacking = [name for name in (*INPUTS, *OUTPUTS) if name not in names]
    if lacking or not rate.isdigit():
        what = f"tensors {', '.join(lacking)}" if lacking else "a parameter `sample_rate`"
        raise JarvisError(
            f"`{pipeline}` is not a speech recognition pipeline: it lacks {what}",
            slug="infer.wrong-pipeline",
            where=url,
            hint="name a pipeline of kind `speech_recognition`",
        )
    return int(rate)


def recognize(url: str, pipeline: str, audio: list[NDArray[np.float32]]) -> list[Recognition]:
    """Return what is said in each recording, one request each, in order.

    `url` is `HOST:PORT` of the gRPC endpoint. Each recording is one-dimensional FP32 with full
    scale at 1, at the pipeline's own sample rate.

    Raises `JarvisError`: `infer.unreachable`, `infer.unknown-pipeline`, `infer.failed`.
    """
    with connected(url) as client:
        require_ready(client, url, pipeline)
        return [_recognize_one(client, pipeline, samples) for samples in audio]


def _recognize_one(
    client: Any,
    pipeline: str,
    samples: NDArray[np.float32],
) -> Recognition:
    import numpy as np
    from tritonclient.grpc import InferInput, InferRequestedOutput

    if samples.ndim != 1 or samples.size == 0:
        raise JarvisError(
            f"expected one-dimensional audio, got shape {list(samples.shape)}",
            slug="audio.empty",
            hint="read recordings with `read_audio`",
        )
    signal = InferInput("AUDIO_SIGNAL", [1, samples.size], "FP32")
    signal.set_data_from_numpy(np.ascontiguousarray(samples[np.newaxis], dtype=np.float32))
    count = InferInput("SAMPLE_COUNT", [1, 1], "INT64")
    count.set_data_from_numpy(np.array([[samples.size]], dtype=np.int64))
    answer = client.infer(
        pipeline,
        [signal, count],
        outputs=[InferRequestedOutput(name) for name in OUTPUTS],
        client_timeout=REQUEST_SECONDS,
    )
    return _recognition([answer.as_numpy(name)[0] for name in OUTPUTS])


def _recognition(outputs: Sequence[NDArray[Any]]) -> Recognition:
    """Turn one item of the batch into a `Recognition`; padding has an empty word."""
    transcript, score, words, times, word_scores = outputs
    found = tuple(
        Word(word.decode(), float(start) / 1000, float(end) / 1000, shown_score(word_score))
        for word, (start, end), word_score in zip(words, times, word_scores, strict=True)
        if word
    )
    return Recognition(transcript.reshape(-1)[0].decode(), shown_score(score.reshape(-1)[0]), found)


def shown_score(value: np.float32) -> float:
    """Return a score with the digits that it has."""
    # FP32 has no more digits: 0.9, and not 0.8999999761581421.
    return round(float(value), 6)


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """Give a client of a live server and turn every fault of gRPC into a `JarvisError`."""
    from tritonclient.grpc import InferenceServerClient
    from tritonclient.utils import InferenceServerException

    options: list[tuple[str, int]] = [
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ]
    if url.rpartition(":")[0] in ("127.0.0.1", "localhost", "[::1]"):
        # gRPC would send even loopback addresses through the `http_proxy` of the environment.
        options.append(("grpc.enable_http_proxy", 0))
    client = InferenceServerClient(url, channel_args=options)
    try:
        _require_live(client, url)
        yield client
    except InferenceServerException as fault:
        raise JarvisError(
            f"the server did not answer the request: {_reason(fault)}",
            slug="infer.failed",
            where=url,
            hint="the server's log says more",
        ) from fault
    finally:
        client.close()


def require_ready(client: Any, url: str, pipeline: str) -> Any:
    """Return a pipeline's configuration; JarvisError `infer.unknown-pipeline` if it has none."""
    if not client.is_model_ready(pipeline, client_timeout=CONNECT_SECONDS):
        raise _unknown(client, url, pipeline)
    return client.get_model_config(pipeline, client_timeout=CONNECT_SECONDS).config


def _require_live(client: Any, url: str) -> None:
    from tritonclient.utils import InferenceServerException

    try:
        client.is_server_live(client_timeout=CONNECT_SECONDS)
    except InferenceServerException as fault:
        raise JarvisError(
            f"no Triton server answers at {url}: {_reason(fault)}",
            slug="infer.unreachable",
            hint="start one with `jarvis-rules serve DIR`, or name another with `--url HOST:PORT`",
        ) from fault


def _reason(fault: Any) -> str:
    status = str(fault.status() or "").removeprefix("StatusCode.")
    return f"{fault.message()} ({status})" if status else str(fault.message())


def _unknown(client: Any, url: str, pipeline: str) -> JarvisError:
    names = [
        model.name
        for model in client.get_model_repository_index(client_timeout=CONNECT_SECONDS).models
        if model.state == "READY"
    ]
    ready = sorted({name for name in names if _is_ensemble(client, name)})
    served = f"it serves {', '.join(f'`{name}`' for name in ready)}" if ready else "it serves none"
    return JarvisError(
        f"no pipeline `{pipeline}` is ready on the server",
        slug="infer.unknown-pipeline",
        where=url,
        hint=did_you_mean(pipeline, ready) or served,
    )


def _is_ensemble(client: Any, model: str) -> bool:
    config = client.get_model_config(model, client_timeout=CONNECT_SECONDS).config
    return bool(config.platform == "ensemble")
