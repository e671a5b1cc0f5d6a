"""Toolchains: what a tool is made of, fingerprinted by content and never by path or version.

The fingerprint covers Python's minor version, the source of every module of ours that the tool
imports (found by reading the import statements, nothing is executed), the data files that those
modules declare in `PACKAGE_DATA`, and the installed files of the distributions that they import,
as the wheels' `RECORD` lists them. Rows of `bin/`, `*.dist-info/` and `*.pyc` are left out: those
hold install paths. So neither the install location nor the installer nor an unrelated module
changes a key, and a changed module of the closure does.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jarvis_rules.core.cache_directory import cache_directory
from jarvis_rules.core.canonical_json import dump_canonical_json
from jarvis_rules.core.digest import digest_bytes, digest_file
from jarvis_rules.errors import JarvisBug, ToolchainError

PACKAGE = "jarvis_rules"

# Import name to the distributions that its code comes from, their requirements included.
DISTRIBUTIONS: dict[str, tuple[str, ...]] = {
    "cryptography": ("cffi", "cryptography", "pycparser"),
    "google": ("protobuf",),
    "jsonschema": (
        "attrs", "jsonschema", "jsonschema-specifications", "referencing", "rpds-py",
        "typing-extensions",
    ),
    "numpy": ("numpy",),
    "onnx": ("ml-dtypes", "numpy", "onnx", "protobuf", "typing-extensions"),
    "onnxruntime": ("flatbuffers", "numpy", "onnxruntime", "packaging", "protobuf"),
    "rich": ("markdown-it-py", "mdurl", "pygments", "rich"),
    "tensorrt_rtx_bindings": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu13-libs"),
    "tomli": ("tomli",),
    "tritonclient": (
        "grpcio", "ml-dtypes", "numpy", "protobuf", "python-rapidjson", "tritonclient",
        "typing-extensions", "urllib3",
    ),
    "xxhash": ("xxhash",),
    "yaml": ("pyyaml",),
}  # fmt: skip

# Import names whose distributions depend on how they were installed, to the packages that they are
# made of: TensorRT comes as `tensorrt`, `tensorrt-cu12` or `tensorrt-cu13` with bindings and
# libraries of their own, or whole, beside libraries of the system that no distribution lists.
_VARIANTS: dict[str, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt_bindings", "tensorrt_libs"),
}

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_SETTLED_NS = 2_000_000_000

# Imported by the runtime inside Triton only: never on the build's side of a tool.
_RUNTIME_ONLY = frozenset({"triton_python_backend_utils", "jarvis_runtime", "tokenizers"})


@dataclass(frozen=True, slots=True)
class Toolchain:
    """What runs a tool: its kind (export, engine, triton, …), name, and content fingerprint."""

    kind: str
    name: str
    fingerprint: str
    modules: Mapping[str, str] = field(default_factory=dict, compare=False)
    distributions: Mapping[str, str] = field(default_factory=dict, compare=False)


def find_toolchain(kind: str, tool: str, extra_modules: Iterable[str] = ()) -> Toolchain:
    """Return the toolchain of `jarvis_rules.tools.<tool>`.

    `extra_modules` are modules that the tool loads by name at run time (a pipeline, an exporter,
    the runtime files that it copies). ToolchainError where a distribution is not installed.
    """
    return _find_toolchain(kind, tool, tuple(sorted(extra_modules)))


@functools.cache
def _find_toolchain(kind: str, tool: str, extra_modules: tuple[str, ...]) -> Toolchain:
    roots = (f"{PACKAGE}.tools.{tool}", *extra_modules)
    remembered = _recall(roots)
    if remembered is None:
        modules, imports = import_closure(roots)
        names = sorted({name for imported in imports for name in _distributions(imported)})
        remembered = {
            "python": _PYTHON,
            "modules": {name: _module_digest(name) for name in modules},
            "distributions": {name: _distribution_digest(name) for name in names},
        }
        _remember(roots, remembered)
    fingerprint = digest_bytes(dump_canonical_json(remembered)).sha256
    return Toolchain(kind, tool, fingerprint, remembered["modules"], remembered["distributions"])


# Reading all these sources takes longer than a build with nothing to do, so what came of it is
# kept in the cache directory, with the stamp of every file that was read.


def _memo(roots: tuple[str, ...]) -> Path:
    place = [_PYTHON, sys.prefix, str(Path(__file__).parent), *roots]
    name = digest_bytes(dump_canonical_json(place)).sha256
    return cache_directory() / "toolchains" / f"{name}.json"


def _recall(roots: tuple[str, ...]) -> dict[str, Any] | None:
    try:
        document = json.loads(_memo(roots).read_bytes())
        if all(_stamp(path) == stamp for path, stamp in document["files"].items()):
            return dict(document["toolchain"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def _remember(roots: tuple[str, ...], toolchain: dict[str, Any]) -> None:
    files = [file for name in toolchain["modules"] for file in _files(name)]
    files += [_record(name) for name in toolchain["distributions"]]
    folders = {str(file.parent) for file in files}
    memo = _memo(roots)
    try:
        stamps = {name: _stamp(name) for name in sorted({*map(str, files), *folders})}
        # A file that was written a moment ago could still change without its stamp changing.
        if time.time_ns() - max(stamp[2] for stamp in stamps.values()) < _SETTLED_NS:
            return
        memo.parent.mkdir(parents=True, exist_ok=True)
        temporary = memo.with_name(f"{memo.name}.{os.getpid()}.{threading.get_ident()}")
        temporary.write_bytes(dump_canonical_json({"files": stamps, "toolchain": toolchain}))
        temporary.replace(memo)
    except OSError:
        # A memo: without one, the sources are read again.
        return


def _stamp(path: str) -> list[int]:
    status = os.stat(path)  # noqa: PTH116  (hundreds of them in every build)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _distributions(imported: str) -> tuple[str, ...]:
    if imported in sys.stdlib_module_names or imported in _RUNTIME_ONLY:
        return ()
    if imported in _VARIANTS:
        return _installed_variant(imported)
    if imported not in DISTRIBUTIONS:
        raise JarvisBug(f"import `{imported}` is not in DISTRIBUTIONS of {__name__}")
    if imported == "tomli" and sys.version_info >= (3, 11):
        return ()
    return DISTRIBUTIONS[imported]


def _installed_variant(imported: str) -> tuple[str, ...]:
    """Return the distributions that provide a package here; ToolchainError where none does."""
    from importlib.metadata import packages_distributions

    providers = packages_distributions()
    if imported not in providers:
        raise ToolchainError(
            f"the package `{imported}` is not installed in {sys.prefix}",
            slug="toolchain.missing-package",
            hint=f"run `pip install {imported}`",
        )
    found = {name for package in _VARIANTS[imported] for name in providers.get(package, ())}
    return tuple(sorted(found))


def import_closure(roots: Iterable[str]) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return our modules that `roots` import, and the top-level names of everything else."""
    pending, seen, external = list(roots), set[str](), set[str]()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        ours, others = _imports(name)
        pending.extend(ours)
        external |= others
        parent = name.rpartition(".")[0]
        if parent:
            pending.append(parent)
    return tuple(sorted(seen)), frozenset(external)


