"""`scan_file` and `jarvis-rules scan`: good files are clean, findings have places, bounds hold."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
from hostile.forge import Header, checkpoint, good, nemo, state, tensor, text

from jarvis_rules.cli.command import run_command
from jarvis_rules.cli.jarvis_rules import _run
from jarvis_rules.errors import UsageError
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.schema import validate
from jarvis_rules.scanning import contents
from jarvis_rules.scanning import report as report_module
from jarvis_rules.scanning.pickles import Budget
from jarvis_rules.scanning.report import RULES, SEVERITIES
from jarvis_rules.scanning.scan import scan_file

TESTS = Path(__file__).parents[2]
DOCS = TESTS.parent / "docs" / "reference"
GOOD = sorted((TESTS / "data" / "models").rglob("*.nemo"))
CALL = b"cposix\nsystem\nX\x0b\0\0\0touch pwned\x85R0"


def scanned(tmp_path, data, name="a.ckpt"):
    (tmp_path / name).write_bytes(data)
    return scan_file(tmp_path / name)


def listed(report, *severities):
    wanted = severities or SEVERITIES[:2]
    return [(f.rule, f.where, f.message) for f in report.findings if f.severity in wanted]


def own(report):
    return [f for f in report.findings if f.severity != "note" and f.rule != "reader.refuses"]


# --- what is found ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", GOOD[::3], ids=lambda path: path.stem)
def test_good_files_are_clean(path):
    assert listed(scan_file(path)) == []


@pytest.mark.parametrize("kind", ["ejrvs", "jmir"])
def test_good_archives_are_clean(kind, tmp_path):
    from hostile.archive_cases import _golden, _written

    assert listed(scanned(tmp_path, _written(kind, *_golden(kind)), f"a.{kind}")) == []


def test_rebuilds_are_one_note(tmp_path):
    report = scanned(tmp_path, checkpoint(state()))
    assert listed(report, "note") == [
        (
            "pickle.rebuilds",
            "archive/data.pkl",
            "harmless rebuilds: `collections.OrderedDict` (2 times), "
            "`torch._utils._rebuild_tensor_v2` (1 times)",
        )
    ]


def test_it_goes_on_after_the_first_finding(tmp_path):
    artifacts = (
        Header(b"../a", b"x"),
        Header(b"b", kind=b"2", link=b"/etc/passwd"),
        Header(b"c.py", b"import os"),
        Header(b"d.pkl", b"\x80\2" + CALL + b"N."),
    )
    config = b"target: a.B\nb: !!python/name:os.system\nc: {_target_: subprocess.run}\n"
    weights = checkpoint(state(before=CALL + b"cbuiltins\neval\n" + text("1") + b"\x85R0"))
    report = scanned(
        tmp_path, gzip.compress(nemo(*artifacts, config=config, weights=weights)), "a.nemo"
    )
    assert [(f.rule, f.where, f.line) for f in own(report)] == [
        ("tar.member-traversal", "", None),
        ("tar.member-link", "", None),
        ("yaml.tag", "model_config.yaml", 2),
        ("config.target", "model_config.yaml", 3),
        ("pickle.call", "model_weights.ckpt!archive/data.pkl", None),
        ("pickle.call", "model_weights.ckpt!archive/data.pkl", None),
        ("pickle.call", "d.pkl", None),
        ("config.unknown-target", "model_config.yaml", 1),
        ("member.code", "c.py", None),
        ("member.pickle", "d.pkl", None),
    ]


def test_offsets_are_those_of_the_opcodes(tmp_path):
    data = state(before=b"N0" * 50 + CALL)
    (call,) = own(scanned(tmp_path, checkpoint(data)))
    assert data[call.offset : call.offset + 1] == b"R"
    assert call.message == "loading it would call `posix.system('touch pwned')`"


class _Runs:
    """What an attacker pickles."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
def test_pickles_of_every_protocol(protocol, tmp_path):
    attack = _Runs(os.system, "touch pwned")
    report = scanned(tmp_path, pickle.dumps({"w": [1, attack, (2.5, None)]}, protocol))
    found = [f.message for f in own(report) if f.rule == "pickle.call"]
    assert found == ["loading it would call `posix.system('touch pwned')`"]


