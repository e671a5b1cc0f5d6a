"""The frame of every tool: read the request, do the work, report phases and errors as data."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jarvis_rules.errors import EXIT_BUG, EXIT_OK, JarvisError

if TYPE_CHECKING:
    from jarvis_rules.formats.key_source import Key

_PR_SET_PDEATHSIG = 1
ERROR_FILE = "error.json"
PROGRESS_FILE = "progress"
PEAK_MEMORY_FILE = "peak_memory"
PROGRESS_BYTES = 256


def run_tool(work: Callable[[Mapping[str, Any]], None]) -> int:
    """Run `work` on the request named on the command line and return the exit code.

    The keys that the request announces are in its place of `keys`: `key_of` returns one.
    A JarvisError is written to `error.json` for the executor, which knows the user's paths. So is
    the tool's peak memory to `peak_memory`.
    """
    _die_with_parent()
    # Made here, so that `report_progress` writes in the folder of a tool and nowhere else.
    Path(PROGRESS_FILE).touch()
    # In a sandbox `/tmp` is memory; the action's own folder is on the disk of the cache.
    tempfile.tempdir = str(Path.cwd())
    request = json.loads(Path(sys.argv[1]).read_bytes())
    if "keys" in request:
        request["keys"] = _read_keys(request["keys"]["descriptor"])
    try:
        _work(work, request)
    except JarvisError as error:
        Path(ERROR_FILE).write_text(json.dumps(error.to_json()), encoding="utf-8")
        return error.exit_code or EXIT_BUG
    finally:
        _write_peak_memory()
    return EXIT_OK


def report_progress(phase: str, detail: str = "") -> None:
    """Say what the tool is doing: `phase` in a few words, `detail` how far it is in that.

    The file `progress` holds the last report only, and the executor looks at it now and then: so
    reports may come as fast as a compiler's callbacks do, from any thread, and from a child that
    shares the tool's current folder. Does nothing outside of a tool's folder.
    """
    line = "\t".join(" ".join(text.split()) for text in (phase, detail))
    record = line.encode(errors="replace")[: PROGRESS_BYTES - 1].ljust(PROGRESS_BYTES - 1) + b"\n"
    # Progress is for people: a build does not fail for it.
    with contextlib.suppress(OSError):
        file = os.open(PROGRESS_FILE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            # One write of one size: no reader sees the rest of a longer line.
            os.pwrite(file, record, 0)
        finally:
            os.close(file)


def _write_peak_memory() -> None:
    """Write the resident memory of the largest process of this tool at its peak, in MiB.

    Of this process and of those that it has waited for. `ru_maxrss` of this one would not do: it
    counts what the process that started the tool had in memory at that moment.
    """
    with contextlib.suppress(OSError, KeyError):
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        fields = dict(line.partition(":")[::2] for line in status.splitlines())
        own = int(fields["VmHWM"].split()[0])
        largest = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
        Path(PEAK_MEMORY_FILE).write_text(f"{-(-largest // 1024)}\n", encoding="ascii")


def key_of(request: Mapping[str, Any], name: str) -> Key | None:
    """Return the key that the request gives the tool under this name, or None."""
    key: Key | None = request.get("keys", {}).get(name)
    return key


def _read_keys(descriptor: int) -> dict[str, Key]:
    """Read the keys off their pipe, and leave nothing of them to what this process may start."""
    from jarvis_rules.formats.key_source import Key

    # A crash must not write them to a disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(descriptor, "rb", closefd=False) as pipe:
        keys = json.loads(pipe.read())
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, descriptor)
    os.close(null)
    return {name: Key(bytes.fromhex(data), f"pipe:{name}") for name, data in keys.items()}


def _work(work: Callable[[Mapping[str, Any]], None], request: Mapping[str, Any]) -> None:
    """Run `work`; a full disk and too little memory are faults of the machine, not of ours."""
    try:
        work(request)
    except MemoryError:
        raise JarvisError(
            "there is not enough memory",
            slug="tool.memory",
            hint="run fewer at once (`scons -j1`), or on a machine with more",
        ) from None
    except OSError as error:
        raise JarvisError(
            f"cannot be read or written: {error.strerror or error}",
            slug="tool.io",
            where=None if error.filename is None else str(error.filename),
            hint="check the free space of the disk that holds the cache",
        ) from error


def _die_with_parent() -> None:
    """Ask Linux to end this process when the one that started it is killed."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)
