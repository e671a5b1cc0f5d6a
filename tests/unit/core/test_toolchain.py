"""Toolchain fingerprints: the import closure, and what is outside of it."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import jarvis_rules
from jarvis_rules.core import toolchain
from jarvis_rules.core.registry import entry_modules, entry_names

GOLDEN = Path(__file__).parents[2] / "keys" / "closures.json"
ROOT = Path(jarvis_rules.__file__).parent
EXTRA = {
    "archive_validate": (),
    "nemo_export": entry_modules("jarvis_rules.exporters"),
    "jmir_build": ("jarvis_rules.pipelines.speech_recognition",),
    "engine_build": ("jarvis_rules.engines.onnxruntime",),
    "engine_check": ("jarvis_rules.engines.onnxruntime",),
    "precision_convert": (),
    "repository_assemble": (
        "jarvis_rules.engines.onnxruntime",
        "jarvis_rules.runtime.ctc_decoder",
        "jarvis_rules.runtime.feature_extractor",
    ),
}


@pytest.mark.parametrize("tool", EXTRA)
def test_closure_is_golden(tool):
    """What a tool is made of shows in review; the distributions come from its own imports."""
    found = toolchain.find_toolchain("x", tool, EXTRA[tool])
    golden = json.loads(GOLDEN.read_text())[tool]
    assert {"modules": list(found.modules), "distributions": list(found.distributions)} == golden


def test_every_tool_is_covered():
    tools = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"__init__", "program"}
    assert tools == set(EXTRA)


def test_distributions_cover_their_requirements():
    """A requirement of a listed distribution is listed with it: its code can change results."""
    normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()  # noqa: E731
    for imported, names in toolchain.DISTRIBUTIONS.items():
        for name in names:
            try:
                requires = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                assert name == "tomli"
                continue
            plain = {normal(re.match(r"[\w.-]+", text)[0]) for text in requires if ";" not in text}
            # coloredlogs, sympy and the like: declared by onnxruntime, imported by neither of us.
            assert plain <= set(names) | {"coloredlogs", "sympy"}, imported


def fingerprints(package: Path) -> dict[str, str]:
    """Return the fingerprints of all tools of a copy of the package, in a process of its own."""
    code = (
        "import json; from jarvis_rules.core.toolchain import find_toolchain as f;"
        f"extra = {EXTRA!r};"
        "print(json.dumps({t: f('x', t, e).fingerprint for t, e in extra.items()}))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(package.parent)},
        cwd=package.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(output.stdout)


@pytest.fixture
def package(tmp_path):
    copy = tmp_path / "elsewhere" / "jarvis_rules"
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def test_install_path_and_unrelated_modules_do_not_count(package):
    here = {
        tool: toolchain.find_toolchain("x", tool, extra).fingerprint
        for tool, extra in EXTRA.items()
    }
    (package / "cli" / "jarvis_build.py").write_text("# another command\n")
    (package / "__init__.py").touch()
    assert fingerprints(package) == here


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("exporters/conv_asr.py", {"nemo_export"}),
        ("pipelines/speech_recognition.py", {"jmir_build"}),
        ("runtime/ctc_greedy.py", {"repository_assemble"}),
        ("engines/onnxruntime.py", {"engine_build", "engine_check", "repository_assemble"}),
        ("formats/schemas/pipeline.schema.json", set(EXTRA)),
        ("formats/archive_schemas/QAModel.yaml", {"archive_validate"}),
        ("gpus.toml", set()),
    ],
)
def test_a_change_reaches_the_tools_that_use_it(package, file, changed):
    before = fingerprints(package)
    path = package / file
    path.write_text(path.read_text() + ("\n" if path.suffix != ".py" else "\n# changed\n"))
    after = fingerprints(package)
    assert {tool for tool in after if after[tool] != before[tool]} == changed


def test_registry_lists_files(tmp_path, monkeypatch):
    folder = tmp_path / "things"
    folder.mkdir()
    for name in ("__init__", "thing", "_shared", "b", "a"):
        (folder / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert entry_names("things") == ("a", "b")
