"""Write `tensorrt_api.json`: what the published bindings of classical TensorRT declare.

    pip download --no-deps tensorrt-cu12-bindings==10.13.3.9.post1
    pip download --no-deps tensorrt-cu13-bindings==11.4.0.106
    python tests/unit/engines/make_tensorrt_api.py tensorrt_cu*.whl

The wheels hold the real bindings and no library beneath. So that they can be imported, each gets
libraries with the few functions that it links, all of which return null: enough to read classes,
members and signatures off the module, which pybind11 writes into docstrings, and no more. Needs
`cc` and `nm`, and the Python that the wheels are for.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from operator import attrgetter
from pathlib import Path

RESULT = Path(__file__).with_name("tensorrt_api.json")
CLASSES = (
    "Builder", "IBuilderConfig", "IHostMemory", "ILogger", "INetworkDefinition",
    "IOptimizationProfile", "IProgressMonitor", "ITensor", "ITimingCache", "OnnxParser",
    "ParserError",
)  # fmt: skip
ENUMS = (
    "BuilderFlag", "DataType", "HardwareCompatibilityLevel", "ILogger.Severity", "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
)  # fmt: skip
KEPT = ("__init__", "add_optimization_profile")
METHOD = re.compile(r"(?<=: )\[\s*\[.*?\]\s*\](?=,?\n {4,5}[\"}])", re.DOTALL)
SIGNATURE = re.compile(r"^(?:\d+\. )?(\w+)\((.*)\) -> (.*)$", re.MULTILINE)


def link_stubs(package: Path, folder: Path) -> None:
    """Make the libraries that the bindings are linked with."""
    bindings = package / "tensorrt.so"
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", bindings], capture_output=True, text=True, check=True
    ).stdout.split()
    # Those with a version come from the C and C++ libraries, those of Python from Python.
    wanted = [name for name in undefined[1::2] if re.fullmatch(r"(create|get|init)\w+", name)]
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in wanted))
    needed = subprocess.run(["ldd", bindings], capture_output=True, text=True, check=True).stdout
    for library in set(re.findall(r"libnv\w+\.so\.\d+", needed)):
        target = folder / library
        command = ["cc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", target, source]
        subprocess.run(command, check=True)


def split(text: str) -> list[str]:
    """Split parameters at commas outside brackets."""
    parts, depth = [""], 0
    for mark in text:
        depth += (mark in "[(") - (mark in "])")
        if mark == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += mark
    return [part.strip() for part in parts if part.strip()]


def read_parameters(text: str) -> list[list[object]]:
    """Return name, type and whether there is a default, of each."""
    parameters = []
    for part in split(text):
        declared, _, default = part.partition(" = ")
        name, _, kind = declared.partition(": ")
        kind = kind.replace("tensorrt_bindings.tensorrt.", "")
        parameters.append([name, kind, bool(default)])
    return parameters


def read_class(kind: type) -> dict[str, object]:
    methods: dict[str, object] = {}
    properties: dict[str, bool] = {}
    for name in dir(kind):
        # Layers are the parser's business.
        if name.startswith(("_", "add_")) and name not in KEPT:
            continue
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            properties[name] = member.fset is not None
        elif found := SIGNATURE.findall(inspect.getdoc(getattr(kind, name)) or ""):
            methods[name] = [read_parameters(text) for called, text, _ in found if called == name]
    return {"methods": methods, "properties": properties}


def read_module() -> dict[str, object]:
    """Describe the module; runs where it can be imported."""
    import tensorrt_bindings as trt

    return {
        "version": trt.__version__,
        "classes": {name: read_class(getattr(trt, name)) for name in CLASSES},
        "enums": {
            name: {
                member: int(value) for member, value in attrgetter(name)(trt).__members__.items()
            }
            for name in ENUMS
        },
    }


def one_line(found: re.Match[str]) -> str:
    return json.dumps(json.loads(found[0]))


def main() -> None:
    versions = {}
    for wheel in map(Path, sys.argv[1:]):
        with tempfile.TemporaryDirectory() as folder:
            zipfile.ZipFile(wheel).extractall(folder)
            link_stubs(Path(folder, "tensorrt_bindings"), Path(folder))
            output = subprocess.run(
                [sys.executable, __file__],
                env={**os.environ, "PYTHONPATH": folder, "LD_LIBRARY_PATH": folder},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        described = json.loads(output)
        versions[".".join(described["version"].split(".")[:2])] = described
    # A line for each method: what changes in a version is then seen.
    text = json.dumps(versions, indent=1, sort_keys=True)
    text = re.sub(METHOD, one_line, text)
    RESULT.write_text(text + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main()
    else:
        json.dump(read_module(), sys.stdout)
