"""What runtime modules need of the server's Python, as lines of the lock.

A module says in `REQUIRES` which packages it imports besides Python itself and Triton's own
`triton_python_backend_utils`. Their names are those of their distributions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from jarvis_rules.errors import JarvisBug

PACKAGE_DATA = ("serving-requirements.txt",)
LOCK_FILE = Path(__file__).with_name(PACKAGE_DATA[0])
RUNTIME = Path(__file__).parent.parent / "runtime"
REQUIREMENTS = "runtime-requirements.txt"
"""The file of a model's version folder that names what its Python needs."""

_HEADER = """\
# What this model imports besides Python and Triton. `jarvis-rules runtime-env` packs it, or, in
# the Python of Triton's Python backend:
#   pip install --require-hashes --no-deps --only-binary=:all: -r runtime-requirements.txt
"""
_ENGINE_HEADER = """\
# It needs the runtime of its engine besides, {runtime} {version}, which no such archive holds:
#   pip install --no-deps {packages}
"""
# Runtime module → the runtime that it loads engines with, and its packages. They are not in the
# lock of the serving environment: an engine asks for the version that built it.
_ENGINE_RUNTIMES = {
    "tensorrt_rtx": ("TensorRT-RTX", ("tensorrt-rtx-cu13-libs", "tensorrt-rtx-cu13-bindings")),
}
# A name and version, and the hashes on the lines that follow.
_LOCKED = re.compile(r"^(?P<name>[a-z0-9-]+)==(?:.*\\\n)*.*\n", re.MULTILINE)


def required_packages(modules: Iterable[str]) -> tuple[str, ...]:
    """Return the packages that runtime modules declare, sorted."""
    return tuple(sorted({package for module in modules for package in declared_packages(module)}))


def declared_packages(module: str) -> tuple[str, ...]:
    """Return `REQUIRES` of a runtime module, which is read and not executed."""
    import ast

    for node in ast.parse((RUNTIME / f"{module}.py").read_bytes()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="REQUIRES")], value=value):
                return tuple(ast.literal_eval(value))
    return ()


def render_requirements(packages: Iterable[str], engine: tuple[str, str] | None = None) -> bytes:
    """Return a requirements file with the locked version and hashes of each package.

    `engine` is the runtime module that runs an engine, and the version of the runtime that built
    it: the file says in its first lines how to install that one.
    """
    text = LOCK_FILE.read_text(encoding="utf-8")
    locked = {found["name"]: found.group() for found in _LOCKED.finditer(text)}
    wanted = sorted(packages)
    if unlocked := [package for package in wanted if package not in locked]:
        raise JarvisBug(f"{LOCK_FILE.name} has no {', '.join(unlocked)}")
    header = _HEADER + ("" if engine is None else _engine_header(*engine))
    return (header + "".join(locked[package] for package in wanted)).encode()


def _engine_header(module: str, version: str) -> str:
    if module not in _ENGINE_RUNTIMES:
        raise JarvisBug(f"no packages are known for the runtime module {module}")
    runtime, packages = _ENGINE_RUNTIMES[module]
    pinned = " ".join(f"{package}=={version}" for package in packages)
    return _ENGINE_HEADER.format(runtime=runtime, version=version, packages=pinned)
