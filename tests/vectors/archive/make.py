"""Makes the golden archives with the real commands: `make.py [FOLDER]`, by default `v1`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
NEMO = HERE.parent / "nemo" / "control_valid.nemo"
ARCHIVES = ("control_valid.ejrvs", "control.jmir")
OPTIONS = ("--offline", "--language_code=en-GB", "--max_batch_size=4", "--chunk_size=0.8")


def make(folder: Path) -> None:
    """Write the golden archives to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    ejrvs, jmir = (str(folder / name) for name in ARCHIVES)
    # An empty cache: the tools must run.
    with tempfile.TemporaryDirectory() as cache:
        _run(cache, "nemo2jarvis", f"--out={ejrvs}", str(NEMO))
        _run(
            cache, "jarvis_build", "speech_recognition", jmir, ejrvs, "-f", "--name=control",
            *OPTIONS,
        )  # fmt: skip


def _run(cache: str, command: str, *arguments: str) -> None:
    code = f"from jarvis_rules.cli.{command} import main; main()"
    argv = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "JARVIS_CACHE": cache}
    subprocess.run(argv, env=environment, check=True, capture_output=True)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "v1")
