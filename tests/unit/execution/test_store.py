"""The content store and the action cache: integrity, atomicity, several processes."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_rules.core.action import ActionResult
from jarvis_rules.core.digest import Digest, digest_bytes
from jarvis_rules.errors import IntegrityError, ToolchainError
from jarvis_rules.execution.store import BlobMissingError, Store

DATA = b"weights" * 1000
KEY = digest_bytes(b"key")


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture(params=["bytes", "stream", "file"])
def put(request, store, tmp_path):
    def put(data):
        if request.param == "bytes":
            return store.put_bytes(data)
        if request.param == "stream":
            return store.put_stream(io.BytesIO(data))
        path = tmp_path / "source"
        path.write_bytes(data)
        return store.put_file(path)

    return put


def test_put_and_read(store, put):
    digest = put(DATA)
    assert digest == put(DATA) == digest_bytes(DATA)
    assert store.has(digest)
    assert store.read(digest) == DATA
    assert stat.S_IMODE(store.path(digest).stat().st_mode) == 0o444
    assert files(store.root / "cas") == [f"{digest.sha256[:2]}/{digest.sha256}"]


def test_copy_to(store, tmp_path):
    digest, target = store.put_bytes(DATA), tmp_path / "deep" / "er" / "file"
    written = store.copy_to(digest, target)
    assert target.read_bytes() == DATA
    assert (written.st_ino, written.st_size) == (target.stat().st_ino, len(DATA))
    assert target.stat().st_ino != store.path(digest).stat().st_ino
    assert files(target.parent) == ["file"]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


def truncate(path):
    path.chmod(0o644)
    os.truncate(path, 10)


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove])
@pytest.mark.parametrize("use", ["read", "copy_to", "verify"])
def test_a_damaged_blob_is_a_miss_and_removed(store, tmp_path, damage, use):
    digest, target = store.put_bytes(DATA), tmp_path / "target"
    target.write_bytes(b"what was there")
    damage(store.path(digest))
    with pytest.raises(BlobMissingError, match=digest.sha256) as caught:
        store.copy_to(digest, target) if use == "copy_to" else getattr(store, use)(digest)
    assert isinstance(caught.value, IntegrityError)
    assert caught.value.slug == "store.damaged"
    assert not store.has(digest)
    assert not store.path(digest).exists()
    assert target.read_bytes() == b"what was there"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "target"]


def test_putting_again_mends_a_damaged_blob(store):
    digest = store.put_bytes(DATA)
    flip(store.path(digest))
    store.put_stream(io.BytesIO(DATA))
    assert store.read(digest) == DATA


def test_a_put_that_fails_leaves_nothing(store):
    class Breaking(io.BytesIO):
        def read(self, _=-1):
            data = super().read(10)
            if not data:
                raise OSError("disk is gone")
            return data

    with pytest.raises(OSError, match="disk is gone"):
        store.put_stream(Breaking(DATA))
    assert files(store.root / "cas") == []
    assert not [p for p in (store.root / "tmp").rglob("*") if p.name == "blob"]


def run(code, *arguments):
    prelude = (
        "import sys; from pathlib import Path; from jarvis_rules.execution.store import Store;"
    )
    argv = [sys.executable, "-c", prelude + code, *map(str, arguments)]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def run_at_once(count, code, *arguments):
    """Return what each of the processes prints; all of them work between the same two moments."""
    processes = [run(f"sys.stdin.read(); {code}", *arguments) for _ in range(count)]
    for process in processes:
        process.stdin.close()
    outputs = [process.stdout.read() for process in processes]
    assert [process.wait() for process in processes] == [0] * count
    return outputs


def test_two_processes_put_the_same_blob(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(DATA * 200)
    code = (
        "s = Store(Path(sys.argv[1]));"
        "[print(s.put_file(Path(sys.argv[2]))) for _ in range(10)]; s.close()"
    )
    outputs = [text.split() for text in run_at_once(2, code, store.root, source)]
    digest = digest_bytes(DATA * 200)
    assert outputs == [[str(digest)] * 10] * 2
    assert store.read(digest) == DATA * 200
    assert len(files(store.root / "cas")) == 1


def test_scratch_of_a_living_process_stays_and_of_a_dead_one_goes(tmp_path):
    root = tmp_path / "cache"
    code = (
        "s = Store(Path(sys.argv[1])); c = s.scratch(); f = c.__enter__(); (f / 'x').touch();"
        "print(f, flush=True); sys.stdin.read()"
    )
    process = run(code, root)
    with process:
        folder = Path(process.stdout.readline().strip())
        Store(root).close()
        assert files(folder) == ["x"]
        process.send_signal(signal.SIGKILL)
    other = Store(root)
    assert not folder.exists()
    other.close()
    assert files(root) == []


def test_many_processes_begin_and_end_at_once(tmp_path):
    code = (
        "[(lambda s: (s.put_bytes(b'x'), s.close()))(Store(Path(sys.argv[1]))) for _ in range(30)]"
    )
    assert run_at_once(3, code, tmp_path) == [""] * 3
    assert not any((tmp_path / "tmp").iterdir())


def test_scratch_is_removed_after_a_failure(store):
    with pytest.raises(FileNotFoundError), store.scratch() as folder:
        (folder / "x" / "y").touch()
    assert not folder.exists()


def result_of(store, *contents):
    outputs = {f"out-{i}": store.put_bytes(c) for i, c in enumerate(contents)}
    return ActionResult(outputs, store.put_bytes(b"log"), 1.5)


def test_result_round_trip(store):
    assert store.result(KEY) is None
    result = result_of(store, b"a", b"b")
    assert store.put_result(KEY, result) == result
    assert store.result(KEY) == result
    store.forget(KEY)
    assert store.result(KEY) is None


def test_the_first_result_counts(store):
    """Engines are not always the same bytes, and others have built upon the first by now."""
    first, second = result_of(store, b"first"), result_of(store, b"second")
    store.put_result(KEY, first)
    assert store.put_result(KEY, second) == first
    store.path(first.outputs["out-0"]).unlink()
    assert store.put_result(KEY, second) == second
    assert store.result(KEY) == second


def test_a_result_without_its_blobs_is_none(store):
    result = result_of(store, b"a", b"b")
    store.put_result(KEY, result)
    store.path(result.outputs["out-1"]).unlink()
    assert store.result(KEY) is None
    with pytest.raises(IntegrityError, match="not in the store"):
        store.put_result(KEY, result)


def test_a_result_of_other_sizes_is_none(store):
    result = result_of(store, b"a")
    longer = Digest(result.outputs["out-0"].sha256, 2)
    assert not store.has(longer)


OUTPUT = f'{{"sha256": "{KEY.sha256}", "size": 3}}'


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"version": 2}',
        f'{{"version":1,"outputs":{{}},"log":{OUTPUT},"seconds":[]}}'.encode(),
        f'{{"version":1,"outputs":{{}},"log":{OUTPUT},"seconds":null}}'.encode(),
        f'{{"version":1,"outputs":{{"../x":{OUTPUT}}},"log":{OUTPUT},"seconds":1}}'.encode(),
        f'{{"version":1,"outputs":{{"m//x":{OUTPUT}}},"log":{OUTPUT},"seconds":1}}'.encode(),
    ],
)
def test_a_damaged_or_hostile_result_is_none_and_removed(store, text):
    store.put_result(KEY, result_of(store, b"a"))
    (entry,) = (store.root / "ac").rglob("*.json")
    entry.write_bytes(text)
    store.put_bytes(b"key")
    assert store.result(KEY) is None
    assert not entry.exists()


def test_a_root_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ToolchainError, match="cannot be used as the cache folder") as caught:
        Store(tmp_path / "file" / "cache")
    assert caught.value.slug == "cache.unusable"


def test_every_flipped_bit_of_a_result_is_a_miss(store):
    """Names and digests alike: a result with another name would be delivered to another place."""
    key = digest_bytes(b"key")
    result = ActionResult({"a/b": store.put_bytes(b"x")}, store.put_bytes(b"log"), 0.5)
    store.put_result(key, result)
    path = store.root / "ac" / key.sha256[:2] / f"{key.sha256}.json"
    data = path.read_bytes()
    assert store.result(key) == result
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(bytes(changed))
            assert store.result(key) is None, (position, bit)
    path.write_bytes(data)
    assert store.result(key) == result


def test_a_result_under_the_name_of_another_key_is_a_miss(store):
    key, other = digest_bytes(b"key"), digest_bytes(b"other")
    store.put_result(key, ActionResult({"a": store.put_bytes(b"x")}, store.put_bytes(b"log")))
    path = store.root / "ac" / key.sha256[:2] / f"{key.sha256}.json"
    target = store.root / "ac" / other.sha256[:2] / f"{other.sha256}.json"
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    assert store.result(other) is None


def test_a_cache_of_a_group_can_be_written_by_all_of_it(tmp_path):
    """Whatever the umask: whoever comes second must be able to add, to use and to lock."""
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(0o2775)
    before = os.umask(0o077)
    try:
        with contextlib.closing(Store(root)) as store:
            blob = store.put_bytes(b"x")
            key = digest_bytes(b"key")
            store.put_result(key, ActionResult({"out": blob}, blob))
            with store.lock(key):
                pass
            shared = [p for name in ("ac", "cas", "locks") for p in (root / name).rglob("*")]
            modes = {
                path.relative_to(root).parts[0]: stat.S_IMODE(path.stat().st_mode)
                for path in shared
                if path.is_file()
            }
            folders = [*root.iterdir(), *(path for path in shared if path.is_dir())]
            assert all(path.stat().st_mode & 0o2070 == 0o2070 for path in folders)
    finally:
        os.umask(before)
    assert modes == {"ac": 0o664, "cas": 0o444, "locks": 0o664}


def test_a_cache_of_one_s_own_stays_one_s_own(tmp_path):
    with contextlib.closing(Store(tmp_path / "cache")) as store:
        store.put_bytes(b"x")
    assert not any(p.stat().st_mode & 0o020 for p in (tmp_path / "cache").rglob("*"))


def test_putting_bytes_heals_a_damaged_blob_of_their_name(store):
    digest = store.put_bytes(DATA)
    store.path(digest).chmod(0o644)
    store.path(digest).write_bytes(bytes(len(DATA)))
    assert store.put_bytes(DATA) == digest
    assert store.read(digest) == DATA
