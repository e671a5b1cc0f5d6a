"""Archives of NVIDIA's own tools: read where they are open, refused by name where they are not."""

from __future__ import annotations

import gzip
import io
import tarfile

import pytest
import yaml

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import EXIT_INTEGRITY, IntegrityError
from jarvis_rules.formats import eff
from jarvis_rules.formats.archive import MANIFEST, open_archive
from jarvis_rules.formats.key_source import Key
from jarvis_rules.formats.nemo import open_nemo
from jarvis_rules.formats.tar import open_tar

METADATA = {
    "description": "a model", "obj_cls": "nemo.collections.asr.models.X", "origin": "NeMo",
    "runtime": "ONNX", "format_version": 3, "min_nemo_version": "1.1",
}  # fmt: skip
FILES = {"model_graph.onnx": b"graph" * 30_000, "vocab.txt": b"a\nb\n"}


def pack(path, listing="files", folder="", metadata=METADATA, files=FILES, **properties):
    described = {name: {"description": name, "binary": True, **properties} for name in files}
    manifest = yaml.safe_dump({"metadata": metadata, listing: described}).encode()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        contents = {MANIFEST: manifest, **{folder + name: data for name, data in files.items()}}
        for name, data in contents.items():
            info = tarfile.TarInfo(f"./{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    path.write_bytes(gzip.compress(out.getvalue()))
    return path


@pytest.mark.parametrize("listing", ["files", "artifacts"])
@pytest.mark.parametrize("folder", ["", "artifacts/"])
def test_both_layouts_are_read(tmp_path, listing, folder):
    path = pack(tmp_path / "x.ejrvs", listing, folder, encrypted=False)
    with open_archive(path) as archive:
        assert (archive.manifest.kind, archive.manifest.version) == ("eff", 0)
        assert archive.manifest.metadata == METADATA
        assert archive.manifest.files["vocab.txt"]["description"] == "vocab.txt"
        for name, data in FILES.items():
            assert archive.read(name) == data
            assert archive.digest(name) == digest_bytes(data)
        archive.extract("vocab.txt", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == FILES["vocab.txt"]


def refused(path, *arguments, **settings):
    with (
        pytest.raises(IntegrityError) as caught,
        open_archive(path, *arguments, **settings) as archive,
    ):
        archive.read("model_graph.onnx")
    assert caught.value.exit_code == EXIT_INTEGRITY
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("how", [{"encrypted": True}, {"encryption": "cipher-7"}])
def test_encrypted_ones_are_refused_with_the_reason_and_the_way_out(tmp_path, how):
    path = pack(tmp_path / "x.ejrvs", **how)
    with open_archive(path) as archive:
        assert set(archive.manifest.files) == set(FILES)
    for settings in ({}, {"kind": "ejrvs"}, {"key": Key(b"tlt_encode")}):
        error = refused(path, **settings)
        assert error.slug == "encryption.nvidia"
        assert "not public" in error.message
        assert "`.nemo`" in error.hint


def test_open_ones_lack_what_pipelines_need(tmp_path):
    path = pack(tmp_path / "x.ejrvs")
    assert refused(path, "ejrvs").slug == "archive.foreign"
    assert refused(path, key=Key(b"k")).slug == "encryption.not-encrypted"


def test_a_listed_file_that_is_missing_is_named(tmp_path):
    path = pack(tmp_path / "x.ejrvs", folder="elsewhere/")
    assert refused(path).slug == "archive.missing"


@pytest.mark.parametrize(
    "document",
    [
        None, 1, [], {}, {"metadata": 1}, {"metadata": {}}, {"metadata": {}, "files": []},
        {"metadata": {}, "files": {"x": 1}}, {"metadata": {"archive_format": "x"}, "files": {}},
    ],
)  # fmt: skip
def test_what_is_no_manifest_of_theirs(document):
    assert eff.eff_manifest(document) is None


def test_files_may_have_no_properties():
    manifest = eff.eff_manifest({"metadata": {}, "files": {"x": None}})
    assert manifest.files == {"x": {}}


# Checkpoints


@pytest.fixture
def checkpoint(nemo):
    with open_tar(nemo) as tar:
        return {member.name: bytes(tar.view(member)) for member in tar.members}


@pytest.mark.parametrize("folder", ["", "artifacts/"])
def test_an_open_tlt_is_read_as_a_nemo(tmp_path, checkpoint, nemo, folder):
    path = pack(tmp_path / "x.tlt", folder=folder, files=checkpoint)
    with open_nemo(path) as theirs, open_nemo(nemo) as ours:
        assert theirs.config == ours.config
        assert theirs.state_dict().keys() == ours.state_dict().keys()


def test_an_encrypted_tlt_is_refused(tmp_path, checkpoint):
    path = pack(tmp_path / "x.tlt", files=checkpoint, encrypted=True)
    for read in (open_nemo, eff.refuse_nvidia):
        with pytest.raises(IntegrityError, match="encrypted by NVIDIA") as caught:
            read(path)
        assert caught.value.slug == "encryption.nvidia"


def test_an_etlt_is_recognised(tmp_path):
    path = tmp_path / "x.etlt"
    path.write_bytes((5).to_bytes(4, "little") + b"input" + bytes(range(256)))
    with pytest.raises(IntegrityError, match=r"`\.etlt` model is encrypted") as caught:
        eff.refuse_nvidia(path)
    assert caught.value.slug == "encryption.nvidia"


def test_nothing_is_said_of_other_files(tmp_path, nemo, ejrvs, jmir):
    (tmp_path / "text").write_text("some text")
    (tmp_path / "empty").touch()
    for path in (nemo, ejrvs, jmir, tmp_path / "text", tmp_path / "empty", tmp_path / "absent"):
        eff.refuse_nvidia(path)
