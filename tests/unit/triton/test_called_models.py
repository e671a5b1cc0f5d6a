"""A model that another one calls is found, though no ensemble names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jarvis_rules.errors import ToolchainError
from jarvis_rules.triton.server import called_models, require_backends

ENSEMBLE = 'name: "%s" platform: "ensemble" ensemble_scheduling { step { model_name: "%s" } }'
CALLING = 'name: "%s" backend: "python" parameters { key: "calls" value { string_value: "%s" } }'
ENGINE = 'name: "%s" backend: "%s"'


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for name, config in {
        "qa": ENSEMBLE % ("qa", "qa-processor"),
        "qa-processor": CALLING % ("qa-processor", "qa-nn"),
        "qa-nn": ENGINE % ("qa-nn", "onnxruntime"),
        "ner": ENSEMBLE % ("ner", "ner-processor"),
        "ner-processor": CALLING % ("ner-processor", "ner-nn"),
        "ner-nn": ENGINE % ("ner-nn", "tensorrt"),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.pbtxt").write_text(config)
    return tmp_path


def test_called_models_are_loaded_too(repository: Path) -> None:
    assert called_models(repository, ["qa"]) == ("qa-nn",)
    assert called_models(repository, ["qa", "ner"]) == ("ner-nn", "qa-nn")
    assert called_models(repository, ["qa", "qa-nn"]) == ()
    assert called_models(repository, ["qa-nn", "absent"]) == ()


def test_their_backends_must_be_there(repository: Path) -> None:
    require_backends(repository, ["qa"])
    with pytest.raises(ToolchainError, match="model `ner-nn` needs the backend `tensorrt`"):
        require_backends(repository, ["qa", "ner"])
