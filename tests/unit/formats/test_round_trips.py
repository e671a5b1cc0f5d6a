"""What is written is what is read, whatever it is: archives, manifests, checkpoints, pipelines."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_manifest import MAC, MANIFEST, dump_yaml, load_yaml
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.jmir import (
    Module,
    OptionValue,
    Pipeline,
    SourceArchive,
    Tensor,
    dump_pipeline,
    load_pipeline,
)
from jarvis_rules.formats.tar import open_tar

sys.path.insert(0, str(Path(__file__).parents[2] / "vectors"))

FEW = settings(derandomize=True, max_examples=60, deadline=None)
# --- archives ---------------------------------------------------------------------------------

LETTERS = st.characters(exclude_categories=["Cc", "Cs", "Cf", "Zl", "Zp"], exclude_characters="/\\")
PARTS = st.text(LETTERS, min_size=1, max_size=40).filter(lambda part: part not in (".", ".."))
MEMBER_NAMES = st.lists(PARTS, min_size=1, max_size=6).map("/".join).filter(
    lambda name: name not in (MANIFEST, MAC)
)  # fmt: skip
CONTENTS = st.binary(max_size=2000) | st.builds(
    lambda data, count: data * count, st.binary(min_size=1, max_size=9), st.integers(0, 30_000)
)


@FEW
@given(st.dictionaries(MEMBER_NAMES, CONTENTS, max_size=8), st.text(LETTERS, max_size=60))
def test_any_members(contents, text):
    metadata = {"name": "a", "kind": "speech_recognition", "description": text}
    members = [Member(name, "asset", text, data=data) for name, data in contents.items()]
    with tempfile.TemporaryDirectory() as folder:
        path, again = Path(folder) / "a.jmir", Path(folder) / "b.jmir"
        manifest = write_archive(path, "jmir", metadata, members)
        write_archive(again, "jmir", metadata, reversed(members))
        assert path.read_bytes() == again.read_bytes()
        with open_archive(path, "jmir") as archive:
            assert archive.manifest == manifest
            assert archive.manifest.metadata["description"] == text
            assert {name: archive.read(name) for name in manifest.files} == contents
        with open_tar(path) as tar:
            read = {member.name: bytes(tar.view(member)) for member in tar.members}
    assert read.keys() == {MANIFEST, *contents}
    assert contents.items() <= read.items()


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
ODD = ["", "~", "yes", "1e5", "0x1", "1:30", "2020-01-01", "<<", "=", "- a", "a: b", "#", "\u2028"]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | TEXTS
    | st.sampled_from(ODD)
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(TEXTS | st.sampled_from(ODD), inner, max_size=4)
    ),
    max_leaves=20,
)


def typed(value):
    """Return a value with the types of its parts: to Python, 1, 1.0 and True are equal."""
    match value:
        case dict():
            return {key: typed(item) for key, item in value.items()}
        case list():
            return [typed(item) for item in value]
        case _:
            return type(value), repr(value)


@settings(derandomize=True, max_examples=300, deadline=None)
@given(st.dictionaries(TEXTS, JSON, max_size=4))
def test_any_manifest(document):
    data = dump_yaml(document)
    assert typed(load_yaml(data)) == typed(document)
    assert dump_yaml(load_yaml(data)) == data


# --- checkpoints ------------------------------------------------------------------------------

KINDS = {
    "Float": "<f4", "Double": "<f8", "Half": "<f2", "Long": "<i8", "Int": "<i4", "Short": "<i2",
    "Char": "<i1", "Byte": "<u1",
}  # fmt: skip


@st.composite
def state_dicts(draw):
    """Return storages, and tensors that are views of them: name → (storage, view)."""
    storages, tensors = [], {}
    for index in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(sorted(KINDS)))
        flat = np.arange(draw(st.integers(1, 60))).astype(KINDS[kind])
        storages.append((kind, flat))
        for place in range(draw(st.integers(1, 3))):
            offset = draw(st.integers(0, flat.size - 1))
            rows = draw(st.integers(0, flat.size - offset))
            view = flat[offset : offset + rows]
            if rows % 2 == 0 and draw(st.booleans()):
                view = view.reshape(2, rows // 2).T
            view = view[:: draw(st.integers(1, 3))]
            tensors[f"layer{index}.{place}"] = (index, offset, view)
    return storages, tensors


def pickle_of(storages, tensors):
    from hostile.forge import ORDERED_DICT, storage, tensor, text

    pairs = b"".join(
        text(name)
        + tensor(
            storage(str(i), storages[i][1].size, f"torch\n{storages[i][0]}Storage"),
            offset,
            view.shape,
            [step // view.itemsize for step in view.strides],
        )
        for name, (i, offset, view) in tensors.items()
    )
    return b"\x80\2" + ORDERED_DICT + b"(" + pairs + b"u."


@FEW
@given(state_dicts())
def test_any_checkpoint(state):
    from hostile.forge import checkpoint, legacy, text

    storages, tensors = state
    code = pickle_of(storages, tensors)
    raw = {str(i): flat.tobytes() for i, (_, flat) in enumerate(storages)}
    keys = b"\x80\2](" + b"".join(map(text, raw)) + b"e."
    counted = (flat.size.to_bytes(8, "little") + flat.tobytes() for _, flat in storages)
    for data in (checkpoint(code, raw), legacy(code, keys, b"".join(counted))):
        read = read_checkpoint(data, "a.ckpt")
        assert list(read) == list(tensors)
        for name, (_, _, view) in tensors.items():
            assert read[name].dtype == view.dtype
            np.testing.assert_array_equal(read[name], view)


# --- pipelines --------------------------------------------------------------------------------

NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,10}", fullmatch=True)
INT32 = st.integers(1, 2**31 - 1)
VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
SETTINGS = st.dictionaries(TEXTS.filter(lambda name: name != "calls"), VALUES | TEXTS, max_size=3)
TENSORS = st.builds(
    Tensor,
    name=TEXTS.filter(bool),
    dtype=st.sampled_from(["BOOL", "INT32", "INT64", "FP16", "FP32", "STRING"]),
    dims=st.lists(st.integers(-1, 2**31 - 1), min_size=1, max_size=3).map(tuple),
    reshape=st.none() | st.lists(INT32, max_size=2).map(tuple),
)


@st.composite
def pipelines(draw):
    """Return a chain of modules, each of which reads what the one before makes."""
    names = draw(st.lists(NAMES, min_size=2, max_size=5, unique=True))
    names = [f"m{name}" for name in names]
    name, *modules = names
    tensors = draw(st.lists(TENSORS, min_size=len(names), max_size=len(names)))
    nodes = ["pipeline", *modules, "pipeline"]
    edges = [
        (f"{nodes[i]}.{tensors[i].name}", f"{nodes[i + 1]}.{tensors[i].name}")
        for i in range(len(modules) + 1)
    ]
    return Pipeline(
        name=name,
        kind="speech_recognition",
        language_code=draw(TEXTS),
        max_batch_size=draw(INT32),
        inputs=(tensors[0],),
        outputs=(tensors[-1],),
        modules=tuple(
            Module(
                name=module,
                model=f"t-{module}",
                uses=draw(st.sampled_from(["backend:a", "engine:b_c"])),
                max_batch_size=draw(INT32),
                inputs=(tensors[i],),
                outputs=(tensors[i + 1],),
                parameters=draw(SETTINGS),
                files=draw(st.dictionaries(st.sampled_from(["a.npy", "b"]), TEXTS)),
                instance_group_count=draw(INT32),
            )
            for i, module in enumerate(modules)
        ),
        edges=tuple(edges),
        models={"acoustic_model": SourceArchive(draw(TEXTS), draw(TEXTS), "0" * 64)},
        options=tuple(
            OptionValue(draw(TEXTS), draw(VALUES), origin) for origin in ("default", "given")
        ),
        parameters=draw(SETTINGS),
    )


@FEW
@given(pipelines())
def test_any_pipeline(pipeline):
    data = dump_pipeline(pipeline)
    assert load_pipeline(data, "a.jmir!pipeline.json") == pipeline
    assert dump_pipeline(load_pipeline(data, "x")) == data
