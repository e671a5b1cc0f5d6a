"""What the repository says that its modules need."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jarvis_rules.engines.engine import engine_names, find_engine
from jarvis_rules.errors import JarvisBug
from jarvis_rules.triton.repository import carried_modules
from jarvis_rules.triton.runtime_requirements import (
    LOCK_FILE,
    render_requirements,
    required_packages,
)


def entries(data):
    """Return the lines that pip reads, continued lines joined."""
    lines = data.decode().replace("\\\n", "").splitlines()
    return {line.split("==")[0]: line.split() for line in lines if line and line[0] != "#"}


def test_they_are_what_the_lock_says():
    locked = entries(LOCK_FILE.read_bytes())
    found = entries(render_requirements(["tokenizers", "numpy"]))
    assert found == {name: locked[name] for name in ("numpy", "tokenizers")}
    for name, (version, *hashes) in found.items():
        assert version.startswith(f"{name}==")
        assert len(hashes) > 10
        assert all(value.startswith("--hash=sha256:") for value in hashes)
    assert "://" not in render_requirements(found).decode()


def test_of_one_package_nothing_else_is_said():
    assert list(entries(render_requirements(["numpy"]))) == ["numpy"]
    assert entries(render_requirements([])) == {}


def test_the_order_does_not_matter():
    assert render_requirements(["numpy", "tokenizers"]) == render_requirements(
        ["tokenizers", "numpy"]
    )


def test_the_runtime_of_an_engine_is_named_with_the_version_that_built_it():
    data = render_requirements(["numpy"], ("tensorrt_rtx", "1.7.1.116"))
    assert entries(data) == entries(render_requirements(["numpy"]))
    (line,) = [line for line in data.decode().splitlines() if "--no-deps tensorrt" in line]
    assert line.split()[-2:] == [
        "tensorrt-rtx-cu13-libs==1.7.1.116",
        "tensorrt-rtx-cu13-bindings==1.7.1.116",
    ]


def test_every_runtime_module_of_a_toolchain_has_packages():
    for name in engine_names():
        if (runtime := find_engine(name).runtime) is not None:
            assert b"==7.0" in render_requirements([], (runtime, "7.0"))
    with pytest.raises(JarvisBug, match="runtime module ctc_decoder"):
        render_requirements([], ("ctc_decoder", "7.0"))


def test_the_packages_are_those_of_the_extra():
    lock = Path(__file__).parents[3] / "requirements" / "tensorrt-rtx.txt"
    pinned = re.findall(r"^(tensorrt-rtx-[a-z0-9-]+)==(\S+)", lock.read_text(), re.MULTILINE)
    header = render_requirements([], ("tensorrt_rtx", pinned[0][1])).decode()
    named = re.findall(r"(tensorrt-rtx-[a-z0-9-]+)==(\S+)", header)
    assert sorted(named) == sorted(pinned)


def test_a_package_that_is_not_locked_is_our_fault():
    with pytest.raises(JarvisBug, match=r"serving-requirements\.txt has no torch"):
        render_requirements(["numpy", "torch"])


def test_greedy_decoding_needs_numpy_alone():
    assert required_packages(carried_modules("ctc_decoder")) == ("numpy",)
    assert required_packages(carried_modules("qa")) == ("numpy", "tokenizers")
