"""One run of a tool: in its sandbox, to its outputs or to the error that it reports."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from jarvis_rules.core.action import INPUTS, OUTPUTS, Action, Output
from jarvis_rules.core.digest import Digest
from jarvis_rules.core.secret import Secret
from jarvis_rules.errors import JarvisBug, JarvisError, error_from_json
from jarvis_rules.execution.delivery import listed_files
from jarvis_rules.execution.gpu_devices import find_gpu_devices
from jarvis_rules.execution.process import (
    LOG,
    ProcessCancelledError,
    ProcessTimeoutError,
    run_process,
)
from jarvis_rules.execution.sandbox import Sandbox, written_files
from jarvis_rules.execution.tool_reports import (
    PEAK_MEMORY_FILE,
    PROGRESS_FILE,
    ProgressReader,
    read_peak_memory,
)

_ERROR_FILE = "error.json"
_LOG_TAIL = 15


def run_tool(
    sandbox: Sandbox,
    action: Action,
    folder: Path,
    names: Mapping[str, str],
    *,
    since: float | None = None,
    keys: Mapping[str, Secret] | None = None,
    gpus: int = 0,
    on_progress: Callable[[str, str], None] | None = None,
) -> int | None:
    """Run the tool of `action` in `folder`; return its peak memory in MiB, if that is known.

    Its request and inputs lie there. `names` is what people call an input, by staged name; a
    cancellation after `since` (monotonic) counts. The tool gets `keys` on its standard input, as
    JSON, and this machine's GPUs where it needs `gpus`. `on_progress` is told its phase and a
    detail of that. JarvisError where the tool reports one, crashes, takes too long or is cancelled.
    """
    argv = [sys.executable, *action.argv[1:]]
    devices = find_gpu_devices() if gpus else None
    launch = sandbox.command(argv, folder, action.environment, gpu=devices)
    poll = None
    if on_progress is not None:
        poll = ProgressReader(launch.cwd / PROGRESS_FILE, on_progress).poll
    try:
        code = run_process(
            launch.argv,
            cwd=launch.cwd,
            environment=launch.environment,
            log=folder / LOG,
            timeout=action.timeout,
            since=since,
            standard_input=_dump_keys(keys or {}),
            on_poll=poll,
        )
    except ProcessTimeoutError:
        raise JarvisError(
            f"{action.description} ran for more than {action.timeout} s and was stopped",
            slug="action.timeout",
            hint="raise the action's time-out, or give the machine more to work with",
        ) from None
    except ProcessCancelledError:
        raise _interrupted(action) from None
    if code == 0:
        return read_peak_memory(launch.cwd / PEAK_MEMORY_FILE)
    report = launch.cwd / _ERROR_FILE
    if report.is_file() and not report.is_symlink():
        raise _reported(report.read_bytes(), names)
    raise _interrupted(action) if code == -signal.SIGINT else _crashed(action, folder, code)


def _dump_keys(keys: Mapping[str, Secret]) -> bytes:
    if not keys:
        return b""
    return json.dumps({name: key.reveal().hex() for name, key in keys.items()}).encode()


def collect_outputs(
    mnemonic: str, output: Output, folder: Path, put: Callable[[Path], Digest]
) -> dict[str, Digest]:
    """Store every declared output and return its digest.

    JarvisBug where one is missing, is no plain file, or was not declared.
    """
    outputs = folder / OUTPUTS
    found = set(written_files(outputs))
    collected: dict[str, Digest] = {}

    def take(name: str) -> Digest:
        path = outputs / name
        if path not in found:
            raise JarvisBug(f"{mnemonic} wrote no {name}")
        found.discard(path)
        collected[name] = put(path)
        return collected[name]

    take(output.file)
    if output.tree is not None:
        for name, digest in listed_files(outputs / output.file).items():
            if take(f"{output.tree}/{name}") != digest:
                raise JarvisBug(f"{mnemonic} lists another digest for {name}")
    if found:
        raise JarvisBug(f"{mnemonic} wrote undeclared files: {sorted(map(str, found))}")
    return collected


def copy_source(source: Path, target: Path) -> None:
    """Copy a file of the user's, sharing its blocks where the file system can.

    Never a hard link: that would change the source's ctime, and share later edits.
    """
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            while os.copy_file_range(original.fileno(), copy.fileno(), 1 << 30):
                pass
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


def link_blob(blob: Path, target: Path) -> None:
    """Show a blob of the store, which is read-only, under another name."""
    try:
        os.link(blob, target)
    except OSError:
        shutil.copyfile(blob, target)


def _interrupted(action: Action) -> JarvisError:
    return JarvisError(
        f"{action.description} was interrupted",
        slug="action.interrupted",
        hint="build again: what was finished is not done twice",
    )


def _crashed(action: Action, folder: Path, code: int) -> JarvisError:
    text = (folder / LOG).read_text(encoding="utf-8", errors="replace")
    tail = "\n".join(text.splitlines()[-_LOG_TAIL:])
    reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    hint = "please report this: a tool must end in a message, not in a crash"
    if code == -signal.SIGKILL:
        hint = "was it the machine that ran out of memory? see `dmesg`, and run fewer at once"
    return JarvisError(
        f"{action.description} failed: {reason}\n{tail}", slug="action.crashed", hint=hint
    )


def _reported(data: bytes, names: Mapping[str, str]) -> JarvisError:
    """Return the error that a tool reported, with the user's paths instead of the staged ones."""
    document = json.loads(data)
    staged = {f"{INPUTS}/{name}": shown for name, shown in names.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(staged, key=len, reverse=True))) or "(?!)")

    def unstaged(text: str | None) -> str | None:
        return None if text is None else pattern.sub(lambda match: staged[match[0]], text)

    shown = {name: unstaged(document[name]) for name in ("message", "hint", "where")}
    return error_from_json({**document, **shown})
