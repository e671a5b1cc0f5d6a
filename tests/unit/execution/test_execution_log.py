"""The execution log: one line per action, the last build's read back, whatever the names."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.execution.execution_log import ExecutionLog, LogEntry, read_last_build

DIGEST = digest_bytes(b"x")


def entry(target="asr", seconds=1.23456):
    return LogEntry("k" * 64, "JmirBuild", target, "cached", seconds, {"b": DIGEST}, {"a": DIGEST})


def test_lines(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    log = ExecutionLog(path, {"version": "1"})
    log.add(entry())
    assert log.entries == [entry()]
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"build": {"version": "1"}},
        {
            "key": "k" * 64,
            "mnemonic": "JmirBuild",
            "target": "asr",
            "outcome": "cached",
            "seconds": 1.235,
            "peak_memory_mib": None,
            "inputs": {"b": str(DIGEST)},
            "outputs": {"a": str(DIGEST)},
        },
    ]


def test_the_peak_memory_of_an_executed_action():
    document = replace(entry(), outcome="executed", peak_memory_mib=812).to_json()
    assert document["peak_memory_mib"] == 812


def test_the_last_build_is_read(tmp_path):
    path = tmp_path / "log.jsonl"
    for targets in (["one", "two"], ["three", "four"], []):
        log = ExecutionLog(path, {})
        for target in targets:
            log.add(entry(target))
        assert [line["target"] for line in read_last_build(path)] == targets


def test_any_target_stays_on_one_line(tmp_path):
    path = tmp_path / "log.jsonl"
    targets = ["a\nb", "a\u2028b\x85c", "ä", "not UTF-8: \udcff"]
    log = ExecutionLog(path, {})
    for target in targets:
        log.add(entry(target))
    assert [line["target"] for line in read_last_build(path)] == targets


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "log.jsonl"
    ExecutionLog(path, {}).add(entry("one"))
    with path.open("ab") as out:
        out.write(b'{"key": "half a li\n\xff\n')
    line = json.dumps(entry("two").to_json())
    with path.open("a") as out:
        out.write(line + "\n")
    assert [line["target"] for line in read_last_build(path)] == ["one", "two"]


def test_processes_never_mix_their_lines(tmp_path):
    path = tmp_path / "log.jsonl"
    code = (
        "import sys; from pathlib import Path;"
        "from jarvis_rules.execution.execution_log import *; sys.stdin.read();"
        "log = ExecutionLog(Path(sys.argv[1]), {});"
        "[log.add(LogEntry('k', 'M', 'x' * 5000, 'cached', 0, {}, {})) for _ in range(100)]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE)
        for _ in range(2)
    ]
    for process in processes:
        process.stdin.close()
    assert [process.wait() for process in processes] == [0, 0]
    documents = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum("key" in document for document in documents) == 200
