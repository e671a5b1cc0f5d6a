"""The options with which a pipeline asks something of its engines, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping

from jarvis_rules.errors import UsageError
from jarvis_rules.formats.engine_inputs import Scalar
from jarvis_rules.formats.jmir import EngineChoices
from jarvis_rules.pipelines.pipeline import Option, PipelineKind

_PRECISIONS = ("fp32", "fp16", "bf16")
_OURS = "(our name)"
# Option of a component → build option of its engine.
_BUILD_OPTIONS = {
    "trt_max_workspace_size": "workspace_mib",
    "shape_profiles": "shape_profiles",
    "graph_optimization": "graph_optimization",
    "tensorrt_accelerator": "tensorrt_accelerator",
    "version_compatible": "version_compatible",
    "hardware_compatibility": "hardware_compatibility",
}

PRECISION = Option(
    "precision", str, None,
    f"precision of the engines {_OURS}; default: what PRECISION or the target says, else fp32",
    choices=_PRECISIONS,
)  # fmt: skip


def engine_options(component: str) -> tuple[Option, ...]:
    """Return the options of one engine, named after its component, and `precision` for all."""
    return tuple(
        Option(f"{component}.{name}", kind, None, text, choices=choices, minimum=minimum)
        for name, kind, text, choices, minimum in (
            ("precision", str, f"precision of this engine {_OURS}", _PRECISIONS, None),
            ("use_trt_fp32", bool, "precision fp32", (), None),
            (
                "fp16_needs_obey_precision_pass", bool,
                "precision fp16; what the model marks as fp32 always stays so", (), None,
            ),
            ("use_onnx_runtime", bool, "engine toolchain onnxruntime", (), None),
            (
                "trt_max_workspace_size", int, "scratch memory of TensorRT in MiB "
                "(ENGINE=tensorrt)", (), 1,
            ),
            (
                "shape_profiles", str, "dynamic: any size in range; static: few sizes, to which "
                f"inputs are padded, and reproducible bytes (ENGINE=tensorrt_rtx) {_OURS}",
                ("dynamic", "static"), None,
            ),
            (
                "graph_optimization", str, "what ONNX Runtime does to the graph beforehand "
                f"(ENGINE=onnxruntime); all: for this CPU only {_OURS}",
                ("none", "basic", "extended", "all"), None,
            ),
            (
                "tensorrt_accelerator", bool, "let Triton's ONNX Runtime compile with TensorRT "
                f"when it loads (ENGINE=onnxruntime, on a GPU) {_OURS}", (), None,
            ),
            (
                "version_compatible", bool, "a plan that later TensorRT versions load "
                f"(ENGINE=tensorrt) {_OURS}", (), None,
            ),
            (
                "hardware_compatibility", str, "GPUs that a plan runs on (ENGINE=tensorrt) "
                f"{_OURS}", ("none", "ampere_plus", "same_compute_capability"), None,
            ),
        )
    )  # fmt: skip


def choose_engines(kind: PipelineKind, given: Mapping[str, Scalar]) -> EngineChoices:
    """Return what the given options ask of the engines; UsageError where they contradict."""
    toolchain = None
    options: dict[str, Mapping[str, Scalar]] = {}
    for engine, component in kind.components.items():
        asked = {
            name.removeprefix(f"{component}."): value
            for name, value in given.items()
            if name.startswith(f"{component}.")
        }
        if asked.get("use_onnx_runtime"):
            toolchain = "onnxruntime"
        chosen = {ours: asked[name] for name, ours in _BUILD_OPTIONS.items() if name in asked}
        precision = _precision(component, asked) or given.get("precision")
        options[engine] = chosen if precision is None else {**chosen, "precision": precision}
    return EngineChoices(toolchain, options)


def _precision(component: str, asked: Mapping[str, Scalar]) -> Scalar:
    """Return the precision that the options of one component ask for, or None."""
    said = {
        name: precision
        for name, precision in (
            ("precision", asked.get("precision")),
            ("use_trt_fp32", "fp32" if asked.get("use_trt_fp32") else None),
            (
                "fp16_needs_obey_precision_pass",
                "fp16" if asked.get("fp16_needs_obey_precision_pass") else None,
            ),
        )
        if precision is not None
    }
    if len(set(said.values())) > 1:
        first, second, *_ = (f"`{component}.{name}`" for name in said)
        raise UsageError(
            f"{first} and {second} ask for different precisions",
            slug="option.contradiction",
            where=f"option {second}",
            hint=f"give `{component}.precision` alone",
        )
    return next(iter(said.values()), None)
