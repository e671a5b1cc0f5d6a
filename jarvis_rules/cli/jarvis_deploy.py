"""`jarvis-deploy`: `.jmir` pipelines → a Triton model repository for one GPU target."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jarvis_rules.cli.command import (
    ArgumentParser,
    add_version,
    parse_archive,
    parse_key,
    require_one_key,
    run_command,
)
from jarvis_rules.cli.verbosity import LEVELS, Talk
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.gpus import detect_gpu, find_gpu
from jarvis_rules.engines.engine import PRECISIONS, engine_names
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.execution.delivery import find_conflict
from jarvis_rules.execution.executor import Executed, Executor
from jarvis_rules.execution.store import BlobMissingError
from jarvis_rules.formats.jmir import EngineChoices
from jarvis_rules.rules.engine_plan import AUTO, EngineRequest, plan_engines
from jarvis_rules.rules.providers import DeclaredAction

if TYPE_CHECKING:
    from jarvis_rules.formats.key_source import Key

_EXAMPLES = """\
examples:
  jarvis-deploy asr.jmir /data/models
  jarvis-deploy asr.jmir:file:key.txt /data/models
  jarvis-deploy -f asr.jmir tts.jmir /data/models --gpu a100
  jarvis-deploy asr.jmir /data/models --gpu t4 --engine tensorrt_rtx --precision fp16
