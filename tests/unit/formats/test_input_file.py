"""One answer for a file that is not there, whoever asks for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jarvis_rules.cli.infer import _read_items
from jarvis_rules.errors import UsageError
from jarvis_rules.formats.archive_schema import read_schema
from jarvis_rules.formats.input_file import missing, open_regular, require_regular
from jarvis_rules.formats.tar import open_tar
from jarvis_rules.reporting.subject import find_subject
from jarvis_rules.scanning.scan import scan_file
from jarvis_rules.triton.audio import check_audio

READERS = {
    "a.nemo": open_tar,
    "b.nemo": lambda path: find_subject(str(path)),
    "c.nemo": scan_file,
    "d.yaml": read_schema,
    "e.wav": check_audio,
    "f.jsonl": lambda path: _read_items(path, ("text",)),
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_says_the_same(tmp_path: Path, name: str) -> None:
    (tmp_path / f"near_{name}").touch()
    with pytest.raises(UsageError) as refusal:
        READERS[name](tmp_path / f"naer_{name}")
    assert refusal.value.render() == (
        f"error: {tmp_path}/naer_{name}: no such file [file.missing]\n\n"
        f"hint: did you mean `near_{name}`?"
    )


def test_the_hint_is_a_near_name_or_what_makes_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.nemo").touch()
    path = tmp_path / "modle.nemo"
    assert missing(path).hint == "did you mean `model.nemo`?"
    assert missing(path, among="*.ejrvs").hint == f"nothing in `{tmp_path}` has a similar name"
    assert missing(path, otherwise="make it", among="*.ejrvs").hint == "make it"
    gone = tmp_path / "no" / "model.nemo"
    assert missing(gone).hint == f"the folder `{tmp_path / 'no'}` does not exist either"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    os.mkfifo(tmp_path / "pipe")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"data"
    require_regular(tmp_path / "file")
    for path, kind in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe", "not a regular file"),
        (Path("/dev/zero"), "not a regular file"),
    ):
        with pytest.raises(UsageError, match=f"expected a file, got {kind}") as refusal:
            require_regular(path)
        assert refusal.value.slug == "file.unreadable"
    for path in (tmp_path / "none", tmp_path / "file" / "none"):
        with pytest.raises(UsageError) as refusal:
            require_regular(path, otherwise="make it")
        assert (refusal.value.slug, refusal.value.hint) == ("file.missing", "make it")
