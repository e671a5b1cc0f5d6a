"""Recorded models for the tests of the runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jarvis_rules.formats.nemo import open_nemo

ROOT = Path(__file__).parents[3]
MODELS = ROOT / "tests" / "data" / "models"
SPEECH = ROOT / "tests" / "data" / "speech"
RUNTIME = ROOT / "jarvis_rules" / "runtime"


def featurizer_buffers(path):
    """Return the `window` and `fb` that a .nemo checkpoint carries."""
    with open_nemo(path) as archive:
        state = archive.state_dict()
        return tuple(state[f"preprocessor.featurizer.{name}"].copy() for name in ("window", "fb"))


def recorded(name):
    """Return the arrays of `<name>.npz` in tests/data/models."""
    with np.load(MODELS / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)
