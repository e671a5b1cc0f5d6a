"""The rules per GPU target: `.jmir` → graphs in a precision → engines → check → repository."""

from __future__ import annotations

from pathlib import Path

from jarvis_rules.core.action import (
    ActionSpec,
    FileInput,
    Input,
    MemberInput,
    Output,
    Resources,
    StoredInput,
    TreeInput,
)
from jarvis_rules.core.cpu import describe_cpu
from jarvis_rules.core.gpu import CPU
from jarvis_rules.core.toolchain import find_toolchain
from jarvis_rules.engines.engine import TIMING_CACHE
from jarvis_rules.errors import UsageError
from jarvis_rules.execution.delivery import Destination
from jarvis_rules.execution.executor import Executed
from jarvis_rules.execution.gpu_devices import driver_version
from jarvis_rules.formats.engine_inputs import HINTS_MEMBER, INPUTS_MEMBER
from jarvis_rules.pipelines.pipeline import find_pipeline
from jarvis_rules.rules.engine_plan import EnginePlan
from jarvis_rules.rules.providers import CheckInfo, DeclaredAction, FolderInfo, PipelineInfo
from jarvis_rules.rules.rules import record_of

GRAPH = "model_graph.onnx"
# A compiler holds some three copies of the weights.
_COMPILER = Resources(memory_mib=2048)


def convert_graphs(
    pipeline: PipelineInfo, plan: EnginePlan, manifest: Path, folder: Path
) -> FolderInfo:
    """Declare PrecisionConvert: graphs that the plan wants in another precision, converted.

    It knows no GPU: targets with the same precision share it.
    """
    converted = plan.converted()
    inputs: dict[str, Input] = {}
    for name in converted:
        for member in (GRAPH, HINTS_MEMBER):
            inputs[f"{name}/{member}"] = _member(pipeline, f"{name}/{member}")
    spec = ActionSpec(
        mnemonic="PrecisionConvert",
        tool="precision_convert",
        request={
            "graphs": {
                name: {
                    "graph": f"inputs/{name}/{GRAPH}",
                    "hints": f"inputs/{name}/{HINTS_MEMBER}",
                    "precision": precision,
                }
                for name, precision in converted.items()
            },
            "linear_as_convolution": plan.linear_as_convolution,
        },
        inputs=inputs,
        output=Output("graphs.json", "graphs"),
        toolchain=find_toolchain("precision", "precision_convert"),
        target=f"{pipeline.name}[{plan.variant()}]",
        confidential=pipeline.key is not None,
    )
    destination = Destination(manifest, folder, record_of(manifest))
    return FolderInfo(manifest, folder, DeclaredAction(spec, destination, (pipeline.jmir,)))


def build_engines(
    pipeline: PipelineInfo,
    plan: EnginePlan,
    graphs: FolderInfo | Executed | None,
    manifest: Path,
    folder: Path,
) -> FolderInfo:
    """Declare EngineBuild: the graphs of a pipeline become engines for a GPU target.

    Only graphs and the sizes of their inputs go in, not the archive that holds them: an engine
    outlives a change of a label file or a decoder option. `graphs` are the converted ones.
    """
    engine, gpu = plan.engine, plan.gpu
    inputs, sources = _graph_inputs(pipeline, plan, graphs)
    if engine.takes_inputs:
        inputs |= _input_documents(pipeline)
    if plan.timing_cache is not None:
        inputs[TIMING_CACHE] = FileInput(plan.timing_cache)
        sources.append(plan.timing_cache)
    spec = ActionSpec(
        mnemonic="EngineBuild",
        tool="engine_build",
        request={
            "toolchain": engine.name,
            "gpu": gpu.to_json(),
            "engines": {
                name: {
                    "graph": f"inputs/{_graph_path(plan, name)}",
                    "precision": precision,
                    "options": dict(plan.options.get(name, {})),
                    "inputs": f"inputs/{name}/{INPUTS_MEMBER}" if engine.takes_inputs else None,
                }
                for name, precision in plan.precisions.items()
            },
            "timing_cache": None if plan.timing_cache is None else f"inputs/{TIMING_CACHE}",
            **_cpu_features(plan),
        },
        inputs=inputs,
        output=Output("engines.json", "engines"),
        toolchain=find_toolchain(
            "engine", "engine_build", (f"jarvis_rules.engines.{engine.name}",)
        ),
        target=f"{pipeline.name}[{gpu.name}]",
        platform=_properties(plan) if engine.needs_gpu else {},
        resources=_resources(plan),
        confidential=pipeline.key is not None,
        not_reproducible=plan.not_reproducible,
    )
    destination = Destination(manifest, folder, record_of(manifest))
    return FolderInfo(manifest, folder, DeclaredAction(spec, destination, tuple(sources)))


