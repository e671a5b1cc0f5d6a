"""Random faults against a real tree: kill -9 in the middle of builds, and flipped bytes.

    python benchmarks/fault_trials.py kill --trials 200 --models 20
    python benchmarks/fault_trials.py flip --trials 500 --models 2
    python benchmarks/fault_trials.py contend --trials 1 --models 100

After each fault the next build must end with the very bytes of an undisturbed one. `contend` has
two checkouts build at once with one cache and eight jobs each: no action may run in both, and both
must end with the same bytes. Prints the number of trials and of failures, and ends with 1 where
there was one. Not a timed benchmark.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "projects"))

from project_testing import HERE, MODEL, Project, change_one_weight

from jarvis_rules.execution.execution_log import read_last_build

DECLARATION = 'env.Pipeline("{name}", "speech_recognition", env.NemoModel("{name}.nemo"))\n'
EXECUTION_LOG = "out/execution-log.jsonl"
UNTOUCHED = (".lock", "execution-log.jsonl")


def make_project(root: Path, models: int) -> Project:
    folder = root / "checkout"
    shutil.copytree(HERE / "basic", folder)
    names = [f"m{index}" for index in range(models)]
    text = "".join(DECLARATION.format(name=name) for name in names)
    (folder / "models" / "SConscript").write_text(f'Import("env")\n{text}')
    for index, name in enumerate(names):
        path = folder / "models" / f"{name}.nemo"
        shutil.copy(MODEL, path)
        if index % 2:
            change_one_weight(path)
    return Project(folder, root / "cache")


def disturb(project: Project, chance: random.Random) -> None:
    """Leave something to do: remove or change outputs, now and then some of the cache."""
    out = project.folder / "out"
    files = [path for path in out.rglob("*") if path.is_file() and path.name not in UNTOUCHED]
    for path in chance.sample(files, min(len(files), 8)):
        path.unlink() if chance.random() < 0.5 else path.write_bytes(b"edited")
    entries = list((project.cache / "ac").rglob("*.json"))
    for path in chance.sample(entries, min(len(entries), 4)):
        path.unlink(missing_ok=True)


def kill_trials(project: Project, trials: int, chance: random.Random) -> int:
    """Kill a build after a random time; the next one must end with the expected bytes."""
    project.build()
    expected, failures = project.files(), 0
    for trial in range(trials):
        disturb(project, chance)
        process = subprocess.Popen(
            project.command(f"-j{chance.choice((1, 2, 4))}"),
            cwd=project.folder,
            env=project.variables(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(chance.uniform(0.2, 3.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        failures += check(project, expected, f"kill {trial}")
    return failures


def flip_trials(project: Project, trials: int, chance: random.Random) -> int:
    """Flip one bit of one file of the cache or the outputs; the next build must heal it."""
    project.build()
    expected, failures = project.files(), 0
    roots = (project.cache / "cas", project.cache / "ac", project.folder / "out")
    for trial in range(trials):
        files = [
            path
            for path in chance.choice(roots).rglob("*")
            if path.is_file() and path.name not in UNTOUCHED and path.stat().st_size
        ]
        path = chance.choice(sorted(files))
        data = bytearray(path.read_bytes())
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.chmod(0o644)
        path.write_bytes(bytes(data))
        # Half of the time nothing of the outputs is left, so that all must come from the cache.
        if chance.random() < 0.5:
            shutil.rmtree(project.folder / "out")
        failures += check(project, expected, f"flip {trial} of {path}")
    return failures


def contend_trials(project: Project, trials: int, chance: random.Random) -> int:
    """Build two checkouts at once with one cache; every action key must be executed once."""
    failures = 0
    for trial in range(trials):
        shutil.rmtree(project.cache, ignore_errors=True)
        twins = []
        for name in ("one", "two"):
            folder = project.folder.with_name(f"{name}-{trial}")
            shutil.copytree(project.folder, folder)
            twins.append(Project(folder, project.cache))
        running = []
        for twin in twins:
            running.append(
                subprocess.Popen(
                    twin.command("-j8"),
                    cwd=twin.folder,
                    env=twin.variables(),
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
            )
            time.sleep(chance.uniform(0, 2))
        codes = [process.wait() for process in running]
        actions = [a for twin in twins for a in read_last_build(twin.folder / EXECUTION_LOG)]
        executed = [action["key"] for action in actions if action["outcome"] == "executed"]
        twice = len(executed) - len(set(executed))
        same = twins[0].files() == twins[1].files()
        print(f"contend {trial}: {len(actions)} actions, {len(executed)} executed")
        if codes != [0, 0] or twice or not same:
            print(f"FAILED: scons ended with {codes}, {twice} executed twice, equal: {same}")
            failures += 1
    return failures


def check(project: Project, expected: dict[str, bytes], what: str) -> int:
    result = project.scons("-j2")
    if result.code == 0 and project.files() == expected:
        return 0
    print(f"FAILED after {what}: scons ended with {result.code}\n{result.stderr}")
    return 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fault", choices=("kill", "flip", "contend"))
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--seed", type=int, default=20211122)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)  # noqa: S311  (trials, not secrets)
    run = {"kill": kill_trials, "flip": flip_trials, "contend": contend_trials}[arguments.fault]
    with tempfile.TemporaryDirectory() as name:
        project = make_project(Path(name), arguments.models)
        start = time.monotonic()
        failures = run(project, arguments.trials, chance)
    seconds = time.monotonic() - start
    print(f"{arguments.trials} trials of {arguments.fault}, {failures} failed, {seconds:.0f} s")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
