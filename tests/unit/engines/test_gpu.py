"""GPU targets: the stanzas, their names, and the GPU of this machine."""

from __future__ import annotations

import re

import pytest

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.core.gpus import detect_gpu, find_gpu, find_gpus, load_gpus
from jarvis_rules.errors import UsageError

GPUS = load_gpus()


@pytest.mark.parametrize("name", GPUS)
def test_stanzas(name):
    gpu = GPUS[name]
    assert gpu.name == name == name.lower()
    assert gpu.description
    assert hash(gpu)
    if name == CPU:
        assert (gpu.compute_capability, gpu.memory_gib) == (None, None)
        assert gpu.properties() == {"GPU": "cpu"}
    else:
        assert re.fullmatch(r"\d+\.\d", gpu.compute_capability)
        assert isinstance(gpu.memory_gib, int)
        assert gpu.properties() == {"GPU": name, "compute-capability": gpu.compute_capability}
    assert set(gpu.to_json()) == {"name", "compute_capability", "memory_gib"}


def test_no_name_has_two_meanings():
    names = [name for gpu in GPUS.values() for name in (gpu.name, *gpu.aliases)]
    assert sorted(set(names)) == sorted(names)
    assert all(find_gpu(alias) is gpu for gpu in GPUS.values() for alias in gpu.aliases)


@pytest.mark.parametrize("name", ["a100", "A100", " a100 ", "A100_40GB", "sm80"])
def test_find(name):
    assert find_gpu(name) is GPUS["a100"]


def test_an_unknown_gpu_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="unknown GPU `a10O`") as caught:
        find_gpu("a10O")
    assert caught.value.slug == "gpu.unknown"
    assert "did you mean" in caught.value.hint
    assert "`a100`" in caught.value.hint


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("a100,l4", ["a100", "l4"]),
        ("l4, a100", ["a100", "l4"]),
        ("a100,sm80,A100", ["a100"]),
        ("cpu", ["cpu"]),
        ("", ["cpu"]),
        (",", ["cpu"]),
    ],
)
def test_several(names, found):
    assert [gpu.name for gpu in find_gpus(names)] == found


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put an `nvidia-smi` on the path that prints what it is told."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def driver(output, code=0):
        (tmp_path / "output").write_bytes(output)
        program = tmp_path / "nvidia-smi"
        program.write_text(f'#!/bin/sh\ncat "{tmp_path}/output"\nexit {code}\n')
        program.chmod(0o755)

    return driver


@pytest.mark.parametrize(
    ("output", "name"),
    [
        (b"NVIDIA A100-SXM4-40GB\n", "a100"),
        (b"NVIDIA A100 80GB PCIe\nNVIDIA L4\n", "a100"),
        (b"Tesla T4\n", "t4"),
        (b"NVIDIA A10\n", "a10"),
        (b"NVIDIA L4\n", "l4"),
        (b"NVIDIA H100 80GB HBM3\n", "h100"),
    ],
)
def test_detect(driver, output, name):
    driver(output)
    gpu, reason = detect_gpu()
    assert gpu.name == name
    assert reason == f"found {output.decode().splitlines()[0]}, so the target is `{name}`"


@pytest.mark.parametrize(
    ("output", "code", "reason"),
    [
        (b"NVIDIA A10G\n", 0, "not in gpus.toml"),
        (b"NVIDIA L40S\n", 0, "not in gpus.toml"),
        (b"NVIDIA GeForce RTX 4090\n", 0, "not in gpus.toml"),
        (b"", 0, "not in gpus.toml"),
        (b"\xff\n", 0, "not in gpus.toml"),
        (b"No devices were found\n", 6, "finds no GPU"),
        (b"NVIDIA-SMI has failed\n", 9, "finds no GPU"),
    ],
)
def test_detect_nothing_that_we_know(driver, output, code, reason):
    driver(output, code)
    gpu, text = detect_gpu()
    assert gpu is GPUS[CPU]
    assert reason in text


def test_detect_without_a_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu, reason = detect_gpu()
    assert gpu == GpuTarget(CPU, "no GPU")
    assert "no NVIDIA driver" in reason
