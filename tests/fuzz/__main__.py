"""Fuzzes readers: see README.md beside this file."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

_INSTRUMENTED = ["jarvis_rules.formats", "jarvis_rules.scanning"]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("target", help="name of a target, or `all`")
    parser.add_argument("--seconds", type=float, default=60, help="how long; default 60")
    parser.add_argument("--count", type=int, help="how many inputs instead, without atheris")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations; default 0")
    parser.add_argument("--atheris", action="store_true", help="guided by coverage, by atheris")
    parser.add_argument("--corpus", type=Path, help="folder that atheris adds new inputs to")
    parser.add_argument("--crashes", type=Path, default=Path("crashes"), help="for what fails")
    arguments = parser.parse_args()
    if arguments.atheris:
        import atheris

        with atheris.instrument_imports(include=_INSTRUMENTED):
            from fuzz.targets import TARGETS
        return _run_atheris(atheris, TARGETS[arguments.target], arguments)
    from fuzz.targets import TARGETS

    names = list(TARGETS) if arguments.target == "all" else [arguments.target]
    return max(_run_blind(TARGETS[name], arguments) for name in names)


def _run_blind(target: Any, arguments: argparse.Namespace) -> int:
    """Run the corpus and then mutations of it, the same ones for the same seed."""
    from fuzz.guard import limit_memory, limit_time
    from fuzz.targets import run_one

    limit_memory()
    corpus = target.corpus()
    random = Random(f"{target.name} {arguments.seed}")
    start, done, slugs = time.monotonic(), 0, set[str]()
    with tempfile.TemporaryDirectory() as folder:
        while (
            done < arguments.count
            if arguments.count
            else time.monotonic() - start < arguments.seconds
        ):
            if done < len(corpus):
                data = corpus[done]
            else:
                data = target.mutate(random.choice(corpus), random)
            try:
                with limit_time():
                    slugs.add(run_one(target, data, Path(folder)))
            except Exception:
                traceback.print_exc()
                print(f"{target.name}: input {done} kept as {_keep(data, arguments.crashes)}")
                return 1
            done += 1
    seconds = time.monotonic() - start
    print(f"{target.name}: {done} inputs, {seconds:.1f} s, {len(slugs)} outcomes")
    return 0


def _keep(data: bytes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / hashlib.sha256(data).hexdigest()[:16]
    path.write_bytes(data)
    return path


def _run_atheris(atheris: Any, target: Any, arguments: argparse.Namespace) -> int:
    """Let libFuzzer choose, by coverage; it ends the process itself."""
    from fuzz.targets import run_one

    corpus = arguments.corpus or Path(tempfile.mkdtemp())
    corpus.mkdir(parents=True, exist_ok=True)
    for data in target.corpus():
        _keep(data, corpus)
    folder = tempfile.TemporaryDirectory()

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed % 4 == 0:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(data, Random(seed))[:max_size]

    options = [
        f"-max_total_time={arguments.seconds:.0f}",
        f"-seed={arguments.seed or 1}",
        f"-artifact_prefix={arguments.crashes}/{target.name}-",
        "-max_len=20000", "-timeout=20", "-rss_limit_mb=1500", "-print_final_stats=1",
    ]  # fmt: skip
    arguments.crashes.mkdir(parents=True, exist_ok=True)
    run = lambda data: run_one(target, data, Path(folder.name))  # noqa: E731
    atheris.Setup([sys.argv[0], *options, str(corpus)], run, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
