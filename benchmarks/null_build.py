"""A build with nothing to do: our rules against plain SCons on the same graph.

    python benchmarks/null_build.py --models 200

Prints the best wall time of each in this run and their ratio. The baseline is SCons with the same
file targets (four per model) and Python functions as builders, which write a few bytes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MODEL = Path(__file__).parents[1] / "tests" / "vectors" / "nemo" / "control_valid.nemo"
SCONS = Path(sys.executable).with_name("scons")
OURS = """
import jarvis_rules
env = Environment(tools=[jarvis_rules.tool])
for i in range({count}):
    env.Pipeline(f"m{{i}}", "speech_recognition", env.NemoModel(f"models/m{{i}}.nemo"))
Default("deploy")
"""
BASELINE = """
def write(target, source, env):
    with open(str(target[0]), "w") as file:
        file.write(str(target[0]))
env = Environment(tools=[], BUILDERS={{"Step": Builder(action=Action(write, None))}})
for i in range({count}):
    ejrvs = env.Step(f"out/any/m{{i}}.ejrvs", f"models/m{{i}}.nemo")
    jmir = env.Step(f"out/any/m{{i}}.jmir", ejrvs)
    engines = env.Step(f"out/cpu/m{{i}}.engines.json", jmir)
    env.Step(f"out/cpu/models/m{{i}}.repository.json", [jmir, engines])
"""


def scons(folder: Path, cache: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        [str(SCONS), "-Q"],
        cwd=folder,
        env={**os.environ, "JARVIS_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        best = {}
        for label, sconstruct in (("plain SCons", BASELINE), ("jarvis-rules", OURS)):
            folder = root / label.replace(" ", "-")
            (folder / "models").mkdir(parents=True)
            for index in range(arguments.models):
                shutil.copy(MODEL, folder / "models" / f"m{index}.nemo")
            (folder / "SConstruct").write_text(sconstruct.format(count=arguments.models))
            first = scons(folder, root / "cache")
            times = [scons(folder, root / "cache") for _ in range(arguments.repeat)]
            best[label] = min(times)
            print(f"{label}: first build {first:.2f} s, no-op build {min(times):.3f} s")
        ratio = best["jarvis-rules"] / best["plain SCons"]
        print(f"no-op build of {arguments.models} models: {ratio:.2f} × plain SCons")


if __name__ == "__main__":
    main()