@pytest.mark.parametrize(
    ("opcodes", "shown"),
    [
        (b"cbuiltins\ngetattr\n(cos\npath\n" + text("join") + b"tR)R",
         "`builtins.getattr(os.path, 'join')()`"),
        (b"ca\nb\n(](K\1K\2e}" + text("k") + b"NstR", "`a.b([1, 2], {'k': None})`"),
        (b"ca\nb\n(" + b"N" * 20 + b"tR", "`a.b(" + "None, " * 8 + "…)`"),
        (b"ca\nb\n\x8a\x20" + b"\7" * 32 + b"\x85R", "`a.b(<integer of 251 bits>)`"),
        (b"ca\nb\n" + text("\x1b[2J`\u202e") + b"\x85R", r"`a.b('\x1b[2J'\u202e')`"),
        (b"ca\nb\n" + text("x" * 9000) + b"\x85R", "`a.b('" + "x" * 95),
    ],
)  # fmt: skip
def test_calls_are_shown_with_their_arguments(opcodes, shown, tmp_path):
    report = scanned(tmp_path, checkpoint(state(before=opcodes + b"0")))
    calls = [f.message for f in own(report) if f.rule == "pickle.call"]
    assert shown in calls[-1]
    assert len(calls[-1]) < 500


def test_pickles_that_follow_one_another_share_one_budget(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "Budget", lambda: Budget(1000))
    one = b"\x80\2" + b"N0" * 100 + b"N."
    assert "pickle.limit" not in {f.rule for f in scanned(tmp_path, one * 4).findings}
    assert "pickle.limit" in {f.rule for f in scanned(tmp_path, one * 5).findings}


def test_findings_are_bounded(tmp_path):
    report = scanned(tmp_path, checkpoint(state(before=CALL * 1000 + b"ca\nb\n0" * 1000)))
    assert report.count("error") > 2000
    assert len(own(report)) == 2 * report_module.MAX_FINDINGS_PER_RULE
    assert report.left_out == {"pickle.call": 950, "pickle.import": 950}


def test_every_weight_that_is_not_finite_is_listed(tmp_path):
    pickled = state(text("v") + tensor(offset=0, size=(3,), stride=(1,)), weight=tensor())
    values = struct.pack("<6f", 1, float("nan"), 3, float("inf"), 5, 6)
    report = scanned(tmp_path, checkpoint(pickled, {"0": values}))
    assert listed(report, "error") == [
        ("weights.not-finite", "", f"tensor {values}")
        for values in (
            "`w` has 2 of 6 values that are NaN or infinite, the first at [0, 1]",
            "`v` has 1 of 3 values that are NaN or infinite, the first at [1]",
        )
    ]  # fmt: skip


def test_zips_in_zips_are_looked_into_to_a_depth(tmp_path):
    data = checkpoint(state(before=CALL))
    for _ in range(6):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr(zipfile.ZipInfo("inner.zip"), data)
        data = out.getvalue()
    report = scanned(tmp_path, nemo(Header(b"a.zip", data)), "a.nemo")
    assert len([f for f in report.findings if f.rule == "member.archive"]) == 4


def test_texts_that_start_like_a_pickle_are_none(tmp_path):
    for words in (b"cat\ndog\nbird\n", b"car.a\nb\n", b"(I1\n", b"\x80 text"):
        report = scanned(tmp_path, nemo(Header(b"vocab.txt", words * 50)), "a.nemo")
        assert [f.rule for f in own(report)] == (["member.pickle"] if words[0] == 0 else [])


def test_vocabularies_of_tokenizers_are_clean(tmp_path):
    members = [
        Header(b"v.txt", b"[PAD]\n[UNK]\n##s\n"),
        Header(b"t.model", b"\n\x0e\n\x05<unk>\x15\0"),
    ]
    assert own(scanned(tmp_path, nemo(*members), "a.nemo")) == []


def test_encrypted_members_are_named(tmp_path):
    from jarvis_rules.formats.key_source import read_key

    members = [Member("a.bin", "asset", "", data=b"x" * 100)]
    metadata = {"name": "a", "kind": "speech_recognition"}
    write_archive(tmp_path / "a.jmir", "jmir", metadata, members, read_key("secret"))
    report = scan_file(tmp_path / "a.jmir")
    assert [(f.rule, f.where) for f in report.findings] == [("manifest.encrypted", "a.bin")]


