"""Checks of a model repository that need no server.

Triton itself reports some of these only after seconds, hides the reason of others in its log,
waits for ever on a Python model without `model.py`, and calls ensembles READY that fail on every
request. Rules after `reference/triton.md` §3 and §4, measured on Triton 2.51.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jarvis_rules.errors import JarvisError, did_you_mean
from jarvis_rules.triton.ensemble_lint import lint_ensemble
from jarvis_rules.triton.model_folder import CONFIG, LintFinding, Model, model_folders, read_model
from jarvis_rules.triton.onnx_signature import Tensor, disagreements

__all__ = ["LintFinding", "check_repository", "lint_repository"]


def check_repository(root: Path) -> None:
    """Raise `JarvisError` `repository.lint` with every finding when the repository has faults."""
    findings = lint_repository(root)
    if findings:
        noun = "fault" if len(findings) == 1 else "faults"
        lines = [f"  {finding.render()}" for finding in findings]
        raise JarvisError(
            "\n".join([f"{len(findings)} {noun} in the model repository", *lines]),
            slug="repository.lint",
            where=str(root),
            hint="\n".join(dict.fromkeys(f"{f.model}: {f.hint}" for f in findings)),
        )


def lint_repository(root: Path) -> list[LintFinding]:
    """Return all faults of the model repository at `root`, sorted by model.

    Reads `config.pbtxt` files and the graphs of ONNX models without their weights.
    Raises `JarvisError` `repository.missing` when `root` is not a folder.
    """
    findings: list[LintFinding] = []
    models: dict[str, Model] = {}
    folders = model_folders(root)
    for folder in folders:
        found = read_model(folder)
        if isinstance(found, LintFinding):
            findings.append(found)
        else:
            models[folder.name] = found
    for model in models.values():
        findings += _lint_model(model)
        if model.calls and model.calls not in models:
            findings.append(_unknown_call(model, models))
        if model.is_ensemble:
            findings += lint_ensemble(model, models, {folder.name for folder in folders})
    if not folders:
        findings.append(
            LintFinding(
                "repository.empty", root.name, "no model in it", "build the repository first"
            )
        )
    return sorted(findings, key=lambda finding: (finding.model, finding.slug, finding.message))


def _unknown_call(model: Model, models: dict[str, Model]) -> LintFinding:
    return LintFinding(
        "python.unknown-call",
        model.name,
        f"it calls `{model.calls}`, which is not in the repository",
        did_you_mean(model.calls, models) or f"add the model `{model.calls}`",
    )


def _lint_model(model: Model) -> Iterator[LintFinding]:
    config = model.config
    if config.name != model.name:
        yield LintFinding(
            "config.name",
            model.name,
            f"`name` is `{config.name}`, expected the folder's name `{model.name}`",
            "rename the folder or correct `name`",
        )
    if not model.is_ensemble and not model.backend:
        yield LintFinding(
            "config.backend",
            model.name,
            "neither `backend` nor a known `platform`",
            'add a line such as `backend: "python"`',
        )
    yield from _lint_placement(model)
    if not model.versions:
        yield LintFinding(
            "version.missing",
            model.name,
            "no version folder, expected one such as `1`",
            f"mkdir {model.path / '1'}"
            + (" and put a file such as `.keep` into it" if model.is_ensemble else ""),
        )
    for version in model.versions:
        yield from _lint_version(model, version)


def _lint_placement(model: Model) -> Iterator[LintFinding]:
    """Find what ties the model to one machine."""
    from tritonclient.grpc import model_config_pb2

    for key, value in sorted(model.config.parameters.items()):
        # Its packages lie where the server's owner put them.
        if key != "EXECUTION_ENV_PATH" and _is_absolute_path(value.string_value):
            yield LintFinding(
                "config.absolute-path",
                model.name,
                f"parameter `{key}` is the absolute path `{value.string_value}`: "
                "the repository cannot be moved",
                "write it relative to the version folder",
            )
    gpu = model_config_pb2.ModelInstanceGroup.KIND_GPU
    needs_gpu = model.backend == "tensorrt" or model.engine_file
    if not needs_gpu and any(g.kind == gpu for g in model.config.instance_group):
        yield LintFinding(
            "config.kind-gpu",
            model.name,
            f"instance_group has KIND_GPU, which backend `{model.backend}` does not need: "
            "a server without a GPU refuses the model",
            "write `kind: KIND_AUTO` or leave the kind out",
        )


def _is_absolute_path(value: str) -> bool:
    parts = Path(value).parts
    return value.startswith("/") and (len(parts) > 2 or (len(parts) == 2 and Path(value).exists()))


def _lint_version(model: Model, version: Path) -> Iterator[LintFinding]:
    name = model.file_name
    if model.is_ensemble or not name:
        return
    path = version / name
    if not path.exists():
        python = model.backend == "python"
        yield LintFinding(
            "python.model-missing" if python else "model.file-missing",
            model.name,
            f"`{version.name}/{name}` is missing"
            + (": Triton waits for it for ever and must then be killed" if python else ""),
            f"add `{path}` or remove the folder `{version}`",
        )
    elif not path.stat().st_size:
        yield _empty(model, path)
    elif model.backend == "onnxruntime":
        yield from _lint_onnx(model, path)
    engine = version / model.engine_file
    if model.engine_file and not engine.is_file():
        yield LintFinding(
            "model.file-missing",
            model.name,
            f"`{version.name}/{model.engine_file}`, the engine that it runs, is missing",
            f"add `{engine}` or remove the folder `{version}`",
        )
    elif model.engine_file and not engine.stat().st_size:
        yield _empty(model, engine)


def _empty(model: Model, path: Path) -> LintFinding:
    return LintFinding(
        "model.file-empty",
        model.name,
        f"`{path.parent.name}/{path.name}` is empty",
        "build the repository again",
    )


def _lint_onnx(model: Model, path: Path) -> Iterator[LintFinding]:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, OSError, ValueError) as fault:
        yield LintFinding(
            "onnx.unreadable",
            model.name,
            f"`{path.parent.name}/{path.name}` is not an ONNX model: {fault}",
            "build the repository again",
        )
        return
    weights = {initializer.name for initializer in graph.initializer}
    inputs = [_onnx_tensor(value) for value in graph.input if value.name not in weights]
    outputs = [_onnx_tensor(value) for value in graph.output]
    configured = (
        [_configured_tensor(tensor) for tensor in model.config.input],
        [_configured_tensor(tensor) for tensor in model.config.output],
    )
    for sentence in disagreements(model.config.max_batch_size, configured, (inputs, outputs)):
        yield LintFinding(
            "onnx.signature",
            model.name,
            f"`{path.parent.name}/{path.name}`: {sentence}",
            f"make `{CONFIG}` agree with the model",
        )


def _configured_tensor(tensor: Any) -> Tensor:
    """Return a ModelInput or ModelOutput as the model sees it: reshaped, without the batch."""
    from tritonclient.grpc import model_config_pb2

    dims = tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims
    return Tensor(
        tensor.name, model_config_pb2.DataType.Name(tensor.data_type), tuple(int(d) for d in dims)
    )


def _onnx_tensor(value: Any) -> Tensor:
    import onnx

    tensor = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type)
    renamed = {"FLOAT": "FP32", "DOUBLE": "FP64", "FLOAT16": "FP16", "BFLOAT16": "BF16"}
    dims = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
    return Tensor(value.name, f"TYPE_{renamed.get(name, name)}", dims)
