"""Hostile configurations, artifacts and weights of `.nemo` files."""

from __future__ import annotations

import itertools
import struct

from hostile.case import case
from hostile.forge import Header, checkpoint, nemo, state, tensor, text

_CALL = b"cposix\nsystem\nX\x0b\0\0\0touch pwned\x85R0"
_TARGET = "target: nemo.collections.asr.models.ctc_models.EncDecCTCModel\n"


def _laughs(line: str) -> str:
    names = "abcdefghijklmno"
    lines = (line.format(new=n, old=o) for o, n in itertools.pairwise(names))
    return _TARGET + "a: &a {x: 1}\n" + "".join(lines)


_YAML = [
    ("tag_new", "`!!python/object/new` of `os.system`", "yaml", "yaml.tag",
     "a: !!python/object/new:os.system [touch pwned]\n"),
    ("tag_name", "`!!python/name`", "yaml", "yaml.tag", "a: !!python/name:os.system\n"),
    ("tag_module", "`!!python/module`", "yaml", "yaml.tag", "a: !!python/module:this\n"),
    ("tag_local", "a tag of its own", "yaml", "yaml.tag", "a: !load 'touch pwned'\n"),
    ("tag_prefix", "a tag by a prefix of its own", "yaml", "yaml.tag",
     "%TAG !p! tag:yaml.org,2002:python/object/apply:\n---\na: !p!os.system [touch pwned]\n"),
    ("tags", "two tags, the second runs a command", "yaml", "yaml.tag",
     "a: !!set {b}\nc: !!python/object/apply:os.system [touch pwned]\n"),
    ("aliases", "aliases that expand to 9^14 values", "yaml", "",
     _laughs("{new}: &{new} [" + "*{old}, " * 8 + "*{old}]\n")),
    ("merges", "merge keys that expand to 9^14 values", "yaml", "",
     _laughs("{new}: &{new} {{<<: [" + "*{old}, " * 8 + "*{old}]}}\n")),
    ("recursion", "an alias in itself", "yaml", "", _TARGET + "a: &a {b: *a}\n"),
    ("merge_text", "merges a text", "yaml", "", _TARGET + "<<: x\n"),
    ("duplicate_target", "two targets", "yaml", "yaml.duplicate-key config.target",
     _TARGET + "target: os.system\n"),
    ("duplicate_quoted", "one key twice, once in quotes", "yaml", "yaml.duplicate-key",
     _TARGET + "a: {b: 1, 'b': 2}\n"),
    ("deep", "100,000 lists in one another", "yaml", "yaml.limit", "a: " + "[" * 100_000),
    ("values", "400,000 values", "yaml", "yaml.limit", "a: [" + "1," * 400_000 + "]\n"),
    ("number", "a number of 100,000 digits", "yaml", "", _TARGET + "a: " + "9" * 100_000),
    ("sexagesimal", "a number in base 60 of 50,000 digits", "yaml", "",
     _TARGET + "a: 1" + ":1" * 50_000),
    ("colliding_keys", "integers as keys that collide", "yaml", "",
     _TARGET + "a: {" + "".join(f"{i * (2**61 - 1)}: 0, " for i in range(1, 2000)) + "}\n"),
    ("documents", "two documents", "yaml", "", _TARGET + "---\na: 1\n"),
    ("list", "a list", "yaml", "", "- a\n"),
    ("empty", "no configuration", "yaml", "", ""),
    ("control", "a control character", "yaml", "yaml.malformed", "a: \0\n"),
    ("target_call", "a target that is a call", "target", "config.target",
     "target: os.system('touch pwned')\n"),
    ("target_missing", "no target", "target", "", "a: 1\n"),
    ("target_list", "a target that is a list", "target", "", "target: [a.b]\n"),
    ("hydra_system", "Hydra's `_target_` names `os.system`", "", "config.target",
     _TARGET + "a: {_target_: os.system, command: touch pwned}\n"),
    ("hydra_hub", "Hydra's `_target_` downloads code", "", "config.target",
     _TARGET + "a: {_target_: torch.hub.load, repo_or_dir: a/b}\n"),
    ("hydra_old", "`cls` of Hydra 0.x names `eval`", "", "config.target",
     _TARGET + "a: {cls: builtins.eval, params: {x: 1}}\n"),
    ("hydra_unknown", "a class of a package that nobody knows", "", "config.unknown-target",
     _TARGET + "a: {_target_: mallory.Model}\n"),
]  # fmt: skip


