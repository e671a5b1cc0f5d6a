"""Which Python the serving environment is made of, and where its shared library lies."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jarvis_rules.errors import ToolchainError

SUPPORTED_VERSIONS = ("3.12", "3.11", "3.10")
"""Those with a stub in the server's wheel and a numpy 1.26 wheel, best first."""

PROBE_SECONDS = 20
APT_SECONDS = 60
DEFAULT_LIBRARY_DIRECTORIES = (
    "/usr/lib/x86_64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/lib",
)
PROBE = """\
import json, sys, sysconfig
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "implementation": sys.implementation.name,
    "executable": sys.executable,
    "libraries": [sysconfig.get_config_var("LIBDIR") or "", sys.base_prefix + "/lib"],
}))
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A CPython that answered: its program, `x.y` version and own library folders."""

    executable: str
    version: str
    library_directories: tuple[str, ...]


def library_name(version: str) -> str:
    """Return the file name of the shared library that Triton's stub for `version` links."""
    return f"libpython{version}.so.1.0"


def choose_interpreter(python: str | None) -> Interpreter:
    """Return the interpreter named by `python`, else the best supported one on this machine.

    Without a name: the running interpreter, then `python3.12`, `python3.11`, `python3.10` on
    PATH; one whose shared library is present goes before one whose library must be fetched.

    Raises `ToolchainError`: `serving.python-missing` when the named program does not run,
    `serving.python-unsupported` when it is of another version or none is found.
    """
    if python is not None:
        return _require_supported(python)
    found = [i for i in _candidates() if i.version in SUPPORTED_VERSIONS]
    if not found:
        raise ToolchainError(
            f"no supported Python found: Triton's Python stub needs CPython "
            f"{', '.join(sorted(SUPPORTED_VERSIONS))}",
            slug="serving.python-unsupported",
            hint=_ways_out(),
        )
    return next((i for i in found if find_shared_library(i)), found[0])


def find_shared_library(interpreter: Interpreter) -> Path | None:
    """Return the interpreter's own `libpython`, else the system's of the same `x.y`, else None."""
    name = library_name(interpreter.version)
    for directory in (*interpreter.library_directories, *DEFAULT_LIBRARY_DIRECTORIES):
        candidate = Path(directory) / name
        if directory and candidate.exists():
            return candidate
    return _from_linker_cache(name)


def fetch_shared_library(version: str, destination: Path) -> Path | None:
    """Unpack Debian's `libpythonX.Y` into `destination` and return the library, else None.

    Needs `apt-get` and `dpkg` but no root: nothing is installed.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        return None
    with tempfile.TemporaryDirectory(prefix="jarvis-libpython-") as work:
        if not _quietly(["apt-get", "download", f"libpython{version}"], work):
            return None
        packages = sorted(Path(work).glob("*.deb"))
        if not packages or not _quietly(["dpkg", "-x", str(packages[0]), "unpacked"], work):
            return None
        library = next(Path(work, "unpacked").rglob(library_name(version)), None)
        if library is None:
            return None
        destination.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy2(library, destination / library_name(version)))


def obtain_shared_library(
    interpreter: Interpreter, destination: Path, report: Callable[[str], None]
) -> Path:
    """Put the interpreter's `libpython` into `destination`, alone, and return its path there.

    The folder holds nothing else because it goes on the server's library path: a whole `lib` of
    Conda there would replace the C++ and SSL libraries that the server was linked with.

    Raises `ToolchainError` `serving.libpython-missing`.
    """
    name = library_name(interpreter.version)
    present = find_shared_library(interpreter)
    if present is not None:
        destination.mkdir(parents=True, exist_ok=True)
        (destination / name).symlink_to(present.resolve())
        return destination / name
    report(f"fetching `{name}` with `apt-get download`")
    fetched = fetch_shared_library(interpreter.version, destination)
    if fetched is None:
        raise ToolchainError(
            f"`{name}` not found: Triton's Python stub links it, and `{interpreter.executable}` "
            "was built without a shared library",
            slug="serving.libpython-missing",
            hint=f"apt-get install libpython{interpreter.version}",
        )
    return fetched


def _require_supported(python: str) -> Interpreter:
    interpreter = _probe(python)
    if interpreter is None:
        raise ToolchainError(
            f"`{python}` is not a CPython that can be run",
            slug="serving.python-missing",
            hint=_ways_out(),
        )
    if interpreter.version not in SUPPORTED_VERSIONS:
        raise ToolchainError(
            f"`{python}` is Python {interpreter.version}, expected "
            f"{', '.join(sorted(SUPPORTED_VERSIONS))}: the server needs numpy below 2, which has "
            "no wheel for any other",
            slug="serving.python-unsupported",
            hint=_ways_out(),
        )
    return interpreter


def _candidates() -> Iterator[Interpreter]:
    names = [sys.executable] + [f"python{version}" for version in SUPPORTED_VERSIONS]
    for name in names:
        interpreter = _probe(name) if name else None
        if interpreter is not None:
            yield interpreter


def _probe(program: str) -> Interpreter | None:
    """Ask a program what it is; a shim of pyenv may be on PATH and yet not run."""
    try:
        answer = subprocess.run(
            [program, "-I", "-c", PROBE],
            capture_output=True,
            timeout=PROBE_SECONDS,
            check=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        facts = json.loads(answer.stdout)
        if facts["implementation"] != "cpython":
            return None
        return Interpreter(facts["executable"], facts["version"], tuple(facts["libraries"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError, TypeError):
        return None


def _from_linker_cache(name: str) -> Path | None:
    program = shutil.which("ldconfig") or shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if program is None:
        return None
    try:
        listing = subprocess.run(
            [program, "-p"], capture_output=True, timeout=PROBE_SECONDS, check=True, text=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    for line in listing.splitlines():
        entry, arrow, path = line.strip().partition(" => ")
        if arrow and entry.split()[0] == name and Path(path).exists():
            return Path(path)
    return None


def _quietly(command: list[str], directory: str) -> bool:
    try:
        done = subprocess.run(
            command, cwd=directory, capture_output=True, timeout=APT_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


def _ways_out() -> str:
    return (
        "install Python 3.12, 3.11 or 3.10 and name it: "
        "`jarvis-rules serving-environment --python python3.12`"
    )
