"""Encryption against bare AES-GCM: throughput of sealing and opening, and what memory it takes.

    python benchmarks/encryption.py --megabytes 1024 --repeat 3

Prints, for the best of the repetitions in this run, the seconds of bare calls of
`cryptography`'s AESGCM over the same chunks, those of sealing and opening a member by
`formats/encryption.py`, and their ratio; the bar is 1.5. Then the peak memory of doing it with an
eighth of the data and with all of it, each in a process of its own, which must not grow. Then what
writing and reading a whole archive takes, plain and encrypted: that has SHA-256, CRC-32 and the
disk in it. Ends with 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from jarvis_rules.core.digest import Digest
from jarvis_rules.formats.archive import open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive
from jarvis_rules.formats.encryption import CHUNK_SIZE, TAG_SIZE, ArchiveCipher, SealedMember
from jarvis_rules.formats.key_source import Key

BAR = 1.5
MEMORY_BAR = 8 << 20
CHUNK = bytes(range(256)) * (CHUNK_SIZE // 256)


class Nowhere:
    """Takes bytes and keeps none, but the last: that is what is opened again."""

    def write(self, data: bytes) -> None:
        self.last = data


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def member(count: int) -> SealedMember:
    return SealedMember("weights", "graph", Digest("0" * 64, count * CHUNK_SIZE), CHUNK_SIZE)


def bare_encrypt(count: int) -> None:
    aead = AESGCM(bytes(32))
    for index in range(count):
        aead.encrypt(index.to_bytes(12, "big"), CHUNK, None)


def bare_decrypt(count: int, sealed: bytes) -> None:
    aead = AESGCM(bytes(32))
    for _ in range(count):
        aead.decrypt(bytes(12), sealed, None)


def seal(cipher: ArchiveCipher, count: int) -> None:
    sink = cipher.seal(member(count), Nowhere())
    for _ in range(count):
        sink.write(CHUNK)
    sink.finish()


def open_sealed(cipher: ArchiveCipher, count: int, chunks: list[bytes]) -> None:
    size = CHUNK_SIZE + TAG_SIZE
    for _ in cipher.open_chunks(member(count), lambda start, _end: chunks[start // size]):
        pass


class Chunks:
    """Keeps the ciphertext, so that opening does not wait for a disk."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self.parts.append(data)


def measure_layer(count: int, repeat: int) -> bool:
    cipher, kept = ArchiveCipher(b"key", 1, "0" * 64, CHUNK_SIZE), Chunks()
    sink = cipher.seal(member(count), kept)
    for _ in range(count):
        sink.write(CHUNK)
    sink.finish()
    one = AESGCM(bytes(32)).encrypt(bytes(12), CHUNK, None)
    works = {
        "encrypt": (lambda: bare_encrypt(count), lambda: seal(cipher, count)),
        "decrypt": (
            lambda: bare_decrypt(count, one),
            lambda: open_sealed(cipher, count, kept.parts),
        ),
    }
    within = True
    for name, (bare, ours) in works.items():
        # They take turns, so that a busy moment of the machine hits both.
        pairs = [(timed(bare), timed(ours)) for _ in range(repeat)]
        first, second = (min(column) for column in zip(*pairs, strict=True))
        size, ratio = count * CHUNK_SIZE / 1e9, second / first
        within &= ratio <= BAR
        print(
            f"{name}: bare {first:.3f} s ({size / first:.2f} GB/s), "
            f"ours {second:.3f} s ({size / second:.2f} GB/s), ratio {ratio:.2f} (bar {BAR})"
        )
    return within


def peak_memory(count: int) -> int:
    """Return the peak memory of writing and reading an encrypted archive, in a fresh process."""
    argv = [sys.executable, __file__, "--peak", str(count)]
    return int(subprocess.run(argv, check=True, capture_output=True, text=True).stdout)


def write(path: Path, count: int, key: Key | None) -> None:
    def content(sink: Nowhere) -> None:
        for _ in range(count):
            sink.write(CHUNK)

    weights = Member("weights", "graph", "", write=content)
    write_archive(path, "jmir", {"name": "x", "kind": "qa"}, [weights], key)


def read(path: Path, key: Key | None) -> None:
    with open_archive(path, key=key) as archive:
        archive.copy_to("weights", Nowhere())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--peak", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    key = Key(b"key")
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "x.jmir")
        if arguments.peak is not None:
            write(path, arguments.peak, key)
            read(path, key)
            # Not `ru_maxrss`, which begins with what the parent had.
            status = Path("/proc/self/status").read_text()
            print(int(status.partition("VmHWM:")[2].split()[0]) << 10)
            return 0
        count = arguments.megabytes * (1 << 20) // CHUNK_SIZE
        within = measure_layer(count, arguments.repeat)
        small, large = peak_memory(count // 8), peak_memory(count)
        within &= large - small <= MEMORY_BAR
        print(
            f"peak memory: {small >> 20} MiB for {count // 8} chunks, "
            f"{large >> 20} MiB for {count}, mapped pages of the archive included"
        )
        for what, secret in (("plain", None), ("encrypted", key)):
            writing = timed(lambda secret=secret: write(path, count, secret))
            reading = timed(lambda secret=secret: read(path, secret))
            print(f"whole archive, {what}: written in {writing:.2f} s, read in {reading:.2f} s")
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main())
