"""Runs actions: resolves inputs, asks the action cache, runs the tool, delivers the outputs."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from jarvis_rules.core.action import Action, ActionResult, ActionSpec, Output
from jarvis_rules.core.digest import Digest
from jarvis_rules.core.events import (
    ActionCompared,
    ActionFinished,
    ActionProgress,
    ActionStarted,
    EventSink,
    NoEvents,
    Notice,
    Outcome,
)
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.execution.action_inputs import InputResolver, ResolvedInputs
from jarvis_rules.execution.delivery import Destination, deliver
from jarvis_rules.execution.execution_log import ExecutionLog, LogEntry
from jarvis_rules.execution.file_digests import FileDigests
from jarvis_rules.execution.process import LOG
from jarvis_rules.execution.resources import ResourceGate
from jarvis_rules.execution.store import BlobMissingError, Store, open_private_store, private_root

# What only running an action needs is imported there: most builds have little or nothing to run.
if TYPE_CHECKING:
    from jarvis_rules.execution.sandbox import Sandbox


@dataclass(frozen=True, slots=True)
class Executed:
    """What became of an action, and the store that its outputs are in."""

    action: Action
    key: Digest
    result: ActionResult
    outcome: Outcome
    store: Store = field(compare=False, repr=False)


class Executor:
    """Runs actions on this machine, with one store, for any number of threads."""

    def __init__(
        self,
        store: Store,
        digests: FileDigests,
        log: ExecutionLog | None = None,
        events: EventSink | None = None,
        sandbox: Sandbox | None = None,
        require_cached: bool = False,
        check_determinism: bool = False,
    ) -> None:
        self.store = store
        self.digests = digests
        self.log = log
        self.events = events or NoEvents()
        self._sandbox = sandbox
        self.require_cached = require_cached
        self.check_determinism = check_determinism
        self._gate = ResourceGate()
        self._inputs = InputResolver(store, digests)
        self._private: Store | None = None
        self._opening = threading.Lock()

    def store_of(self, spec: ActionSpec) -> Store:
        """Return where the outputs of an action are kept.

        What an encrypted input holds stays with the user whose key opened it: in a store of their
        own inside the cache, which nothing is shared from.
        """
        return self._private_store() if spec.confidential else self.store

    def _private_store(self) -> Store:
        with self._opening:
            if self._private is None:
                self._private = open_private_store(self.store.root)
            return self._private

    def find_blob(self, digest: Digest) -> Store:
        """Return the store that holds a blob, verified; BlobMissingError where none does."""
        store = self.store
        if private_root(store.root).is_dir() and not store.has(digest):
            store = self._private_store()
        store.verify(digest)
        return store

    def close(self) -> None:
        """Close the private store, if it was needed."""
        if self._private is not None:
            self._private.close()

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox that tools run in, chosen when the first one does: trying takes a moment."""
        if self._sandbox is None:
            from jarvis_rules.execution.sandbox import choose_sandbox

            self._sandbox = choose_sandbox()
            if self._sandbox.warning is not None:
                self.events.receive(Notice(self._sandbox.warning))
        return self._sandbox

    def run(self, spec: ActionSpec, destination: Destination | None = None) -> Executed:
        """Bring about the result of `spec`, and its files at `destination` if one is given.

        JarvisError where an input is missing or bad, or the tool fails; nothing is delivered then.
        """
        start = time.monotonic()
        action: Action | None = None
        try:
            with _faults_of_the_machine():
                resolved = self._inputs.resolve(spec)
                action = spec.resolve(resolved.digests)
                key = action.key()
                result, outcome = self._obtain(spec, action, key, resolved, destination)
                if self.check_determinism:
                    self._check_twice(spec, action, key, resolved, result, destination)
        except BaseException:
            self._report(spec, action, None, "failed", time.monotonic() - start)
            raise
        self._report(spec, action, result, outcome, time.monotonic() - start)
        return Executed(action, key, result, outcome, self.store_of(spec))

    def deliver(self, spec: ActionSpec, executed: Executed, destination: Destination) -> None:
        """Write the outputs of an action that `run` brought about to `destination`."""
        try:
            with _faults_of_the_machine():
                self._deliver(spec, executed.action, executed.key, executed.result, destination)
        except BlobMissingError:
            self.store_of(spec).forget(executed.key)
            self.run(spec, destination)

    def _obtain(
        self,
        spec: ActionSpec,
        action: Action,
        key: Digest,
        resolved: ResolvedInputs,
        destination: Destination | None,
    ) -> tuple[ActionResult, Outcome]:
        cached = self._deliver_cached(spec, action, key, destination)
        if cached is not None:
            return cached, "cached"
        if self.require_cached:
            from jarvis_rules.execution.action_record import not_cached

            raise not_cached(spec, action, None if destination is None else destination.record)
        # Whoever else wants this key waits here, in this process or another, and then finds it.
        with self.store_of(spec).lock(key):
            cached = self._deliver_cached(spec, action, key, destination)
            if cached is not None:
                return cached, "cached"
            return self._execute_and_deliver(spec, action, key, resolved, destination), "executed"

    def _execute_and_deliver(
        self,
        spec: ActionSpec,
        action: Action,
        key: Digest,
        resolved: ResolvedInputs,
        destination: Destination | None,
    ) -> ActionResult:
        store = self.store_of(spec)
        result = store.put_result(key, self._execute(spec, action, key, resolved))
        try:
            self._deliver(spec, action, key, result, destination)
        except BlobMissingError:
            # Another process has collected the blob, or taken the new one for the damaged old one.
            store.forget(key)
            result = store.put_result(key, self._execute(spec, action, key, resolved))
            self._deliver(spec, action, key, result, destination)
        return result

    def _deliver_cached(
        self, spec: ActionSpec, action: Action, key: Digest, destination: Destination | None
    ) -> ActionResult | None:
        """Deliver the cached result of an action; return None where there is none to be had."""
        store = self.store_of(spec)
        cached = store.result(key)
        if cached is None:
            return None
        if not cached.confined and self.sandbox.shareable:
            # Something undeclared may have gone into it; this build can do better.
            store.forget(key)
            return None
        try:
            _check_fits(spec.output, cached)
            self._deliver(spec, action, key, cached, destination)
        except (BlobMissingError, _UnfitResultError):
            # Damaged or collected meanwhile: as good as never cached.
            store.forget(key)
            return None
        return cached

    def _check_twice(
        self,
        spec: ActionSpec,
        action: Action,
        key: Digest,
        resolved: ResolvedInputs,
        result: ActionResult,
        destination: Destination | None,
    ) -> None:
        """Run an action once more; JarvisError where it does not give the same bytes."""
        if spec.not_reproducible is not None:
            self.events.receive(
                Notice(f"{action.description} not compared: {spec.not_reproducible}")
            )
            return
        again = self._execute(spec, action, key, resolved).outputs
        differing = sorted(
            name
            for name in again.keys() | result.outputs.keys()
            if again.get(name) != result.outputs.get(name)
        )
        if differing:
            # Which of the two is right, nobody knows: neither may be built upon.
            self.store_of(spec).forget(key)
            if destination is not None:
                destination.file.unlink(missing_ok=True)
            raise JarvisError(
                f"{action.description} gave other bytes the second time: {', '.join(differing)}",
                slug="action.not-deterministic",
                where=spec.target,
                hint="please report this: every action of these rules must be deterministic",
            )
        self.events.receive(ActionCompared(spec.mnemonic, spec.target))

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
        from jarvis_rules.execution.action_record import action_record, relative_sources

        record = action_record(spec, action, key, result.outputs, relative_sources(spec))
        deliver(self.store_of(spec), self.digests, spec.output, result, destination, record)

    def _report(
        self,
        spec: ActionSpec,
        action: Action | None,
        result: ActionResult | None,
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
                    outputs={} if result is None else result.outputs,
                    peak_memory_mib=(
                        result.peak_memory_mib if result and outcome == "executed" else None
                    ),
                )
            )
        self.events.receive(ActionFinished(spec.mnemonic, spec.target, outcome, seconds))

    # Running

    def _execute(
        self, spec: ActionSpec, action: Action, key: Digest, resolved: ResolvedInputs
    ) -> ActionResult:
        from jarvis_rules.execution.action_record import action_record, keep_failure
        from jarvis_rules.execution.tool_run import collect_outputs, run_tool

        store = self.store_of(spec)
        with self._gate.hold(spec.resources), store.scratch() as folder:
            self.events.receive(ActionStarted(spec.mnemonic, spec.target))
            start = time.monotonic()

            def tell(phase: str, detail: str) -> None:
                seconds = time.monotonic() - start
                progress = ActionProgress(spec.mnemonic, spec.target, phase, seconds, detail)
                self.events.receive(progress)

            self._inputs.stage(spec, resolved, folder, store)
            try:
                peak_memory_mib = run_tool(
                    self.sandbox,
                    action,
                    folder,
                    resolved.names,
                    since=resolved.began,
                    keys=spec.keys,
                    gpus=spec.resources.gpus,
                    on_progress=tell,
                )
            except JarvisError as error:
                record = action_record(spec, action, key, {}, resolved.names)
                keep_failure(store, record, folder, error)
                raise
            resolved.require_unchanged()
            outputs = collect_outputs(spec.mnemonic, spec.output, folder, store.put_file)
            log = store.put_file(folder / LOG)
        seconds = time.monotonic() - start
        return ActionResult(outputs, log, seconds, self.sandbox.shareable, peak_memory_mib)


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
        # Of a renaming the second name is the user's, the first a temporary one of ours.
        name = error.filename2 or error.filename
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise UsageError(
                f"may not be read or written: {error.strerror}",
                slug="file.unwritable",
                where=None if name is None else os.fsdecode(name),
                hint="name a file in a folder that you may write to",
            ) from error
        raise JarvisError(
            f"cannot be read or written: {error.strerror or error}",
            slug="action.io",
            where=None if name is None else os.fsdecode(name),
            hint="check the folder's permissions and the free space of its disk",
        ) from error
