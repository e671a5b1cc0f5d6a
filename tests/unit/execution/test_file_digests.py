"""The memo of file digests: what it spares, and that no change escapes it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from jarvis_rules.core import digest
from jarvis_rules.core.digest import digest_bytes, digest_file
from jarvis_rules.errors import ToolchainError
from jarvis_rules.execution import file_digests
from jarvis_rules.execution.file_digests import FileDigests, FileStamp, stamp_entries

SECOND = 1_000_000_000


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.nemo"
    path.write_bytes(b"one")
    return path


@pytest.fixture
def later(monkeypatch):
    """A minute has passed: no file is fresh any more."""
    now = time.time_ns() + 60 * SECOND
    monkeypatch.setattr(file_digests.time, "time_ns", lambda: now)


@pytest.fixture
def reads(monkeypatch):
    """The paths that were read."""
    paths = []
    for name in ("digest_file", "xxh3_file"):
        real = getattr(file_digests, name)
        monkeypatch.setattr(file_digests, name, lambda p, real=real: paths.append(p) or real(p))
    return paths


@pytest.mark.usefixtures("later")
def test_an_unchanged_file_is_read_once(digests, file, reads):
    assert digests.sha256(file) == digests.sha256(file) == digest_bytes(b"one")
    assert digests.xxh3(file) == digests.xxh3(file)
    assert digests.sha256(file) == digest_bytes(b"one")
    assert reads == [file, file]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("first", ["sha256", "xxh3"])
def test_a_large_file_is_read_once_for_both_digests(digests, file, reads, monkeypatch, first):
    monkeypatch.setattr(file_digests, "_LARGE", 3)
    monkeypatch.setattr(digest, "_LARGE_CHUNK", 2)
    getattr(digests, first)(file)
    monkeypatch.setattr(file_digests, "digest_large_file", lambda _: pytest.fail("read again"))
    assert digests.sha256(file) == digest_bytes(b"one")
    assert digests.xxh3(file) == digest.xxh3_file(file)
    assert reads == []


@pytest.mark.usefixtures("later")
def test_the_memo_outlives_the_process(tmp_path, file, reads):
    for _ in range(2):
        memo = FileDigests(tmp_path / "db.sqlite")
        assert memo.sha256(file) == digest_bytes(b"one")
        memo.close()
    assert reads == [file]


def rewrite(path, _):
    path.write_bytes(b"two")


def rewrite_and_restore_mtime(path, before):
    # Where the clock is coarse, a change may leave the old ctime for some milliseconds.
    while path.stat().st_ctime_ns == before.st_ctime_ns:
        path.write_bytes(b"two")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path, before):
    other = path.with_name("other")
    other.write_bytes(b"two")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


def truncate(path, _):
    os.truncate(path, 1)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [rewrite, rewrite_and_restore_mtime, replace, truncate])
def test_a_change_is_seen(digests, file, change):
    digests.sha256(file)
    xxh3 = digests.xxh3(file)
    change(file, file.stat())
    assert digests.sha256(file) == digest_bytes(file.read_bytes()) != digest_bytes(b"one")
    assert digests.xxh3(file) != xxh3


def test_a_file_just_written_is_not_memoised(digests, file, reads, monkeypatch):
    fresh = file.stat().st_ctime_ns + 1_000_000
    monkeypatch.setattr(file_digests.time, "time_ns", lambda: fresh)
    digests.sha256(file)
    digests.sha256(file)
    assert reads == [file, file]


def test_a_write_in_the_tick_of_the_stamp_is_not_missed(digests, file, monkeypatch):
    """On a coarse clock the write below leaves the stamp as it is; the hashing takes a while."""
    racy, real = [True], file_digests.digest_file
    stamp = classmethod(lambda *_: FileStamp(3, 0, 0, 1, racy[0]))
    monkeypatch.setattr(FileStamp, "of", stamp)

    def hash_slowly(path):
        found = real(path)
        path.write_bytes(b"two")
        racy[0] = False
        return found

    monkeypatch.setattr(file_digests, "digest_file", hash_slowly)
    digests.sha256(file)
    assert digests.sha256(file) == digest_bytes(b"two")


@pytest.mark.parametrize(
    ("mtime", "ctime", "age", "racy"),
    [
        (1, 10 * SECOND + 1, 1_000_000, True),
        (1, 10 * SECOND + 1, 30_000_000, False),
        # A file system that keeps whole seconds.
        (10 * SECOND, 10 * SECOND, 1_900_000_000, True),
        (10 * SECOND, 10 * SECOND, 2_100_000_000, False),
        # A modification time in the future tells nothing, only the change time counts.
        (99 * SECOND + 1, 10 * SECOND + 1, 30_000_000, False),
    ],
)
def test_racy(monkeypatch, mtime, ctime, age, racy):
    status = SimpleNamespace(
        st_mode=stat.S_IFREG, st_size=1, st_mtime_ns=mtime, st_ctime_ns=ctime, st_ino=2**64 - 1
    )
    monkeypatch.setattr(file_digests.time, "time_ns", lambda: ctime + age)
    assert FileStamp.of_status(status).racy is racy


@pytest.mark.usefixtures("later")
def test_a_set_that_was_found_right_is_remembered_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    odd = Path(os.fsdecode(b"folder/\xff \n"))
    odd.touch()
    memo = FileDigests(tmp_path / "db.sqlite")
    memo.remember_set(Path("set"), stamp_entries([odd], [Path("folder")]))
    memo.close()
    monkeypatch.chdir("/")
    memo = FileDigests(tmp_path / "db.sqlite")
    assert memo.is_unchanged(tmp_path / "set")
    memo.preload(tmp_path)
    assert memo.is_unchanged(tmp_path / "set")
    assert not memo.is_unchanged(tmp_path / "other")
    (tmp_path / "folder" / "new").touch()
    assert not memo.is_unchanged(tmp_path / "set")
    memo.close()


def test_any_inode_and_time_can_be_kept(digests, file, monkeypatch, reads):
    stamp = classmethod(lambda *_: FileStamp(3, 2**65, -1, 2**64 - 1))
    monkeypatch.setattr(FileStamp, "of", stamp)
    assert digests.sha256(file) == digests.sha256(file)
    assert reads == [file]


def test_record_spares_reading_what_was_written(digests, store, tmp_path, reads):
    digest, target = store.put_bytes(b"one"), tmp_path / "out"
    digests.record(target, digest, store.copy_to(digest, target))
    assert digests.sha256(target) == digest
    assert reads == []


def test_record_does_not_mistake_another_process_s_file_for_ours(digests, store, tmp_path):
    digest, target = store.put_bytes(b"one"), tmp_path / "out"
    written = store.copy_to(digest, target)
    store.copy_to(store.put_bytes(b"two"), target)
    digests.record(target, digest, written)
    assert digests.sha256(target) == digest_bytes(b"two")


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("content", [b"no database", b"SQLite format 3\0" + bytes(2000)])
def test_a_damaged_database_is_replaced(tmp_path, file, reads, content):
    database = tmp_path / "db.sqlite"
    database.write_bytes(content)
    for _ in range(2):
        memo = FileDigests(database)
        assert memo.sha256(file) == digest_bytes(b"one")
        memo.close()
    assert reads == [file]


@pytest.mark.usefixtures("later")
def test_a_database_that_breaks_meanwhile_is_done_without(digests, file):
    digests._connection.execute("drop table digests")
    assert digests.sha256(file) == digest_bytes(b"one")


def test_a_folder_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToolchainError, match="cannot be opened") as caught:
        FileDigests(tmp_path / "file" / "db.sqlite")
    assert caught.value.slug == "cache.unusable"


def test_processes_may_begin_at_once(tmp_path):
    code = (
        "import sys; from pathlib import Path;"
        "from jarvis_rules.execution.file_digests import FileDigests as F;"
        "sys.stdin.read(); print(F(Path(sys.argv[1])).sha256(Path(sys.argv[2])))"
    )
    here = Path(__file__)
    argv = [sys.executable, "-c", code, str(tmp_path / "db.sqlite"), str(here)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(argv, **pipes) for _ in range(4)]
    for process in processes:
        process.stdin.close()
    assert {process.stdout.read().strip() for process in processes} == {str(digest_file(here))}
    assert [process.wait() for process in processes] == [0] * 4


@pytest.mark.usefixtures("later")
def test_a_name_need_not_be_utf_8(digests, tmp_path, reads):
    path = tmp_path / os.fsdecode(b"model-\xff.nemo")
    path.write_bytes(b"one")
    assert digests.sha256(path) == digests.sha256(path)
    assert reads == [path]


def test_what_is_no_file_is_refused_and_not_opened(digests, tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path, message in ((pipe, "Not a regular file"), (tmp_path, "Is a directory")):
        with pytest.raises(OSError, match=message):
            digests.sha256(path)
    with pytest.raises(FileNotFoundError):
        digests.sha256(tmp_path / "absent")
