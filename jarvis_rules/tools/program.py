"""The frame of every tool: read the request, do the work, report an error as data."""

from __future__ import annotations

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


def run_tool(work: Callable[[Mapping[str, Any]], None]) -> int:
    """Run `work` on the request named on the command line and return the exit code.

    The keys that the request announces are in its place of `keys`: `key_of` returns one.
    A JarvisError is written to `error.json` for the executor, which knows the user's paths.
    """
    _die_with_parent()
    # In a sandbox `/tmp` is memory; the action's own folder is on the disk of the cache.
    tempfile.tempdir = str(Path.cwd())
    request = json.loads(Path(sys.argv[1]).read_bytes())
    if "keys" in request:
        request["keys"] = _read_keys(request["keys"]["descriptor"])
    try:
        _work(work, request)
    except JarvisError as error:
        document = {
            "class": type(error).__name__,
            "message": error.message,
            "slug": error.slug,
            "hint": error.hint,
            "where": error.where,
        }
        Path(ERROR_FILE).write_text(json.dumps(document), encoding="utf-8")
        return error.exit_code or EXIT_BUG
    return EXIT_OK


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
