"""`jarvis-rules doctor`: what this machine can do, and how to get the rest.

`--format json` prints one object:

- `version` of jarvis-rules; `python` {`version`, `executable`}; `machine` {`system`, `release`,
  `architecture`, `cpus`};
- `sandboxes`: a list of {`name`, `works`, `chosen`, `shareable`, `guarantees`, `program`,
  `reason`, `hint`}, the best first. `guarantees` maps `reads`, `writes`, `network`,
  `environment`, `tmp` and `processes` to whether they hold; it and `shareable` are null where the
  sandbox does not work, and `reason` says why. `program` is the file of `bwrap`, else null;
- `cache` {`path`, `exists`, `writable`, `files`, `bytes`, `free_bytes`}; `folder`, the current
  one, {`path`, `free_bytes`};
- `gpu` {`target`, `reason`, `present`}: what is built for when no GPU target is given, and the
  GPUs that are here, each {`name`, `compute_capability`, `driver_version`, `memory_mib`, `target`};
- `serving_environment`: {`path`, `python_version`}, or null before it has been made;
- `problems`: a list of {`message`, `slug`, `hint`}; without any the exit code is 0.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  jarvis-rules doctor
  jarvis-rules doctor --format json
  JARVIS_SANDBOX=landlock jarvis-rules doctor
"""


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add the `doctor` command."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what this machine can do: sandboxes, cache, GPU, serving",
        description="Say what this machine can do, and how to get the rest. Every sandbox is "
        "tried. The exit code is 0 when models can be built here.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--format", choices=("text", "json"), default="text", help="default: text")
    parser.set_defaults(run=run, parser=parser)


def run(args: argparse.Namespace) -> int:
    """Print the report; return 0, or the exit code of the first problem that forbids building."""
    from jarvis_rules.errors import EXIT_OK

    report, code = examine()
    if args.format == "json":
        print(json.dumps(report, indent=2, ensure_ascii=False))  # noqa: T201
    else:
        print("\n".join(_text(report)))  # noqa: T201
    return code or EXIT_OK


def examine() -> tuple[dict[str, Any], int]:
    """Return the report, and the exit code of its first problem or 0."""
    from jarvis_rules import __version__
    from jarvis_rules.core.cache_directory import cache_directory
    from jarvis_rules.core.gpus import detect_gpu, present_gpus
    from jarvis_rules.errors import JarvisError, ToolchainError
    from jarvis_rules.execution.sandbox import choose_sandbox
    from jarvis_rules.reporting.machine import describe_present
    from jarvis_rules.triton.environment import find_serving_environment

    problems: list[JarvisError] = []
    chosen = None
    try:
        chosen = choose_sandbox().name
    except JarvisError as error:
        problems.append(error)
    cache = _examine_cache(cache_directory())
    if not cache["writable"]:
        problems.append(
            ToolchainError(
                "cannot be used as the cache folder",
                slug="cache.unusable",
                where=cache["path"],
                hint="set `JARVIS_CACHE` to a folder that you may write to",
            )
        )
    gpu, reason = detect_gpu()
    serving = find_serving_environment(cache_directory())
    report = {
        "version": __version__,
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "machine": {
            "system": platform.system(),
            "release": platform.release(),
            "architecture": platform.machine(),
            "cpus": os.cpu_count(),
        },
        "sandboxes": _examine_sandboxes(chosen),
        "cache": cache,
        "folder": {"path": str(Path.cwd()), "free_bytes": shutil.disk_usage(Path.cwd()).free},
        "gpu": {
            "target": gpu.name,
            "reason": reason,
            "present": [describe_present(found) for found in present_gpus()],
        },
        "serving_environment": serving
        and {"path": str(serving.path), "python_version": serving.python_version},
        "problems": [{"message": str(p), "slug": p.slug, "hint": p.hint} for p in problems],
    }
    return report, problems[0].exit_code if problems else 0


