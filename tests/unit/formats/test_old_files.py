"""One model in the forms of other releases of NeMo and torch, and what is exported from each."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
import pytest

from jarvis_rules.errors import IntegrityError
from jarvis_rules.exporters.exporter import ExportedModel, SourceModel, export_model
from jarvis_rules.formats.nemo import modernised, open_nemo
from jarvis_rules.formats.state_dict import Array

OLD = Path(__file__).parents[2] / "data" / "models" / "old"
FORMS = sorted(path.stem for path in OLD.glob("*.nemo") if path.stem != "modern")
ARTIFACTS = ("model_path", "vocab_path", "spe_tokenizer_vocab")


@functools.cache
def weights(form: str) -> dict[str, Array]:
    with open_nemo(OLD / f"{form}.nemo") as archive:
        return dict(archive.state_dict())


def exported(form: str) -> tuple[ExportedModel, bytes]:
    with open_nemo(OLD / f"{form}.nemo") as archive:
        model = export_model(
            SourceModel(archive.target, archive.config, archive.state_dict(), archive.artifact)
        )
    graph = io.BytesIO()
    model.graphs["model_graph.onnx"].write(graph)  # after the archive is closed
    return model, graph.getvalue()


def test_all_forms_are_there() -> None:
    assert len(FORMS) == 11


@pytest.mark.parametrize("form", FORMS)
def test_the_arrays_are_those_of_the_modern_file(form: str) -> None:
    expected, found = weights("modern"), weights(form)
    assert list(found) == list(expected)
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
        assert array.shape == expected[name].shape
        assert array.dtype.isnative
        assert array.dtype == expected[name].dtype or form == "precisions"
        assert not array.flags.writeable


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_that_of_the_modern_file(form: str) -> None:
    expected, graph = exported("modern")
    model, found = exported(form)
    assert found == graph
    assert model.facts["labels"] == expected.facts["labels"]
    assert expected.assets.keys() - model.assets.keys() <= {"tokenizer.vocab"}  # NeMo 1.0
    assert all(expected.assets[name] == data for name, data in model.assets.items())


def test_forms_differ_as_they_should() -> None:
    """The recordings hold what they are named after."""
    assert {str(array.dtype) for array in weights("precisions").values()} == {
        *("float16", "float32", "float64", "int64")
    }
    strided = weights("strided")
    assert sum(not array.flags.c_contiguous for array in strided.values()) > 5
    assert any(array.size > 1 and not any(array.strides) for array in strided.values())
    floats = [array for array in strided.values() if array.dtype == np.float32]
    assert sum(np.shares_memory(floats[-1].base, array) for array in floats) > 5
    for form, magic in (("gzip", b"\x1f\x8b"), ("legacy_torch", b"\x1f\x8b"), ("modern", b"./")):
        assert (OLD / f"{form}.nemo").read_bytes().startswith(magic)


@pytest.mark.parametrize("form", ["modern", "training_paths"])
def test_artifacts_are_found_however_they_are_named(form: str) -> None:
    with open_nemo(OLD / "modern.nemo") as modern, open_nemo(OLD / f"{form}.nemo") as archive:
        for key in ARTIFACTS:
            expected = modern.artifact(modern.config["tokenizer"][key])
            assert archive.artifact(archive.config["tokenizer"][key]) == expected


def test_the_configuration_of_a_training_is_its_model() -> None:
    with open_nemo(OLD / "modern.nemo") as modern, open_nemo(OLD / "hydra_0.nemo") as archive:
        assert archive.config == modern.config


def test_configurations_become_those_of_hydra_1() -> None:
    """Source: NeMo 1.23 `maybe_update_config_version`, whose results these are."""
    old = {"cls": "a.B", "params": {"x": 1, "y": {"cls": "a.C", "params": {"z": [{"cls": "l"}]}}}}
    assert modernised(old) == {
        "_target_": "a.B",
        "x": 1,
        "y": {"_target_": "a.C", "z": [{"cls": "l"}]},
    }
    both = {"_target_": "a.B", "cls": "a.C", "params": {"_target_": "a.D"}}
    assert modernised(both) == {"_target_": "a.D", "cls": "a.C"}
    assert modernised({"x": 1, "params": {"x": 2}}) == {"x": 2}
    assert modernised({"params": None, "model": "x"}) == {"params": None, "model": "x"}
    assert old["params"]["x"] == 1  # the argument is not changed


def test_a_folder_packed_whole_is_refused_with_its_name(tmp_path: Path) -> None:
    import tarfile

    path = tmp_path / "a.nemo"
    with tarfile.open(OLD / "modern.nemo") as source, tarfile.open(path, "w") as out:
        for member in source:
            if member.isfile():
                member.name = member.name.replace("./", "quartz/model/")
                out.addfile(member, source.extractfile(member))
    with pytest.raises(IntegrityError) as refusal:
        open_nemo(path)
    assert refusal.value.slug == "nemo.missing-weights"
    assert refusal.value.hint.endswith("pack it without the folder `quartz/model`")