# --- what is refused --------------------------------------------------------------------------


def test_other_suffixes_are_a_usage_error(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match=r"`\.onnx`") as caught:
        scan_file(tmp_path / "a.onnx")
    assert caught.value.slug == "file.suffix"


@pytest.mark.parametrize("name", ["missing.nemo", "folder.ckpt"])
def test_what_cannot_be_read_is_a_usage_error(name, tmp_path):
    (tmp_path / "folder.ckpt").mkdir()
    with pytest.raises(UsageError):
        scan_file(tmp_path / name)


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("sub dir").mkdir()
    Path("good.nemo").write_bytes(nemo())
    Path("sub dir/bad.ckpt").write_bytes(checkpoint(state(before=CALL)))

    def run(*arguments):
        code = run_command(_run, ["scan", *arguments])
        return code, capsys.readouterr().out

    return run


def test_text(run):
    assert run("good.nemo") == (
        0,
        "good.nemo: model_weights.ckpt!model_weights/data.pkl: note: harmless rebuilds: "
        "`collections.OrderedDict` (39 times), `torch._utils._rebuild_tensor_v2` (37 times) "
        "[pickle.rebuilds]\ngood.nemo: 0 errors, 0 warnings, 1 note\n",
    )
    code, out = run("good.nemo", "sub dir/bad.ckpt")
    assert code == 3
    call = "loading it would call `posix.system('touch pwned')`"
    assert f"sub dir/bad.ckpt: archive/data.pkl byte 33: error: {call} [pickle.call]\n" in out
    assert out.endswith("sub dir/bad.ckpt: 2 errors, 0 warnings, 1 note\n")


def test_colour_only_where_it_is_wanted(run, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31merror\x1b[0m" in run("sub dir/bad.ckpt")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" not in run("sub dir/bad.ckpt")[1]


def test_json_follows_its_schema(run):
    code, out = run("good.nemo", "sub dir/bad.ckpt", "--format", "json")
    document = json.loads(out)
    validate(document, "scan", "x")
    assert code == 3
    assert [file["path"] for file in document["files"]] == ["good.nemo", "sub dir/bad.ckpt"]
    assert document["files"][1]["counts"] == {"error": 2, "warning": 0, "note": 1}


def test_sarif(run, tmp_path):
    code, out = run("sub dir/bad.ckpt", "--format", "sarif")
    assert code == 3
    document = json.loads(out)
    assert document["version"] == "2.1.0"
    (log,) = document["runs"]
    rules = log["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    first = log["results"][0]
    assert rules[first["ruleIndex"]]["id"] == first["ruleId"] == "pickle.call"
    assert first["level"] == "error"
    assert first["locations"] == [
        {
            "physicalLocation": {"artifactLocation": {"uri": "sub%20dir/bad.ckpt"}},
            "logicalLocations": [{"fullyQualifiedName": "archive/data.pkl", "kind": "member"}],
        }
    ]
    assert first["properties"] == {"offset": 33}
    assert str(tmp_path) not in out
    uri = (tmp_path / "sub dir" / "bad.ckpt").as_uri()
    assert f'"uri": "{uri}"' in run(str(tmp_path / "sub dir" / "bad.ckpt"), "--format", "sarif")[1]


def test_a_missing_file_is_a_usage_error(run):
    assert run("none.nemo")[0] == 2


def test_every_rule_is_documented():
    rows = [
        [cell.strip() for cell in line.split("|")[1:4]]
        for line in (DOCS / "scan.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("| `") and "." in line.split("|")[1]
    ]
    assert rows == [[f"`{n}`", rule.severity, rule.summary] for n, rule in RULES.items()]


def test_every_rule_is_found_in_some_hostile_file():
    """The others need files that are too large to be made here, or no file at all."""
    from hostile.make import CASES

    found = {rule for case in CASES.values() for rule in case.rules}
    unmade = {"reader.refuses", "pickle.rebuilds", "tar.too-large"}
    assert RULES.keys() - found - unmade == {
        "pickle.trailing-data", "zip.limit"} - found  # fmt: skip


def test_the_control_is_the_good_one():
    assert set(good()) == {"model_config.yaml", "model_weights.ckpt"}
