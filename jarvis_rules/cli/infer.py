"""`jarvis-rules infer`: send recordings or texts to a served pipeline."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from jarvis_rules.cli.serve import environment_for, say, say_standin

if TYPE_CHECKING:
    from jarvis_rules.triton.client import Recognition

DEFAULT_URL = "127.0.0.1:8001"
EPILOG = f"""\
examples:
  jarvis-rules infer asr_en hello.wav                      ask the server at {DEFAULT_URL}
  jarvis-rules infer asr_en a.wav b.flac --format json     one object per file, words with times
  jarvis-rules infer asr_en *.wav --repository out/cpu/models   start and stop a server for it
  jarvis-rules infer jarvis_ner "vera lives in lima"       a pipeline for text
  jarvis-rules infer jarvis_qa "who sang?" "anna sang."    question and context
  jarvis-rules infer jarvis_qa --input questions.jsonl     an object with the texts on each line
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `infer` command."""
    parser = subparsers.add_parser(
        "infer",
        help="send recordings or texts to a served pipeline",
        description="Send audio files to a speech recognition pipeline and print what is said in "
        "them, or texts to a pipeline for text and print what it finds. Audio files of any format "
        "of libsndfile, one channel; another sample rate than the pipeline's is resampled.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", metavar="PIPELINE", help="name of the pipeline")
    parser.add_argument(
        "values",
        nargs="*",
        metavar="FILE|TEXT",
        help="audio files; or texts; or for qa a question and its context",
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE.jsonl",
        help='take texts from here, one object on each line: `{"text": …}`, for qa '
        '`{"question": …, "context": …}`',
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--repository",
        type=Path,
        metavar="DIR",
        help="serve this model repository for as long as the command runs",
    )
    where.add_argument(
        "--url",
        default=DEFAULT_URL,
        metavar="HOST:PORT",
        help=f"gRPC endpoint of a running server (default: {DEFAULT_URL})",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json"),
        default="text",
        help="text: the answer, after `FILE: ` when there are several files; json: one object "
        "per file or text and line, times in seconds, places in characters (default: text)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Ask the pipeline and print the answers to stdout in order; return 0."""
    from jarvis_rules.errors import EXIT_OK, UsageError

    kind = _kind(args)
    if bool(args.values) == bool(args.input) or (args.input and not kind):
        what = "texts, or a file with `--input`" if kind else "audio files"
        raise UsageError(f"expected {what}", slug="usage", hint="see `jarvis-rules infer --help`")
    if kind:
        _infer_texts(args, kind)
    else:
        _infer_speech(args)
    return EXIT_OK


def _infer_speech(args: argparse.Namespace) -> None:
    from jarvis_rules.errors import JarvisError
    from jarvis_rules.triton.client import check_audio, pipeline_sample_rate, read_audio, recognize

    files = [Path(value) for value in args.values]
    for path in files:
        check_audio(path)
    with _server(args) as url:
        sample_rate = pipeline_sample_rate(url, args.pipeline)
        notes: set[int] = set()
        for path in files:
            audio = read_audio(path, sample_rate)
            if audio.original_rate not in notes | {sample_rate}:
                notes.add(audio.original_rate)
                say(f"note: resampled from {audio.original_rate} Hz to {sample_rate} Hz: {path}")
            try:
                (recognition,) = recognize(url, args.pipeline, [audio.samples])
            except JarvisError as fault:
                fault.where = str(path)
                raise
            write_recognition(sys.stdout, args, path, recognition)


def write_recognition(
    output: TextIO, args: argparse.Namespace, path: Path, recognition: Recognition
) -> None:
    """Write one answer as one line."""
    if args.format == "json":
        document = {"input": str(path), **dataclasses.asdict(recognition)}
        line = json.dumps(document, ensure_ascii=False)
    elif len(args.values) > 1:
        line = f"{path}: {recognition.transcript}"
    else:
        line = recognition.transcript
    output.write(line + "\n")
    output.flush()


