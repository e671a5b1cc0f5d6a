"""`jarvis-rules serve`: run Triton on a model repository until interrupted."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jarvis_rules.triton.environment import ServingEnvironment
    from jarvis_rules.triton.server import TritonServer

EPILOG = """\
examples:
  jarvis-rules serve out/cpu/models
  jarvis-rules serve out/cpu/models --http-port 0 --grpc-port 0 --metrics-port 0
"""
POLL_SECONDS = 0.2


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the `serve` command."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a model repository with Triton on this machine",
        description="Serve a model repository with the real Triton server, on the loopback "
        "addresses of this machine, until SIGINT or SIGTERM. Needs no GPU and no Docker.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repository", type=Path, metavar="DIR", help="the model repository")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        parser.add_argument(
            f"--{name}-port",
            type=port_number,
            default=port,
            metavar="PORT",
            help=f"port of the {name} endpoint, 0 for a free one (default: {port})",
        )
    parser.add_argument(
        "--start-timeout",
        type=float,
        default=60.0,
        metavar="S",
        help="seconds that the models may take to load (default: 60)",
    )
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Serve until interrupted; return 0 after a clean stop, 130 when interrupted before that."""
    from jarvis_rules.errors import EXIT_INTERRUPTED, EXIT_OK
    from jarvis_rules.triton.server import TritonServer

    ready = False
    with _interrupted_by_signals():
        try:
            environment = environment_for(args.repository)
            say_standin(args.repository)
            ports = (args.http_port, args.grpc_port, args.metrics_port)
            with TritonServer(
                args.repository, environment, *ports, start_timeout=args.start_timeout
            ) as server:
                ready = True
                _serve(server)
        except KeyboardInterrupt:
            say("stopped")
    return EXIT_OK if ready else EXIT_INTERRUPTED


def environment_for(repository: Path) -> ServingEnvironment:
    """Return the serving environment, made now if need be, but not for what it cannot serve.

    JarvisError for a faulty repository, and for engines that need a GPU: it computes on none.
    """
    from jarvis_rules.core.cache_directory import cache_directory
    from jarvis_rules.reporting.preflight import require_no_gpu
    from jarvis_rules.triton.environment import (
        ensure_serving_environment,
        find_serving_environment,
    )
    from jarvis_rules.triton.lint import check_repository

    require_no_gpu(repository)
    environment = find_serving_environment(cache_directory())
    if environment is None:
        check_repository(repository)
        environment = ensure_serving_environment(cache_directory(), say)
    return environment


def _serve(server: TritonServer) -> None:
    """Say where the server listens and wait for the signal that ends it."""
    say(
        f"ready after {server.start_seconds:.1f} s: http {server.http_url}, grpc "
        f"{server.grpc_url}, metrics {server.metrics_url}; serves {', '.join(server.models)}; "
        f"log {server.log}; Ctrl-C stops it"
    )
    try:
        while True:
            server.require_running()
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        say("stopping")
        raise


def say(text: str) -> None:
    """Write one line to stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


def say_standin(repository: Path) -> None:
    """Say that timings of ONNX models are not the real backend's, where there are any."""
    from jarvis_rules.triton.model_folder import read_models

    if any(model.backend == "onnxruntime" for model in read_models(repository).values()):
        say(
            "note: the `onnxruntime` backend is a stand-in (ONNX Runtime on one CPU thread behind "
            "Triton's Python backend): answers are comparable with production, timings are not"
        )


def port_number(text: str) -> int:
    """Parse a port, 0 to 65535, for argparse."""
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"expected 0 to 65535, got {value}")
    return value


@contextmanager
def _interrupted_by_signals() -> Iterator[None]:
    """Let SIGTERM stop the server as Ctrl-C does, SIGINT too where a shell's `&` ignored it."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
