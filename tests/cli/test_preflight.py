"""`jarvis-rules preflight` as users run it: locks of repositories against machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from driver_testing import A10G, A100, H100, T4, install_driver

from jarvis_rules.core.gpus import find_gpu
from jarvis_rules.formats.schema import validate
from jarvis_rules.reporting.preflight import require_no_gpu
from jarvis_rules.triton.target_lock import make_target_lock

PROGRAM = Path(sys.executable).parent / "jarvis-rules"
ONNX = {"toolchain": "onnxruntime", "toolchain_version": "1.23.2", "portable": True}
RTX = {
    "toolchain": "tensorrt_rtx",
    "toolchain_version": "1.7.1.116",
    "portable": False,
    "driver_minimum": "580.65.06",
}
PLAN = {
    "toolchain": "tensorrt",
    "toolchain_version": "10.13.3.9",
    "portable": False,
    "driver_minimum": "525.60.13",
}


def add_pipeline(folder, name, gpu, engine, **changes):
    """Write the manifest of a pipeline with one engine into a repository."""
    folder.mkdir(parents=True, exist_ok=True)
    target = find_gpu(gpu).to_json()
    engines = {"am": {**engine, **changes}}
    manifest = {
        "version": 1,
        "pipeline": name,
        "kind": "speech_recognition",
        "gpu": target,
        "target_lock": make_target_lock(target, engines),
        "ensemble": name,
        "models": [name],
        "engines": engines,
        "files": {},
    }
    (folder / f"{name}.repository.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def preflight(tmp_path):
    """Run the command on a machine with these GPUs and no TensorRT but what is asked for."""

    def preflight(repository, *arguments, gpus=(), libraries=()):
        path = install_driver(tmp_path / "bin", *gpus)
        # What the loader of the machine that runs the tests knows must not matter.
        ldconfig = tmp_path / "bin" / "ldconfig"
        lines = [f"\t{Path(file).name} (libc6,x86-64) => {file}\n" for file in libraries]
        (tmp_path / "loader").write_text("".join(["2 libs found in cache\n", *lines]))
        ldconfig.write_text(f'#!/bin/sh\ncat "{tmp_path}/loader"\n')
        ldconfig.chmod(0o755)
        return subprocess.run(
            [str(PROGRAM), "preflight", str(repository), *map(str, arguments)],
            env={**os.environ, "PATH": path, "LD_LIBRARY_PATH": ""},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return preflight


@pytest.fixture
def repository(tmp_path):
    return tmp_path / "models"


def library(folder, version):
    """Make what NVIDIA's packages install: a library, and links to it by its major version."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"libnvinfer.so.{version}"
    file.write_bytes(b"")
    link = folder / f"libnvinfer.so.{version.partition('.')[0]}"
    if link != file:
        link.symlink_to(file.name)
    return link


@pytest.mark.parametrize("gpus", [(), (H100,), (T4, A100)])
def test_portable_pipelines_fit_everywhere(preflight, repository, gpus):
    add_pipeline(repository, "asr", "a100", ONNX)
    add_pipeline(repository, "ner", "cpu", ONNX)
    done = preflight(repository, gpus=gpus)
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing: it is portable" in done.stdout


