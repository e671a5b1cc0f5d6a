"""Archives without encryption: what opening one costs, and carrying its members into another.

    python benchmarks/archive.py --megabytes 1024

Prints, for an archive with one member of that size in a file of its own: the seconds of opening it
(headers of the blocks only), of opening the same content in compressed gzip (everything is
inflated), and of writing a second archive with the member: carried over by the kernel, copied and
verified in one pass, and extracted to a file first, in turns, the best of the repetitions.
"""

from __future__ import annotations

import argparse
import gzip
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from jarvis_rules.formats.archive import ArchiveMember, open_archive
from jarvis_rules.formats.archive_writing import Member, write_archive

METADATA = {"name": "x", "kind": "qa"}


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class Unframed(ArchiveMember):
    """A member that does not say where its blocks lie, so that it is copied."""

    __slots__ = ()

    def blocks(self) -> None:
        return None


def opened(path: Path) -> None:
    with open_archive(path):
        pass


def carried(path: Path, target: Path, kind: type[ArchiveMember]) -> None:
    with open_archive(path) as archive:
        member = Member("weights", "graph", "", source=kind(archive, "weights"))
        write_archive(target, "jmir", METADATA, [member])


def extracted(path: Path, target: Path) -> None:
    scratch = target.with_name("scratch")
    with open_archive(path) as archive:
        archive.extract("weights", scratch)
        write_archive(target, "jmir", METADATA, [Member("weights", "graph", "", path=scratch)])
    scratch.unlink()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path, target, foreign = (Path(name, f"{stem}.jmir") for stem in ("a", "b", "c"))
        weights = path.with_name("weights")
        block = os.urandom(1 << 20)
        with weights.open("wb") as out:
            for _ in range(arguments.megabytes):
                out.write(block)
        write_archive(path, "jmir", METADATA, [Member("weights", "graph", "", path=weights)])
        weights.unlink()
        with gzip.open(path) as plain, gzip.open(foreign, "wb", 1) as out:
            while data := plain.read(1 << 20):
                out.write(data)
        works = {
            "opened": lambda: opened(path),
            "opened, compressed gzip": lambda: opened(foreign),
            "member carried over": lambda: carried(path, target, ArchiveMember),
            "member copied": lambda: carried(path, target, Unframed),
            "member extracted first": lambda: extracted(path, target),
        }
        best = dict.fromkeys(works, float("inf"))
        for _ in range(arguments.repeat):
            for what, work in works.items():
                best[what] = min(best[what], timed(work))
        for what, seconds in best.items():
            print(f"{what:24} {seconds:.3f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
