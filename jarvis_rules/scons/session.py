"""One SCons run: what was declared, what is still right, and the actions that it runs."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import SCons.Errors
import SCons.Script

from jarvis_rules import __version__
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.execution.delivery import is_intact
from jarvis_rules.execution.execution_log import ExecutionLog
from jarvis_rules.execution.executor import Executor
from jarvis_rules.execution.workspace import lock_tree, open_executor
from jarvis_rules.formats.key_source import Key
from jarvis_rules.reporting.console import Console
from jarvis_rules.rules.engine_plan import EngineRequest
from jarvis_rules.rules.providers import DeclaredAction, PipelineInfo


class Session:
    """The state behind every environment of one SCons run that builds into one `out`."""

    def __init__(
        self,
        out: Path,
        gpus: Sequence[GpuTarget],
        request: EngineRequest,
        check_determinism: bool,
    ) -> None:
        self.out = out
        self.gpus = tuple(gpus)
        self.request = request
        self.check_determinism = check_determinism
        self.console = Console()
        self.pipelines: dict[str, PipelineInfo] = {}
        self.aliases: dict[str, Any] = {}
        self.keys: dict[str, Key] = {}  # of encrypted archives, by path
        self._declared: dict[str, tuple[DeclaredAction, Any]] = {}
        self._served: dict[str, str] = {}
        self._signatures: dict[str, str] = {}
        self._standing: dict[str, bool] = {}
        self._noted: set[str] = set()
        self._environments: dict[int, tuple[Any, Any]] = {}
        self._executor: Executor | None = None
        self._resources = contextlib.ExitStack()

    def _open(self) -> Executor:
        """Take the lock of the output folder and begin the execution log.

        A dry run and a clean-up have no log, and a dry run makes no output folder either.
        """
        pretending = SCons.Script.GetOption("no_exec")
        if pretending or SCons.Script.GetOption("clean"):
            if not pretending:
                self._resources.enter_context(lock_tree(self.out))
            atexit.register(self._resources.close)
            return self._resources.enter_context(open_executor(self.console))
        self._resources.enter_context(lock_tree(self.out))
        build = {
            "version": __version__,
            "gpus": [gpu.name for gpu in self.gpus],
            "targets": list(map(str, SCons.Script.COMMAND_LINE_TARGETS)),
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        log = ExecutionLog(self.out / "execution-log.jsonl", build)
        atexit.register(self._close, time.monotonic())
        executor = self._resources.enter_context(
            open_executor(
                self.console,
                log,
                require_cached=bool(SCons.Script.GetOption("require_cached")),
                check_determinism=self.check_determinism,
            )
        )
        executor.digests.preload(Path.cwd())
        return executor

    def _close(self, start: float) -> None:
        self.console.close()
        print(self.console.summary(time.monotonic() - start), file=sys.stderr)  # noqa: T201
        self._resources.close()

    @property
    def executor(self) -> Executor:
        """The executor, opened when something is first asked of it."""
        if self._executor is None:
            try:
                self._executor = self._open()
            except JarvisError as error:
                raise SCons.Errors.UserError(f"{error.render()}\n") from None
        return self._executor

    # Analysis

    def note_once(self, text: str) -> None:
        """Tell something once per run, and not in answer to `scons -h`."""
        if text not in self._noted and not SCons.Script.GetOption("help"):
            self._noted.add(text)
            self.console.note(text)

    def environment(self, env: Any) -> Any:
        """Return a copy of `env` with our decider: the user's own builders keep theirs."""
        # The original is kept with its copy, so that no other can take its identity.
        if id(env) not in self._environments:
            own = env.Clone()
            own.Decider(self.decide)
            # Our targets are not for SCons' cache. Left open, SCons asks for it at every target,
            # and for its default makes an environment with all compilers that it can find.
            own.CacheDir(None)
            self._environments[id(env)] = env, own
        return self._environments[id(env)][1]

    def declared(self, action: DeclaredAction) -> Any:
        """Return the nodes of an action that was declared before, else None.

        UsageError where another action makes the same file.
        """
        target = str(action.destination.file)
        if target not in self._declared:
            return None
        known, nodes = self._declared[target]
        if known.sources != action.sources or known.spec.static_key() != action.spec.static_key():
            one, other = (str(which.sources[0]) for which in (action, known))
            raise UsageError(
                f"{one} and {other} both make {target}",
                slug="target.duplicate",
                hint="rename one of them",
            )
        return nodes

    def declare(self, action: DeclaredAction, nodes: Any) -> None:
        """Remember an action and the nodes that SCons has for it."""
        self._declared[str(action.destination.file)] = action, nodes

    def node(self, path: Path) -> Any:
        """Return the node of a file that an action makes, else None."""
        declared = self._declared.get(str(path))
        return None if declared is None else declared[1][0]

    def declare_models(self, pipeline: str, models: Sequence[str]) -> None:
        """Claim the Triton model names of a pipeline; UsageError where another one has them."""
        for model in models:
            owner = self._served.setdefault(model, pipeline)
            if owner != pipeline:
                raise UsageError(
                    f"the Triton model `{model}` is claimed by pipelines `{owner}` and "
                    f"`{pipeline}`",
                    slug="pipeline.duplicate-model",
                    hint="give one of the pipelines another name",
                )

    # Up to date?

    def decide(self, dependency: Any, target: Any, previous: Any, _: Any = None) -> bool:
        """Tell SCons whether `dependency` obliges it to make `target` again.

        The signature is set before anything is returned: SCons would otherwise store none and
        build once more the next time.
        """
        path = dependency.get_abspath()
        # SCons asks twice, and by then whatever makes the dependency has run.
        if path not in self._signatures:
            with contextlib.suppress(OSError):
                self._signatures[path] = f"xxh3:{self.executor.digests.xxh3(path)}"
        if path in self._signatures:
            dependency.get_ninfo().csig = self._signatures[path]
        current = dependency.get_csig()
        if self.check_determinism or not self._stands(target):
            return True
        return bool(getattr(previous, "csig", None) != current)

    def _stands(self, target: Any) -> bool:
        """Return whether `target` and all that goes with it is as the last build left it."""
        path = target.get_internal_path()
        if path not in self._standing:
            action, _ = self._declared[path]
            intact = is_intact(self.executor.digests, action.spec.output, action.destination)
            self._standing[path] = intact and _is_as_stored(target)
        return self._standing[path]

    # Execution

    def run(self, target: Any) -> None:
        """Run the action that makes `target`; BuildError, which SCons reports, where it fails."""
        action, _ = self._declared[target.get_internal_path()]
        try:
            self.executor.run(action.spec, action.destination)
        except JarvisError as error:
            text = f"{error.render()}\n"
            raise SCons.Errors.BuildError(
                node=target, errstr=text, status=error.exit_code, exitstatus=2
            ) from None

    def remove_undeclared(self) -> None:
        """Remove the models of pipelines that are no longer declared from the repositories."""
        from jarvis_rules.triton.publish import remove_pipeline

        for gpu in self.gpus:
            models = self.out / gpu.name / "models"
            for manifest in models.glob("*.repository.json"):
                name = manifest.name.removesuffix(".repository.json")
                if name not in self.pipelines:
                    self.console.note(f"removing `{name}`: no pipeline of that name is declared")
                    remove_pipeline(models, name)


def _is_as_stored(target: Any) -> bool:
    """Return whether the file is the one that SCons has signed.

    Somebody else, with the same output folder, may have made it of something else since.
    """
    built = target.get_stored_info().ninfo
    status = os.stat(target.get_internal_path())  # noqa: PTH116  (for every target)
    known = getattr(built, "size", None), getattr(built, "timestamp", None)
    return known == (status.st_size, int(status.st_mtime))