def _source(module: str) -> Path:
    root = Path(__file__).parent.parent.joinpath(*module.split(".")[1:])
    for path in (root.with_suffix(".py"), root / "__init__.py"):
        if path.is_file():
            return path
    raise JarvisBug(f"no source for module {module}")


def _exists(module: str) -> bool:
    root = Path(__file__).parent.parent.joinpath(*module.split(".")[1:])
    return root.with_suffix(".py").is_file() or (root / "__init__.py").is_file()


@functools.cache
def _imports(module: str) -> tuple[frozenset[str], frozenset[str]]:
    """Return the modules of ours and the foreign top-level names that `module` imports."""
    import ast

    path = _source(module)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    named: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            named |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            named.add(base)
            if base.partition(".")[0] == PACKAGE:
                members = {f"{base}.{alias.name}" for alias in node.names}
                named |= {member for member in members if _exists(member)}
    ours = {name for name in named if name.partition(".")[0] == PACKAGE and _exists(name)}
    others = {name.partition(".")[0] for name in named} - {PACKAGE, "__future__"}
    return frozenset(ours), frozenset(others)


@functools.cache
def _module_digest(module: str) -> str:
    """Return the digest of a module's source and of the data files that it declares."""
    path, *data = _files(module)
    state = hashlib.sha256(path.read_bytes())
    for file in data:
        name = os.path.relpath(file, path.parent)
        state.update(f"\0{name}\0{digest_file(file)}".encode())
    return state.hexdigest()


@functools.cache
def _files(module: str) -> tuple[Path, ...]:
    """Return a module's source and the data files that it declares."""
    path = _source(module)
    patterns = _package_data(path.read_bytes())
    return path, *(file for pattern in patterns for file in sorted(path.parent.glob(pattern)))


def _record(name: str) -> Path:
    """Return what changes whenever a distribution is installed anew: its `RECORD`."""
    from importlib.metadata import distribution as find_distribution

    distribution = find_distribution(name)
    return Path(str(distribution.locate_file(""))) / next(
        (str(file) for file in distribution.files or () if file.name == "RECORD"), ""
    )


def _package_data(source: bytes) -> tuple[str, ...]:
    if b"PACKAGE_DATA" not in source:
        return ()
    import ast

    for node in ast.parse(source).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="PACKAGE_DATA")], value=value):
                return tuple(ast.literal_eval(value))
    return ()


@functools.cache
def _distribution_digest(name: str) -> str:
    """Return a digest of a distribution's installed files, from the rows of its `RECORD`."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import distribution as find_distribution

    try:
        distribution = find_distribution(name)
    except PackageNotFoundError:
        raise ToolchainError(
            f"the package `{name}` is not installed in {sys.prefix}",
            slug="toolchain.missing-package",
            hint=f"run `pip install {name}`, or install jarvis-rules with its requirements",
        ) from None
    rows = []
    for file in distribution.files or ():
        path = file.as_posix()
        if path.startswith("..") or path.endswith(".pyc") or ".dist-info/" in path:
            continue
        # A file without a recorded hash (an editable or distribution install) counts by content.
        if file.hash is not None:
            rows.append(f"{path} {file.hash.value}")
        else:
            rows.append(f"{path} {digest_file(Path(str(distribution.locate_file(file))))}")
    if not rows:
        raise ToolchainError(
            f"the package `{name}` lists no files, so its content cannot be part of a key",
            slug="toolchain.no-record",
            hint=f"install it from a wheel: `pip install --force-reinstall {name}`",
        )
    return digest_bytes("\n".join(sorted(rows)).encode()).sha256
