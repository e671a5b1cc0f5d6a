"""The restricted checkpoint reader, on pickles written opcode by opcode: no torch here."""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.formats import _pickle_machine, checkpoint, torch_zip
from jarvis_rules.formats.checkpoint import read_checkpoint

# torch 2.13, legacy format: w = arange(6) [2,3], wt = w.T[1:], bf = bfloat16, b = bool, n = 7.
TORCH_LEGACY = (
    b"c-mdk$!^m?7zc3A*h%O>q3o2k><&wWO=IBH3ZY(xt>!WpWF^i}8(E%w_P7Y7O1U%wo`C~L9;2_rBOr0$^Fq|b@-i"
    b"Nef8XCTp3v_s`TJw*&)UadZ&!O0`s%ld=RGiNv0@m;I8$1MDhYOFmd7duf&;`dK1pJ&6B)>K6c19MUj@TX{dp{dJ"
    b"pLkcF!#W+MGHIgNM#yYoC*`~;#5PMTf!<0mF_@?TSb92LoAcXP-B&xy~##0lcN`Ls2LbtABZgozVQiYs8tq5y`a!"
    b">lCvO_!y-;bftG2mvS8O`VA{6ml!bBRU`K*gzrwZ>HPG+sP6jQpgkzrc*Pl6#<356R6)zkYn5g|)!;x)naLUaoEO"
    b"C>QDX?!*ndGR3V?HbkTE@|EJi>C36)kcnqMBLR<^&l!g_GDo?NrU2)^Ns$vlTP^0Ox9^N&38s>UguT=PTXwyr*8@"
    b">AP?Nb&C3G6>=Xga<UJXYWcE;D?VJU=4%Mo=3%9h8M-z@o%O!s!u1Bd(V#a=^j3}D)^Nv%yA_&(J%_%;Wt^eiLrJ"
    b"~IF5E+uAbKCsZnwrBXn5#DuUz%_<)1bmgDiY2T@cNMnYLuFoWyb?#{bsAhH*fecBi?vjl<hy15cZ{<1xYG=jJ~}E"
    b"Wk("
)


@dataclass(frozen=True)
class Name:
    """A global, by name."""

    path: str


@dataclass(frozen=True)
class Call:
    """A reduction of a global with arguments."""

    function: Name
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Persistent:
    identity: tuple[Any, ...]


def opcodes(value: Any) -> bytes:
    """Write a value as torch's pickler does, without memo."""
    match value:
        case None | True | False:
            code = {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int() if abs(value) < 1 << 31:
            code = b"J" + struct.pack("<i", value)
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            code = b"\x8a" + bytes([len(raw)]) + raw
        case str():
            code = b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            code = b"(" + b"".join(map(opcodes, value)) + b"t"
        case list():
            code = b"](" + b"".join(map(opcodes, value)) + b"e"
        case dict():
            items = itertools.chain.from_iterable(value.items())
            code = b"}(" + b"".join(map(opcodes, items)) + b"u"
        case Name(path):
            module, _, name = path.rpartition(".")
            code = f"c{module}\n{name}\n".encode()
        case Call(function, arguments):
            code = opcodes(function) + opcodes(arguments) + b"R"
        case Persistent(identity):
            code = opcodes(identity) + b"Q"
    return code


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


def storage(key: str = "0", count: Any = 6, kind: str = "Float", *more: Any) -> Persistent:
    return Persistent(("storage", Name(f"torch.{kind}Storage"), key, "cpu", count, *more))


def tensor(
    source: Any = None,
    offset: Any = 0,
    size: Any = (2, 3),
    stride: Any = (3, 1),
    *,
    version: int = 2,
) -> Call:
    arguments = (storage() if source is None else source, offset, size, stride)
    if version == 1:
        return Call(Name("torch._utils._rebuild_tensor"), arguments)
    hooks = Call(Name("collections.OrderedDict"))
    return Call(Name("torch._utils._rebuild_tensor_v2"), (*arguments, False, hooks))


SIX = np.arange(6, dtype="<f4")


def packed(data: bytes, storages: dict[str, bytes] | None = None, **more: bytes) -> bytes:
    """A torch zip of a pickle and storages."""
    out = io.BytesIO()
    storages = {"0": SIX.tobytes()} if storages is None else storages
    with zipfile.ZipFile(out, "w") as archive:
        entries = {f"data/{key}": content for key, content in storages.items()}
        for name, content in {"data.pkl": data, **entries, **more}.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), content)  # no time of day
    return out.getvalue()