def _examine_sandboxes(chosen: str | None) -> list[dict[str, Any]]:
    from jarvis_rules.execution.sandbox import NAMES, try_sandbox

    found = []
    for attempt in map(try_sandbox, NAMES):
        sandbox = attempt.sandbox
        program = getattr(sandbox, "program", None)
        found.append(
            {
                "name": attempt.name,
                "works": sandbox is not None,
                "chosen": attempt.name == chosen,
                "shareable": None if sandbox is None else sandbox.shareable,
                "guarantees": None if sandbox is None else dict(sandbox.guarantees),
                "program": program and str(program),
                "reason": attempt.reason,
                "hint": attempt.hint,
            }
        )
    return found


def _examine_cache(path: Path) -> dict[str, Any]:
    """Describe the cache folder, which is not made when it is missing."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    sizes = [size for _, size in _files(path)]
    return {
        "path": str(path),
        "exists": path.is_dir(),
        "writable": existing.is_dir() and os.access(existing, os.W_OK | os.X_OK),
        "files": len(sizes),
        "bytes": sum(sizes),
        "free_bytes": shutil.disk_usage(existing).free,
    }


def _files(path: Path) -> Iterator[tuple[str, int]]:
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)  # noqa: PTH118  (a cache has very many files)
            try:
                yield file, os.lstat(file).st_size
            except FileNotFoundError:  # a build removed it meanwhile
                continue


def _text(report: Mapping[str, Any]) -> Iterator[str]:
    machine, cache, folder = report["machine"], report["cache"], report["folder"]
    yield f"jarvis-rules  {report['version']}"
    yield f"python        {report['python']['version']}, {report['python']['executable']}"
    yield (
        f"machine       {machine['system']} {machine['release']} {machine['architecture']}, "
        f"{machine['cpus']} CPUs"
    )
    held = f"{cache['files']} files, {_size(cache['bytes'])}" if cache["exists"] else "not made yet"
    writable = "" if cache["writable"] else ", not writable"
    yield f"cache         {cache['path']}: {held}, {_size(cache['free_bytes'])} free{writable}"
    yield f"this folder   {folder['path']}: {_size(folder['free_bytes'])} free"
    yield f"gpu           {report['gpu']['reason']}"
    for found in report["gpu"]["present"]:
        memory = f", {found['memory_mib']} MiB" if found["memory_mib"] else ""
        yield f"{'':14}{found['name']}{memory}, driver {found['driver_version']}"
    serving = report["serving_environment"]
    yield (
        f"serving       Python {serving['python_version']}, {serving['path']}"
        if serving
        else "serving       no environment yet: `jarvis-rules serving-environment` makes it"
    )
    for label, sandbox in zip(("sandboxes", "", ""), report["sandboxes"], strict=True):
        yield f"{label:14}{_sandbox_line(sandbox)}"
        if sandbox["hint"]:
            yield f"{'':14}  hint: {sandbox['hint']}"
    for problem in report["problems"]:
        yield f"\nerror: {problem['message']} [{problem['slug']}]"
        if problem["hint"]:
            yield f"\nhint: {problem['hint']}"


def _sandbox_line(sandbox: Mapping[str, Any]) -> str:
    if not sandbox["works"]:
        return f"{sandbox['name']}: does not work here: {sandbox['reason']}"
    held = [what for what, holds in sandbox["guarantees"].items() if holds]
    open_ = [what for what, holds in sandbox["guarantees"].items() if not holds]
    name = f"{sandbox['name']} ({sandbox['program']})" if sandbox["program"] else sandbox["name"]
    parts = [
        "in use" if sandbox["chosen"] else "works",
        f"confines {_names(held)}" if held else "",
        f"leaves open {_names(open_)}" if open_ else "",
        "" if sandbox["shareable"] else "results are not fit to be shared",
    ]
    return f"{name}: {'; '.join(part for part in parts if part)}"


def _names(names: Sequence[str]) -> str:
    return ", ".join(names)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
