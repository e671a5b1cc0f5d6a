"""Builds an engine in a process of its own, which the compiler may crash.

A valid graph can end TensorRT with a segmentation fault (one of `Attention` did), and one that is
too large for the machine ends in the kernel's SIGKILL. Either becomes one message.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.engines import _tensorrt_child
from jarvis_rules.engines.engine import TIMING_CACHE, BuiltEngine, EngineSpec
from jarvis_rules.errors import JarvisError, error_from_json

CHILD = (sys.executable, "-m", _tensorrt_child.__name__)


def build_in_child(
    name: str,
    module: str,
    spec: EngineSpec,
    engine: Path,
    environment: Mapping[str, str] | None = None,
) -> BuiltEngine:
    """Build with the `COMPILER` of `module`, which people call `name`.

    Passes the phases on to `spec.report`, and prints the peak memory. JarvisError where the graph
    is refused or the compiler crashes, OSError where a file cannot be read or written; then no file
    is left. `environment` is added to the child's; its sandbox and limits are this process' own.
    """
    reader, writer = os.pipe()
    phase, answer = "", {}
    with os.fdopen(reader, encoding="utf-8", errors="replace") as pipe:
        try:
            process = subprocess.Popen(
                [*CHILD, str(writer), str(os.getpid())],
                stdin=subprocess.PIPE,
                pass_fds=(writer,),
                env={**os.environ, **(environment or {})},
            )
        finally:
            os.close(writer)
        try:
            _send(process, _tensorrt_child.dump_request(module, spec, engine))
            for message in _messages(pipe):
                if message.get("phase", phase) != phase:
                    phase = message["phase"]
                    spec.report(phase)
                answer = message
            code, peak = _wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    peak = answer.get("peak_mib", peak)
    print(f"peak memory: {peak} MiB", flush=True)  # noqa: T201  (the tool's log)
    if "built" in answer:
        return _load_built(answer["built"])
    for left in (engine, engine.with_name(TIMING_CACHE)):
        left.unlink(missing_ok=True)
    if "error" in answer:
        raise error_from_json(answer["error"]).at(str(spec.graph))
    if "io" in answer:
        raise OSError(*answer["io"])
    raise _crashed(name, code, phase, peak, "memory" in answer).at(str(spec.graph))


def _send(process: subprocess.Popen[bytes], request: bytes) -> None:
    assert process.stdin is not None  # noqa: S101  (a pipe was asked for)
    try:
        with process.stdin as stdin:
            stdin.write(request)
    except BrokenPipeError:
        # It has ended already: what is on the other pipe, or its exit code, says why.
        return


def _messages(pipe: Any) -> Iterator[dict[str, Any]]:
    for line in pipe:
        # The last one of a process that was killed may be cut off.
        if line.endswith("\n"):
            yield json.loads(line)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """Return the exit code, or minus a signal, and the most memory that was resident, in MiB.

    That is at least what this process had when it started the other.
    """
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss >> 10


def _load_built(document: Mapping[str, Any]) -> BuiltEngine:
    profiles = tuple(
        {
            name: {bound: tuple(dims) for bound, dims in sizes.items()}
            for name, sizes in profile.items()
        }
        for profile in document["profiles"]
    )
    tensors = {side: tuple(document[side]) for side in ("inputs", "outputs")}
    return BuiltEngine(**{**document, **tensors, "profiles": profiles})


def _crashed(name: str, code: int, phase: str, peak: int, memory: bool) -> JarvisError:
    during = f" in the phase `{phase}`" if phase else ""
    if memory or code == -signal.SIGKILL:
        how = "there is not enough memory for" if memory else "SIGKILL ended"
        return JarvisError(
            f"{how} {name}{during}, which had {peak} MiB of memory",
            slug="engine.memory",
            hint="the kernel ends what takes too much memory: run fewer at once (`scons -j1`), or "
            "on a machine with more",
        )
    how = f"{signal.Signals(-code).name} ended it" if code < 0 else f"it ended with code {code}"
    return JarvisError(
        f"{name} crashed{during}: {how}",
        slug="engine.compiler-crashed",
        hint="ENGINE=onnxruntime builds without it; report the model's family",
    )