def legacy(value: Any, storages: dict[str, tuple[int, bytes]], keys: Any = None) -> bytes:
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [0x1950A86A20F9469CFC6C, 1001, system, value, list(storages) if keys is None else keys]
    raw = b"".join(struct.pack("<q", count) + data for count, data in storages.values())
    return b"".join(map(pickled, parts)) + raw


def read(data: bytes) -> dict[str, np.ndarray]:
    return read_checkpoint(data, "a.nemo!weights")


def refused(data: bytes) -> IntegrityError:
    with pytest.raises(IntegrityError) as refusal:
        read(data)
    assert refusal.value.where == "a.nemo!weights"
    assert refusal.value.hint
    assert str(refusal.value).isprintable()
    return refusal.value


def test_reads_views_of_the_storage() -> None:
    data = packed(
        pickled(
            {
                "whole": tensor(),
                "old": tensor(version=1),
                "transposed": tensor(size=(3, 2), stride=(1, 3)),
                "part": tensor(offset=1, size=(2, 1), stride=(3, 1)),
                "scalar": tensor(offset=5, size=(), stride=()),
                "empty": tensor(size=(0, 3), stride=(3, 1)),
                "long stride": tensor(size=(1, 6), stride=(1 << 62, 1)),
                "parameter": Call(Name("torch._utils._rebuild_parameter"), (tensor(), True, None)),
            }
        )
    )
    tensors = read(data)
    whole = SIX.reshape(2, 3)
    np.testing.assert_array_equal(tensors["whole"], whole)
    np.testing.assert_array_equal(tensors["old"], whole)
    np.testing.assert_array_equal(tensors["parameter"], whole)
    np.testing.assert_array_equal(tensors["transposed"], whole.T)
    np.testing.assert_array_equal(tensors["part"], whole[:, 1:2])
    np.testing.assert_array_equal(tensors["long stride"], SIX[None])
    assert tensors["scalar"].shape == ()
    assert tensors["scalar"] == 5
    assert tensors["empty"].shape == (0, 3)
    assert list(tensors) == [
        *("whole", "old", "transposed", "part", "scalar", "empty", "long stride", "parameter")
    ]
    for value in tensors.values():
        assert value.dtype == np.float32
        with pytest.raises(ValueError, match="read-only"):
            value[...] = 0
    assert np.shares_memory(tensors["whole"], np.frombuffer(data, np.uint8))


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *(("Double", "<f8"), ("Float", "<f4"), ("Half", "<f2"), ("Long", "<i8"), ("Int", "<i4")),
        *(("Short", "<i2"), ("Char", "<i1"), ("Byte", "<u1")),
    ],
)
def test_reads_every_kind_of_storage(kind: str, dtype: str) -> None:
    values = np.array([[1, 2, 3], [4, 5, 127]], dtype)
    source = storage("k", 6, kind)
    (value,) = read(packed(pickled({"a": tensor(source)}), {"k": values.tobytes()})).values()
    assert value.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(value, values)


def test_bfloat16_becomes_float32_and_bool_is_clean() -> None:
    half = np.array([0x3FC0, 0xC000, 0x7F80, 0xFF80, 0x0001, 0x8000], "<u2")
    data = {"half": half.tobytes(), "bool": bytes([0, 1, 2, 255, 0, 1])}
    parts = {
        "half": tensor(storage("half", 6, "BFloat16")),
        "bool": tensor(storage("bool", 6, "Bool")),
    }
    tensors = read(packed(pickled(parts), data))
    assert tensors["half"].dtype == np.float32
    assert tensors["half"].ravel().tolist() == [1.5, -2.0, np.inf, -np.inf, 2.0**-133, -0.0]
    assert tensors["bool"].dtype == np.bool_
    assert tensors["bool"].ravel().tolist() == [False, True, True, True, False, True]


