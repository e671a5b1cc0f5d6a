"""The option that says where on the server the Python packages of a pipeline's modules are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.engine_inputs import Scalar
from jarvis_rules.pipelines.pipeline import Option, OptionValues

_REPOSITORY = "$$TRITON_MODEL_DIRECTORY/.."
"""Triton's Python backend puts the folder of the model in the place of the name."""

EXECUTION_ENV_PATH = Option(
    "execution_env_path", str, "",
    "archive of `jarvis-rules runtime-env`, or its unpacked folder, on the server; a relative path "
    "starts at the model repository; default: the packages of the server's own Python",
)  # fmt: skip


def environment_parameters(options: OptionValues) -> Mapping[str, Scalar]:
    """Return the parameter of Triton's Python backend that the option stands for.

    UsageError for a relative path that leaves the repository: Triton takes `..` by the letter, so
    that where it leads depends on the links through which a server reaches the repository.
    """
    path = options.text(EXECUTION_ENV_PATH.name)
    if not path:
        return {}
    if ".." in PurePosixPath(path).parts:
        raise UsageError(
            f"`{path}` has `..` in it",
            slug="option.invalid",
            where=f"option `{EXECUTION_ENV_PATH.name}`",
            hint="give an absolute path on the server, or one inside the model repository",
        )
    is_relative = not PurePosixPath(path).is_absolute()
    return {"EXECUTION_ENV_PATH": f"{_REPOSITORY}/{path}" if is_relative else path}
