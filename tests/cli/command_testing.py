"""Running the commands of Jarvis in this process, each test with a folder and a cache to itself."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from jarvis_rules.cli.command import run_command

MODELS = Path(__file__).parents[1] / "data" / "models"
TINY = Path(__file__).parents[1] / "vectors" / "nemo" / "control_valid.nemo"


@dataclass(frozen=True)
class Done:
    """What a command left: its exit code and what it said."""

    code: int
    stdout: str
    stderr: str


class Commands:
    """The commands, run in an empty folder that holds `tiny.nemo`."""

    def __init__(self, folder: Path, capsys, monkeypatch, cache: Path) -> None:
        self.folder = folder
        self._capsys = capsys
        shutil.copy(TINY, folder / "tiny.nemo")
        monkeypatch.chdir(folder)
        monkeypatch.setenv("JARVIS_CACHE", str(cache))
        monkeypatch.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        monkeypatch.delenv("JARVIS_SCHEMAS", raising=False)

    def __call__(self, command: str, *arguments: object) -> Done:
        module = import_module(f"jarvis_rules.cli.{command.replace('-', '_')}")
        work: Callable[..., int] = module._run
        self._capsys.readouterr()
        try:
            code = run_command(work, [str(argument) for argument in arguments])
        except SystemExit as leaving:  # `--help`
            code = int(leaving.code or 0)
        out, err = self._capsys.readouterr()
        return Done(code, out, err)

    def ok(self, command: str, *arguments: object) -> Done:
        done = self(command, *arguments)
        assert done.code == 0, done.stderr
        return done