def test_reads_what_torch_wrote_in_the_legacy_format() -> None:
    tensors = read(zlib.decompress(base64.b85decode(TORCH_LEGACY)))
    whole = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(tensors["w"], whole)
    np.testing.assert_array_equal(tensors["wt"], whole.T[1:])
    assert tensors["bf"].tolist() == [1.5, -2.0]
    assert tensors["b"].tolist() == [True, False]
    assert tensors["n"] == 7
    assert tensors["n"].dtype == np.int64


def test_reads_a_lightning_checkpoint() -> None:
    rest = {"epoch": 3, "lr": None, "optimizer": [{"state": {0: {"step": tensor()}}}]}
    assert list(read(packed(pickled({**rest, "state_dict": {"a": tensor()}})))) == ["a"]


def test_reads_other_pickle_protocols() -> None:
    new = pickle.dumps({"a": 1}, 4)  # framed, memoised; its value is replaced by a tensor
    head, tail = new.split(b"K\x01")
    data = b"\x80\x02" + head[11:] + opcodes(tensor()) + tail
    assert list(read(packed(data))) == ["a"]
    ordered = Call(Name("collections.OrderedDict"), ([["a", tensor()], ["b", tensor()]],))
    assert list(read(packed(pickled(ordered)))) == ["a", "b"]
    stacked = b"\x80\x04" + opcodes({"a": tensor()}).replace(
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        opcodes("torch._utils") + opcodes("_rebuild_tensor_v2") + b"\x93",
    )
    assert list(read(packed(stacked + b"."))) == ["a"]


def test_ignores_the_state_of_an_ordered_dict() -> None:
    state = opcodes({"_metadata": {"": {"version": 1}}}) + b"b."
    assert list(read(packed(b"\x80\x02" + opcodes({"a": tensor()}) + state))) == ["a"]


GOOD = opcodes({"a": tensor()}) + b"."
EXECUTED = {
    "call": (opcodes(Call(Name("posix.system"), ("id",))), "call `posix.system('id')`"),
    "two arguments": (
        opcodes(Call(Name("builtins.getattr"), (Name("os.path"), "join"))),
        "call `builtins.getattr(os.path, 'join')`",
    ),
    "stacked": (
        opcodes("nt") + opcodes("system") + b"\x93" + opcodes(("x",)) + b"R",
        "nt.system('x')",
    ),
    "instance": (b"(" + opcodes("id") + b"ios\nsystem\n", "call `os.system('id')`"),
    "object": (b"(cos\nsystem\n" + opcodes("id") + b"o", "call `os.system('id')`"),
    "new object": (
        opcodes(Name("subprocess.Popen")) + opcodes(("id",)) + b"\x81",
        "subprocess.Popen",
    ),
    "new with keywords": (
        opcodes(Name("subprocess.Popen")) + opcodes(("id",)) + opcodes({"shell": True}) + b"\x92",
        "call `subprocess.Popen('id', {'shell': True})`",
    ),
    "import": (opcodes(Name("antigravity.fly")), "import `antigravity.fly`"),
    "import and damage": (opcodes(Name("antigravity.fly")) + b"0R", "import `antigravity.fly`"),
    "state": (opcodes(Name("os.environ")) + opcodes({"A": "b"}) + b"b", "state of os.environ"),
    "called storage": (
        opcodes(Call(Name("torch.FloatStorage"), (1 << 40,))),
        "call `torch.FloatStorage(1099511627776)`",
    ),
    "called known": (opcodes(Call(Name("collections.OrderedDict"), (1, 2))), "OrderedDict(1, 2)"),
    "attack on the terminal": (opcodes(Call(Name("os.system"), ("\x1b[2J",))), "'\\x1b[2J'"),
}


