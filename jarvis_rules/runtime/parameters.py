"""The parameters of a Triton model, read from what its backend hands to `initialize`.

Triton knows text only (`parameters { key: "n_fft" value { string_value: "512" } }`), so here
numbers, booleans (`True`, `False`), nothing (`None`) and file names get their types back, and a
mistake is named together with the model and the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath


class Parameters:
    """Typed access to the `parameters` of one model.

    Args:
        args: what the python backend passes to `TritonPythonModel.initialize`: `model_config`
            (JSON), `model_repository` (the folder of the model) and `model_version`.

    Every reader raises `ValueError` if the key is missing or its text is not of that type.

    """

    def __init__(self, args: Mapping[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.model: str = config.get("name", "")
        self._folder = Path(args["model_repository"]) / args["model_version"]
        self._values: dict[str, str] = {
            key: value["string_value"] for key, value in config.get("parameters", {}).items()
        }

    def text(self, key: str) -> str:
        """Return the text as it stands."""
        try:
            return self._values[key]
        except KeyError:
            raise ValueError(f"model `{self.model}`: parameter `{key}` is missing") from None

    def optional_text(self, key: str) -> str | None:
        """Return the text, or nothing for `None`."""
        text = self.text(key)
        return None if text == "None" else text

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number; the default, if there is one, where the key is missing."""
        if default is not None and key not in self._values:
            return default
        text = self.text(key)
        try:
            return int(text)
        except ValueError:
            raise self._wrong(key, "a whole number", text) from None

    def number(self, key: str) -> float:
        """Return a finite number."""
        text = self.text(key)
        try:
            value = float(text)
        except ValueError:
            raise self._wrong(key, "a number", text) from None
        if not math.isfinite(value):
            raise self._wrong(key, "a finite number", text)
        return value

    def optional_number(self, key: str) -> float | None:
        """Return a finite number, or nothing for `None`."""
        return None if self.text(key) == "None" else self.number(key)

    def boolean(self, key: str) -> bool:
        """Return `True` or `False`."""
        text = self.text(key)
        if text not in {"True", "False"}:
            raise self._wrong(key, "`True` or `False`", text)
        return text == "True"

    def file(self, key: str) -> Path:
        """Return the path of a file that lies in the model's version folder.

        The name must be relative and stay in that folder: a repository that moved must still work.
        """
        name = self.text(key)
        if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise self._wrong(key, "a name inside the model's version folder", name)
        path = self._folder / name
        if not path.is_file():
            raise ValueError(f"model `{self.model}`: file `{path}` (parameter `{key}`) is missing")
        return path

    def _wrong(self, key: str, expected: str, got: str) -> ValueError:
        return ValueError(
            f"model `{self.model}`: parameter `{key}` must be {expected}, got `{got}`"
        )
