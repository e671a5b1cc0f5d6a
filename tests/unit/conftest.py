"""The golden archives, and an executor over a cache of the test's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from jarvis_rules.execution.execution_log import ExecutionLog
from jarvis_rules.execution.executor import Executor
from jarvis_rules.execution.file_digests import FileDigests
from jarvis_rules.execution.store import Store

VECTORS = Path(__file__).parents[1] / "vectors"


@pytest.fixture(scope="session")
def nemo():
    return VECTORS / "nemo" / "control_valid.nemo"


@pytest.fixture(scope="session")
def ejrvs():
    return VECTORS / "archive" / "v1" / "control_valid.ejrvs"


@pytest.fixture(scope="session")
def jmir():
    return VECTORS / "archive" / "v1" / "control.jmir"


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "cache")
    yield store
    store.close()


@pytest.fixture
def digests(tmp_path):
    digests = FileDigests(tmp_path / "cache" / "file-digests.sqlite")
    yield digests
    digests.close()


class Events:
    def __init__(self):
        self.received = []

    def receive(self, event):
        self.received.append(event)


@pytest.fixture
def executor(store, digests, tmp_path):
    log = ExecutionLog(tmp_path / "log.jsonl", {"version": "test"})
    return Executor(store, digests, log, Events())
