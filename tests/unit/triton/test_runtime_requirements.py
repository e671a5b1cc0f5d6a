"""What the repository says that its modules need."""

from __future__ import annotations

import pytest

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


def test_a_package_that_is_not_locked_is_our_fault():
    with pytest.raises(JarvisBug, match=r"serving-requirements\.txt has no torch"):
        render_requirements(["numpy", "torch"])


def test_greedy_decoding_needs_numpy_alone():
    assert required_packages(carried_modules("ctc_decoder")) == ("numpy",)
    assert required_packages(carried_modules("qa")) == ("numpy", "tokenizers")
