"""Archives for Triton's `EXECUTION_ENV_PATH`: the packages that runtime modules import.

Triton's Python backend unpacks one, sources its `bin/activate`, and starts a stub, which is a
Python of the server's own and takes packages from the environment of the first `python3` on PATH.
So the archive holds packages and no Python: where it is unpacked, `activate` makes its folder an
environment of the `python3` that is already there. Nothing in it names a path, it is made of wheels
alone, and the same wheels give the same bytes on every machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from jarvis_rules.errors import JarvisError, ToolchainError, UsageError
from jarvis_rules.formats.input_file import require_regular
from jarvis_rules.formats.member_frame import END, member_header, padding
from jarvis_rules.formats.stored_gzip import StoredGzipWriter
from jarvis_rules.triton.model_folder import model_folders
from jarvis_rules.triton.runtime_requirements import REQUIREMENTS

PLATFORM = "manylinux2014_x86_64"
ACTIVATE = """\
# Triton's Python backend sources this before it starts a model: it makes this folder a virtual
# environment of the `python3` that is first on PATH, and puts it there instead.
folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
python=$(readlink -f "$(command -v python3)")
config="home = ${python%/*}
include-system-site-packages = false"
if [ "$(cat "$folder/pyvenv.cfg" 2>/dev/null)" != "$config" ]; then
    # Instances start at the same time, so each file appears whole.
    ln -s "$python" "$folder/bin/python3.$$" &&
        mv -fT "$folder/bin/python3.$$" "$folder/bin/python3" &&
        echo "$config" > "$folder/pyvenv.cfg.$$" &&
        mv -f "$folder/pyvenv.cfg.$$" "$folder/pyvenv.cfg" ||
        echo "error: $folder cannot become an environment of ${python:-python3}" >&2
fi
# Never a failure: Triton would wait for ever for a stub that is not started. Without its packages
# a model does not load, and says which one it lacks.
export PATH="$folder/bin:$PATH"
"""

BYTECODE = 'import sys; sys.pycache_prefix = f"{sys.prefix}/bytecode"\n'
"""So that nothing is compiled into the repository that Triton serves."""


def find_requirements(repository: Path) -> list[Path]:
    """Return what the Python models of a repository need, each content once.

    Raises `JarvisError`: `repository.missing`, `runtime-env.nothing` where no model says so,
    `file.unreadable`.
    """
    found: dict[bytes, Path] = {}
    for folder in model_folders(repository):
        for path in sorted(folder.glob(f"*/{REQUIREMENTS}")):
            require_regular(path)
            found.setdefault(path.read_bytes(), path)
    if not found:
        raise JarvisError(
            f"no model has a `{REQUIREMENTS}`",
            slug="runtime-env.nothing",
            where=str(repository),
            hint="build the repository with this version",
        )
    return list(found.values())


def pack_environment(requirements: Sequence[Path], python_version: str, archive: Path) -> None:
    """Write an archive with what requirements files name, for a server with Python `x.y`.

    Wheels for that Python come from pip, checked against the hashes in the files; its own version
    plays no part. A wheel's commands and headers are left out.

    Raises `ToolchainError` `runtime-env.no-pip`, `runtime-env.download-failed`; `UsageError`
    `file.unwritable`.
    """
    with tempfile.TemporaryDirectory(prefix="jarvis-wheels-") as folder:
        _download(requirements, python_version, Path(folder))
        wheels = sorted(Path(folder).glob("*.whl"))
        temporary = archive.with_name(f".{archive.name}.{os.getpid()}")
        try:
            archive.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as out:
                _write(out, wheels, f"lib/python{python_version}/site-packages")
            temporary.replace(archive)
        except OSError as fault:
            raise UsageError(
                f"cannot be written: {fault.strerror}",
                slug="file.unwritable",
                where=str(archive),
                hint="name another file with `--out`",
            ) from fault
        finally:
            temporary.unlink(missing_ok=True)


def _download(requirements: Sequence[Path], python_version: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps"]
    command += ["--only-binary=:all:", "--no-input", "--progress-bar=off", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder)]
    command += ["--implementation=cp", f"--python-version={python_version}"]
    command += [f"--platform={PLATFORM}", *(f"--requirement={path}" for path in requirements)]
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if "No module named pip" in done.stdout:
        raise ToolchainError(
            f"`{sys.executable}` has no pip, which fetches the packages",
            slug="runtime-env.no-pip",
            hint=f"{sys.executable} -m ensurepip",
        )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()][-8:]
        raise ToolchainError(
            "\n".join(["pip could not fetch the packages", *lines]),
            slug="runtime-env.download-failed",
            where=", ".join(map(str, requirements)),
            hint="check the network and pip's settings (`pip config list`)",
        )


def _write(out: BinaryIO, wheels: Sequence[Path], packages: str) -> None:
    stream = StoredGzipWriter(out)
    _add(stream, "bin/activate", ACTIVATE.encode())
    _add(stream, f"{packages}/bytecode.pth", BYTECODE.encode())
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as members:
            for installed, name in sorted(_installed(members)):
                _add(stream, f"{packages}/{installed}", members.read(name))
    stream.write(END)
    stream.close()


def _installed(wheel: zipfile.ZipFile) -> Iterator[tuple[str, str]]:
    """Yield where each file of a wheel that Python imports belongs, and its name in the wheel.

    Source: PyPA specification "Binary distribution format", spreading.
    """
    for name in wheel.namelist():
        top, _, rest = name.partition("/")
        kind, _, inner = rest.partition("/")
        if name.endswith("/"):
            continue
        if not top.endswith(".data"):
            yield name, name
        elif kind in {"purelib", "platlib"}:
            yield inner, name


def _add(stream: StoredGzipWriter, name: str, data: bytes) -> None:
    stream.write(member_header(name, len(data)))
    stream.write(data)
    stream.write(padding(len(data)))