def check_engines(
    pipeline: PipelineInfo,
    plan: EnginePlan,
    graphs: FolderInfo | Executed | None,
    engines: FolderInfo | Executed,
    report: Path,
) -> CheckInfo:
    """Declare EngineCheck: what was compiled against the graphs that were exported.

    What cannot execute on this machine is said to be so in the report, which is part of the key.
    """
    inputs, sources = _graph_inputs(pipeline, plan, graphs)
    for name in plan.precisions:
        inputs[f"{name}/{GRAPH}"] = _member(pipeline, f"{name}/{GRAPH}")
    inputs |= _input_documents(pipeline)
    made, manifests = _made(engines, "engines")
    spec = ActionSpec(
        mnemonic="EngineCheck",
        tool="engine_check",
        request={
            "engines": "inputs/engines.json",
            "engine_files": "inputs/engines",
            "graphs": {
                name: {
                    "exported": f"inputs/{name}/{GRAPH}",
                    "compiled": f"inputs/{_graph_path(plan, name)}",
                    "inputs": f"inputs/{name}/{INPUTS_MEMBER}",
                    "rounded_as": _rounded_as(plan, name),
                }
                for name in plan.precisions
            },
            "execute": plan.is_executable,
        },
        inputs=inputs | made,
        output=Output("check.json"),
        toolchain=find_toolchain(
            "check", "engine_check", (f"jarvis_rules.engines.{plan.engine.name}",)
        ),
        target=f"{pipeline.name}[{plan.gpu.name}]",
        platform=_properties(plan) if _runs_on_gpu(plan) else {},
        resources=Resources(memory_mib=2048, gpus=int(_runs_on_gpu(plan))),
        confidential=pipeline.key is not None,
    )
    destination = Destination(report, record=record_of(report))
    return CheckInfo(report, DeclaredAction(spec, destination, (*sources, *manifests)))


def assemble_repository(
    pipeline: PipelineInfo,
    plan: EnginePlan,
    engines: FolderInfo | Executed,
    check: CheckInfo | Executed,
    models: Path,
    record: Path | None,
) -> FolderInfo:
    """Declare RepositoryAssemble: the pipeline and its engines become models under `models`.

    `engines` and `check` are what was declared, or results where those lie in the store alone.
    """
    kind = find_pipeline(pipeline.kind)
    made, manifests = _made(engines, "engines")
    inputs: dict[str, Input] = {"pipeline.jmir": FileInput(pipeline.jmir), **made}
    if isinstance(check, CheckInfo):
        inputs["check.json"] = FileInput(check.report)
        manifests.append(check.report)
    else:
        inputs["check.json"] = StoredInput(check.result.outputs["check.json"])
    runtime = plan.engine.runtime
    backends = sorted({*kind.backends, *([runtime] if runtime else [])})
    spec = ActionSpec(
        mnemonic="RepositoryAssemble",
        tool="repository_assemble",
        request={
            "jmir": "inputs/pipeline.jmir",
            "engines": "inputs/engines.json",
            "engine_files": "inputs/engines",
            "check": "inputs/check.json",
            "backends": backends,
        },
        inputs=inputs,
        output=Output("repository.json", "models"),
        toolchain=find_toolchain(
            "triton",
            "repository_assemble",
            (
                f"jarvis_rules.engines.{plan.engine.name}",
                *(f"jarvis_rules.runtime.{name}" for name in backends),
            ),
        ),
        target=f"{pipeline.name}[{plan.gpu.name}]",
        keys={} if pipeline.key is None else {"pipeline": pipeline.key},
        confidential=pipeline.key is not None,
    )
    manifest = models / f"{pipeline.name}.repository.json"
    destination = Destination(manifest, models, record)
    action = DeclaredAction(spec, destination, (pipeline.jmir, *manifests))
    return FolderInfo(manifest, models, action)


