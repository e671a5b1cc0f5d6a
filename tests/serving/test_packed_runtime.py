"""Packages of runtime modules that the server's own Python lacks: named, and brought along."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_rules.errors import JarvisError
from jarvis_rules.triton.environment import ServingEnvironment
from jarvis_rules.triton.language_client import ask_texts
from jarvis_rules.triton.server import TritonServer

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ARCHIVE = "runtime-env.tar.gz"
SCONSTRUCT = f"""
import jarvis_rules
env = Environment(tools=[jarvis_rules.tool])
model = env.NemoModel("token_classification.nemo")
env.Pipeline("plain", "token_classification", model)
env.Pipeline("packed", "token_classification", model, execution_env_path="{ARCHIVE}")
env.Default("deploy")
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with two pipelines: one takes the server's packages, one those beside its models."""
    folder = tmp_path_factory.mktemp("packed")
    shutil.copy(ROOT / "examples/token_classification/token_classification.nemo", folder)
    (folder / "SConstruct").write_text(SCONSTRUCT)
    environment = {**os.environ, "JARVIS_CACHE": str(folder / "cache")}
    command = [str(BIN / "scons"), "-Q", "deploy", "GPU=cpu"]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return Path(shutil.copytree(folder / "out/cpu/models", folder / "srv"))


@pytest.fixture
def without_tokenizers(
    serving_environment: ServingEnvironment, tmp_path: Path
) -> ServingEnvironment:
    """The same server and Python, with all its packages but one."""
    made = ServingEnvironment(tmp_path / "environment", serving_environment.python_version)
    made.site_packages.mkdir(parents=True)
    for entry in serving_environment.site_packages.iterdir():
        if not entry.name.startswith("tokenizers"):
            (made.site_packages / entry.name).symlink_to(entry)
    made.python.parent.mkdir()
    made.python.symlink_to(serving_environment.python.resolve())
    shutil.copy(serving_environment.path / "pyvenv.cfg", made.path)
    made.shared_libraries.symlink_to(serving_environment.shared_libraries)
    return made


def pack(repository: Path, version: str) -> Path:
    """Run the command; return the archive that it says it wrote."""
    command = [str(BIN / "jarvis-rules"), "runtime-env", str(repository), "--python", version]
    done = subprocess.run(
        [*command, "--out", str(repository / ARCHIVE)], capture_output=True, text=True, check=True
    )
    return Path(done.stdout.strip())


def test_a_missing_package_is_named(
    repository: Path, without_tokenizers: ServingEnvironment
) -> None:
    version = without_tokenizers.python_version
    with pytest.raises(JarvisError) as caught:
        TritonServer(repository, without_tokenizers, models=["plain"]).__enter__()
    assert caught.value.slug == "serve.start-failed"
    assert (
        "model `plain-processor` needs the Python package `tokenizers`, which this server's Python "
        "lacks: install runtime-requirements.txt, which lies beside this file, or name in "
        f"EXECUTION_ENV_PATH an archive that `jarvis-rules runtime-env --python {version}` made"
    ) in str(caught.value)


def test_an_archive_brings_the_packages(
    repository: Path, without_tokenizers: ServingEnvironment
) -> None:
    """The pipeline that names no archive does not load in this environment: see above."""
    archive = pack(repository, without_tokenizers.python_version)
    assert archive == repository / ARCHIVE
    content = archive.read_bytes()
    pack(repository, without_tokenizers.python_version)
    assert archive.read_bytes() == content
    with TritonServer(repository, without_tokenizers, models=["packed"]) as server:
        (answer,) = ask_texts(
            server.grpc_url, "packed", "token_classification", [{"text": "vera moved to helsinki"}]
        )
    entities = [(entity["label"], entity["text"]) for entity in answer["entities"]]
    assert entities == [("PER", "vera"), ("LOC", "helsinki")]
    assert not list(repository.rglob("__pycache__"))


def test_an_archive_for_another_python_is_told(
    repository: Path, without_tokenizers: ServingEnvironment
) -> None:
    version = without_tokenizers.python_version
    pack(repository, "3.12" if version != "3.12" else "3.11")
    with pytest.raises(JarvisError, match=f"`numpy`.* runtime-env --python {version}`"):
        TritonServer(repository, without_tokenizers, models=["packed"]).__enter__()