@pytest.mark.parametrize("case", EXECUTED)
@pytest.mark.parametrize("container", ["zip", "bare", "legacy"])
def test_names_what_would_be_executed(case: str, container: str) -> None:
    code, shown = EXECUTED[case]
    data = b"\x80\x02" + code + b"0" + GOOD
    if container == "zip":
        data = packed(data)
    elif container == "legacy":
        data = (
            b"".join(map(pickled, [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}])) + data
        )
    refusal = refused(data)
    assert refusal.slug == "checkpoint.would-execute"
    assert shown in refusal.message


@pytest.mark.parametrize(
    ("value", "slug", "shown"),
    [
        (tensor(offset=1), "tensor-bounds", "`a` reaches beyond its storage of 6 values"),
        (tensor(offset=-1), "tensor-bounds", "offset -1"),
        (tensor(size=(3, 3)), "tensor-bounds", "size (3, 3)"),
        (tensor(size=(2, -3)), "tensor-bounds", "size (2, -3)"),
        (tensor(stride=(4, 1)), "tensor-bounds", "stride (4, 1)"),
        (tensor(stride=(-3, 1)), "tensor-bounds", "stride (-3, 1)"),
        (tensor(size=(1 << 60,), stride=(0,)), "tensor-bounds", "reaches beyond"),
        (tensor(size=(0, 1 << 60)), "tensor-bounds", "reaches beyond"),
        (tensor(size=(1 << 40, 1 << 40, 0), stride=(1, 1, 1)), "tensor-bounds", "reaches beyond"),
        (tensor(size=(1 << 21,), stride=(0,)), "tensor-bounds", "reaches beyond"),
        (tensor(size=(1 << 20,), stride=(0,)), "limit", "over 64 times"),
        (tensor(stride=(1 << 70, 1)), "tensor-bounds", "reaches beyond"),
        (tensor(size=(2, 3, 1)), "tensor-bounds", "malformed tensor"),
        (tensor(size=(1,) * 33, stride=(1,) * 33), "tensor-bounds", "malformed tensor"),
        (tensor(size=6, stride=1), "tensor-bounds", "malformed tensor"),
        (tensor(size=(True, 3)), "tensor-bounds", "malformed tensor"),
        (tensor(size=("2", 3)), "tensor-bounds", "malformed tensor"),
        (tensor("0"), "tensor-bounds", "malformed tensor of '0'"),
        (tensor(storage(count=7)), "storage", "should have 28 bytes, got 24"),
        (tensor(storage(count=5)), "storage", "should have 20 bytes, got 24"),
        (tensor(storage("1")), "storage", "`archive/data/1` is missing"),
        (tensor(storage("../../x")), "storage", "`archive/data/../../x` is missing"),
        (tensor(storage(count=-6)), "unsupported", "unknown kind of storage"),
        (tensor(storage(count=1 << 60)), "unsupported", "unknown kind of storage"),
        (tensor(storage("0", 6, "QInt8")), "unsupported", "torch.QInt8Storage"),
        (tensor(storage("0", 6, "Float", ("v", 0, 6))), "unsupported", "unknown kind"),
        (tensor(Persistent(("module", "x"))), "unsupported", "('module', 'x')"),
        (tensor(Persistent(("storage",))), "unsupported", "('storage',)"),
        (5, "not-a-state-dict", "got 5 under `a`"),
        ({"b": tensor()}, "not-a-state-dict", "under `a`"),
        (storage(), "not-a-state-dict", "under `a`"),
        (Name("torch.FloatStorage"), "not-a-state-dict", "got torch.FloatStorage under `a`"),
        (
            Call(Name("torch._utils._rebuild_parameter"), (1,)),
            "would-execute",
            "_rebuild_parameter(1)",
        ),
        (
            Call(Name("torch._utils._rebuild_tensor_v2"), (1,)),
            "would-execute",
            "_rebuild_tensor_v2(1)",
        ),
        (Call(Name("collections.OrderedDict"), (5,)), "pickle", "makes a dict of 5"),
        (Call(Name("collections.OrderedDict"), ([5],)), "pickle", "malformed"),
        ({(1, 2): 3}, "pickle", "uses (1, 2) as a key"),
        ({1 << 70: 3}, "pickle", "as a key"),
        (1 << 200, "pickle", "an integer has 201 bits"),
    ],
)
def test_refuses_hostile_values(value: Any, slug: str, shown: str) -> None:
    refusal = refused(packed(pickled({"a": value})))
    assert refusal.slug == f"checkpoint.{slug}"
    assert shown in refusal.message


