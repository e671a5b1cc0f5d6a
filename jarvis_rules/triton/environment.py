"""The serving environment: a virtual environment with the real tritonserver in it.

The server comes out of the `nvidia-pytriton` wheel, so neither Docker nor a GPU nor root is
needed. It is made once per lock file and Python version and kept in the cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from jarvis_rules.errors import ToolchainError
from jarvis_rules.triton.interpreter import (
    SUPPORTED_VERSIONS,
    Interpreter,
    choose_interpreter,
    library_name,
    obtain_shared_library,
)
from jarvis_rules.triton.runtime_requirements import LOCK_FILE

RECIPE = 2
"""Counts changes to how an environment is made that the lock file does not show."""

COMPLETE = ".complete"
CHECK_SECONDS = 60
GLIBC_NEEDED = (2, 35)
NO_BYTECODE = "import sys; sys.dont_write_bytecode = True\n"

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class ServingEnvironment:
    """A finished environment: its folder and its Python version, `x.y`."""

    path: Path
    python_version: str

    @property
    def python(self) -> Path:
        """The interpreter that models run under."""
        return self.path / "bin" / "python3"

    @property
    def site_packages(self) -> Path:
        """Where numpy and onnxruntime are installed."""
        return self.path / "lib" / f"python{self.python_version}" / "site-packages"

    @property
    def triton(self) -> Path:
        """The folder of the server: `bin/`, `backends/`, `python_backend_stubs/`."""
        return self.site_packages / "pytriton" / "tritonserver"

    @property
    def server(self) -> Path:
        """The server's program."""
        return self.triton / "bin" / "tritonserver"

    @property
    def python_backend(self) -> Path:
        """The folder of Triton's Python backend, its stub included."""
        return self.triton / "backends" / "python"

    @property
    def stub(self) -> Path:
        """The program that runs one instance of a Python model."""
        return self.python_backend / "triton_python_backend_stub"

    @property
    def shared_libraries(self) -> Path:
        """The folder that must be on the server's library path."""
        return self.path / "libpython"

    def variables(self) -> dict[str, str]:
        """Return the process environment to start the server with.

        The stub takes its packages from the first `python3` on PATH.
        """
        variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "PYTHONPATH")}
        # Nothing in it computes on a GPU, and none means KIND_AUTO is a CPU on every machine.
        variables["CUDA_VISIBLE_DEVICES"] = ""
        variables["VIRTUAL_ENV"] = str(self.path)
        variables["PATH"] = f"{self.path / 'bin'}:{os.environ.get('PATH', os.defpath)}"
        libraries = (str(self.shared_libraries), os.environ.get("LD_LIBRARY_PATH", ""))
        variables["LD_LIBRARY_PATH"] = ":".join(part for part in libraries if part)
        return variables


def find_serving_environment(cache_dir: Path) -> ServingEnvironment | None:
    """Return the finished environment of this release's lock, newest Python first, or None."""
    for version in SUPPORTED_VERSIONS:
        environment = _at(cache_dir, version)
        if _is_complete(environment):
            return environment
    return None


def ensure_serving_environment(cache_dir: Path, report: Report) -> ServingEnvironment:
    """Return an environment, made now with a note to `report` when there is none yet."""
    environment = find_serving_environment(cache_dir)
    if environment is not None:
        return environment
    report("no serving environment yet: making one; the first run downloads about 100 MB")
    return prepare_serving_environment(None, cache_dir, report)


def prepare_serving_environment(
    python: str | None, cache_dir: Path, report: Report
) -> ServingEnvironment:
    """Make the environment under `cache_dir` unless it is already there.

    Two processes that do this at once wait for each other; one that was interrupted left no
    marker, and its folder is made anew.

    Raises `ToolchainError`: `serving.platform-unsupported`, `serving.python-missing`,
    `serving.python-unsupported`, `serving.cache-unwritable`, `serving.libpython-missing`,
    `serving.venv-failed`, `serving.install-failed`, `serving.unusable`.
    """
    _require_platform()
    interpreter = choose_interpreter(python)
    environment = _at(cache_dir, interpreter.version)
    if _is_complete(environment):
        return environment
    with _one_at_a_time(environment.path, report):
        if not _is_complete(environment):
            shutil.rmtree(environment.path, ignore_errors=True)
            _make(environment, interpreter, report)
    return environment


def require_numpy_below_2(environment: ServingEnvironment) -> None:
    """Refuse an environment into which somebody installed numpy 2.

    With numpy 2 the stub of Triton 2.51.0 passes wrong tensor values while the server says READY.

    Raises `ToolchainError` `serving.numpy2`.
    """
    found = environment.site_packages.glob("numpy-*.dist-info")
    installed = [entry.name.removesuffix(".dist-info").removeprefix("numpy-") for entry in found]
    if not installed or any(not version.startswith(("0.", "1.")) for version in installed):
        raise ToolchainError(
            f"the serving environment must have numpy below 2, got "
            f"{', '.join(installed) or 'none'}: Triton's Python stub silently corrupts tensors "
            "with any other",
            slug="serving.numpy2",
            where=str(environment.path),
            hint=f"rm -r {environment.path} && jarvis-rules serving-environment",
        )


def _at(cache_dir: Path, version: str) -> ServingEnvironment:
    content = LOCK_FILE.read_bytes() + f"\nrecipe {RECIPE} python {version}\n".encode()
    name = f"py{version}-{hashlib.sha256(content).hexdigest()[:16]}"
    return ServingEnvironment(cache_dir.absolute() / "serving" / name, version)


