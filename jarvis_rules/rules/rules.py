"""The rules: `.nemo` → `.ejrvs` → `.jmir`. Those behind it are in `engine_rules`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from jarvis_rules.core.action import (
    ActionSpec,
    FileInput,
    Output,
    StoredInput,
)
from jarvis_rules.core.digest import Digest
from jarvis_rules.core.registry import entry_modules, require_known
from jarvis_rules.core.secret import Secret
from jarvis_rules.core.toolchain import find_toolchain
from jarvis_rules.errors import ToolchainError, UsageError
from jarvis_rules.execution.delivery import Destination
from jarvis_rules.formats.engine_inputs import Scalar
from jarvis_rules.pipelines._engine_options import choose_engines
from jarvis_rules.pipelines.pipeline import find_pipeline, require_name
from jarvis_rules.rules.providers import (
    DeclaredAction,
    ModelInfo,
    PipelineInfo,
)

EXPORT_FORMATS = ("CKPT", "ONNX", "TS")


def export_model(
    nemo: Path, archive: Path, export_format: str = "ONNX", *, key: Secret | None = None
) -> ModelInfo:
    """Declare NemoExport: the checkpoint `nemo` becomes `archive`, encrypted with `key` if given.

    UsageError for an unknown format, ToolchainError for one that takes another toolchain.
    """
    require_known("format", export_format, EXPORT_FORMATS, "format.unknown")
    if export_format == "TS":
        raise ToolchainError(
            "TorchScript takes a toolchain with torch and NeMo, and there is none",
            slug="toolchain.torchscript",
            where=str(nemo),
            hint="leave the format out: what pipelines are built of is ONNX",
        )
    spec = ActionSpec(
        mnemonic="NemoExport",
        tool="nemo_export",
        request={"model": "inputs/model.nemo", "format": export_format},
        inputs={"model.nemo": FileInput(nemo)},
        output=Output("model.ejrvs"),
        toolchain=find_toolchain("export", "nemo_export", entry_modules("jarvis_rules.exporters")),
        target=archive.name,
        keys={} if key is None else {"archive": key},
    )
    destination = Destination(archive, record=record_of(archive))
    return ModelInfo(archive, DeclaredAction(spec, destination, (nemo,)))


def validate_archive(
    archive: Digest,
    target: str,
    schemas: Sequence[Path],
    *,
    is_chosen: bool,
    key: Secret | None = None,
) -> ActionSpec:
    """Return ArchiveValidate: the stored archive is compared with the schema of its class.

    The only one of `schemas` where it `is_chosen`; else the first that fits of these and of those
    that come with this package. The result is a report.
    """
    names = [f"schemas/{index}.yaml" for index in range(len(schemas))]
    return ActionSpec(
        mnemonic="ArchiveValidate",
        tool="archive_validate",
        request={
            "archive": "inputs/model.ejrvs",
            "schemas": [f"inputs/{name}" for name in names],
            "is_chosen": is_chosen,
        },
        inputs={
            "model.ejrvs": StoredInput(archive),
            **{name: FileInput(path) for name, path in zip(names, schemas, strict=True)},
        },
        output=Output("validation.json"),
        toolchain=find_toolchain("export", "archive_validate"),
        target=target,
        keys={} if key is None else {"archive": key},
    )


def build_pipeline(
    kind_name: str,
    name: str,
    models: Mapping[str, Path],
    options: Mapping[str, object],
    jmir: Path,
    *,
    key: Secret | None = None,
    model_keys: Mapping[str, Secret] | None = None,
) -> tuple[PipelineInfo, DeclaredAction]:
    """Declare JmirBuild: the archives in `models`, by slot, become the pipeline `jmir`.

    `model_keys` are those of encrypted archives, by slot; `key` encrypts the pipeline.
    UsageError for an unknown pipeline or option, a bad value, and a missing or extra model.
    """
    kind = find_pipeline(kind_name)
    require_name(name)
    slots = [slot.name for slot in kind.slots]
    if sorted(models) != sorted(slots):
        raise UsageError(
            f"{kind.name} takes {len(slots)} models ({', '.join(slots)}), got {len(models)}",
            slug="pipeline.models",
            where=f"pipeline `{name}`",
            hint="give one archive for each",
        )
    parsed: dict[str, Scalar] = kind.parse_options(options)
    spec = ActionSpec(
        mnemonic="JmirBuild",
        tool="jmir_build",
        request={
            "pipeline": kind.name,
            "name": name,
            "options": parsed,
            "models": {slot: f"inputs/{slot}.ejrvs" for slot in slots},
        },
        inputs={f"{slot}.ejrvs": FileInput(models[slot]) for slot in slots},
        output=Output("pipeline.jmir"),
        toolchain=find_toolchain(
            "pipeline", "jmir_build", (f"jarvis_rules.pipelines.{kind.name}",)
        ),
        target=name,
        keys={
            **{f"models/{slot}": secret for slot, secret in (model_keys or {}).items()},
            **({} if key is None else {"pipeline": key}),
        },
        confidential=bool(model_keys) and key is None,
    )
    destination = Destination(jmir, record=record_of(jmir))
    action = DeclaredAction(spec, destination, tuple(models.values()))
    return PipelineInfo(name, kind.name, jmir, key, choose_engines(kind, parsed)), action


def record_of(target: Path) -> Path:
    """Return where the record of the action that makes `target` lies."""
    return target.with_name(f"{target.name}.action.json")
