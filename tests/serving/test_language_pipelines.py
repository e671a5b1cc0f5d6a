"""The five pipelines for text: the examples, built by `scons`, in one real Triton server."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jarvis_rules.execution.execution_log import read_last_build
from jarvis_rules.triton.environment import ServingEnvironment
from jarvis_rules.triton.language_client import TEXT_TASKS, ask_texts, pipeline_kind
from jarvis_rules.triton.server import TritonServer

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
NAMES = {
    "text_classification": "jarvis_text_classification",
    "token_classification": "jarvis_ner",
    "intent_slot": "jarvis_intent_home",
    "punctuation": "jarvis-punctuation-en-US",
    "qa": "jarvis_qa",
}
SCONSTRUCT = """
import jarvis_rules
env = Environment(tools=[jarvis_rules.tool])
SConscript(Glob("examples/*/SConscript"), exports="env")
env.Default("deploy")
"""


def scons(folder: Path) -> list[dict[str, Any]]:
    """Build and return what the execution log says of it."""
    environment = {**os.environ, "JARVIS_CACHE": str(folder / "cache")}
    command = [str(BIN / "scons"), "-Q", "-j2", "deploy", "GPU=cpu"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return read_last_build(folder / "out" / "execution-log.jsonl")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for task in NAMES:
        shutil.copytree(ROOT / "examples" / task, folder / "examples" / task)
    (folder / "SConstruct").write_text(SCONSTRUCT)
    scons(folder)
    return folder


@pytest.fixture(scope="module")
def server(project: Path, serving_environment: ServingEnvironment) -> Iterator[TritonServer]:
    with TritonServer(project / "out" / "cpu" / "models", serving_environment) as running:
        yield running


def lines(task: str) -> list[dict[str, Any]]:
    text = (ROOT / "examples" / task / "test.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def ask(server: TritonServer, task: str, *items: tuple[str | bytes, ...]) -> dict[str, np.ndarray]:
    """Send one request with a batch of items; return all output tensors."""
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(server.grpc_url) as client:
        return send(client, task, *items)


def send(client: Any, task: str, *items: tuple[str | bytes, ...]) -> dict[str, np.ndarray]:
    from tritonclient.grpc import InferInput

    inputs = []
    for place, name in enumerate(TEXT_TASKS[task].inputs):
        column = [[v if isinstance(v := item[place], bytes) else v.encode()] for item in items]
        inputs.append(InferInput(name, [len(items), 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array(column, np.object_))
    answer = client.infer(NAMES[task], inputs, client_timeout=120)
    return {o.name: answer.as_numpy(o.name) for o in answer.get_response().outputs}


def decoded(row: np.ndarray) -> list[str]:
    return [value.decode() for value in row if value]


def predicted(task: str, outputs: dict[str, np.ndarray], item: int) -> Any:
    """Return what the pipeline says of an item, in the words of the recording."""
    if task == "text_classification":
        return outputs["CLASS"][item, 0].decode()
    if task == "token_classification":
        return decoded(outputs["WORD_LABELS"][item])
    if task == "intent_slot":
        return outputs["INTENT"][item, 0].decode(), decoded(outputs["WORD_LABELS"][item])
    if task == "punctuation":
        labels = zip(
            decoded(outputs["PUNCTUATION_LABELS"][item]),
            decoded(outputs["CAPITALIZATION_LABELS"][item]),
            strict=True,
        )
        return outputs["PUNCTUATED_TEXT"][item, 0].decode(), " ".join(map("".join, labels))
    return outputs["ANSWERS"][item, 0].decode()


def recorded(task: str, nemo: dict[str, Any]) -> Any:
    return {
        "text_classification": lambda: nemo["label"],
        "token_classification": lambda: nemo["labels"],
        "intent_slot": lambda: (nemo["intent"], nemo["slots"]),
        "punctuation": lambda: (nemo["punctuated"], nemo["labels"]),
        # NeMo 1.23 inserts this where it finds no span; here there is no answer.
        "qa": lambda: "" if nemo["predicted"] == "empty" else nemo["predicted"],
    }[task]()


def item_of(task: str, line: dict[str, Any]) -> tuple[str, ...]:
    return tuple(line[name] for name in TEXT_TASKS[task].inputs.values())


@pytest.mark.parametrize("task", NAMES)
def test_predictions_are_nemos(server: TritonServer, task: str) -> None:
    """Every line, though 99 of 100 would do; in batches of eight, as they come."""
    rows = lines(task)
    assert len(rows) == (50 if task == "qa" else 100)
    for at in range(0, len(rows), 8):
        batch = rows[at : at + 8]
        outputs = ask(server, task, *(item_of(task, row) for row in batch))
        for item, row in enumerate(batch):
            assert predicted(task, outputs, item) == recorded(task, row["nemo"]), row


def test_answers_have_nemos_probabilities(server: TritonServer) -> None:
    inserted = 0
    for row in lines("qa"):
        outputs = ask(server, "qa", item_of("qa", row))
        found = dict(zip(decoded_all(outputs["ANSWERS"]), outputs["ANSWERS_SCORE"][0], strict=True))
        if row["nemo"]["predicted"] == "empty":
            inserted += 1
            assert found == {"": 1.0}
            continue
        for entry in row["nemo"]["nbest"]:
            assert found[entry["text"]] == pytest.approx(entry["probability"], abs=1e-4)
    assert inserted == 1


def decoded_all(rows: np.ndarray) -> list[str]:
    return [value.decode() for value in rows[0]]


@pytest.mark.parametrize("task", NAMES)
def test_an_item_is_the_same_alone_and_in_a_batch(server: TritonServer, task: str) -> None:
    items = [item_of(task, row) for row in lines(task)[::13]][:8]
    together = ask(server, task, *items)
    for number, item in enumerate(items):
        assert predicted(task, ask(server, task, item), 0) == predicted(task, together, number)


ODD = ["", " \t\n", "x" * 10_000, "\u0000", "中国 😀 é\u0301 \u200b \ufffd", "[SEP] [CLS]", "١٢٣"]


@pytest.mark.parametrize("task", NAMES)
def test_odd_texts_are_answered(server: TritonServer, task: str) -> None:
    for text in ODD:
        item = ("where?", text) if task == "qa" else (text,)
        outputs = ask(server, task, item)
        if task == "punctuation":
            found = outputs["PUNCTUATED_TEXT"][0, 0].decode()
            assert len(found.split()) == len(text.split())


@pytest.mark.parametrize("task", NAMES)
def test_bytes_that_are_no_text_are_refused_and_the_server_lives(
    server: TritonServer, task: str
) -> None:
    from tritonclient.utils import InferenceServerException

    good = item_of(task, lines(task)[0])
    with pytest.raises(InferenceServerException, match=r"item 1: `[A-Z]+` is not UTF-8") as caught:
        ask(server, task, good, (*good[:-1], b"\xff\xfe"))
    assert "INVALID_ARG" in str(caught.value.status())
    assert predicted(task, ask(server, task, good), 0)


def test_long_texts_are_refused_or_answered(server: TritonServer) -> None:
    from tritonclient.utils import InferenceServerException

    words = "vera lives in lima " * 500
    for task in ("token_classification", "intent_slot"):
        with pytest.raises(InferenceServerException, match="item 0: the text has 3502 tokens"):
            ask(server, task, (words,))
    assert ask(server, "text_classification", (words,))["SCORE"][0, 0] > 0
    text = ask(server, "punctuation", (words,))["PUNCTUATED_TEXT"][0, 0].decode()
    assert [word.strip(",.?").lower() for word in text.split(" ")] == words.split()
    context = "laura lives in dublin. " * 200 + "nina lives in berlin."
    outputs = ask(server, "qa", ("where does nina live?", context))
    for answer, (start, end) in zip(
        decoded_all(outputs["ANSWERS"]), outputs["ANSWERS_START_END"][0], strict=True
    ):
        assert context[start:end] == answer


def resident_kib(server: TritonServer) -> int:
    """Return the resident memory of the server and its stubs."""
    total = 0
    for entry in Path("/proc").iterdir():
        try:
            line = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
            if Path(line.partition("\0")[0]).name.startswith("triton") and (
                str(server.log.parent) in line
            ):
                status = (entry / "status").read_text()
                total += int(status.partition("VmRSS:")[2].split()[0])
        except OSError:
            continue
    return total


def test_a_thousand_mixed_requests_at_once(server: TritonServer) -> None:
    from tritonclient.grpc import InferenceServerClient

    work = [(task, row) for task in NAMES for row in lines(task)]
    random.Random(16).shuffle(work)  # noqa: S311  (texts, not secrets)
    work = (work * 3)[:1000]
    memory = []
    with InferenceServerClient(server.grpc_url) as client, ThreadPoolExecutor(16) as pool:

        def one(job: tuple[str, dict[str, Any]]) -> bool:
            task, row = job
            outputs = send(client, task, item_of(task, row))
            return bool(predicted(task, outputs, 0) == recorded(task, row["nemo"]))

        for _ in range(3):
            assert all(pool.map(one, work))
            memory.append(resident_kib(server))
    # The first thousand fill caches and arenas.
    assert memory[2] - memory[1] < 16 * 1024, memory


@pytest.mark.parametrize("task", NAMES)
def test_kinds_and_documents(server: TritonServer, task: str) -> None:
    assert pipeline_kind(server.grpc_url, NAMES[task]) == task
    names = tuple(TEXT_TASKS[task].inputs.values())
    item = dict(zip(names, item_of(task, lines(task)[0]), strict=True))
    (document,) = ask_texts(server.grpc_url, NAMES[task], task, [item])
    keys = {
        "text_classification": {"class", "score"},
        "token_classification": {"entities"},
        "intent_slot": {"intent", "score", "slots"},
        "punctuation": {"text"},
        "qa": {"answers"},
    }
    assert document.keys() == keys[task]
    source = item.get("context", item.get("text", ""))
    spans = [span for value in document.values() if isinstance(value, list) for span in value]
    assert bool(spans) == (task in {"token_classification", "intent_slot", "qa"})
    for span in spans:
        assert span.keys() == {"text", "start", "end", "score"} | (span.keys() & {"label"})
        assert source[span["start"] : span["end"]] == span["text"]


def infer(serving_cache: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "jarvis-rules"), "infer", *map(str, arguments)],
        env={**os.environ, "JARVIS_CACHE": str(serving_cache)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("task", "texts", "expected"),
    [
        ("text_classification", ["this is a terrible movie"], "negative\n"),
        ("token_classification", ["vera moved to helsinki"], "vera[PER] moved to helsinki[LOC]\n"),
        (
            "intent_slot",
            ["turn on the garage light", "play thunder"],
            "light.on  room=garage  device=light\nmusic.play  song=thunder\n",
        ),
        ("punctuation", ["where does rosa live"], "Where does Rosa live?\n"),
        (
            "qa",
            ["where does nina live?", "laura lives in dublin. nina lives in berlin."],
            "berlin\n",
        ),
    ],
)
def test_infer_prints_the_answer(
    server: TritonServer, serving_cache: Path, task: str, texts: list[str], expected: str
) -> None:
    done = infer(serving_cache, NAMES[task], *texts, "--url", server.grpc_url)
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_infer_reads_lines(server: TritonServer, serving_cache: Path, project: Path) -> None:
    path = project / "examples" / "qa" / "test.jsonl"
    done = infer(
        serving_cache, NAMES["qa"], "--input", path, "--url", server.grpc_url, "--format", "json"
    )
    found = [json.loads(line)["answers"][0]["text"] for line in done.stdout.splitlines()]
    assert found == [recorded("qa", row["nemo"]) for row in lines("qa")]


@pytest.mark.parametrize(
    ("task", "arguments", "slug"),
    [
        ("qa", ["only a question"], "usage"),
        ("qa", [], "usage"),
        ("punctuation", ["a", "--input", "x.jsonl"], "usage"),
        ("punctuation", ["--input", "absent.jsonl"], "file.missing"),
        ("punctuation", [b"\xff"], "infer.input"),
        ("intent_slot", ["vera " * 600], "infer.failed"),
    ],
)
def test_infer_refuses(
    server: TritonServer, serving_cache: Path, task: str, arguments: list[Any], slug: str
) -> None:
    texts = [a.decode(errors="surrogateescape") if isinstance(a, bytes) else a for a in arguments]
    done = infer(serving_cache, NAMES[task], *texts, "--url", server.grpc_url)
    assert f"[{slug}]" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    "line", ["", "[]", '{"txt": "a"}', '{"text": 1}', "x", '{"text": "\\ud800"}', "\x00"]
)
def test_infer_names_the_line_that_it_cannot_use(
    server: TritonServer, serving_cache: Path, tmp_path: Path, line: str
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(f'{{"text": "vera"}}\n{line}\n')
    arguments = (NAMES["punctuation"], "--input", path, "--url", server.grpc_url)
    done = infer(serving_cache, *arguments)
    assert f"error: {path}:2: " in done.stderr
    assert "[infer.input]" in done.stderr


def replace_member(nemo: Path, suffix: str, change: Any) -> None:
    """Write a checkpoint again with one member changed."""
    with tarfile.open(nemo) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar if m.isfile()]  # type: ignore[union-attr]
    with tarfile.open(nemo, "w") as tar:
        for member, data in members:
            content = change(data) if member.name.endswith(suffix) else data
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_labels_and_options_rebuild_no_engine(tmp_path: Path) -> None:
    """The execution log of a build after each change."""
    for task in ("text_classification", "qa"):
        shutil.copytree(ROOT / "examples" / task, tmp_path / "examples" / task)
    (tmp_path / "SConstruct").write_text(SCONSTRUCT)
    scons(tmp_path)
    nemo = tmp_path / "examples" / "text_classification" / "text_classification.nemo"
    replace_member(nemo, "labels.csv", lambda data: data.replace(b"neutral", b"middling"))
    done = executed(scons(tmp_path))
    assert ("NemoExport", "text_classification.ejrvs") in done
    assert ("RepositoryAssemble", "jarvis_text_classification[cpu]") in done
    assert "EngineBuild" not in {mnemonic for mnemonic, _ in done}, done
    labels = tmp_path / "out/cpu/models/jarvis_text_classification-processor/1/class_labels.csv"
    assert "middling" in labels.read_text().split("\n")

    script = tmp_path / "examples" / "qa" / "SConscript"
    script.write_text(script.read_text().replace("model)", "model, null_score_diff_threshold=9)"))
    assert [mnemonic for mnemonic, _ in executed(scons(tmp_path))] == [
        "JmirBuild",
        "RepositoryAssemble",
    ]


def executed(actions: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return what was not taken from the cache, sorted."""
    return sorted((a["mnemonic"], a["target"]) for a in actions if a["outcome"] == "executed")
