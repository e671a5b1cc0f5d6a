"""`jarvis-deploy`: `.jmir` pipelines → a Triton model repository for one GPU target."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from jarvis_rules.cli.command import (
    ArgumentParser,
    add_version,
    parse_file_and_key,
    print_note,
    run_command,
)
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.gpus import detect_gpu, find_gpu
from jarvis_rules.errors import UsageError
from jarvis_rules.execution.delivery import find_conflict
from jarvis_rules.execution.executor import Executed, Executor
from jarvis_rules.execution.store import BlobMissingError
from jarvis_rules.rules.providers import DeclaredAction

_EXAMPLES = """\
examples:
  jarvis-deploy asr.jmir /data/models
  jarvis-deploy -f asr.jmir tts.jmir /data/models --gpu a100
"""


def _run(argv: Sequence[str]) -> int:
    parser = ArgumentParser(
        prog="jarvis-deploy",
        description="Build engines for a GPU and write the Triton model repository.",
        epilog=_EXAMPLES,
    )
    parser.add_argument("pipelines", metavar="PIPELINE.jmir", nargs="+", help="pipelines to deploy")
    parser.add_argument("directory", metavar="DIR", help="model repository to write")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite differing models")
    parser.add_argument("--gpu", help="GPU target (default: the GPU of this machine, else cpu)")
    add_version(parser)
    arguments = parser.parse_args(argv)
    paths = [parse_file_and_key(text, (".jmir",)) for text in arguments.pipelines]
    return _deploy(paths, Path(arguments.directory), _target(arguments.gpu), arguments.force)


def _target(name: str | None) -> GpuTarget:
    if name is not None:
        return find_gpu(name)
    gpu, reason = detect_gpu()
    print_note(reason)
    return gpu


def _deploy(paths: Sequence[Path], directory: Path, gpu: GpuTarget, force: bool) -> int:
    from jarvis_rules.execution.workspace import lock_tree, open_executor
    from jarvis_rules.reporting.console import Console

    if directory.suffix == ".jmir":
        raise UsageError(
            "the last argument is the repository's folder, got a pipeline",
            slug="usage",
            where=str(directory),
            hint="`jarvis-deploy PIPELINE.jmir… DIR`",
        )
    with Console() as console, open_executor(console) as executor, lock_tree(directory):
        assembled = [_assemble(executor, path, directory, gpu) for path in paths]
        _refuse_clashes(assembled)
        for action, executed in assembled:
            if not force:
                _refuse_overwriting(executor, action, executed, directory)
        for action, executed in assembled:
            executor.deliver(action.spec, executed, action.destination)
    print(directory)  # noqa: T201
    return 0


def _assemble(
    executor: Executor, path: Path, directory: Path, gpu: GpuTarget
) -> tuple[DeclaredAction, Executed]:
    """Build engines and models of one pipeline into the store, delivering nothing yet."""
    from jarvis_rules.formats.archive import open_archive
    from jarvis_rules.rules.providers import PipelineInfo
    from jarvis_rules.rules.rules import assemble_repository, build_engines

    with open_archive(path, "jmir") as archive:
        metadata = archive.manifest.metadata
    pipeline = PipelineInfo(metadata["name"], metadata["kind"], path)
    engines = build_engines(pipeline, gpu, directory, directory)
    if engines.note is not None:
        print_note(engines.note)

    def assemble() -> tuple[DeclaredAction, Executed]:
        built = executor.run(engines.action.spec)
        action = assemble_repository(pipeline, gpu, built, directory, None).action
        return action, executor.run(action.spec)

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