def _infer_texts(args: argparse.Namespace, kind: str) -> None:
    from jarvis_rules.triton.language_client import TEXT_TASKS, ask_texts

    task = TEXT_TASKS[kind]
    names = tuple(task.inputs.values())
    items = _read_items(args.input, names) if args.input else _items(args.values, names)
    with _server(args) as url:
        answers = ask_texts(url, args.pipeline, kind, items)
        for item, document in zip(items, answers, strict=True):
            if args.format == "json":
                line = json.dumps(document, ensure_ascii=False)
            else:
                line = " ".join(task.render(document, item).splitlines())
            sys.stdout.write(line + "\n")
            sys.stdout.flush()


def _items(values: list[str], names: tuple[str, ...]) -> list[Mapping[str, str]]:
    """Return the texts of the command line as items of a pipeline's texts by name."""
    from jarvis_rules.errors import UsageError
    from jarvis_rules.triton.language_client import encode_text

    for value in values:
        encode_text(value)
    if len(values) % len(names):
        raise UsageError(
            f"expected {' and '.join(names)} in turn, got {len(values)} texts",
            slug="usage",
            hint="quote each of them",
        )
    groups = [values[at : at + len(names)] for at in range(0, len(values), len(names))]
    return [dict(zip(names, group, strict=True)) for group in groups]


def _read_items(path: Path, names: tuple[str, ...]) -> list[Mapping[str, str]]:
    """Return the objects of a JSON Lines file, each of which must have these texts."""
    from jarvis_rules.errors import JarvisError
    from jarvis_rules.formats.input_file import unreadable
    from jarvis_rules.triton.language_client import encode_text

    try:
        lines = path.read_bytes().splitlines()
    except OSError as fault:
        raise unreadable(path, fault) from None
    items: list[Mapping[str, str]] = []
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        try:
            item = json.loads(line)
        except (ValueError, RecursionError):
            item = None
        if not isinstance(item, dict) or not all(isinstance(item.get(n), str) for n in names):
            raise JarvisError(
                f"expected an object with {' and '.join(f'`{name}`' for name in names)}",
                slug="infer.input",
                where=where,
                hint="give a JSON object on each line, its texts as strings",
            )
        for name in names:
            try:
                encode_text(item[name])
            except JarvisError as fault:
                raise fault.at(where) from None
        items.append(item)
    return items


def _kind(args: argparse.Namespace) -> str:
    """Return the kind of a pipeline for text, empty for speech recognition.

    From the repository where one is given: no server is needed to find a mistake.
    """
    from jarvis_rules.triton.language_client import pipeline_kind
    from jarvis_rules.triton.model_folder import read_models

    if args.repository is None:
        return pipeline_kind(args.url, args.pipeline)
    _require_pipeline(args.repository, args.pipeline)
    model = read_models(args.repository)[args.pipeline]
    return str(model.config.parameters["kind"].string_value)


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """Give the address to ask: the running server's, or that of one started for this command."""
    if args.repository is None:
        yield args.url
        return
    from jarvis_rules.triton.server import TritonServer

    environment = environment_for(args.repository)
    say_standin(args.repository)
    with TritonServer(args.repository, environment, models=[args.pipeline]) as server:
        yield server.grpc_url


def _require_pipeline(repository: Path, pipeline: str) -> None:
    from jarvis_rules.errors import JarvisError, did_you_mean
    from jarvis_rules.triton.model_folder import read_models

    ensembles = [n for n, model in read_models(repository).items() if model.is_ensemble]
    if pipeline not in ensembles:
        raise JarvisError(
            f"no pipeline `{pipeline}` in the repository",
            slug="infer.unknown-pipeline",
            where=str(repository),
            hint=did_you_mean(pipeline, ensembles) or f"it has {', '.join(ensembles) or 'none'}",
        )
