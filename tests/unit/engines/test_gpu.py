"""GPU targets: the stanzas, their names and sums, and the GPUs of this machine."""

from __future__ import annotations

import re

import pytest

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.core.gpus import (
    PresentGpu,
    capability_number,
    detect_gpu,
    find_gpu,
    find_gpus,
    load_gpus,
    present_gpus,
)
from jarvis_rules.errors import UsageError

GPUS = load_gpus()


@pytest.mark.parametrize("name", GPUS)
def test_stanzas(name):
    gpu = GPUS[name]
    assert gpu.name == name == name.lower()
    assert gpu.description
    assert hash(gpu)
    assert gpu.platform in ("x86_64", "sbsa", "jetson")
    if name == CPU:
        assert (gpu.compute_capabilities, gpu.memory_gib, gpu.precisions) == ((), None, ("fp32",))
        assert gpu.architectures() == "cpu"
    else:
        (capability,) = gpu.compute_capabilities
        assert re.fullmatch(r"\d+\.\d", capability)
        assert gpu.architectures() == f"sm_{capability.replace('.', '')}"
        assert isinstance(gpu.memory_gib, int)
        # NVIDIA's tensor cores have computed in fp16 since 7.0, in bf16 since 8.0.
        newer = capability_number(capability) >= (8, 0)
        assert gpu.precisions == ("fp32", "fp16", "bf16")[: 3 if newer else 2]
    read = GpuTarget.from_json(gpu.to_json())
    assert read.to_json() == gpu.to_json()


def test_no_name_has_two_meanings():
    names = [name for gpu in GPUS.values() for name in (gpu.name, *gpu.aliases)]
    assert sorted(set(names)) == sorted(names)
    assert all(find_gpu(alias) is gpu for gpu in GPUS.values() for alias in gpu.aliases)


def test_every_capability_has_one_name():
    owners = {a: gpu for gpu in GPUS.values() for a in gpu.aliases if re.fullmatch(r"sm\d+", a)}
    for alias, gpu in owners.items():
        assert gpu.architectures() == f"sm_{alias[2:]}"
    capabilities = {c for gpu in GPUS.values() for c in gpu.compute_capabilities}
    assert {f"sm{c.replace('.', '')}" for c in capabilities} == set(owners)


@pytest.mark.parametrize("name", ["a100", "A100", " a100 ", "A100_40GB", "sm80", "sm_80", "SM_80"])
def test_find(name):
    assert find_gpu(name) is GPUS["a100"]


@pytest.mark.parametrize(
    ("name", "near"),
    [("a10O", "a100"), ("h10", "h100"), ("a100+l44", "l4"), ("rtx-409", "rtx-4090")],
)
def test_an_unknown_gpu_is_answered_with_the_nearest(name, near):
    unknown = name.rpartition("+")[2]
    with pytest.raises(UsageError, match=f"unknown GPU `{unknown}`") as caught:
        find_gpu(name)
    assert caught.value.slug == "gpu.unknown"
    assert "did you mean" in caught.value.hint
    assert f"`{near}`" in caught.value.hint


@pytest.mark.parametrize("name", ["", "+", "a100+", "sm", "sm_"])
def test_half_a_name_is_none(name):
    with pytest.raises(UsageError, match="unknown GPU"):
        find_gpu(name)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ("a100,l4", ["a100", "l4"]),
        ("l4, a100", ["a100", "l4"]),
        ("a100,sm80,A100", ["a100"]),
        ("a100,l4+t4", ["a100", "l4+t4"]),
        ("t4+l4,l4 + t4", ["l4+t4"]),
        ("cpu", ["cpu"]),
        ("", ["cpu"]),
        (",", ["cpu"]),
    ],
)
def test_several(names, found):
    assert [gpu.name for gpu in find_gpus(names)] == found


def test_a_sum_is_one_target():
    gpu = find_gpu("rtx-5090+A10+sm_80")
    assert gpu == find_gpu("a100+rtx-5090+a10")
    assert gpu.to_json() == {
        "name": "a10+a100+rtx-5090",
        "compute_capabilities": ["8.0", "8.6", "12.0"],
        "memory_gib": 24,
        "precisions": ["fp32", "fp16", "bf16"],
        "platform": "x86_64",
    }
    assert gpu.architectures() == "sm_80 and sm_86 and sm_120"
    assert gpu.description.startswith("NVIDIA A10 (Ampere) and NVIDIA A100 (Ampere) and ")
    assert find_gpu("t4+l4").precisions == ("fp32", "fp16")
    assert find_gpu("l40s+l4").compute_capabilities == ("8.9",)
    assert find_gpu("a100+sm80") is GPUS["a100"]
    assert find_gpu("gb200+gh200").platform == "sbsa"


