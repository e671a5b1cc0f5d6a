"""Looking after a store: what collection keeps, when it runs by itself, and sizes."""

from __future__ import annotations

import fcntl
import os
import time

import pytest

from jarvis_rules.core.action import ActionResult
from jarvis_rules.core.digest import digest_bytes
from jarvis_rules.errors import UsageError
from jarvis_rules.execution.collection import (
    GRACE_SECONDS,
    collect,
    collect_if_due,
    measure,
    parse_size,
    verify,
)
from jarvis_rules.execution.workspace import open_executor

HOUR = GRACE_SECONDS


@pytest.fixture
def put(store):
    """Return a function that stores a result with one blob, last used so many hours ago."""

    def put(name: str, size: int, hours: float):
        blob = store.put_bytes(name.encode().ljust(size, b"."))
        key = digest_bytes(name.encode())
        store.put_result(key, ActionResult({"out": blob}, store.put_bytes(b"")))
        used = time.time() - hours * HOUR
        for path in (store.path(blob), *store.root.glob(f"ac/*/{key.sha256}.json")):
            os.utime(path, (used, used))
        return key

    return put


def test_what_was_not_used_for_longest_goes_first(store, put):
    old, newer, newest = (put(name, 1000, hours) for name, hours in (("a", 9), ("b", 8), ("c", 7)))
    collected = collect(store.root, 2500)
    assert (collected.results, collected.blobs, collected.blob_bytes) == (1, 1, 1000)
    assert store.result(old) is None
    assert store.result(newer)
    assert store.result(newest)
    assert verify(store.root).damaged == ()


def test_use_counts_and_not_age(store, put):
    first, second = put("a", 1000, 9), put("b", 1000, 8)
    assert store.result(first)
    collect(store.root, 1500)
    assert store.result(first)
    assert store.result(second) is None


def test_what_was_used_within_the_hour_stays_whatever_the_cap(store, put):
    key = put("a", 1000, 0.5)
    assert collect(store.root, 0).results == 0
    assert store.result(key)


def test_a_blob_that_two_results_name_stays_for_the_other(store, put):
    key = put("a", 1000, 9)
    result = store.result(key)
    other = digest_bytes(b"other")
    store.put_result(other, result)
    path = next(store.root.glob(f"ac/*/{key.sha256}.json"))
    os.utime(path, (0, 0))
    assert collect(store.root, 1500).blobs == 0
    assert store.result(other)


def test_collection_runs_by_itself_once_in_a_while(store, put):
    put("a", 1000, 9)
    assert collect_if_due(store.root, 500).results == 1
    put("b", 1000, 9)
    assert collect_if_due(store.root, 500) is None
    os.utime(store.root / "collected", (0, 0))
    assert collect_if_due(store.root, 500).results == 1


def test_only_one_process_collects(store, put):
    put("a", 1000, 9)
    mark = store.root / "collected"
    mark.touch()
    os.utime(mark, (0, 0))
    with mark.open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert collect_if_due(store.root, 500) is None
    assert measure(store.root).results == 1


class Notices(list):
    def receive(self, event):
        self.append(event.text)


def test_a_build_that_stores_something_keeps_the_cache_to_its_cap(store, put, monkeypatch):
    monkeypatch.setenv("JARVIS_CACHE", str(store.root))
    monkeypatch.setenv("JARVIS_CACHE_MAX_SIZE", "1K")
    put("a", 2000, 9)
    notices = Notices()
    with open_executor(notices) as executor:
        assert executor.store.read(digest_bytes(b"a".ljust(2000, b".")))
    assert measure(store.root).results == 1
    assert notices == []
    with open_executor(notices) as executor:
        executor.store.put_bytes(b"new")
    assert measure(store.root).results == 0
    assert notices == [
        "cache: removed 1 results, 0 MiB, that were not used for longest "
        "(JARVIS_CACHE_MAX_SIZE, see `jarvis-rules cache --help`)"
    ]


def test_a_bad_cap_is_told_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("JARVIS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JARVIS_CACHE_MAX_SIZE", "lots")
    with pytest.raises(UsageError, match="got `lots`"), open_executor():
        pass
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("500", 500),
        ("1K", 1024),
        ("1.5M", 3 << 19),
        (" 2 GiB ", 2 << 30),
        ("1tb", 1 << 40),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1X", "1e9", "0x10"])
def test_bad_sizes(text):
    with pytest.raises(UsageError) as error:
        parse_size(text)
    assert error.value.slug == "cache.size"