@pytest.mark.parametrize(
    ("code", "slug"),
    [
        (b"", "pickle"),
        (b".", "pickle"),
        (b"\x80\x02", "pickle"),
        (b"\x80\x02}", "pickle"),
        (b"\x80\x02}u.", "pickle"),
        (b"\x80\x02(.", "pickle"),
        (b"\x80\x02N(0.", "pickle"),
        (b"\x80\x02N(\x85.", "pickle"),
        (b"\x80\x02t.", "pickle"),
        (b"\x80\x02h\x05.", "pickle"),
        (b"\x80\x02q\x05.", "pickle"),
        (b"\x80\x02}Ns.", "pickle"),
        (b"\x80\x02N(NNu.", "pickle"),
        (b"\x80\x02Na.", "pickle"),
        (b"\x80\x02NNNa.", "pickle"),
        (b"\x80\x02(o.", "pickle"),
        (b"\x80\x02NNR.", "pickle"),
        (b"\x80\x02N)R.", "pickle"),
        (b"\x80\x02" + b"p9999999999999999999999\n.", "pickle"),
        (b"\x80\x02Np9999999999999999999999\n0.", "pickle"),
        (b"\x80\x02\x8b\xff\xff\xff\xff.", "pickle"),
        (b"\x80\x02X\xff\xff\xff\x7fabc.", "pickle"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "pickle"),
        (b"\x80\x02Iabc\n.", "pickle"),
        (b"\x80\x02I" + b"9" * 5000 + b"\n.", "pickle"),
        (b"\x80\x02\xff.", "pickle"),
        (b"\x80\x02Nb.", "pickle"),
        (b"\x80\x02NNb.", "would-execute"),
        (b"\x80\x02Px\n.", "unsupported"),
        (b"\x80\x02\x82\x01.", "unsupported"),
        (b"\x80\x02N2.", "unsupported"),
        (b"\x80\x02\x8f.", "unsupported"),
        (b"\x80\x05\x97.", "unsupported"),
        (b"\x80\x02N.", "not-a-state-dict"),
        (b"\x80\x02}.", "not-a-state-dict"),
        (b"\x80\x02" + opcodes({5: tensor()}) + b".", "not-a-state-dict"),
        (b"\x80\x02" + b"N" * 100_000 + b".", "not-a-state-dict"),
        (b"\x80\x02N." + b"junk", "pickle"),
    ],
)
def test_refuses_malformed_pickles(code: bytes, slug: str) -> None:
    assert refused(packed(code)).slug == f"checkpoint.{slug}"


def test_work_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pickle_machine, "MAX_OPCODES", 1000)
    assert refused(packed(b"\x80\x02" + b"N" * 2000 + b".")).slug == "checkpoint.limit"
    pairs = opcodes([["a", 1]] * 50) + b"\x85q\x000"  # one list, made into a dict again and again
    again = b"ccollections\nOrderedDict\nh\x00R0"
    assert refused(packed(b"\x80\x02" + pairs + again * 100 + b"N.")).slug == "checkpoint.limit"
    nested = b"\x80\x02N" + b"\x85" * 900 + b"."
    assert refused(packed(nested)).slug == "checkpoint.not-a-state-dict"
    monkeypatch.setattr(checkpoint, "MAX_PICKLE_SIZE", 100)
    assert refused(packed(bytes(200))).slug == "checkpoint.limit"


