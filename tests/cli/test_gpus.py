"""`jarvis-rules gpus` as users run it, and its page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from driver_testing import A10G, A100, H100, install_driver

from jarvis_rules.core.gpus import load_gpus
from jarvis_rules.engines.engine import engine_names
from jarvis_rules.formats.schema import validate
from jarvis_rules.reporting.gpus import summarise_build

PROGRAM = Path(sys.executable).parent / "jarvis-rules"
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "gpus.md"


def run(*arguments, code=0, **environment):
    done = subprocess.run(
        [str(PROGRAM), "gpus", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done


def document(*arguments, **environment):
    read = json.loads(run(*arguments, "--format", "json", **environment).stdout)
    validate(read, "gpus", "x")
    return read


def builds(gpu):
    return {build["toolchain"]: build for build in gpu["engines"]}


def test_all(tmp_path):
    path = install_driver(tmp_path / "bin")
    text = run(PATH=path).stdout.splitlines()
    assert text[0].split()[:5] == ["GPU", "here", "capability", "GiB", "precisions"]
    assert [line.split()[0] for line in text[1:]] == list(load_gpus())
    read = document(PATH=path)
    assert read["present"] == []
    assert [gpu["name"] for gpu in read["gpus"]] == list(load_gpus())
    for gpu in read["gpus"]:
        assert not gpu["present"]
        assert [build["toolchain"] for build in gpu["engines"]] == list(engine_names())
        assert builds(gpu)["onnxruntime"]["slug"] is None
        for build in gpu["engines"]:
            assert (build["slug"] is None) == (build["reason"] is None)
            cell = summarise_build(build)
            assert cell.startswith("no: ") == (build["slug"] is not None)
            assert cell in next(line for line in text if line.split()[0] == gpu["name"])


def test_what_each_toolchain_can_target(tmp_path):
    gpus = {
        gpu["name"]: builds(gpu) for gpu in document(PATH=install_driver(tmp_path / "bin"))["gpus"]
    }
    # Of the two compilers one needs the GPU, the other needs it to be of a capability it knows.
    assert gpus["h100"]["tensorrt"]["slug"] == "engine.machine"
    assert gpus["h100"]["tensorrt_rtx"]["slug"] == "engine.target"
    assert gpus["h100"]["tensorrt_rtx"]["precisions"] == []
    assert "onnxruntime" in gpus["h100"]["tensorrt_rtx"]["hint"]
    assert gpus["v100"]["tensorrt"]["slug"] == "engine.target"
    assert gpus["cpu"]["tensorrt"]["slug"] == "engine.target"
    assert gpus["a100"]["tensorrt_rtx"]["precisions"] == ["fp32", "fp16", "bf16"]
    assert gpus["a100"]["tensorrt_rtx"]["slug"] in (None, "toolchain.missing-package")
    assert gpus["t4"]["tensorrt_rtx"]["default_precision"] == "fp16"


def test_the_gpu_that_is_here(tmp_path):
    path = install_driver(tmp_path / "bin", H100, H100)
    marked = [
        line.split()[:2] for line in run(PATH=path).stdout.splitlines()[1:] if " yes " in line
    ]
    assert marked == [["h100", "yes"]]
    read = document(PATH=path)
    assert [gpu["name"] for gpu in read["gpus"] if gpu["present"]] == ["h100"]
    assert read["present"] == 2 * [
        {
            "name": "NVIDIA H100 80GB HBM3",
            "compute_capability": "9.0",
            "driver_version": "580.159.04",
            "memory_mib": 81559,
            "target": "h100",
        }
    ]
    # The GPU of the target is here, so nothing but the compiler can be missing.
    (h100,) = (gpu for gpu in read["gpus"] if gpu["name"] == "h100")
    assert builds(h100)["tensorrt"]["slug"] in (None, "toolchain.missing-package")


def test_a_gpu_without_a_target_is_named(tmp_path):
    path = install_driver(tmp_path / "bin", A10G)
    text = run(PATH=path).stdout
    assert " yes " not in text
    assert "NVIDIA A10G, compute capability 8.6" in text
    assert document(PATH=path)["present"][0]["target"] is None


def test_one(tmp_path):
    path = install_driver(tmp_path / "bin", A100)
    pairs = dict(
        re.split(r" {2,}", line, maxsplit=1) for line in run("SM_80", PATH=path).stdout.splitlines()
    )
    assert pairs["GPU"] == "a100: NVIDIA A100 (Ampere)"
    assert "sm80" in pairs["aliases"].split(", ")
    assert (pairs["compute capability"], pairs["memory"]) == ("8.0", "at least 40 GiB")
    assert pairs["on this machine"] == "yes"
    assert pairs["ENGINE=onnxruntime"].startswith("yes: fp32 (default)")
    refused = run("h100", PATH=path).stdout
    assert "this machine has NVIDIA A100-SXM4-40GB (sm_80)" in refused
    assert "[engine.machine]" in refused
    assert "[engine.target]" in refused


def test_a_sum(tmp_path):
    path = install_driver(tmp_path / "bin", A100)
    (gpu,) = document("l4+a100", PATH=path)["gpus"]
    assert (gpu["name"], gpu["compute_capabilities"]) == ("a100+l4", ["8.0", "8.9"])
    assert gpu["present"]
    assert builds(gpu)["tensorrt"]["slug"] == "engine.target"
    assert builds(gpu)["tensorrt_rtx"]["precisions"] == ["fp32", "fp16", "bf16"]


@pytest.mark.parametrize(
    ("name", "slug", "hint"),
    [
        ("a10O", "gpu.unknown", "did you mean"),
        ("a100+cpu", "gpu.cpu-in-sum", "GPU=a100,cpu"),
        ("l4+jetson-orin", "gpu.mixed-platforms", "GPU=jetson-orin,l4"),
    ],
)
def test_no_such_target(name, slug, hint):
    done = run(name, code=2)
    assert done.stdout == ""
    assert f"[{slug}]" in done.stderr
    assert hint in done.stderr


def test_the_page_says_what_the_table_says():
    rows = {
        cells[1].strip().strip("`"): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines())
        if len(cells) == 9
    }
    for name, gpu in load_gpus().items():
        assert rows[name] == [
            gpu.description,
            ", ".join(gpu.compute_capabilities) or "–",
            str(gpu.memory_gib or "–"),
            ", ".join(gpu.precisions),
            gpu.platform,
            ", ".join(f"`{alias}`" for alias in gpu.aliases) or "–",
        ]
