"""Action keys: what changes them, what does not, and golden values."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from jarvis_rules.core.action import ActionResult, ActionSpec, FileInput, MemberInput, Output
from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.core.toolchain import Toolchain

GOLDEN = Path(__file__).parents[2] / "keys" / "actions.json"
TOOLCHAIN = Toolchain("export", "fake", "0" * 64)
SPECS = {
    "export": ActionSpec(
        mnemonic="NemoExport",
        tool="nemo_export",
        request={"model": "inputs/model.nemo"},
        inputs={"model.nemo": FileInput(Path("x.nemo"))},
        output=Output("model.ejrvs"),
        toolchain=TOOLCHAIN,
        target="x.ejrvs",
    ),
    "engines": ActionSpec(
        mnemonic="EngineBuild",
        tool="engine_build",
        request={"engine": "onnxruntime", "gpu": "a100", "graphs": {"am": "inputs/am.onnx"}},
        inputs={"am.onnx": MemberInput(Path("x.jmir"), "am/model_graph.onnx")},
        output=Output("engines.json", "engines"),
        toolchain=TOOLCHAIN,
        target="x[a100]",
        platform={"GPU": "a100", "compute-capability": "8.0"},
        timeout=60,
    ),
}


def digests(spec):
    return {name: digest_bytes(name.encode()) for name in spec.inputs}


@pytest.mark.parametrize("name", SPECS)
def test_golden_keys(name):
    """A difference here means that every cache of every user goes cold: say so in the CHANGELOG."""
    spec = SPECS[name]
    key = spec.resolve(digests(spec)).key()
    assert {"key": str(key), "static_key": spec.static_key()} == json.loads(GOLDEN.read_text())[
        name
    ]


@pytest.mark.parametrize(
    "change",
    [
        {"request": {"model": "inputs/other.nemo"}},
        {"tool": "jmir_build"},
        {"output": Output("other.ejrvs")},
        {"toolchain": Toolchain("export", "fake", "1" * 64)},
        {"platform": {"GPU": "t4"}},
        {"timeout": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_declared_changes_change_both_keys(change):
    spec = SPECS["export"]
    other = dataclasses.replace(spec, **change)
    assert other.static_key() != spec.static_key()
    assert other.resolve(digests(spec)).key() != spec.resolve(digests(spec)).key()


def test_neither_path_nor_label_is_in_the_key():
    spec = SPECS["export"]
    other = dataclasses.replace(
        spec, target="renamed", inputs={"model.nemo": FileInput(Path("/elsewhere/y.nemo"))}
    )
    assert other.static_key() == spec.static_key()
    assert other.resolve(digests(spec)).key() == spec.resolve(digests(spec)).key()


def test_content_is_in_the_key():
    spec = SPECS["export"]
    one = spec.resolve({"model.nemo": digest_bytes(b"1")}).key()
    assert one != spec.resolve({"model.nemo": digest_bytes(b"2")}).key()


def test_result_round_trip():
    result = ActionResult({"a": digest_bytes(b"a")}, digest_bytes(b"log"), 1.5, True, 812)
    document = json.loads(json.dumps(result.to_json()))
    again = ActionResult.from_json(document)
    assert again == result
    assert (again.seconds, again.confined, again.peak_memory_mib) == (1.5, True, 812)


@pytest.mark.parametrize("peak", [{}, {"peak_memory_mib": None}, {"peak_memory_mib": "much"}])
def test_a_result_without_a_peak_is_read(peak):
    result = ActionResult({"a": digest_bytes(b"a")}, digest_bytes(b"log"))
    document = result.to_json()
    del document["peak_memory_mib"]
    again = ActionResult.from_json({**document, **peak})
    assert again == result
    assert again.peak_memory_mib is None


@pytest.mark.parametrize("document", [{}, [], None, {"version": 2}, {"version": 1, "outputs": []}])
def test_result_refuses(document):
    with pytest.raises(ValueError, match="not an action result"):
        ActionResult.from_json(document)
