"""A build with nothing to do: our rules against plain SCons on the same graph.

    python benchmarks/null_build.py --models 200
    python benchmarks/null_build.py --models 20 --large 4

Prints the best wall time of each in this run and their ratio. The baseline is SCons with the same
file targets (five per model), the same alias, and Python functions as builders, which write a few
bytes. Runs of the two alternate, so that both see the same machine. With `--large` one model is
made that many GiB large, and what it adds is printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
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
env.Default("deploy")
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
    check = env.Step(f"out/cpu/m{{i}}.check.json", [jmir, engines])
    manifest = f"out/cpu/models/m{{i}}.repository.json"
    env.Alias("deploy", env.Step(manifest, [jmir, engines, check]))
env.Default("deploy")
"""


class Project:
    """A folder with an SConstruct and so many models."""

    def __init__(self, folder: Path, sconstruct: str, models: int) -> None:
        (folder / "models").mkdir(parents=True)
        for index in range(models):
            shutil.copy(MODEL, folder / "models" / f"m{index}.nemo")
        (folder / "SConstruct").write_text(sconstruct.format(count=models))
        self.folder = folder

    def build(self) -> float:
        """Run SCons and return its wall time in seconds."""
        # Installed packages have their bytecode; without it both would compile their sources.
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        environment["JARVIS_CACHE"] = str(self.folder.parent / "cache")
        start = time.perf_counter()
        subprocess.run(
            [str(SCONS), "-Q"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )
        return time.perf_counter() - start


def inflate(model: Path, gibibytes: int) -> None:
    """Add a member of zeros, which takes no space on disk, to a checkpoint."""
    with tarfile.open(model, "a") as archive:
        header = tarfile.TarInfo("./zeros.bin")
        header.size = gibibytes << 30
        offset = archive.offset
        block = header.tobuf(tarfile.PAX_FORMAT)
    with model.open("r+b") as file:
        file.seek(offset)
        file.write(block)
        file.truncate(offset + len(block) + header.size + 2 * tarfile.BLOCKSIZE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--repeat", type=int, default=10)
    parser.add_argument("--large", type=int, default=0, metavar="GIB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        plain = Project(root / "plain", BASELINE, arguments.models)
        ours = Project(root / "ours", OURS, arguments.models)
        for label, project in (("plain SCons", plain), ("jarvis-rules", ours)):
            print(f"{label}: first build {project.build():.2f} s")
            project.build()  # the first one with nothing to do settles what is remembered
        times = [(plain.build(), ours.build()) for _ in range(arguments.repeat)]
        baseline, best = (min(column) for column in zip(*times, strict=True))
        print(f"no-op build: plain SCons {baseline:.3f} s, jarvis-rules {best:.3f} s")
        print(f"no-op build of {arguments.models} models: {best / baseline:.2f} × plain SCons")
        if arguments.large:
            inflate(ours.folder / "models" / "m0.nemo", arguments.large)
            print(f"build of a model of {arguments.large} GiB: {ours.build():.2f} s")
            ours.build()
            large = min(ours.build() for _ in range(arguments.repeat))
            print(f"it adds {1000 * (large - best):.0f} ms to a build with nothing to do")


if __name__ == "__main__":
    main()