def _npy(descr: str, data: bytes) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': (1,), }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + data


_ARTIFACTS = [
    ("python", "tokenizer.py", "a Python module", "member.code", b"import os\n"),
    ("library", "tokenizer.model", "a library under another name", "member.code",
     b"\x7fELF\2\1\1" + bytes(600)),
    ("script", "vocab.txt", "a shell script under another name", "member.code",
     b"#!/bin/sh\ntouch pwned\n"),
    ("pickle", "labels.txt", "a pickle that runs a command", "member.pickle pickle.call",
     b"\x80\4" + _CALL + b"N."),
    ("pickle_0", "vocab.txt", "a pickle of protocol 0 under another name",
     "member.pickle pickle.call", b"cposix\nsystem\n(S'touch pwned'\ntR."),
    ("numpy", "mean.npy", "a NumPy array of objects runs a command", "member.pickle pickle.call",
     _npy("|O", b"\x80\4" + _CALL + b"N.")),
    ("checkpoint", "speaker.pt", "a checkpoint that runs a command",
     "member.archive pickle.call", checkpoint(state(before=_CALL))),
    ("tar", "more.bin", "an archive", "member.archive", nemo()),
    ("gzip", "more.txt", "compressed", "member.archive", b"\x1f\x8b\x08" + bytes(50)),
]  # fmt: skip


def _config(document: str):
    return lambda: nemo(config=document.encode())


def _artifact(name: str, data: bytes):
    return lambda: nemo(Header(b"0" * 32 + b"_" + name.encode(), data))


def _infinite(value: float):
    return lambda: nemo(weights=checkpoint(state(), {"0": struct.pack("<6f", *range(5), value)}))


CASES = [
    *(
        case(f"yaml_{name}.nemo", attack, slug and f"nemo.{slug}", rules, _config(document))
        for name, attack, slug, rules, document in _YAML
    ),
    *(
        case(f"artifact_{name}.nemo", attack, "", rules, _artifact(file, data))
        for name, file, attack, rules, data in _ARTIFACTS
    ),
    case("yaml_latin1.nemo", "a configuration that is not UTF-8", "nemo.yaml", "yaml.malformed",
         lambda: nemo(config=b"target: \xe4.b\n")),
    case("yaml_large.nemo", "a configuration of 5 MiB", "nemo.config-size", "yaml.limit",
         lambda: nemo(config=_TARGET.encode() + b"#" * (5 << 20))),
    case("weights_inf.nemo", "an infinite weight", "checkpoint.inf", "weights.not-finite",
         _infinite(float("inf"))),
    case("weights_nan.nemo", "a NaN", "checkpoint.nan", "weights.not-finite",
         _infinite(float("nan"))),
    case("weights_not_torch.nemo", "weights that are text", "checkpoint.not-a-zip",
         "pickle.malformed", lambda: nemo(weights=b"no weights here\n" * 9)),
    case("weights_empty.nemo", "weights of no bytes", "checkpoint.not-a-zip", "",
         lambda: nemo(weights=b"")),
    case("weights_half.nemo", "weights with a NaN in half precision", "checkpoint.nan",
         "weights.not-finite", lambda: nemo(weights=checkpoint(
             state(weight=tensor(_half())), {"0": b"\0\x7e" * 6}))),
    case("tlt_reduce.tlt", "a `.tlt` whose weights run a command", "checkpoint.would-execute",
         "pickle.call", lambda: nemo(weights=checkpoint(state(before=_CALL)))),
    case("tlt_text.tlt", "a `.tlt` whose weights call with text", "checkpoint.would-execute",
         "pickle.call", lambda: nemo(weights=checkpoint(state(
             before=b"cos\npopen\n" + text("touch pwned") + b"\x85R0")))),
]  # fmt: skip


def _half() -> bytes:
    from hostile.forge import storage

    return storage(kind="torch\nHalfStorage")