@pytest.mark.parametrize(
    ("name", "slug", "text"),
    [
        ("a100+cpu", "gpu.cpu-in-sum", "`a100\\+cpu`: one engine"),
        ("h100+gh200", "gpu.mixed-platforms", "gh200 is sbsa, h100 is x86_64"),
    ],
)
def test_sums_that_no_engine_serves(name, slug, text):
    with pytest.raises(UsageError, match=text) as caught:
        find_gpu(name)
    assert caught.value.slug == slug
    assert f"GPU={','.join(sorted(name.split('+')))}" in caught.value.hint


# --- this machine ------------------------------------------------------------------------------


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Put an `nvidia-smi` on the path that prints what it is told."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    present_gpus.cache_clear()

    def driver(output, code=0, known="*"):
        (tmp_path / "output").write_bytes(output)
        program = tmp_path / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\ncase "$1" in {known}) cat "{tmp_path}/output"; exit {code};; esac\n'
            'echo "Field \\"compute_cap\\" is not a valid field to query."\nexit 2\n'
        )
        program.chmod(0o755)

    yield driver
    present_gpus.cache_clear()


@pytest.mark.parametrize(
    ("output", "name"),
    [
        ("NVIDIA A100-SXM4-40GB, 8.0, 550.54.14, 40960", "a100"),
        ("A100-SXM4-80GB, 8.0, 450.80.02, 81251", "a100"),
        ("NVIDIA A100-PCIE-40GB, 8.0, 525.60.13, 40960", "a100"),
        ("NVIDIA A30, 8.0, 550.54.14, 24576", "a30"),
        ("Tesla T4, 7.5, 550.54.14, 15360", "t4"),
        ("Tesla V100-SXM2-16GB, 7.0, 535.104.05, 16384", "v100"),
        ("Tesla V100-PCIE-32GB, 7.0, 535.104.05, 32768", "v100"),
        ("NVIDIA A10, 8.6, 550.54.14, 23028", "a10"),
        ("NVIDIA A16, 8.6, 550.54.14, 15356", "a16"),
        ("NVIDIA A2, 8.6, 550.54.14, 15356", "a2"),
        ("NVIDIA RTX A6000, 8.6, 550.54.14, 49140", "rtx-a6000"),
        ("NVIDIA GeForce RTX 2080 Ti, 7.5, 550.54.14, 11264", "rtx-2080ti"),
        ("Quadro RTX 6000, 7.5, 550.54.14, 24576", "quadro-rtx-6000"),
        ("NVIDIA GeForce RTX 3090, 8.6, 550.54.14, 24576", "rtx-3090"),
        ("NVIDIA L4, 8.9, 550.54.14, 23034", "l4"),
        ("NVIDIA L40, 8.9, 550.54.14, 46068", "l40"),
        ("NVIDIA L40S, 8.9, 550.54.14, 46068", "l40s"),
        ("NVIDIA GeForce RTX 4090, 8.9, 550.54.14, 24564", "rtx-4090"),
        ("NVIDIA RTX 6000 Ada Generation, 8.9, 550.54.14, 49140", "rtx-6000-ada"),
        ("NVIDIA H100 80GB HBM3, 9.0, 580.159.04, 81559", "h100"),
        ("NVIDIA H100 PCIe, 9.0, 550.54.14, 81559", "h100"),
        ("NVIDIA H100 NVL, 9.0, 550.54.14, 95830", "h100"),
        ("NVIDIA H200, 9.0, 580.65.06, 143771", "h200"),
        ("NVIDIA GH200 480GB, 9.0, 550.54.14, 97871", "gh200"),
        ("NVIDIA B200, 10.0, 580.65.06, 183359", "b200"),
        ("NVIDIA GB200, 10.0, 580.65.06, 189471", "gb200"),
        ("NVIDIA B300 SXM6 AC, 10.3, 580.95.05, 275040", "b300"),
        ("NVIDIA GeForce RTX 5090, 12.0, 580.65.06, 32607", "rtx-5090"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition, 12.0, 580.65.06, 97887", "rtx-pro-6000"),
        (
            "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition, 12.0, 580.65.06, 97887",
            "rtx-pro-6000",
        ),
        ("NVIDIA GB10, 12.1, 580.95.05, [N/A]", "gb10"),
        ("Orin (nvgpu), 8.7, 540.4.0, [N/A]", "jetson-orin"),
        ("Orin (nvgpu), [N/A], 540.2.0, [N/A]", "jetson-orin"),
        ("NVIDIA Thor, 11.0, 580.00, [N/A]", "jetson-thor"),
    ],
)
def test_detect(driver, output, name):
    driver(f"{output}\n".encode())
    gpu, reason = detect_gpu()
    said, _, version, memory = output.split(", ")
    assert gpu is GPUS[name]
    assert reason == f"found {said} ({gpu.architectures()}), so the target is `{name}`"
    assert present_gpus() == (
        PresentGpu(
            name=said,
            compute_capability=gpu.compute_capabilities[0],
            driver_version=version,
            memory_mib=int(memory) if memory.isdecimal() else None,
            target=gpu,
        ),
    )


def test_the_first_that_has_a_target_is_taken(driver):
    driver(
        b"NVIDIA T400 4GB, 7.5, 550.54.14, 4096\n"
        b"NVIDIA L4, 8.9, 550.54.14, 23034\n"
        b"NVIDIA L4, 8.9, 550.54.14, 23034\n"
        b"NVIDIA A100 80GB PCIe, 8.0, 550.54.14, 81920\n"
    )
    gpu, reason = detect_gpu()
    assert gpu is GPUS["l4"]
    assert reason == (
        "found NVIDIA T400 4GB (sm_75) and NVIDIA L4 (sm_89) and NVIDIA A100 80GB PCIe (sm_80), "
        "so the target is `l4`"
    )
    assert [gpu.target and gpu.target.name for gpu in present_gpus()] == [None, "l4", "l4", "a100"]


@pytest.mark.parametrize(
    ("output", "way_out"),
    [
        ("NVIDIA A10G, 8.6, 550.54.14, 23028", "GPU=sm_86"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU, 8.9, 550.54.14, 16376", "GPU=sm_89"),
        ("NVIDIA GeForce RTX 4090 D, 8.9, 550.54.14, 24564", "GPU=sm_89"),
        ("NVIDIA GeForce RTX 3090 Ti, 8.6, 550.54.14, 24564", "GPU=sm_86"),
        ("Quadro RTX 5000 with Max-Q Design, 7.5, 550.54.14, 16384", "GPU=sm_75"),
        ("NVIDIA RTX PRO 4000 Blackwell, 12.0, 580.65.06, 24467", "GPU=sm_120"),
        ("GRID A100-10C, 8.0, 550.54.14, 10240", "GPU=sm_80"),
        ("NVIDIA GeForce GTX 1080, 6.1, 550.54.14, 8192", None),
        # A name of the table with another capability is another GPU.
        ("NVIDIA A100, 9.9, 550.54.14, 8192", None),
        ("NVIDIA, 8.0, 550.54.14, 8192", "GPU=sm_80"),
        ("\udcff, 8.0, 550.54.14, 8192", "GPU=sm_80"),
    ],
)
def test_another_name_is_another_gpu(driver, output, way_out):
    driver(f"{output}\n".encode(errors="surrogateescape"))
    gpu, text = detect_gpu()
    assert gpu is GPUS[CPU]
    assert "which gpus.toml does not name: the target is `cpu`" in text
    assert way_out in text if way_out else "GPU=" not in text
    assert way_out is None or find_gpu(way_out.removeprefix("GPU="))
    (present,) = present_gpus()
    assert present.target is None


def test_drivers_that_know_no_compute_cap(driver):
    driver(
        b"Tesla T4, 450.80.02, 15109 MiB\nQuadro P400, 450.80.02, 2000 MiB\n",
        known="--query-gpu=name,driver_version,memory.total",
    )
    found, other = present_gpus()
    assert (found.target, found.compute_capability) == (GPUS["t4"], "7.5")
    assert (found.driver_version, found.memory_mib) == ("450.80.02", 15109)
    assert (other.target, other.compute_capability) == (None, "")
    assert other.describe() == "Quadro P400"


@pytest.mark.parametrize(
    ("output", "code"),
    [
        (b"", 0),
        (b"No devices were found\n", 0),
        (b"No devices were found\n", 6),
        (b"Failed to initialize NVML: Driver/library version mismatch\n", 18),
        (b"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", 9),
    ],
)
def test_a_driver_without_gpus(driver, output, code):
    driver(output, code)
    assert present_gpus() == ()
    assert detect_gpu() == (GPUS[CPU], "`nvidia-smi` finds no GPU, so the target is `cpu`")


def test_a_driver_that_hangs_is_given_up(driver, tmp_path, monkeypatch):
    driver(b"")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    monkeypatch.setattr("jarvis_rules.core.gpus.TIMEOUT_SECONDS", 0.1)
    assert present_gpus() == ()


def test_the_driver_is_asked_once(driver, tmp_path):
    driver(b"NVIDIA L4, 8.9, 550.54.14, 23034\n")
    found = present_gpus()
    (tmp_path / "nvidia-smi").unlink()
    assert present_gpus() is found


def test_detect_without_a_driver(tmp_path, monkeypatch):
    present_gpus.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    gpu, reason = detect_gpu()
    assert gpu is GPUS[CPU]
    assert "no NVIDIA driver" in reason
