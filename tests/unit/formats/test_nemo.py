"""`.nemo` archives: every hostile file is refused by name, every good one is read exactly."""

from __future__ import annotations

import collections
import contextlib
import gzip
import io
import itertools
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jarvis_rules.errors import IntegrityError, JarvisError, UsageError
from jarvis_rules.formats.nemo import NemoArchive, check_finite, load_config, open_nemo

TESTS = Path(__file__).parents[2]
HOSTILE = TESTS / "vectors" / "nemo"
MODELS = TESTS / "data" / "models"
HASH = "0123456789abcdef0123456789abcdef_"

REFUSED = {
    "absolute_path": ("nemo.member-absolute", "`/data/escape.txt`"),
    "duplicate_weights": ("nemo.member-duplicate", "`model_weights.ckpt` twice"),
    "empty": ("nemo.empty", "empty file"),
    "gzip_bomb": ("nemo.compression-bomb", "40622 bytes inflate to over"),
    "hardlink": ("nemo.member-link", "hard link to `../../etc/passwd`"),
    "missing_weights": ("nemo.missing-weights", "there are `model_config.yaml`"),
    "missing_yaml": ("nemo.missing-config", "there are `model_weights.ckpt`"),
    "nan_weight": (
        "checkpoint.nan",
        "`encoder.encoder.0.mconv.0.conv.weight` holds NaN at [0, 0, 0]",
    ),
    "not_a_tar": ("nemo.not-a-tar", "460 bytes"),
    "path_traversal": ("nemo.member-traversal", "`../../escape.txt`"),
    "pickle_bare": ("checkpoint.would-execute", "call `posix.system('touch pwned')`"),
    "pickle_os_system": ("checkpoint.would-execute", "call `posix.system('touch pwned')`"),
    "symlink": ("nemo.member-link", "symbolic link to `/etc/passwd`"),
    "symlink_folder": ("nemo.member-link", "`./a` is a symbolic link to `/data`"),
    "truncated_tar": ("nemo.truncated", "`model_weights.ckpt` claims 87862 bytes"),
    "yaml_python_tag": ("nemo.yaml", "`!!python/object/apply:os.system` is not"),
}
LOADED = {
    "control_valid",
    "wrong_shape",
    "missing_key",
    "unknown_target",
}  # the exporter's to refuse


def test_every_hostile_file_is_covered() -> None:
    assert {path.stem for path in HOSTILE.glob("*.nemo")} == REFUSED.keys() | LOADED


@pytest.mark.parametrize("name", sorted(REFUSED.keys() | LOADED))
def test_hostile_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = HOSTILE / f"{name}.nemo"
    if name in LOADED:
        with open_nemo(path) as archive:
            assert len(archive.state_dict()) == 36 + (name != "missing_key")
    else:
        with pytest.raises(IntegrityError) as refusal, open_nemo(path) as archive:
            archive.state_dict()
        slug, shown = REFUSED[name]
        assert type(refusal.value) is IntegrityError
        assert refusal.value.exit_code == 3
        assert refusal.value.slug == slug
        assert shown in refusal.value.message
        assert refusal.value.where.startswith(str(path))
        assert refusal.value.hint
    assert list(tmp_path.iterdir()) == []