def test_sharing_is_limited() -> None:
    tied = {str(i): tensor() for i in range(64)}
    assert len(read(packed(pickled(tied)))) == 64
    assert refused(packed(pickled({**tied, "64": tensor()}))).slug == "checkpoint.limit"


@pytest.mark.parametrize(
    ("value", "storages", "keys", "slug"),
    [
        ({"a": tensor()}, {"0": (6, SIX.tobytes()[:-1])}, None, "storage"),
        ({"a": tensor()}, {"0": (7, SIX.tobytes())}, None, "storage"),
        ({"a": tensor()}, {"0": (-1, SIX.tobytes())}, None, "storage"),
        ({"a": tensor()}, {"0": (6, SIX.tobytes() + b"x")}, None, "storage"),
        ({"a": tensor()}, {"0": (6, SIX.tobytes()), "1": (0, b"")}, None, "storage"),
        ({"a": tensor()}, {"0": (6, SIX.tobytes())}, ["0", "0"], "storage"),
        ({"a": tensor()}, {"0": (6, SIX.tobytes())}, [], "storage"),
        ({"a": tensor()}, {}, [], "storage"),
        ({"a": tensor()}, {}, ["0"], "truncated"),
        ({"a": tensor()}, {}, None, "storage"),
    ],
)
def test_refuses_damaged_legacy_storages(value: Any, storages: Any, keys: Any, slug: str) -> None:
    assert list(read(legacy(value, {"0": (6, SIX.tobytes())}))) == ["a"]
    assert refused(legacy(value, storages, keys)).slug == f"checkpoint.{slug}"


def test_refuses_other_legacy_files() -> None:
    magic = pickled(0x1950A86A20F9469CFC6C)
    assert refused(magic + pickled(1002)).slug == "checkpoint.unsupported"
    assert refused(magic + pickled(1001)).slug == "checkpoint.pickle"


@pytest.mark.parametrize(
    "data", [b"", b"text", b"PK\5\6" + bytes(18), pickled({"a": 1}), bytes(999)]
)
def test_what_is_no_checkpoint(data: bytes) -> None:
    assert refused(data).slug == "checkpoint.not-a-zip"


def test_refuses_other_zips() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert refused(out.getvalue()).slug == "checkpoint.not-a-zip"
    two = packed(GOOD, {}, **{"../other/data.pkl": b""})
    two = two.replace(b"archive/../other/data.pkl", b"archive_________/data.pkl")
    assert refused(two).slug == "checkpoint.not-a-zip"
    odd = refused(packed(pickled({"a": tensor()}), byteorder=b"middle"))
    assert (odd.slug, odd.message) == ("checkpoint.unsupported", "unknown byte order `middle`")


def edited(old: bytes, new: bytes, which: int = 0, data: bytes | None = None) -> bytes:
    """A good zip with the `which`th occurrence of `old` replaced."""
    data = packed(pickled({"a": tensor()})) if data is None else data
    at = -1
    for _ in range(which + 1):
        at = data.index(old, at + 1)
    return data[:at] + new + data[at + len(old) :]


def test_refuses_zips_that_two_readers_read_differently() -> None:
    name, other = b"archive/data/0", b"archive/data/1"
    assert refused(edited(name, other)).slug == "checkpoint.zip"
    assert refused(edited(name, other, 1)).slug == "checkpoint.zip"
    twice = packed(pickled({"a": tensor()}), {"0": SIX.tobytes(), "1": bytes(24)})
    twice = twice.replace(other, name)
    assert refused(twice).slug == "checkpoint.zip-duplicate"
    good = packed(pickled({"a": tensor()}))
    assert refused(good + b"x").slug == "checkpoint.truncated"
    assert refused(good[:-2] + b"\1\0c").slug == "checkpoint.truncated"
    assert refused(b"PK\3\4" + good).slug == "checkpoint.zip"
    assert refused(good[:-1]).slug == "checkpoint.truncated"
    count = good.rindex(b"PK\5\6") + 10
    assert refused(good[:count] + b"\1\0" + good[count + 2 :]).slug == "checkpoint.zip"


