"""The process that holds a TensorRT compiler: `python -m … DESCRIPTOR PARENT`, request on stdin.

Answers on the pipe DESCRIPTOR, a JSON object a line: `{"phase"}` as they begin, then `{"peak_mib"}`
with one of `built`, `error`, `io` and `memory`, or nothing where it crashed. Its output is the
tool's.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.engines._tensorrt_compiler import compile_engine
from jarvis_rules.engines.engine import EngineSpec
from jarvis_rules.errors import JarvisError
from jarvis_rules.formats.engine_inputs import EngineInput, Extent

_PR_SET_PDEATHSIG = 1


def dump_request(module: str, spec: EngineSpec, engine: Path) -> bytes:
    """Return what `main` reads: the module whose `COMPILER` is to be used, and what to build."""
    document = {
        "module": module,
        "engine": str(engine.absolute()),
        "graph": str(spec.graph.absolute()),
        "gpu": spec.gpu.to_json(),
        "precision": spec.precision,
        "inputs": [dataclasses.asdict(value) for value in spec.inputs],
        "options": dict(spec.options),
        "timing_cache": None if spec.timing_cache is None else str(spec.timing_cache.absolute()),
    }
    return json.dumps(document).encode()


def main() -> int:
    """Build what standard input asks for; the exit code says no more than the pipe."""
    descriptor, parent = map(int, sys.argv[1:])
    _die_with(parent)
    # A crash is expected, and its memory of no use to anybody.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(descriptor, "w", encoding="utf-8", buffering=1) as pipe:

        def send(**message: Any) -> None:
            pipe.write(json.dumps(message) + "\n")

        send(**_answer(json.load(sys.stdin), lambda phase: send(phase=phase)), peak_mib=_peak())
    return 0


def _answer(request: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    try:
        return {"built": _build(request, report)}
    except MemoryError:
        return {"memory": True}
    except OSError as error:
        return {"io": [error.errno, error.strerror, error.filename]}
    except JarvisError as error:
        return {"error": error.to_json()}


def _peak() -> int:
    """Return the most memory that was resident here, in MiB.

    Not what `getrusage` says: that counts from before the start of this program, when the process
    was one with its parent.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
    except OSError:
        # Landlock shows a tool itself, and none of the processes that it starts.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) >> 10


def _build(request: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    cache = request["timing_cache"]
    spec = EngineSpec(
        graph=Path(request["graph"]),
        gpu=GpuTarget.from_json(request["gpu"]),
        precision=request["precision"],
        inputs=tuple(
            EngineInput(**{**value, "dims": tuple(Extent(**dim) for dim in value["dims"])})
            for value in request["inputs"]
        ),
        options=request["options"],
        timing_cache=None if cache is None else Path(cache),
        report=report,
    )
    compiler = importlib.import_module(request["module"]).COMPILER
    return dataclasses.asdict(compile_engine(compiler, spec, Path(request["engine"])))


def _die_with(parent: int) -> None:
    """Ask Linux to end this process with the one that started it, which may be gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main())