class _Independent(pickle.Unpickler):
    """Another reading of our own good files, through Python's own zip and pickle machine."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, _: str, name: str) -> Any:
        known = {
            "FloatStorage": "<f4",
            "LongStorage": "<i8",
            "OrderedDict": collections.OrderedDict,
        }
        return self.rebuild if name == "_rebuild_tensor_v2" else known[name]

    def persistent_load(self, identity: tuple[Any, ...]) -> np.ndarray:
        _, dtype, key, _, count = identity
        return np.frombuffer(self.archive.read(f"{self.root}/data/{key}"), dtype, count)

    @staticmethod
    def rebuild(flat: np.ndarray, offset: int, size: Any, stride: Any, *_: object) -> np.ndarray:
        steps = [step * flat.itemsize for step in stride]
        return np.lib.stride_tricks.as_strided(flat[offset:], size, steps).copy()


def tar_members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        return {
            m.name.removeprefix("./"): archive.extractfile(m).read() for m in archive if m.isfile()
        }


@pytest.mark.parametrize("name", ["quartznet", "jasper", "quartznet_espeak"])
def test_good_files(name: str) -> None:
    path = MODELS / f"{name}.nemo"
    members = tar_members(path)
    with zipfile.ZipFile(io.BytesIO(members["model_weights.ckpt"])) as archive:
        root = archive.namelist()[0].split("/")[0]
        expected = _Independent(archive, root).load()
    with open_nemo(path) as nemo:
        assert nemo.path == path
        assert {m.name: m.size for m in nemo.members} == {n: len(d) for n, d in members.items()}
        assert nemo.config == yaml.safe_load(members["model_config.yaml"])
        assert nemo.target == "nemo.collections.asr.models.ctc_models.EncDecCTCModel"
        assert nemo.nemo_version == "1.23.0"
        tensors = nemo.state_dict()
    assert list(tensors) == list(expected)
    for key, value in tensors.items():
        assert value.dtype == expected[key].dtype
        assert not value.flags.writeable
        assert value.flags.aligned
        np.testing.assert_array_equal(value, expected[key], err_msg=key)
    window = tensors["preprocessor.featurizer.window"]
    np.testing.assert_allclose(window, np.hanning(len(window)), atol=1e-6)


def control() -> dict[str, bytes]:
    return tar_members(HOSTILE / "control_valid.nemo")


def packed(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as out:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_reads_gzip_and_bare_names(mode: str, prefix: str, tmp_path: Path) -> None:
    members = {f"{prefix}{name}": data for name, data in control().items()}
    path = packed(tmp_path / "a.nemo", members, mode)
    with open_nemo(HOSTILE / "control_valid.nemo") as good, open_nemo(path) as nemo:
        assert [m.name for m in nemo.members] == ["model_config.yaml", "model_weights.ckpt"]
        assert nemo.config == good.config
        expected, tensors = good.state_dict(), nemo.state_dict()
    assert list(tensors) == list(expected)
    for key, value in tensors.items():
        np.testing.assert_array_equal(value, expected[key])


def with_config(tmp_path: Path, config: bytes) -> NemoArchive:
    members = {**control(), "model_config.yaml": config}
    return open_nemo(packed(tmp_path / "a.nemo", members))


def with_artifacts(tmp_path: Path, *names: str) -> NemoArchive:
    members = {**control(), **{name: f"content of {name}".encode() for name in names}}
    return open_nemo(packed(tmp_path / "a.nemo", members))


@pytest.mark.parametrize(
    ("reference", "member"),
    [
        (f"nemo:{HASH}vocab.txt", f"{HASH}vocab.txt"),
        (f"{HASH}vocab.txt", f"{HASH}vocab.txt"),
        ("vocab.txt", f"{HASH}vocab.txt"),
        ("nemo:vocab.txt", f"{HASH}vocab.txt"),
        ("/home/user/tokenizer/vocab.txt", f"{HASH}vocab.txt"),
        ("labels.csv", "labels.csv"),
        ("/data/labels.csv", "labels.csv"),
        ("old/words.txt", "old/words.txt"),
        ("words.txt", "words.txt"),
        ("../../etc/model", "model"),
    ],
)
def test_artifacts_are_found_by_base_name(reference: str, member: str, tmp_path: Path) -> None:
    names = (f"{HASH}vocab.txt", "labels.csv", f"{HASH}labels.csv", "old/words.txt", "words.txt")
    archive = with_artifacts(tmp_path, *names, "model")
    assert archive.artifact(reference) == f"content of {member}".encode()


@pytest.mark.parametrize(
    ("reference", "slug", "shown"),
    [
        ("words.txt", "ambiguous-artifact", "`one/words.txt`, `two/words.txt`"),
        ("nemo:vocab.txt", "ambiguous-artifact", f"`{HASH}vocab.txt`, `1{HASH[1:]}vocab.txt`"),
        ("vocab.tx", "missing-artifact", "`vocab.tx`"),
        (f"nemo:2{HASH[1:]}vocab.txt", "missing-artifact", f"there are `{HASH}vocab.txt`"),
        ("../../etc/passwd", "missing-artifact", "`../../etc/passwd`"),
        ("model_config.yaml", "missing-artifact", "`model_config.yaml`"),
        ("", "missing-artifact", "``"),
        ("nemo:", "missing-artifact", "`nemo:`"),
        ("..", "missing-artifact", "`..`"),
    ],
)
def test_refuses_to_guess_artifacts(reference: str, slug: str, shown: str, tmp_path: Path) -> None:
    names = ("one/words.txt", "two/words.txt", f"{HASH}vocab.txt", f"1{HASH[1:]}vocab.txt")
    with pytest.raises(IntegrityError) as refusal:
        with_artifacts(tmp_path, *names).artifact(reference)
    assert refusal.value.slug == f"nemo.{slug}"
    assert shown in refusal.value.message
    if reference == "vocab.tx":
        assert refusal.value.hint == "did you mean `vocab.txt`?"


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (b"a: 1", "got nothing"),
        (b"target: ''", "got ``"),
        (b"target: 5", "got `5`"),
        (b"target: EncDecCTCModel", "got `EncDecCTCModel`"),
        (b"target: os.system('x')", "got `os.system('x')`"),
        (b"target: [a.b]", "must name the model's class"),
    ],
)
def test_the_target_must_be_a_dotted_name(config: bytes, shown: str, tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as refusal:
        with_config(tmp_path, config)
    assert refusal.value.slug == "nemo.target"
    assert "`target`" in refusal.value.message
    assert shown in refusal.value.message
    assert refusal.value.where == f"{tmp_path}/a.nemo!model_config.yaml"


def test_the_version_is_optional(tmp_path: Path) -> None:
    assert with_config(tmp_path, b"target: a.B").nemo_version is None
    assert with_config(tmp_path, b"target: a.B\nnemo_version: 1.7").nemo_version == "1.7"


def laughs(start: str, line: Callable[[str, str], str]) -> str:
    names = "abcdefghijklmno"
    return start + "".join(line(new, old) for old, new in itertools.pairwise(names))


CHAIN = "l:\n- &a0 {x: 1}\n" + "".join(f"- &a{i + 1} {{<<: *a{i}}}\n" for i in range(2000))
YAML_REFUSED = {
    "python name": ("a:\n  b: !!python/name:os.system x", "`!!python/name:os.system`", 2),
    "python module": ("a: !!python/module:os x", "`!!python/module:os`", 1),
    "local tag": ("a: !thing x", "`!thing`", 1),
    "binary": ("a: !!binary aGVsbG8=", "`!!binary`", 1),
    "set": ("a: !!set {a}", "`!!set`", 1),
    "duplicate key": ("a: 1\nb: {c: 1, 'c': 2}", "`c` is given twice", 2),
    "duplicate merge": ("a: &a {x: 1}\nb: {<<: *a, <<: *a}", "`<<` is given twice", 2),
    "list as key": ("? [a]\n: 1", "neither text", 1),
    "long key": ("a: {1234567890123456789: 1}", "neither text", 1),
    "long number": ("a: " + "9" * 5000, "5000 characters", 1),
    "long time": ("a: 1" + ":1" * 100_000, "characters", 1),
    "billion laughs": (
        laughs("a: &a [1, 1]\n", lambda n, o: f"{n}: &{n} [{', '.join([f'*{o}'] * 9)}]\n"),
        "aliases expand to",
        7,
    ),
    "billion merges": (
        laughs("a: &a {x: 1}\n", lambda n, o: f"{n}: &{n} {{<<: [{', '.join([f'*{o}'] * 9)}]}}\n"),
        "aliases expand to",
        7,
    ),
    "chain of merges": (CHAIN, "65 deep", 65),
    "list in itself": ("a: &a [*a]", "an alias holds itself", 1),
    "mapping in itself": ("a: &a {b: *a}", "an alias holds itself", 1),
    "deep flow": ("a: " + "[" * 100_000, "nested more than 64", 1),
    "deep block": ("\n".join(" " * i + "a:" for i in range(500)), "nested more than 64", 64),
    "unknown alias": ("a: *b", "undefined alias 'b'", 1),
    "two documents": ("a: 1\n---\nb: 1", "document", 2),
    "not closed": ("a: [1", "expected", None),
    "wrong int": ("a: !!int x", "invalid literal", None),
    "empty int": ("a: !!int ''", "", None),
    "wrong bool": ("a: !!bool x", "", None),
    "wrong tag": ("a: !!int [1]", "expected a scalar node", 1),
    "merge of text": ("<<: x", "merging", 1),
    "not a mapping": ("- a", "expected a mapping", None),
    "nothing": ("", "expected a mapping", None),
    "number as key": ("1: 2", "expected a mapping of names", None),
    "control character": ("a: \x00", "not allowed", None),
}


@pytest.mark.parametrize("case", YAML_REFUSED)
def test_refuses_yaml(case: str) -> None:
    text, shown, line = YAML_REFUSED[case]
    with pytest.raises(IntegrityError) as refusal:
        load_config(text.encode(), "a.nemo!model_config.yaml")
    assert refusal.value.slug == "nemo.yaml"
    assert shown in refusal.value.message
    assert refusal.value.where == "a.nemo!model_config.yaml"
    if line:
        assert refusal.value.message.endswith(f"on line {line}")


def test_refuses_yaml_that_is_not_utf8() -> None:
    with pytest.raises(IntegrityError, match="utf-8"):
        load_config(b"a: \xff", "x")


def test_scalars_resolve_as_in_omegaconf() -> None:
    text = "a: 1e-5\nb: 1E5\nc: 2020-01-01\nd: =\ne: .5e3\nf: 1_000\ng: 0x1e5\nh: 1e\ni: 1.5e-3\n"
    text += (
        "j: e5\nk: -1e3\nl: ~\nm: yes\nn: '1e5'\nbase: &base {x: 1, y: 2}\no: {<<: *base, y: 3}\n"
    )
    expected = {"a": 1e-5, "b": 1e5, "c": "2020-01-01", "d": "=", "e": 500.0, "f": 1000}
    expected |= {"g": 0x1E5, "h": "1e", "i": 0.0015, "j": "e5", "k": -1000.0, "l": None, "m": True}
    expected |= {"n": "1e5", "base": {"x": 1, "y": 2}, "o": {"x": 1, "y": 3}}
    assert load_config(text.encode(), "x") == expected


def test_the_size_of_the_configuration_is_limited(tmp_path: Path) -> None:
    with pytest.raises(IntegrityError) as refusal:
        with_config(tmp_path, b"target: a.B\n" + b"#" * (5 << 20))
    assert refusal.value.slug == "nemo.config-size"


@pytest.mark.parametrize(
    ("value", "slug", "shown"),
    [
        (np.nan, "nan", "tensor `w` holds NaN at [1, 2] (1 of 6"),
        (np.inf, "inf", "tensor `w` holds an infinity at [1, 2]"),
        (-np.inf, "inf", "an infinity"),
    ],
)
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
def test_values_must_be_finite(value: float, slug: str, shown: str, dtype: str) -> None:
    good, bad = np.ones((2, 3), dtype), np.ones((3, 2), dtype).T
    bad[1, 2] = value
    with pytest.raises(IntegrityError) as refusal:
        check_finite({"good": good, "n": np.array(5), "w": bad}, "x")
    assert refusal.value.slug == f"checkpoint.{slug}"
    assert shown in refusal.value.message
    check_finite({"good": good, "empty": good[:0], "scalar": good[0, 0, ...]}, "x")


def test_a_missing_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError) as refusal:
        open_nemo(MODELS / "quartznet.nemmo")
    assert refusal.value.slug == "file.missing"
    assert "`quartznet.nemo`" in refusal.value.hint


CONTROL = (HOSTILE / "control_valid.nemo").read_bytes()


@settings(
    derandomize=True, max_examples=150, deadline=5000, suppress_health_check=list(HealthCheck)
)
@given(
    st.lists(st.tuples(st.integers(0, len(CONTROL) - 1), st.integers(0, 255)), max_size=6),
    st.lists(st.tuples(st.integers(0, 16_000), st.integers(0, 255)), max_size=3),
    st.floats(0, 1.5),
    st.booleans(),
)
def test_damage_is_refused_or_harmless(
    tmp_path: Path,
    anywhere: list[tuple[int, int]],
    early: list[tuple[int, int]],
    size: float,
    packs: bool,
) -> None:
    damaged = bytearray(CONTROL)
    for at, value in anywhere + early:
        damaged[at] = value
    data = bytes(damaged[: int(size * len(damaged))])
    path = tmp_path / "a.nemo"
    path.write_bytes(gzip.compress(data, 1) if packs else data)
    with contextlib.suppress(JarvisError), open_nemo(path) as archive:
        archive.artifact("vocab.txt")
    with contextlib.suppress(JarvisError), open_nemo(path) as archive:
        archive.state_dict()


@settings(derandomize=True, max_examples=300, deadline=5000)
@given(st.lists(st.sampled_from([*"ab:-?&*!|>#%@'\"[]{},.0123e~ \n\t=<", "<<: ", "&a ", "*a"])))
def test_any_yaml_ends(parts: list[str]) -> None:
    with contextlib.suppress(JarvisError):
        load_config("".join(parts).encode(), "x")