"""


def _run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="jarvis-deploy",
        description="Build engines for a GPU and write the Triton model repository.",
        epilog=_EXAMPLES,
        allow_abbrev=True,
    )
    parser.add_argument(
        "pipelines",
        metavar="PIPELINE.jmir",
        nargs="+",
        help="pipelines to deploy, or folders of pipelines",
    )
    parser.add_argument("directory", metavar="DIR", help="model repository to write")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite differing models")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what the tools said")
    parser.add_argument("--key", help="key of the pipelines, as PIPELINE.jmir:KEY gives it for one")
    parser.add_argument("--gpu", help="GPU target (default: the GPU of this machine, else cpu)")
    parser.add_argument(
        "--engine",
        default=AUTO,
        help=f"engine toolchain: {AUTO} (default), {', '.join(engine_names())}",
    )
    parser.add_argument(
        "--precision", help=f"of pipelines that ask for none: {', '.join(PRECISIONS)}"
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="of an earlier build (tensorrt)"
    )
    add_version(parser)
    arguments = parser.parse_args(argv)
    talk = Talk(LEVELS["DEBUG"]) if arguments.verbose else Talk()
    paths = _pipelines(arguments.pipelines, parse_key(arguments.key))
    try:
        gpu = _target(arguments.gpu, talk)
        request = EngineRequest(arguments.engine, arguments.precision, arguments.timing_cache)
        return _deploy(paths, Path(arguments.directory), gpu, request, arguments.force, talk)
    except JarvisError as error:
        error.hint = error.hint and _as_options(error.hint)
        raise


def _as_options(text: str) -> str:
    """Return a text that names variables of `scons` with the options of this command."""
    return re.sub(r"\b(GPU|ENGINE|PRECISION)=", lambda found: f"--{found[1].lower()} ", text)


def _pipelines(texts: Sequence[str], shared: Key | None) -> list[tuple[Path, Key | None]]:
    """Return the pipelines that are named, and those in the folders that are, with their keys."""
    paths: list[tuple[Path, Key | None]] = []
    for text in texts:
        path, key = parse_archive(text)
        key = require_one_key(shared, key, str(path))
        found = sorted(path.glob("*.jmir")) if path.is_dir() else [path]
        if not found:
            raise UsageError(
                "there is no `.jmir` in the folder",
                slug="file.missing",
                where=str(path),
                hint="make one with `jarvis-build`; the model repository is the last argument",
            )
        paths += [(file, key) for file in found]
    return paths


def _target(name: str | None, talk: Talk) -> GpuTarget:
    if name is not None:
        if "," in name:
            raise UsageError(
                f"one target each time, got `{name}`",
                slug="gpu.several",
                where="option `--gpu`",
                hint="run once for each, into folders of their own; `a100+l4` is one target",
            )
        return find_gpu(name)
    gpu, reason = detect_gpu()
    talk.note(reason)
    return gpu


def _deploy(
    paths: Sequence[tuple[Path, Key | None]],
    directory: Path,
    gpu: GpuTarget,
    request: EngineRequest,
    force: bool,
    talk: Talk,
) -> int:
    from jarvis_rules.execution.workspace import lock_tree, open_executor

    if directory.suffix == ".jmir":
        raise UsageError(
            "the last argument is the repository's folder, got a pipeline",
            slug="usage",
            where=str(directory),
            hint="`jarvis-deploy PIPELINE.jmir… DIR`",
        )
    with talk.console() as console, open_executor(console) as executor, lock_tree(directory):
        told: set[str] = set()
        assembled = [
            _assemble(executor, path, key, directory, gpu, request, talk, told)
            for path, key in paths
        ]
        _refuse_clashes(assembled)
        for action, executed in assembled:
            if not force:
                _refuse_overwriting(executor, action, executed, directory)
        for action, executed in assembled:
            executor.deliver(action.spec, executed, action.destination)
    print(directory)  # noqa: T201
    return 0


def _assemble(
    executor: Executor,
    path: Path,
    key: Key | None,
    directory: Path,
    gpu: GpuTarget,
    request: EngineRequest,
    talk: Talk,
    told: set[str],
) -> tuple[DeclaredAction, Executed]:
    """Build engines and models of one pipeline into the store, delivering nothing yet.

    Notes that are among those `told` are not repeated.
    """
    from jarvis_rules.formats.archive import open_archive
    from jarvis_rules.rules.engine_rules import (
        assemble_repository,
        build_engines,
        check_engines,
        convert_graphs,
    )
    from jarvis_rules.rules.providers import PipelineInfo

    with open_archive(path, "jmir", key=key) as archive:
        archive.require_key()
        metadata = archive.manifest.metadata
    choices = EngineChoices.from_json(metadata.get("engine_choices"))
    pipeline = PipelineInfo(metadata["name"], metadata["kind"], path, key, choices)
    plan = plan_engines(pipeline, gpu, request)
    for note in plan.notes:
        if note not in told:
            talk.note(_as_options(note))
    told.update(plan.notes)
    if key is not None:
        talk.note(f"`{path.name}` is encrypted, what a server loads is not: guard `{directory}`")

    def run(action: DeclaredAction) -> Executed:
        executed = executor.run(action.spec)
        talk.describe(executed)
        return executed

    def assemble() -> tuple[DeclaredAction, Executed]:
        graphs = None
        if plan.converted():
            graphs = run(convert_graphs(pipeline, plan, directory, directory).action)
        engines = run(build_engines(pipeline, plan, graphs, directory, directory).action)
        check = run(check_engines(pipeline, plan, graphs, engines, directory / "check").action)
        action = assemble_repository(pipeline, plan, engines, check, directory, None).action
        return action, run(action)

    try:
        return assemble()
    except BlobMissingError:
        # An engine that lay damaged in the store is gone now, so it is built anew.
        return assemble()


def _models(action: DeclaredAction, executed: Executed) -> dict[str, set[str]]:
    """Return the files of each Triton model that an action makes."""
    models: dict[str, set[str]] = {}
    prefix = f"{action.spec.output.tree}/"
    for name in executed.result.outputs:
        if name.startswith(prefix):
            file = name.removeprefix(prefix)
            models.setdefault(file.partition("/")[0], set()).add(file)
    return models


def _refuse_clashes(assembled: Sequence[tuple[DeclaredAction, Executed]]) -> None:
    owners: dict[str, DeclaredAction] = {}
    for action, executed in assembled:
        for model in _models(action, executed):
            if owners.setdefault(model, action) is not action:
                raise UsageError(
                    f"two of the pipelines make the Triton model `{model}`",
                    slug="pipeline.duplicate-model",
                    where=action.spec.target,
                    hint="build one of them with another `--name`",
                )


def _refuse_overwriting(
    executor: Executor, action: DeclaredAction, executed: Executed, tree: Path
) -> None:
    """UsageError where a model of the same name is there and differs; other models stay."""
    path = find_conflict(executor.digests, action.spec.output, executed.result, tree)
    if path is not None:
        model, _, file = path.relative_to(tree).as_posix().partition("/")
        raise UsageError(
            f"the model exists and differs in `{file}`",
            slug="deploy.exists",
            where=str(tree / model),
            hint="overwrite it with `-f`, or deploy to another folder",
        )


def main() -> None:
    """Run the command."""
    sys.exit(run_command(_run))
