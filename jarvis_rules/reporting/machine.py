"""What a machine can run engines with: its NVIDIA GPUs and driver, and the TensorRT it has."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.core.gpus import PresentGpu, present_gpus
from jarvis_rules.errors import UsageError

TIMEOUT_SECONDS = 10
_LIBRARY = re.compile(r"libnvinfer\.so\.(\d+(?:\.\d+)*)")
# Where NVIDIA's containers have it beside what the loader's own cache lists.
_FOLDERS = (
    "/opt/tritonserver/lib",
    "/opt/tritonserver/backends/tensorrt",
    "/usr/local/tensorrt/lib",
)


@dataclass(frozen=True, slots=True)
class Library:
    """A TensorRT library: its file, and the version that the file's name says."""

    version: str
    path: Path


@dataclass(frozen=True, slots=True)
class Machine:
    """What engines would run on, and what to call it, and the lack of a GPU, in a sentence."""

    name: str
    gpus: tuple[PresentGpu, ...]
    libraries: tuple[Library, ...] = ()
    server: Path | None = None
    without_gpu: str = "no NVIDIA GPU"

    def describe_gpus(self) -> str:
        """Return the GPUs as a sentence names them, each kind once."""
        found = dict.fromkeys(gpu.describe() for gpu in self.gpus)
        return " and ".join(found) or self.without_gpu


def examine_machine(server: Path | None = None) -> Machine:
    """Return this machine, with the TensorRT of a server's folder where one is given.

    UsageError where that is no folder.
    """
    if server is not None and not server.is_dir():
        raise UsageError(
            "not a folder, expected what has the server's libraries in it",
            slug="preflight.server",
            where=str(server),
            hint="name the server's folder, such as /opt/tritonserver, or the root of its image",
        )
    files = _loader_files() if server is None else server.rglob("libnvinfer.so.*")
    return Machine("this machine", present_gpus(), find_libraries(files), server)


def find_libraries(files: Iterable[Path]) -> tuple[Library, ...]:
    """Return the TensorRT libraries among files by their names, links followed, none twice.

    Nothing is loaded: a library that is loaded needs a driver, and fails without one.
    """
    found = set()
    for file in files:
        path = file.resolve()
        if (named := _LIBRARY.fullmatch(path.name)) and path.is_file():
            found.add(Library(named[1], path))
    return tuple(sorted(found, key=lambda library: str(library.path)))


def _loader_files() -> Iterator[Path]:
    """Yield candidates of the dynamic loader: its search path, its cache, NVIDIA's folders."""
    folders = [*os.environ.get("LD_LIBRARY_PATH", "").split(":"), *_FOLDERS]
    for folder in filter(None, folders):
        yield from Path(folder).glob("libnvinfer.so.*")
    for program in ("ldconfig", "/sbin/ldconfig"):
        try:
            output = subprocess.run(
                [program, "-p"],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_SECONDS,
                check=True,
            ).stdout
        except (OSError, subprocess.SubprocessError):
            continue
        yield from (Path(path) for path in re.findall(r"=> (\S*libnvinfer\.so\.\S+)", output))
        return


def describe_present(gpu: PresentGpu) -> dict[str, Any]:
    """Return what JSON reports say of a GPU of this machine."""
    return {
        "name": gpu.name,
        "compute_capability": gpu.compute_capability or None,
        "driver_version": gpu.driver_version,
        "memory_mib": gpu.memory_mib,
        "target": gpu.target.name if gpu.target else None,
    }