def _is_complete(environment: ServingEnvironment) -> bool:
    """Tell whether it was finished and the Python it was made of is still there."""
    library = environment.shared_libraries / library_name(environment.python_version)
    needed = (environment.path / COMPLETE, environment.python, library, environment.server)
    return all(path.exists() for path in needed)


def _require_platform() -> None:
    name, version = platform.libc_ver()
    parts = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    machine = f"{platform.system()} {platform.machine()}"
    if machine != "Linux x86_64" or name != "glibc" or parts < GLIBC_NEEDED:
        raise ToolchainError(
            "the bundled Triton server needs Linux x86_64 with glibc "
            f"{'.'.join(map(str, GLIBC_NEEDED))} or newer, got {machine} with "
            f"{name or 'no glibc'} {version}".rstrip(),
            slug="serving.platform-unsupported",
            hint="serve the repository with NVIDIA's own Triton container instead",
        )


@contextmanager
def _one_at_a_time(path: Path, report: Report) -> Iterator[None]:
    with _open_lock(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is making the serving environment, waiting")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _open_lock(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(path.name + ".lock").open("w")
    except OSError as fault:
        raise ToolchainError(
            f"the cache folder cannot be written: {fault.strerror}",
            slug="serving.cache-unwritable",
            where=str(path.parent),
            hint="name another one with `JARVIS_CACHE=DIR`",
        ) from fault


def _make(environment: ServingEnvironment, interpreter: Interpreter, report: Report) -> None:
    log = environment.path.with_name(environment.path.name + ".log")
    report(f"making the serving environment with {interpreter.executable}")
    with log.open("w", encoding="utf-8") as output:
        _create(environment, interpreter, output.fileno(), log)
    obtain_shared_library(interpreter, environment.shared_libraries, report)
    _install(environment, log, report)
    # The wheel has one stub for each Python, and the backend looks for it in its own folder. As a
    # link it still finds its libraries, which it does from its real path.
    stubs = environment.triton / "python_backend_stubs" / environment.python_version
    environment.stub.symlink_to(stubs / environment.stub.name)
    # Triton compiles every model.py that it loads; without this `__pycache__` would appear in the
    # repository it serves, and the embedded interpreter ignores PYTHONDONTWRITEBYTECODE.
    (environment.site_packages / "no-bytecode.pth").write_text(NO_BYTECODE, encoding="utf-8")
    _check(environment)
    facts = {"python": interpreter.executable, "version": interpreter.version}
    (environment.path / COMPLETE).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def _create(
    environment: ServingEnvironment, interpreter: Interpreter, output: int, log: Path
) -> None:
    done = subprocess.run(
        [interpreter.executable, "-m", "venv", str(environment.path)],
        stdout=output,
        stderr=output,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise _failed(
            f"`{interpreter.executable} -m venv` failed",
            "serving.venv-failed",
            log,
            f"apt-get install python{interpreter.version}-venv",
        )


def _install(environment: ServingEnvironment, log: Path, report: Report) -> None:
    command = [str(environment.python), "-m", "pip", "install", "--no-deps", "--require-hashes"]
    command += ["--only-binary=:all:", "--no-input", "--progress-bar=off"]
    command += ["--disable-pip-version-check", "-r", str(LOCK_FILE)]
    elsewhere = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PYTHONHOME", "PYTHONPATH")
    variables = {k: v for k, v in os.environ.items() if k not in elsewhere}
    with (
        log.open("a", encoding="utf-8") as output,
        subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as pip,
    ):
        for line in pip.stdout or ():
            output.write(line)
            if line.strip().startswith(("Downloading ", "Installing ")):
                report(line.strip())
    if pip.returncode:
        raise _failed(
            "pip could not install the serving environment",
            "serving.install-failed",
            log,
            "check the network and pip's settings (`pip config list`), then run "
            "`jarvis-rules serving-environment` again",
        )


def _check(environment: ServingEnvironment) -> None:
    """Start each program once, so that a library this machine lacks is named here and now."""
    probes = (
        (
            [
                str(environment.python),
                "-c",
                "import numpy, onnxruntime, tokenizers; print('usable')",
            ],
            "usable",
        ),
        ([str(environment.server), "--help"], "--model-repository"),
        ([str(environment.stub)], ""),
    )
    for command, expected in probes:
        text = _output(command, environment)
        if expected not in text or "error while loading shared libraries" in text:
            raise ToolchainError(
                f"`{Path(command[0]).name}` does not run: {_last_lines(text, 3)}",
                slug="serving.unusable",
                where=str(environment.path),
                hint="install the library that it names, then run "
                "`jarvis-rules serving-environment` again",
            )


def _output(command: list[str], environment: ServingEnvironment) -> str:
    try:
        done = subprocess.run(
            command,
            env=environment.variables(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=CHECK_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as fault:
        return f"error while loading shared libraries: {fault}"
    return done.stdout


def _failed(message: str, slug: str, log: Path, hint: str) -> ToolchainError:
    tail = _last_lines(log.read_text(encoding="utf-8", errors="replace"), 8)
    return ToolchainError(f"{message}\n{tail}\nlog: {log}", slug=slug, hint=hint)


def _last_lines(text: str, count: int) -> str:
    return "\n".join([line for line in text.splitlines() if line.strip()][-count:])