def _member(pipeline: PipelineInfo, name: str) -> MemberInput:
    return MemberInput(pipeline.jmir, name, pipeline.key)


def _input_documents(pipeline: PipelineInfo) -> dict[str, Input]:
    names = (f"{engine}/{INPUTS_MEMBER}" for engine in find_pipeline(pipeline.kind).engines)
    return {name: _member(pipeline, name) for name in names}


def _graph_path(plan: EnginePlan, name: str) -> str:
    return f"graphs/{name}/{GRAPH}" if name in plan.converted() else f"{name}/{GRAPH}"


def _graph_inputs(
    pipeline: PipelineInfo, plan: EnginePlan, graphs: FolderInfo | Executed | None
) -> tuple[dict[str, Input], list[Path]]:
    """Return the graphs that are compiled, and the files that must exist before."""
    inputs: dict[str, Input] = {
        f"{name}/{GRAPH}": _member(pipeline, f"{name}/{GRAPH}")
        for name in plan.precisions
        if name not in plan.converted()
    }
    sources = [pipeline.jmir]
    if graphs is not None:
        made, manifests = _made(graphs, "graphs", with_manifest=False)
        inputs |= made
        sources += manifests
    return inputs, sources


def _made(
    source: FolderInfo | Executed, name: str, *, with_manifest: bool = True
) -> tuple[dict[str, Input], list[Path]]:
    """Return what an action of these rules made as inputs of the next: a manifest and a tree."""
    manifest = f"{name}.json"
    if isinstance(source, Executed):
        outputs = source.result.outputs
        stored: dict[str, Input] = {
            file: StoredInput(digest)
            for file, digest in outputs.items()
            if file != manifest or with_manifest
        }
        return stored, []
    inputs: dict[str, Input] = {name: TreeInput(source.manifest, source.folder)}
    if with_manifest:
        inputs[manifest] = FileInput(source.manifest)
    return inputs, [source.manifest]


def _rounded_as(plan: EnginePlan, name: str) -> str:
    """Return the precision that an engine's numbers have: sm_75 multiplies in fp16 at best."""
    precision = plan.precisions[name]
    return "fp16" if plan.linear_as_convolution and precision == "fp32" else precision


def _runs_on_gpu(plan: EnginePlan) -> bool:
    return plan.is_executable and not plan.engine.portable


def _resources(plan: EnginePlan) -> Resources:
    return (
        Resources()
        if plan.engine.portable
        else Resources(memory_mib=_COMPILER.memory_mib, gpus=int(plan.engine.needs_gpu))
    )


def _properties(plan: EnginePlan) -> dict[str, str]:
    """Return what a machine must have to run the action."""
    driver = driver_version()
    return {
        "GPU": plan.gpu.name,
        "compute-capability": "+".join(plan.gpu.compute_capabilities),
        **({"driver": driver} if driver else {}),
    }


def _cpu_features(plan: EnginePlan) -> dict[str, object]:
    """Return the features of this CPU where an engine is made for them: part of its key."""
    if not any(o.get("graph_optimization") == "all" for o in plan.options.values()):
        return {}
    if plan.gpu.name != CPU:
        raise UsageError(
            "`graph_optimization=all` lays the graph out for this machine's CPU",
            slug="engine.cpu-optimization",
            where=f"GPU target `{plan.gpu.name}`",
            hint="use `extended`, or build with GPU=cpu",
        )
    return {"cpu": describe_cpu()}