def test_refuses_overlapping_entries() -> None:
    data = bytearray(packed(pickled({"a": tensor()}), {"0": SIX.tobytes(), "1": SIX.tobytes()}))
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 1)
    data[second + 20 : second + 28] = struct.pack("<2I", 40, 40)
    local = data.index(b"PK\3\4", data.index(b"PK\3\4") + 1)
    data[local + 18 : local + 26] = struct.pack("<2I", 40, 40)
    refusal = refused(bytes(data))
    assert refusal.slug == "checkpoint.zip-overlap"
    assert "`archive/data/0` overlaps `archive/data/1`" in refusal.message


def test_refuses_encryption_and_unknown_compression() -> None:
    data = bytearray(packed(pickled({"a": tensor()})))
    entry = data.index(b"PK\1\2")
    data[entry + 8] |= 1
    assert refused(bytes(data)).slug == "checkpoint.zip"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("archive/data.pkl", GOOD)
    assert refused(out.getvalue()).slug == "checkpoint.zip"


def test_reads_compressed_entries_within_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    def deflated(content: bytes) -> bytes:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            count = len(content) // 4
            source = storage(count=count)
            archive.writestr("a/data.pkl", pickled({"a": tensor(source, 0, (count,), (1,))}))
            archive.writestr("a/data/0", content)
        return out.getvalue()

    np.testing.assert_array_equal(read(deflated(SIX.tobytes() * 100))["a"][:6], SIX)
    assert refused(deflated(bytes(8 << 20))).slug == "checkpoint.compression-bomb"
    monkeypatch.setattr(torch_zip, "MAX_INFLATED_SIZE", 100)
    assert refused(deflated(SIX.tobytes() * 10)).slug == "checkpoint.compression-bomb"
    monkeypatch.undo()
    lying = bytearray(deflated(SIX.tobytes() * 100))
    entry = lying.index(b"PK\1\2", lying.index(b"PK\1\2") + 1)
    for size in (2000, 2800):
        lying[entry + 24 : entry + 28] = struct.pack("<I", size)
        assert refused(bytes(lying)).slug == "checkpoint.zip"


def test_verifies_checksums() -> None:
    data = packed(pickled({"a": tensor()}))
    at = data.index(SIX.tobytes())
    refusal = refused(data[: at + 5] + b"\xff" + data[at + 6 :])
    assert refusal.slug == "checkpoint.crc"
    assert "`archive/data/0`" in refusal.message


