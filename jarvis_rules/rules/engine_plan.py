"""Which engines a pipeline gets for a GPU target: decided before anything is read or built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jarvis_rules.core.gpu import CPU, GpuTarget
from jarvis_rules.core.gpus import present_gpus
from jarvis_rules.core.registry import require_known
from jarvis_rules.engines.engine import PRECISIONS, Engine, engine_names, find_engine
from jarvis_rules.errors import JarvisError, UsageError
from jarvis_rules.formats.engine_inputs import Scalar
from jarvis_rules.formats.jmir import EngineChoices
from jarvis_rules.pipelines.pipeline import find_pipeline
from jarvis_rules.rules.providers import PipelineInfo

AUTO = "auto"
_PORTABLE, _NATIVE = "onnxruntime", "tensorrt"


@dataclass(frozen=True, slots=True)
class EngineRequest:
    """What is asked for besides the GPU target: toolchain, default precision, timing cache."""

    toolchain: str = AUTO
    precision: str | None = None
    timing_cache: Path | None = None

    def __post_init__(self) -> None:
        require_known("engine toolchain", self.toolchain, (AUTO, *engine_names()), "engine.unknown")
        if self.precision is not None:
            require_known("precision", self.precision, PRECISIONS, "precision.unknown")


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """The engines of one pipeline for one target: toolchain, precision and options of each.

    `notes` are for people: what was chosen for them, and what else could be.
    """

    gpu: GpuTarget
    engine: Engine
    precisions: Mapping[str, str]
    options: Mapping[str, Mapping[str, Scalar]]
    timing_cache: Path | None
    is_executable: bool
    notes: tuple[str, ...] = ()

    @property
    def linear_as_convolution(self) -> bool:
        """Whether linear layers in fp32 must be convolutions: sm_75 has no other product there."""
        return self.engine.name == "tensorrt_rtx" and "7.5" in self.gpu.compute_capabilities

    def converted(self) -> dict[str, str]:
        """Return the engines whose graphs the precision step changes, with their precision."""
        return {
            name: precision
            for name, precision in self.precisions.items()
            if precision != "fp32" or self.linear_as_convolution
        }

    @property
    def not_reproducible(self) -> str | None:
        """Why engines have other bytes with every build, or None."""
        if self.engine.portable:
            return None
        if self.engine.needs_gpu:
            return f"{self.engine.name} times its kernels; a timing cache keeps its choice"
        profiles = [self.options.get(name, {}).get("shape_profiles") for name in self.precisions]
        if all(profile == "static" for profile in profiles):
            return None
        return (
            "an engine of ranges differs from build to build; one with "
            "`nn.shape_profiles=static` does not"
        )

    def variant(self) -> str:
        """Return a name of the converted graphs that only equal conversions share."""
        names = sorted({*self.converted().values()})
        if len(names) > 1:
            names = [
                f"{engine}-{precision}" for engine, precision in sorted(self.precisions.items())
            ]
        return ".".join([*names, *(["conv"] if self.linear_as_convolution else [])])


def plan_engines(pipeline: PipelineInfo, gpu: GpuTarget, request: EngineRequest) -> EnginePlan:
    """Return the engines that `pipeline` gets for `gpu`.

    UsageError or ToolchainError where the toolchain cannot build for the target, or not here; they
    name a pipeline that asks for something by itself.
    """
    try:
        return _plan(pipeline, gpu, request)
    except JarvisError as error:
        # What is asked of all pipelines is no fault of the first.
        if any((pipeline.choices.toolchain, *pipeline.choices.options.values())):
            raise error.at(f"pipeline `{pipeline.name}`") from None
        raise


def _plan(pipeline: PipelineInfo, gpu: GpuTarget, request: EngineRequest) -> EnginePlan:
    engine, notes = _choose(pipeline.choices, gpu, request.toolchain)
    asked = pipeline.choices.options
    precisions: dict[str, str] = {}
    for name in find_pipeline(pipeline.kind).engines:
        said = asked.get(name, {}).get("precision") or request.precision
        precisions[name] = str(said or engine.default_precision(gpu))
        if said is None and precisions[name] != "fp32":
            notes.append(
                f"{gpu.name}: precision {precisions[name]}, the default of {engine.name} there"
            )
        _check(engine, gpu, precisions[name])
    # Asking the driver takes a moment, which builds with portable engines can do without.
    present = {} if engine.portable else _present()
    engine.check_machine(gpu, present)
    options = {
        name: {key: value for key, value in values.items() if key in engine.options}
        for name, values in asked.items()
    }
    is_executable = engine.portable or bool({*present.values()} & {*gpu.compute_capabilities})
    if note := engine.note(gpu):
        notes.append(note)
    if not is_executable:
        notes.append(f"{gpu.name}: its engines do not run here, so only their graphs are checked")
    if request.timing_cache is not None and "timing_cache" not in engine.options:
        raise UsageError(
            f"{engine.name} has no timing cache",
            slug="engine.no-timing-cache",
            where=str(request.timing_cache),
            hint="leave it out, or build with `ENGINE=tensorrt`",
        )
    return EnginePlan(
        gpu=gpu,
        engine=engine,
        precisions=precisions,
        options={name: values for name, values in options.items() if values},
        timing_cache=request.timing_cache,
        is_executable=is_executable,
        notes=tuple(notes),
    )


def _check(engine: Engine, gpu: GpuTarget, precision: str) -> None:
    if gpu.name != CPU and precision not in gpu.precisions:
        raise UsageError(
            f"{gpu.name} ({gpu.architectures()}) does not compute in {precision}",
            slug="precision.unsupported",
            hint=f"it knows: {', '.join(gpu.precisions)}",
        )
    engine.check_target(gpu, precision)


def _choose(choices: EngineChoices, gpu: GpuTarget, asked: str) -> tuple[Engine, list[str]]:
    """Return the toolchain, and why it is that one where nobody asked for it."""
    if choices.toolchain is not None:
        engine = find_engine(choices.toolchain)
        if gpu.name != CPU or engine.portable:
            return engine, []
        return find_engine(_PORTABLE), [f"cpu: {_PORTABLE}, since {engine.name} is for GPUs"]
    if asked != AUTO:
        return find_engine(asked), []
    if gpu.name == CPU:
        return find_engine(_PORTABLE), []
    present = _present()
    if not {*gpu.compute_capabilities} <= {*present.values()}:
        reason = f"no {gpu.architectures()} GPU is here for `{_NATIVE}`"
    else:
        native = find_engine(_NATIVE)
        try:
            native.check_target(gpu, native.default_precision(gpu))
            native.check_machine(gpu, present)
        except JarvisError as error:
            reason = f"`{_NATIVE}` cannot build here: {error.message}"
        else:
            return native, [f"{gpu.name}: engine toolchain `{_NATIVE}`, since that GPU is here"]
    return find_engine(_PORTABLE), [f"{gpu.name}: {_PORTABLE}, since {reason}{_way_out(gpu)}"]


def _present() -> dict[str, str]:
    return {found.name: found.compute_capability for found in present_gpus()}


def _way_out(gpu: GpuTarget) -> str:
    """Return what else could be asked for: the compilers that know the target."""
    known = []
    for name in sorted({*engine_names()} - {_PORTABLE, _NATIVE}):
        engine = find_engine(name)
        try:
            engine.check_target(gpu, engine.default_precision(gpu))
        except JarvisError:
            continue
        known.append(f"`ENGINE={name}`")
    return f"; {' or '.join(known)} compiles for it without one" if known else ""
