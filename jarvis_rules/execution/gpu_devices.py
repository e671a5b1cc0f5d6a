"""The NVIDIA GPUs of this machine as files: devices, the driver's version, and its libraries.

Actions that ask for a GPU get all of this in their sandbox, and every other action none of it.
The driver's libraries belong to the machine, so what such an action makes may depend on
`driver_version`: the rule that declares it has to put that among its platform properties.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DRIVER_FACTS = Path("/proc/driver/nvidia")
"""What the driver tells of itself and of its GPUs."""

LIBRARY = "libcuda.so.1"

# What the driver's libraries read besides: the numbers of devices, and which memory is near.
_FACTS = (
    "proc/driver/nvidia", "proc/devices", "proc/modules",
    "sys/devices/system/node", "sys/devices/system/memory",
)  # fmt: skip
# Where containers and NixOS have the driver's libraries without telling the loader.
_UNLISTED_FOLDERS = ("usr/local/nvidia/lib64", "run/opengl-driver/lib")
_LDCONFIG_FOLDERS = "/sbin:/usr/sbin:/bin:/usr/bin:/run/current-system/sw/bin"
# How `ldconfig -p` marks the libraries of a machine.
_MACHINES = {"x86_64": "x86-64", "aarch64": "AArch64"}
_LISTED = re.compile(r"^\s*(\S+) \((.*?)\) => (.+)$", re.MULTILINE)
_VERSION = re.compile(
    r"^NVRM version:.* Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)\s", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class GpuDevices:
    """What an action that needs a GPU gets besides: all GPUs of the machine.

    `devices` are read, written and controlled; `readable` are files and folders. `library_path` is
    a folder of `readable` that the loader does not know of, for `LD_LIBRARY_PATH`.
    """

    devices: tuple[Path, ...]
    readable: tuple[Path, ...]
    library_path: Path | None = None


def gpu_environment(gpu: GpuDevices | None) -> dict[str, str]:
    """Return the variables that a tool needs to find the driver's libraries."""
    if gpu is None or gpu.library_path is None:
        return {}
    return {"LD_LIBRARY_PATH": str(gpu.library_path)}


def find_gpu_devices(root: Path = Path("/")) -> GpuDevices | None:
    """Return the device files, facts and libraries below `root`; None where no device is.

    A device file that the driver has not made yet cannot be made in a sandbox: `nvidia-modprobe
    -u`, or any program that uses the GPU, makes it.
    """
    devices = [path for path in sorted((root / "dev").glob("nvidia*")) if not path.is_dir()]
    devices += sorted((root / "dev" / "nvidia-caps").glob("*"))
    if not devices:
        return None
    listed = _listed_folder(_list_libraries(), os.uname().machine)
    unlisted = None if listed else _unlisted_folder(root)
    readable = [path for fact in _FACTS if (path := root / fact).exists()]
    readable += [*_with_target(listed or unlisted)]
    return GpuDevices(tuple(devices), tuple(readable), unlisted)


def driver_version(facts: Path = DRIVER_FACTS) -> str | None:
    """Return the version of the NVIDIA driver that runs here, such as `550.54.15`, or None."""
    try:
        text = (facts / "version").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = _VERSION.search(text)
    return None if found is None else found[1]


def _list_libraries() -> str:
    """Return what the loader's cache lists; empty where there is none (musl, NixOS)."""
    program = shutil.which("ldconfig", path=_LDCONFIG_FOLDERS)
    if program is None:
        return ""
    done = subprocess.run(
        [program, "-p"],
        env={"LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stdout


def _listed_folder(listing: str, machine: str) -> Path | None:
    """Return the folder of the driver's library for this machine in what `ldconfig -p` prints."""
    for name, marks, path in _LISTED.findall(listing):
        if name == LIBRARY and _MACHINES.get(machine, machine) in marks and Path(path).exists():
            return Path(path).parent
    return None


def _unlisted_folder(root: Path) -> Path | None:
    for name in _UNLISTED_FOLDERS:
        if (root / name / LIBRARY).exists():
            return root / name
    return None


def _with_target(folder: Path | None) -> Iterator[Path]:
    """Yield a folder of libraries, and that which its library really lies in."""
    if folder is not None:
        yield folder
        real = (folder / LIBRARY).resolve().parent
        if real != folder:
            yield real