def test_reads_zip64() -> None:
    """The directory as torch writes it: zip64 records although everything is small."""
    data = packed(pickled({"a": tensor()}))
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack_from("<10xH2I", data, end)
    wide = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, count, count, size, start)
    locator = b"PK\6\7" + struct.pack("<IQI", 0, end, 1)
    saturated = b"PK\5\6" + struct.pack("<4H2IH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    assert list(read(data[:end] + wide + locator + saturated)) == ["a"]
    assert list(read(data[:end] + wide + locator + data[end:])) == ["a"]
    lying = b"PK\6\6" + struct.pack("<Q2H2I4Q", 44, 45, 45, 0, 0, count, count, size, start - 1)
    assert refused(data[:end] + lying + locator + data[end:]).slug == "checkpoint.zip"
    elsewhere = b"PK\6\7" + struct.pack("<IQI", 0, end - 1, 1)
    assert refused(data[:end] + wide + elsewhere + data[end:]).slug == "checkpoint.zip"
    beyond = b"PK\6\7" + struct.pack("<IQI", 0, 1 << 63, 1)
    assert refused(data[:end] + wide + beyond + data[end:]).slug == "checkpoint.truncated"


def test_zip64_sizes_of_one_entry() -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", pickled({"a": tensor()}))
        archive.writestr("a/data/0", SIX.tobytes())
    data = out.getvalue()
    entry, end = data.rindex(b"PK\1\2"), data.rindex(b"PK\5\6")
    header = bytearray(data[entry:end])
    offset = struct.unpack_from("<I", header, 42)[0]
    header[20:28] = b"\xff" * 8
    header[42:46] = b"\xff" * 4
    extra = struct.pack("<2H4s", 0x1234, 4, b"abcd") + struct.pack("<2H3Q", 1, 24, 24, 24, offset)
    header[30:32] = struct.pack("<H", len(extra))
    tail = bytearray(data[end:])
    tail[12:16] = struct.pack("<I", struct.unpack_from("<I", tail, 12)[0] + len(extra))
    np.testing.assert_array_equal(
        read(data[:entry] + bytes(header) + extra + bytes(tail))["a"].ravel(), SIX
    )
    short = bytes(header) + extra[:-8] + bytes(8)
    assert refused(data[:entry] + short + bytes(tail)).slug.startswith("checkpoint.")


WHOLE = packed(pickled({"a": tensor(), "b": tensor(storage("0", 6), 1, (2,), (2,))}))
LEGACY = legacy({"a": tensor()}, {"0": (6, SIX.tobytes())})


@settings(derandomize=True, max_examples=400)
@given(
    st.sampled_from([WHOLE, LEGACY]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.floats(0, 1.2),
)
def test_damage_is_refused_or_harmless(
    good: bytes, flips: list[tuple[float, int]], size: float
) -> None:
    damaged = bytearray(good)
    for at, value in flips:
        damaged[int(at * (len(good) - 1))] = value
    with contextlib.suppress(JarvisError):
        for value in read(bytes(damaged[: int(size * len(good))])).values():
            value.sum()


@settings(derandomize=True, max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=4),
    st.binary(max_size=40),
    st.integers(0, len(GOOD)),
)
def test_any_pickle_ends(flips: list[tuple[int, int]], insert: bytes, at: int) -> None:
    damaged = bytearray(GOOD)
    for place, value in flips:
        damaged[place] = value
    for code in (bytes(damaged), GOOD[:at] + insert + GOOD[at:], insert):
        with contextlib.suppress(JarvisError):
            for value in read(packed(b"\x80\x02" + code)).values():
                value.sum()


# Memory: 48 matrices of 4 MiB; what is printed is the peak above what the imports need, in MiB.

EXPORT = """
import mmap, pathlib, sys
import numpy as np
import onnx
from jarvis_rules.core.digest import DigestWriter
from jarvis_rules.formats.checkpoint import read_checkpoint
from jarvis_rules.formats.nemo import check_finite
from jarvis_rules.onnx_graph.graph import Graph

def memory(kind):
    return int(pathlib.Path("/proc/self/status").read_text().split(kind + ":")[1].split()[0]) / 1024

before = memory("VmRSS")
with open(sys.argv[1], "rb") as file:
    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
weights = read_checkpoint(data, "x")
check_finite(weights, "x")
graph = Graph("g")
x = graph.input("x", "float32", ("time", 1024))
for name in weights:
    x = graph.linear(x, weights[name] + np.float32(len(graph.nodes)))
graph.output(x, "y")
graph.write(DigestWriter())
print(memory("VmHWM") - before, graph.size() >> 20)
"""


@pytest.mark.parametrize(("kind", "width"), [("Float", 4), ("BFloat16", 2)])
def test_an_export_needs_the_memory_of_one_tensor(kind: str, width: int, tmp_path: Path) -> None:
    path, side, count = tmp_path / "weights", 1024, 48
    tensors = {
        str(i): tensor(storage(str(i), side * side, kind), 0, (side, side), (side, 1))
        for i in range(count)
    }
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(tensors))
        for name in tensors:
            archive.writestr(f"archive/data/{name}", bytes(width * side * side))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    program = [sys.executable, "-c", EXPORT, str(path)]
    done = subprocess.run(program, env=environment, capture_output=True, check=True)
    path.unlink()
    peak, size = map(float, done.stdout.split())
    assert size == 4 * count
    assert peak < 40
