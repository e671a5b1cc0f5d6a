"""Compiles a checked graph: logger, progress, parser, profiles, configuration, serialisation.

Written against one interface that TensorRT 10.x, 11.x and TensorRT-RTX share; what differs is in
the `Compiler` of each toolchain. Runs in the child process.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.engines._tensorrt_graph_checks import CheckedGraph, check_graph
from jarvis_rules.engines._tensorrt_messages import builder_error, parser_error, unknown_operators
from jarvis_rules.engines._tensorrt_profiles import make_profiles
from jarvis_rules.engines.engine import BuiltEngine, EngineSpec, Profile
from jarvis_rules.errors import JarvisError, ToolchainError

# As much as a main thread has by default: the compiler descends into graphs.
_STACK_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Compiler:
    """What is particular to one of the toolchains.

    `load()` imports and returns its module; `configure(trt, config, spec)` sets what the others
    have not; `finish(config, engine)` writes what belongs beside the engine;
    `describe(trt, spec)` returns what there is to say of one, but for tensors and profiles.
    """

    name: str
    load: Callable[[], Any]
    configure: Callable[[Any, Any, EngineSpec], None]
    finish: Callable[[Any, Path], None]
    describe: Callable[[Any, EngineSpec], Mapping[str, Any]]


def compile_engine(compiler: Compiler, spec: EngineSpec, engine: Path) -> BuiltEngine:
    """Check the graph, compile it, and write the engine; JarvisError where it is refused.

    Changes to the graph's folder: paths are to be absolute.
    """
    spec.report("Checking the graph")
    graph = check_graph(spec.graph, spec.gpu.memory_gib)
    mode = str(spec.options.get("shape_profiles", "dynamic"))
    profiles = make_profiles(graph.inputs, spec.inputs, mode)
    spec.report(f"Loading {compiler.name}")
    trt = _load(compiler)
    _log(f"{compiler.name} {trt.__version__}")
    # The compiler orders things by their address, so an engine's bytes would tell what was
    # allocated before: every path is part of that. A new thread has a heap of its own, where the
    # same graph of the same name leaves the same traces.
    os.chdir(spec.graph.parent)
    threading.stack_size(_STACK_BYTES)
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(_compile, trt, compiler, spec, graph, profiles, engine).result()


def _compile(
    trt: Any,
    compiler: Compiler,
    spec: EngineSpec,
    graph: CheckedGraph,
    profiles: tuple[Profile, ...],
    engine: Path,
) -> BuiltEngine:
    title, logger = f"{compiler.name} {trt.__version__}", _make_logger(trt)

    def refused() -> JarvisError:
        return builder_error(title, logger.errors, spec.precision)

    try:
        builder = trt.Builder(logger)
    except TypeError:
        # What the bindings make of a null pointer: there is no driver, for example.
        raise refused() from None
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    spec.report("Parsing the graph")
    unknown = [name for name in graph.operators if not parser.supports_operator(name)]
    if unknown:
        raise unknown_operators(title, unknown)
    if not parser.parse_from_file(spec.graph.name):
        raise parser_error(title, (parser.get_error(i) for i in range(parser.num_errors)))
    config = builder.create_builder_config()
    for profile in profiles:
        shapes = builder.create_optimization_profile()
        for name, sizes in profile.items():
            shapes.set_shape(name, sizes["min"], sizes["opt"], sizes["max"])
        if config.add_optimization_profile(shapes) < 0:
            raise refused()
    # On by default: products of float32 with 11 bits of mantissa, which fp16 has too.
    config.clear_flag(trt.BuilderFlag.TF32)
    config.progress_monitor = _make_monitor(trt, spec.report)
    compiler.configure(trt, config, spec)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise refused()
    spec.report("Writing the engine")
    with engine.open("wb") as file:
        file.write(plan)
    compiler.finish(config, engine)
    return BuiltEngine(
        toolchain_version=trt.__version__,
        inputs=_describe_all(network.get_input(i) for i in range(network.num_inputs)),
        outputs=_describe_all(network.get_output(i) for i in range(network.num_outputs)),
        profiles=profiles,
        **compiler.describe(trt, spec),
    )


def _log(text: str) -> None:
    """Print to the log of the tool."""
    print(text, flush=True)  # noqa: T201  (the tool's log)


def _load(compiler: Compiler) -> Any:
    try:
        return compiler.load()
    except ImportError as error:
        raise ToolchainError(
            f"{compiler.name} cannot be loaded: {error}",
            slug="engine.compiler-missing",
            hint="install it whole, its libraries too: docs/reference/engines.md",
        ) from None


def _network_flags(trt: Any) -> int:
    """Return the flags for types that are the graph's own; always so where there is no flag."""
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if typed is None else 1 << int(typed)


def _make_logger(trt: Any) -> Any:
    """Return a logger that prints warnings and errors, and keeps the errors."""

    class Logger(trt.ILogger):  # type: ignore[misc]  # no stubs
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if int(severity) > int(trt.ILogger.Severity.WARNING):
                return
            _log(message)
            # The parser's own account of an error is structured, and read from it.
            is_error = int(severity) <= int(trt.ILogger.Severity.ERROR)
            if is_error and "ModelImporter.cpp" not in message:
                self.errors.append(message)

    return Logger()


def _make_monitor(trt: Any, report: Callable[[str], None]) -> Any:
    """Return a monitor that reports the phases by name.

    Steps say nothing of the time: "Determining refit engines" has none and takes most of it.
    """

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # no stubs
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, *_: Any) -> None:
            report(phase_name)

        def step_complete(self, *_: Any) -> bool:
            return True

        def phase_finish(self, _: str) -> None:
            """Report nothing: the phase around it goes on."""

    return Monitor()


def _describe_all(tensors: Iterable[Any]) -> tuple[Mapping[str, Any], ...]:
    return tuple(_describe(tensor) for tensor in tensors)


_DTYPES = {"FLOAT": "FP32", "HALF": "FP16", "INT64": "INT64", "INT32": "INT32", "BOOL": "BOOL"}


def _describe(tensor: Any) -> Mapping[str, Any]:
    dtype = _DTYPES.get(tensor.dtype.name)
    if dtype is None:
        raise JarvisError(
            f"`{tensor.name}` is a {tensor.dtype.name}, which no engine takes or gives",
            slug="engine.dtype",
            hint=f"the graph's inputs and outputs may be: {', '.join(_DTYPES.values())}",
        )
    return {"name": tensor.name, "dtype": dtype, "dims": list(tensor.shape)}
