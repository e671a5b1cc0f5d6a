"""`jarvis-rules infer`: recognise speech in audio files with a served pipeline."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
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
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `infer` command."""
    parser = subparsers.add_parser(
        "infer",
        help="recognise speech in audio files with a served pipeline",
        description="Send audio files to a speech recognition pipeline and print what is said in "
        "them. Files of any format of libsndfile, one channel; another sample rate than the "
        "pipeline's is resampled.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pipeline", metavar="PIPELINE", help="name of the pipeline")
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="audio file")
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
        help="text: the transcript, after `FILE: ` when there are several; json: one object "
        "per file and line, times in seconds (default: text)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Recognise every file and print the answers to stdout in order; return 0."""
    from jarvis_rules.errors import EXIT_OK, JarvisError
    from jarvis_rules.triton.client import check_audio, pipeline_sample_rate, read_audio, recognize

    for path in args.files:
        check_audio(path)
    with _server(args) as url:
        sample_rate = pipeline_sample_rate(url, args.pipeline)
        notes: set[int] = set()
        for path in args.files:
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
    return EXIT_OK


def write_recognition(
    output: TextIO, args: argparse.Namespace, path: Path, recognition: Recognition
) -> None:
    """Write one answer as one line."""
    if args.format == "json":
        document = {"input": str(path), **dataclasses.asdict(recognition)}
        line = json.dumps(document, ensure_ascii=False)
    elif len(args.files) > 1:
        line = f"{path}: {recognition.transcript}"
    else:
        line = recognition.transcript
    output.write(line + "\n")
    output.flush()


@contextmanager
def _server(args: argparse.Namespace) -> Iterator[str]:
    """Give the address to ask: the running server's, or that of one started for this command."""
    if args.repository is None:
        yield args.url
        return
    from jarvis_rules.triton.server import TritonServer

    environment = environment_for(args.repository)
    say_standin(args.repository)
    _require_pipeline(args.repository, args.pipeline)
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
