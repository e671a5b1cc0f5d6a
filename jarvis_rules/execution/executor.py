"""Runs actions: resolves inputs, asks the action cache, runs the tool, delivers the outputs."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jarvis_rules
from jarvis_rules.core.action import (
    INPUTS,
    OUTPUTS,
    REQUEST,
    Action,
    ActionResult,
    ActionSpec,
    FileInput,
    Input,
    MemberInput,
    Output,
    StoredInput,
    TreeInput,
)
from jarvis_rules.core.digest import Digest, digest_file
from jarvis_rules.core.events import ActionFinished, ActionStarted, EventSink, NoEvents, Outcome
from jarvis_rules.errors import (
    ERROR_CLASSES,
    IntegrityError,
    JarvisBug,
    JarvisError,
    UsageError,
    did_you_mean,
)
from jarvis_rules.execution.delivery import Destination, deliver, listed_files
from jarvis_rules.execution.execution_log import ExecutionLog, LogEntry
from jarvis_rules.execution.file_digests import FileDigests, FileStamp
from jarvis_rules.execution.store import BlobMissingError, Store
from jarvis_rules.formats.archive import open_archive

ERROR_FILE = "error.json"
_ATTEMPTS = 2
_LOG_TAIL = 15


@dataclass(frozen=True, slots=True)
class Executed:
    """What became of an action."""

    action: Action
    key: Digest
    result: ActionResult
    outcome: Outcome


@dataclass(slots=True)
class _Resolved:
    """Input digests, and for each input file where its bytes are: a path on disk or a blob.

    `names` is what people call an input, where the tool only knows the staged path.
    """

    digests: dict[str, Digest] = field(default_factory=dict)
    paths: dict[str, Path] = field(default_factory=dict)
    stamps: dict[Path, FileStamp] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)


class Executor:
    """Runs actions on this machine, with one store, for any number of threads."""

    def __init__(
        self,
        store: Store,
        digests: FileDigests,
        log: ExecutionLog | None = None,
        events: EventSink | None = None,
    ) -> None:
        self.store = store
        self.digests = digests
        self.log = log
        self.events = events or NoEvents()

    def run(self, spec: ActionSpec, destination: Destination | None = None) -> Executed:
        """Bring about the result of `spec`, and its files at `destination` if one is given.

        JarvisError where an input is missing or bad, or the tool fails; nothing is delivered then.
        """
        start = time.monotonic()
        action: Action | None = None
        try:
            with _faults_of_the_machine():
                resolved = self._resolve(spec)
                action = spec.resolve(resolved.digests)
                key = action.key()
                result, outcome = self._obtain(spec, action, key, resolved, destination)
        except BaseException:
            self._report(spec, action, {}, "failed", time.monotonic() - start)
            raise
        self._report(spec, action, result.outputs, outcome, time.monotonic() - start)
        return Executed(action, key, result, outcome)

    def deliver(self, spec: ActionSpec, executed: Executed, destination: Destination) -> None:
        """Write the outputs of an action that `run` brought about to `destination`."""
        try:
            with _faults_of_the_machine():
                self._deliver(spec, executed.action, executed.key, executed.result, destination)
        except BlobMissingError:
            self.store.forget(executed.key)
            self.run(spec, destination)

    def _obtain(
        self,
        spec: ActionSpec,
        action: Action,
        key: Digest,
        resolved: _Resolved,
        destination: Destination | None,
    ) -> tuple[ActionResult, Outcome]:
        cached = self.store.result(key)
        if cached is not None:
            try:
                _check_fits(spec.output, cached)
                self._deliver(spec, action, key, cached, destination)
            except (BlobMissingError, _UnfitResultError):
                # Damaged or collected meanwhile: as good as never cached.
                self.store.forget(key)
            else:
                return cached, "cached"
        result = self.store.put_result(key, self._execute(spec, action, key, resolved))
        self._deliver(spec, action, key, result, destination)
        return result, "executed"

    def _deliver(
        self,
        spec: ActionSpec,
        action: Action,
        key: Digest,
        result: ActionResult,
        destination: Destination | None,
    ) -> None:
        if destination is None:
            return
        record = _action_record(spec, action, key, result)
        deliver(self.store, self.digests, spec.output, result, destination, record)

    def _report(
        self,
        spec: ActionSpec,
        action: Action | None,
        outputs: Mapping[str, Digest],
        outcome: Outcome,
        seconds: float,
    ) -> None:
        """Log what became of an action; it is None where its inputs could not be resolved."""
        if self.log is not None:
            self.log.add(
                LogEntry(
                    key="" if action is None else action.key().sha256,
                    mnemonic=spec.mnemonic,
                    target=spec.target,
                    outcome=outcome,
                    seconds=seconds,
                    inputs={} if action is None else action.inputs,
                    outputs=outputs,
                )
            )
        self.events.receive(ActionFinished(spec.mnemonic, spec.target, outcome, seconds))

    # Inputs

    def _resolve(self, spec: ActionSpec) -> _Resolved:
        resolved = _Resolved()
        for name, source in spec.inputs.items():
            match source:
                case FileInput(path=path):
                    self._resolve_file(resolved, name, path)
                case MemberInput(path=path, member=member):
                    resolved.digests[name] = self._resolve_member(path, member)
                    resolved.names[name] = f"{path}!{member}"
                case TreeInput(manifest=manifest, directory=directory):
                    for file, digest in listed_files(manifest).items():
                        self._resolve_file(resolved, f"{name}/{file}", directory / file, digest)
                case StoredInput(digest=digest):
                    resolved.digests[name] = digest
        return resolved

    def _resolve_file(
        self, resolved: _Resolved, name: str, path: Path, expected: Digest | None = None
    ) -> None:
        try:
            resolved.stamps.setdefault(path, FileStamp.of(path))
            digest = self.digests.sha256(path)
        except OSError as error:
            raise UsageError(
                f"cannot read: {error.strerror}",
                slug="file.missing" if isinstance(error, FileNotFoundError) else "file.unreadable",
                where=str(path),
                hint=_suggest(path),
            ) from None
        if expected is not None and digest != expected:
            raise IntegrityError(
                f"digest is {digest}, its manifest says {expected}",
                slug="action.input-changed",
                where=str(path),
                hint="build again: the target that makes it will be repaired",
            )
        resolved.digests[name] = digest
        resolved.paths[name] = path
        resolved.names[name] = str(path)

    def _resolve_member(self, path: Path, member: str) -> Digest:
        """Return the digest that the archive's manifest gives, with the member in the store."""
        with open_archive(path) as archive:
            digest = archive.digest(member)
            if not self.store.has(digest):
                with archive.open(member) as stream:
                    found = self.store.put_stream(stream)
                if found != digest:
                    raise IntegrityError(
                        f"digest is {found}, the manifest says {digest}",
                        slug="archive.member-digest",
                        where=f"{path}!{member}",
                        hint="the archive is damaged: make it again",
                    )
        return digest

    # Running

    def _execute(
        self, spec: ActionSpec, action: Action, key: Digest, resolved: _Resolved
    ) -> ActionResult:
        self.events.receive(ActionStarted(spec.mnemonic, spec.target))
        start = time.monotonic()
        with self.store.scratch() as folder:
            self._stage(spec, resolved, folder)
            code = self._run_tool(action, folder)
            if code != 0:
                raise self._failure(spec, key, resolved, folder, code)
            for path, stamp in resolved.stamps.items():
                if not _has_stamp(path, stamp):
                    raise _input_changed(path)
            outputs = _collect(spec, folder, self.store.put_file)
            log = self.store.put_file(folder / "log.txt")
        return ActionResult(outputs, log, time.monotonic() - start)

    def _stage(self, spec: ActionSpec, resolved: _Resolved, folder: Path) -> None:
        (folder / OUTPUTS).mkdir()
        (folder / INPUTS).mkdir()
        (folder / REQUEST).write_bytes(spec.request_bytes())
        for name, digest in resolved.digests.items():
            target = folder / INPUTS / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if name in resolved.paths:
                path = resolved.paths[name]
                _copy(path, target)
                # A file that had just been written can change without a trace in its stamp.
                if target.stat().st_size != digest.size or (
                    resolved.stamps[path].racy and digest_file(target) != digest
                ):
                    raise _input_changed(path)
            else:
                self._stage_blob(spec.inputs.get(name), digest, target)

    def _stage_blob(self, source: Input | None, digest: Digest, target: Path) -> None:
        try:
            self.store.verify(digest)
        except BlobMissingError:
            if not isinstance(source, MemberInput):
                raise
            if self._resolve_member(source.path, source.member) != digest:
                raise _input_changed(source.path) from None
        _link(self.store.path(digest), target)

    def _run_tool(self, action: Action, folder: Path) -> int:
        package_root = Path(jarvis_rules.__file__).parent.parent
        argv = [sys.executable, *action.argv[1:]]
        environment = {**action.environment, "PYTHONPATH": str(package_root)}
        with (folder / "log.txt").open("wb") as log:
            try:
                completed = subprocess.run(
                    argv,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=action.timeout,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise JarvisError(
                    f"{action.description} ran for more than {action.timeout} s and was stopped",
                    slug="action.timeout",
                    hint="raise the action's time-out, or give the machine more to work with",
                ) from None
        return completed.returncode

    def _failure(
        self, spec: ActionSpec, key: Digest, resolved: _Resolved, folder: Path, code: int
    ) -> JarvisError:
        label = f"{spec.mnemonic} {spec.target}"
        with contextlib.suppress(FileNotFoundError):
            return _tool_error(json.loads((folder / ERROR_FILE).read_bytes()), resolved.names)
        if code == -signal.SIGINT:
            return JarvisError(
                f"{label} was interrupted",
                slug="action.interrupted",
                hint="build again: what was finished is not done twice",
            )
        text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
        logs = self.store.root / "logs"
        logs.mkdir(exist_ok=True)
        log = logs / f"{spec.mnemonic}-{key.sha256[:16]}.log"
        log.write_text(text, encoding="utf-8")
        tail = "\n".join(text.splitlines()[-_LOG_TAIL:])
        reason = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        hint = "please report this: a tool must end in a message, not in a crash"
        if code == -signal.SIGKILL:
            hint = "was it the machine that ran out of memory? see `dmesg`, and run fewer at once"
        return JarvisError(
            f"{label} failed: {reason}\n{tail}\nwhole log: {log}",
            slug="action.crashed",
            hint=hint,
        )


def _collect(spec: ActionSpec, folder: Path, put: Callable[[Path], Digest]) -> dict[str, Digest]:
    """Store every declared output and return its digest; JarvisBug where one is missing."""
    outputs = folder / OUTPUTS
    file = outputs / spec.output.file
    if not file.is_file():
        raise JarvisBug(f"{spec.mnemonic} wrote no {spec.output.file}")
    collected = {spec.output.file: put(file)}
    found = {p for p in outputs.rglob("*") if not p.is_dir()} - {file}
    if spec.output.tree is not None:
        for name, digest in listed_files(file).items():
            path = outputs / spec.output.tree / name
            collected[f"{spec.output.tree}/{name}"] = put(path)
            found.discard(path)
            if collected[f"{spec.output.tree}/{name}"] != digest:
                raise JarvisBug(f"{spec.mnemonic} lists another digest for {name}")
    if found:
        raise JarvisBug(f"{spec.mnemonic} wrote undeclared files: {sorted(map(str, found))}")
    return collected


class _UnfitResultError(Exception):
    """A cached result does not name the outputs that its action declares."""


def _check_fits(output: Output, result: ActionResult) -> None:
    names = {name for name in result.outputs if name != output.file}
    if output.file not in result.outputs or not all(
        output.tree is not None and name.startswith(f"{output.tree}/") for name in names
    ):
        raise _UnfitResultError


@contextlib.contextmanager
def _faults_of_the_machine() -> Iterator[None]:
    """Turn an OSError, such as a full disk, into the error that the user can act upon."""
    try:
        yield
    except OSError as error:
        raise JarvisError(
            f"cannot be read or written: {error.strerror or error}",
            slug="action.io",
            where=None if error.filename is None else os.fsdecode(error.filename),
            hint="check the folder's permissions and the free space of its disk",
        ) from error


def _has_stamp(path: Path, stamp: FileStamp) -> bool:
    try:
        return FileStamp.of(path) == stamp
    except OSError:
        return False


def _input_changed(path: Path) -> IntegrityError:
    return IntegrityError(
        "the file changed while the action that reads it ran",
        slug="action.input-changed",
        where=str(path),
        hint="build again when nothing writes to it",
    )


def _tool_error(document: Any, names: Mapping[str, str]) -> JarvisError:
    """Return the error that a tool reported, with the user's paths instead of the staged ones."""
    staged = {f"{INPUTS}/{name}": shown for name, shown in names.items()}
    pattern = re.compile("|".join(map(re.escape, sorted(staged, key=len, reverse=True))) or "(?!)")

    def unstaged(text: str | None) -> str | None:
        return None if text is None else pattern.sub(lambda match: staged[match[0]], text)

    kind = ERROR_CLASSES.get(document["class"], JarvisError)
    return kind(
        unstaged(document["message"]) or "",
        slug=document["slug"],
        hint=unstaged(document["hint"]),
        where=unstaged(document["where"]),
    )


def _action_record(
    spec: ActionSpec, action: Action, key: Digest, result: ActionResult
) -> dict[str, Any]:
    return {
        "version": 1,
        "mnemonic": spec.mnemonic,
        "target": spec.target,
        "key": key.sha256,
        "static_key": spec.static_key(),
        "argv": list(action.argv),
        "request": dict(spec.request),
        "environment": dict(action.environment),
        "platform": dict(action.platform),
        "timeout": action.timeout,
        "toolchain": {
            "kind": spec.toolchain.kind,
            "name": spec.toolchain.name,
            "modules": list(spec.toolchain.modules),
            "distributions": list(spec.toolchain.distributions),
        },
        "inputs": {name: digest.to_json() for name, digest in action.inputs.items()},
        "outputs": {name: digest.to_json() for name, digest in result.outputs.items()},
    }


def _suggest(path: Path) -> str:
    """Return what may help where `path` cannot be read."""
    names = [] if not path.parent.is_dir() else [p.name for p in path.parent.iterdir()]
    return did_you_mean(path.name, names) or "check the path, or make the file first"


def _copy(source: Path, target: Path) -> None:
    """Copy a file of the user's, sharing its blocks where the file system can.

    Never a hard link: that would change the source's ctime, and share later edits.
    """
    with source.open("rb") as original, target.open("wb") as copy:
        try:
            while os.copy_file_range(original.fileno(), copy.fileno(), 1 << 30):
                pass
        except OSError:
            shutil.copyfileobj(original, copy, 1 << 20)


def _link(blob: Path, target: Path) -> None:
    """Show a blob of the store, which is read-only, under another name."""
    try:
        os.link(blob, target)
    except OSError:
        shutil.copyfile(blob, target)
