"""Every reference model gives the same bytes whatever the CPU can do and however we are started."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from . import exporter_testing
from .test_registry import SAMPLES

NAMES = sorted(name for names in SAMPLES.values() for name in names)
PROGRAM = """
import json, sys
import numpy as np
from exporter_testing import digests
simd = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
print(json.dumps({"simd": simd, "digests": {name: digests(name) for name in sys.argv[1:]}}))
"""
SIMD = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
# The vector units of numpy, of its BLAS and of the C library's `exp`, `sin` … are chosen apart.
SETTINGS = {
    "plain": {"PYTHONHASHSEED": "0"},
    "old CPU": {
        "PYTHONHASHSEED": "1",
        "NPY_DISABLE_CPU_FEATURES": " ".join(SIMD),
        "OPENBLAS_CORETYPE": "Nehalem",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4,-AVX512F,-ERMS",
        "OMP_NUM_THREADS": "1",
        "LC_ALL": "C",
    },
    "half an old CPU": {
        "PYTHONHASHSEED": "2",
        "NPY_DISABLE_CPU_FEATURES": " ".join(SIMD[-1:]),
        "OPENBLAS_CORETYPE": "Prescott",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-FMA",
        "OMP_NUM_THREADS": "2",
        "TZ": "Asia/Kolkata",
    },
    "threads": {
        "PYTHONHASHSEED": "3",
        "OPENBLAS_CORETYPE": "Haswell",
        "OMP_NUM_THREADS": "5",
        "OPENBLAS_NUM_THREADS": "5",
    },
}


def run(setting: str, folder: Path) -> dict[str, object]:
    root = Path(exporter_testing.__file__).parents[3]
    paths = (root, Path(exporter_testing.__file__).parent, *filter(None, sys.path))
    environment = {**os.environ, **SETTINGS[setting]}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    program = [sys.executable, "-c", PROGRAM, *NAMES]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, check=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def expected():
    return {name: exporter_testing.digests(name) for name in NAMES}


@pytest.mark.parametrize("setting", SETTINGS)
def test_bytes_do_not_depend_on_the_machine(setting, expected, tmp_path):
    found = run(setting, tmp_path)
    if setting == "old CPU":
        assert found["simd"] == []
    assert found["digests"] == expected
