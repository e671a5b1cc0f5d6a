"""`tlt` and `tao`: the command lines of TLT 3 and TAO that export models to Jarvis."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

from jarvis_rules.cli.command import ArgumentParser, add_version, run_command
from jarvis_rules.cli.tlt_tasks import TASKS, VERBS, Task, find_task, require_verb


def _run(argv: Sequence[str], program: str = "tlt") -> int:
    if not argv:
        _parser(program).print_help(sys.stderr)
        return 2
    if argv[0].startswith("-"):
        _parser(program).parse_args(argv[:1])
    if argv[0] == "list":
        return _list(program, argv[1:])
    task = find_task(argv[0], program)
    if len(argv) == 1:
        _task_parser(program, task).error(f"expected a verb after `{task.name}`")
    if argv[1] in ("-h", "--help"):
        _task_parser(program, task).parse_args(argv[1:])
    require_verb(task, argv[1], program)

    # Help is printed without what only the work needs.
    if argv[1] == "export":
        arguments = _export_parser(program, task).parse_args(argv[2:])
        from jarvis_rules.cli.tlt_export import export

        written = export(program, task, arguments)
    else:
        arguments = _download_parser(program, task).parse_args(argv[2:])
        from jarvis_rules.cli.tlt_export import download_specs

        written = download_specs(program, task, arguments)
    print(written)  # noqa: T201
    return 0


def _list(program: str, argv: Sequence[str]) -> int:
    from jarvis_rules.cli.output import print_table

    parser = ArgumentParser(
        prog=f"{program} list",
        description="List the tasks, and the NeMo classes that each exports.",
        epilog=f"examples:\n  {program} list\n",
    )
    parser.parse_args(argv)
    print_table(
        ("task", "what", "NeMo classes", "encoder"),
        ((t.name, t.summary, ", ".join(t.classes), t.encoder or "") for t in TASKS.values()),
        gap=False,
    )
    return 0


def _parser(program: str) -> ArgumentParser:
    tasks = "\n".join(f"  {task.name:32}{task.summary}" for task in TASKS.values())
    parser = ArgumentParser(
        prog=program,
        usage=f"{program} [-h] [--version] TASK {{{','.join(VERBS)}}} ...\n       {program} list",
        description="Export checkpoints of TLT and NeMo to Jarvis .ejrvs archives.",
        epilog=f"""\
tasks:
{tasks}

verbs:
  export                          write the archive of a checkpoint
  download_specs                  write a commented spec for `export`

examples:
  {program} list
  {program} speech_to_text download_specs -o specs -r results
  {program} speech_to_text export -m jasper.tlt -e specs/export.yaml -r results
""",
    )
    add_version(parser)
    return parser


def _task_parser(program: str, task: Task) -> ArgumentParser:
    return ArgumentParser(
        prog=f"{program} {task.name}",
        usage=f"{program} {task.name} [-h] {{{','.join(VERBS)}}} ...",
        description=f"{task.summary}. Exports {task.models()}.",
        epilog=f"""\
examples:
  {program} {task.name} download_specs -o specs -r results
  {program} {task.name} export -m model.tlt -e specs/export.yaml -r results
  {program} {task.name} export --help
""",
    )


def _export_parser(program: str, task: Task) -> ArgumentParser:
    command = f"{program} {task.name} export"
    parser = ArgumentParser(
        prog=command,
        usage=f"{command} [-h] [-m MODEL] [-e SPEC] -r RESULTS [-k KEY] [-g GPUS] "
        "[field=value ...]",
        description=f"Export {task.models()} to an archive, and print its path.",
        epilog=f"""\
fields of a spec, and of field=value:
  restore_from     the checkpoint, a .nemo or .tlt
  export_to        the archive, below RESULTS (default: exported-model.ejrvs)
  export_format    JARVIS, RIVA or ONNX: the archive is the same (default: JARVIS)
  encryption_key   as -k
What the command line gives counts before the spec. ~/.{program}_mounts.json maps all paths.

examples:
  {command} -m model.tlt -e specs/export.yaml -r results
  {command} -m model.tlt -e specs/export.yaml -r results -k file:key.txt
  {command} -m model.nemo -r results export_to=en.ejrvs
""",
    )
    for option in (
        ("-m", "--resume_model_weights", "MODEL", "checkpoint to export, a .nemo or .tlt"),
        ("-e", "--experiment_spec_file", "SPEC", "YAML file of fields"),
        ("-r", "--results_dir", "RESULTS", "folder for archive, resolved spec and log"),
        ("-k", "--key", "KEY", "key to encrypt with: env:NAME, file:PATH, or the key itself"),
        ("-g", "--gpus", "GPUS", "accepted, without effect: exporting needs no GPU"),
    ):
        _add(parser, *option)
    parser.add_argument("overrides", nargs="*", metavar="field=value", help="see below")
    return parser


def _download_parser(program: str, task: Task) -> ArgumentParser:
    command = f"{program} {task.name} download_specs"
    parser = ArgumentParser(
        prog=command,
        description="Write a commented spec for `export`, and print its path. A file of that name "
        "with other content is never overwritten.",
        epilog=f"examples:\n  {command} -o specs -r results\n",
    )
    _add(parser, "-o", "--output_specs_dir", "DIR", "folder for the spec", required=True)
    _add(parser, "-r", "--results_dir", "RESULTS", "folder for the log", required=True)
    return parser


def _add(
    parser: ArgumentParser, short: str, long: str, metavar: str, text: str, required: bool = False
) -> None:
    parser.add_argument(short, long, metavar=metavar, help=text, required=required)


def main() -> None:
    """Run `tlt`."""
    sys.exit(run_command(_run))


def main_tao() -> None:
    """Run `tao`, the later name."""
    sys.exit(run_command(functools.partial(_run, program="tao")))