@pytest.mark.parametrize(
    ("gpu", "engine", "gpus", "lines", "hint"),
    [
        (
            "a100", RTX, (H100,),
            ["asr: engine for a100 (sm_80), this machine has NVIDIA H100 80GB HBM3 (sm_90)"],
            "`scons deploy GPU=h100` builds for what is here",
        ),
        (
            "a100", PLAN, (),
            ["asr: engine for a100 (sm_80), this machine has no NVIDIA GPU"],
            "`scons deploy GPU=cpu` builds for what is here",
        ),
        (
            "a100+l4", RTX, (A10G,),
            ["asr: engine for a100+l4 (sm_80 and sm_89), this machine has NVIDIA A10G (sm_86)"],
            "`scons deploy GPU=sm86` builds for what is here",
        ),
        (
            "a100", RTX, (A100,),
            ["asr: needs driver 580.65.06 or newer, this machine has 550.54.14"],
            "install NVIDIA's driver 580.65.06 or newer",
        ),
        (
            "h100", RTX, (T4, T4, A100),
            [
                "asr: engine for h100 (sm_90), this machine has Tesla T4 (sm_75) and "
                "NVIDIA A100-SXM4-40GB (sm_80)",
                "asr: needs driver 580.65.06 or newer, this machine has 550.54.14",
            ],
            "`scons deploy GPU=t4` builds for what is here; install NVIDIA's driver 580.65.06",
        ),
    ],
    ids=["other", "none", "sum", "driver", "both"],
)  # fmt: skip
def test_both_sides_of_a_mismatch_are_named(preflight, repository, gpu, engine, gpus, lines, hint):
    add_pipeline(repository, "asr", gpu, engine)
    add_pipeline(repository, "fine", gpu, ONNX)
    done = preflight(repository, gpus=gpus)
    assert done.returncode == 1
    error, _, rest = done.stderr.partition("error: ")[2].partition("\n\nhint: ")
    assert (
        error
        == f"{repository}: not built for here\n"
        + "\n".join(f"  {line}" for line in lines)
        + " [preflight.mismatch]"
    )
    assert rest.startswith(hint)
    read = preflight(repository, "--format", "json", gpus=gpus)
    assert read.returncode == 1
    assert read.stderr == ""
    report = json.loads(read.stdout)
    validate(report, "preflight", "x")
    assert not report["fits"]
    asr, fine = report["pipelines"]
    assert [f"asr: {text}" for text in asr["mismatches"]] == lines
    assert fine["mismatches"] == []


@pytest.mark.parametrize(
    ("gpu", "changes", "gpus"),
    [
        ("a100", {}, (A100,)),
        ("a100+l4", {}, (A100,)),
        # Another GPU of the same capability runs it.
        ("a10", {}, (A10G,)),
        ("a100", {"options": {"hardware_compatibility": "ampere_plus"}}, (H100,)),
        ("a100", {"driver_minimum": "550.54.14"}, (A100,)),
        ("a100", {"driver_minimum": None}, (A100,)),
    ],
)
def test_what_fits(preflight, repository, gpu, changes, gpus):
    add_pipeline(repository, "asr", gpu, PLAN, **changes)
    done = preflight(repository, "--format", "json", gpus=gpus)
    report = json.loads(done.stdout)
    validate(report, "preflight", "x")
    assert (done.returncode, report["fits"], report["hint"]) == (0, True, None)


def test_hardware_compatibility_ends_somewhere(preflight, repository):
    changes = {"options": {"hardware_compatibility": "ampere_plus"}}
    add_pipeline(repository, "asr", "a100", PLAN, **changes)
    done = preflight(repository, gpus=(T4,))
    assert done.returncode == 1
    text = "asr: engine for a100 (sm_80 and newer), this machine has Tesla T4 (sm_75)"
    assert text in done.stderr


def test_one_gpu_of_several_must_fit(preflight, repository):
    add_pipeline(repository, "asr", "a100", PLAN)
    done = preflight(repository, gpus=(T4, A100))
    assert done.returncode == 0
    assert (
        "note: asr: engine for a100 (sm_80): hide Tesla T4 (sm_75) from the server" in done.stderr
    )


@pytest.mark.parametrize(
    ("versions", "compatible", "fits"),
    [
        (["10.13.3"], False, True),
        (["10"], False, True),
        (["10.13.2"], False, False),
        (["11.4.0"], False, False),
        (["11.4.0"], True, True),
        (["10.12.0"], True, False),
        (["11.4.0", "10.13.3"], False, True),
    ],
)
def test_versions_of_tensorrt(preflight, repository, tmp_path, versions, compatible, fits):
    changes = {"options": {"version_compatible": True}} if compatible else {}
    add_pipeline(repository, "asr", "a100", PLAN, **changes)
    links = [library(tmp_path / "lib" / version, version) for version in versions]
    by_loader = preflight(repository, gpus=(A100,), libraries=links)
    by_folder = preflight(repository, "--server", tmp_path / "lib", gpus=(A100,))
    text = f"asr: TensorRT 10.13.3.9 engine, {{}} has TensorRT {' and '.join(versions)}"
    for done, place in ((by_loader, "this machine"), (by_folder, tmp_path / "lib")):
        assert done.returncode == (0 if fits else 1), done.stderr
        assert (text.format(place) in done.stderr) is not fits
        assert f"{versions[0]}, {tmp_path}/lib/" in done.stdout


