"""What a sandbox costs for each action: a trivial tool under each of them against a plain spawn.

    python benchmarks/sandbox_overhead.py --repeat 50

Prints the median of each in this run, and its difference to the baseline, which is the same tool
(this interpreter, which imports nothing) started by `subprocess.run`. The modes take turns, so
that a busy moment of the machine hits all of them. The bar is 20 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jarvis_rules.core.action import ENVIRONMENT
from jarvis_rules.execution.process import run_process
from jarvis_rules.execution.sandbox import NAMES, Sandbox, try_sandbox

TOOL = (sys.executable, "-c", "pass")
BASELINE = "plain spawn"
BAR = 20.0


def staged(folder: Path) -> Path:
    """Return a new folder as an action has it."""
    action = Path(tempfile.mkdtemp(dir=folder))
    for name in ("inputs", "outputs"):
        (action / name).mkdir()
    (action / "request.json").write_text("{}")
    return action


def plain(folder: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        TOOL,
        cwd=folder,
        env=dict(ENVIRONMENT),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def sandboxed(sandbox: Sandbox, folder: Path) -> float:
    start = time.perf_counter()
    launch = sandbox.command(TOOL, folder, ENVIRONMENT)
    code = run_process(
        launch.argv,
        cwd=launch.cwd,
        environment=launch.environment,
        log=folder / "log.txt",
        timeout=60,
    )
    seconds = time.perf_counter() - start
    if code != 0:
        sys.exit(f"{sandbox.name}: {(folder / 'log.txt').read_text()}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeat", type=int, default=50)
    arguments = parser.parse_args()
    attempts = [try_sandbox(name) for name in NAMES]
    for attempt in attempts:
        if attempt.sandbox is None:
            print(f"{attempt.name}: left out, {attempt.reason}")
    sandboxes = [attempt.sandbox for attempt in attempts if attempt.sandbox is not None]
    times: dict[str, list[float]] = {BASELINE: [], **{sandbox.name: [] for sandbox in sandboxes}}
    with tempfile.TemporaryDirectory() as name:
        for _ in range(arguments.repeat):
            times[BASELINE].append(plain(staged(Path(name))))
            for sandbox in sandboxes:
                times[sandbox.name].append(sandboxed(sandbox, staged(Path(name))))
    medians = {mode: 1000 * statistics.median(taken) for mode, taken in times.items()}
    base = medians.pop(BASELINE)
    print(f"{BASELINE:12}{base:7.1f} ms  (baseline, median of {arguments.repeat})")
    for mode, median in medians.items():
        extra = median - base
        verdict = "within" if extra <= BAR else "OVER"
        print(
            f"{mode:12}{median:7.1f} ms  {median / base:.2f} × {BASELINE}, {extra:+.1f} ms "
            f"({verdict} the bar of {BAR:.0f} ms)"
        )


if __name__ == "__main__":
    main()