def test_without_tensorrt_nothing_is_compared(preflight, repository, tmp_path):
    add_pipeline(repository, "asr", "a100", PLAN)
    done = preflight(repository, gpus=(A100,))
    assert done.returncode == 0
    assert "note: asr: TensorRT 10.13.3.9 engine: no libnvinfer.so was found" in done.stderr
    (tmp_path / "server").mkdir()
    done = preflight(repository, "--server", tmp_path / "server", gpus=(A100,))
    assert done.returncode == 1
    assert f"TensorRT 10.13.3.9 engine, {tmp_path}/server has no libnvinfer.so" in done.stderr
    done = preflight(repository, "--server", tmp_path / "absent", gpus=(A100,))
    assert done.returncode == 2
    assert "[preflight.server]" in done.stderr


def test_tensorrt_rtx_is_not_looked_for(preflight, repository):
    add_pipeline(repository, "asr", "h100", RTX)
    done = preflight(repository, gpus=(H100,))
    assert done.returncode == 0
    assert "needs TensorRT-RTX 1.7.1.116 in the Python that" in done.stderr


def test_releases(preflight, tmp_path):
    release = add_pipeline(tmp_path / "srv" / "releases" / "0123", "asr", "a100", PLAN)
    (tmp_path / "srv" / "current").symlink_to("releases/0123")
    for path in (tmp_path / "srv", tmp_path / "srv" / "current", release):
        assert preflight(path, gpus=(A100,)).returncode == 0
        assert preflight(path, gpus=(H100,)).returncode == 1


def test_what_is_no_repository(preflight, tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        done = preflight(path)
        assert done.returncode == 2
        assert "[repository.none]" in done.stderr


@pytest.mark.parametrize("changes", [{"gpu": "\x1b[31m"}, {"compute_capabilities": ["x"]}, None])
def test_manifests_that_are_none(preflight, repository, changes):
    add_pipeline(repository, "asr", "a100", PLAN)
    path = repository / "asr.repository.json"
    manifest = json.loads(path.read_text())
    if changes is None:
        del manifest["target_lock"]
    else:
        manifest["target_lock"] |= changes
    path.write_text(json.dumps(manifest))
    done = preflight(repository, gpus=(A100,))
    assert done.returncode == 3
    assert "[schema.invalid]" in done.stderr
    assert "\x1b" not in done.stderr


def test_a_name_that_a_terminal_would_obey(preflight, repository):
    add_pipeline(repository, "asr", "a100", PLAN)
    path = repository / "asr.repository.json"
    path.write_text(path.read_text().replace('"pipeline": "asr"', '"pipeline": "\\u001b[31masr"'))
    done = preflight(repository)
    assert done.returncode == 1
    assert "\x1b" not in done.stdout + done.stderr
    assert "\\x1b[31masr: engine for a100" in done.stderr


@pytest.mark.parametrize("gpu", ["a100", "h100"])
def test_the_bundled_server_refuses_what_needs_a_gpu(repository, tmp_path, gpu):
    add_pipeline(repository, "asr", gpu, PLAN)
    done = subprocess.run(
        [str(PROGRAM), "serve", str(repository)],
        env={**os.environ, "PATH": install_driver(tmp_path / "bin", A100)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    text = f"asr: engine for {gpu} ({find_gpu(gpu).architectures()}), the bundled server has no GPU"
    assert text in done.stderr
    assert "[preflight.mismatch]" in done.stderr


def test_the_bundled_server_asks_for_no_gpu(repository, tmp_path):
    add_pipeline(repository, "asr", "a100", ONNX)
    require_no_gpu(repository)
    require_no_gpu(tmp_path)
