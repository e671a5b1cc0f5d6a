"""Whether a pipeline document holds together: edges, members, calls, and its engines' graphs."""

from __future__ import annotations

from collections.abc import Container, Iterator
from typing import Any

from jarvis_rules.formats.engine_inputs import HINTS_MEMBER, INPUTS_MEMBER
from jarvis_rules.formats.jmir import PIPELINE_MEMBER, PIPELINE_NODE, Module, Pipeline, Tensor
from jarvis_rules.formats.tar import quoted
from jarvis_rules.reporting.graph_files import GraphFile
from jarvis_rules.reporting.verification import Problem
from jarvis_rules.triton.onnx_signature import TRITON_TYPES, disagreements
from jarvis_rules.triton.onnx_signature import Tensor as Signature

_HINT = "make the archive again with `jarvis-build`"
_GRAPH = "model_graph.onnx"
_ONNX_NAMES = {"float32": "float", "float64": "double"}


def pipeline_faults(pipeline: Pipeline, members: Container[str]) -> Iterator[Problem]:
    """Yield what is wrong with the document of an archive that holds `members`."""
    names = {module.name for module in pipeline.modules}
    for module in pipeline.modules:
        wanted = dict(module.files)
        if module.engine is not None:
            for name in (_GRAPH, INPUTS_MEMBER, HINTS_MEMBER):
                wanted[f"engine:{name}"] = f"{module.engine}/{name}"
        for member in sorted(set(wanted.values())):
            if member not in members:
                message = f"the module `{module.name}` needs {quoted(member)}, which is not there"
                yield _problem("missing-member", message)
        if module.calls is not None and module.calls not in names:
            message = f"`{module.name}` calls {quoted(module.calls)}, which is no module"
            yield _problem("unknown-call", message)
    yield from _edge_faults(pipeline)
    yield from _cycles(pipeline)


def _edge_faults(pipeline: Pipeline) -> Iterator[Problem]:
    makers, readers = _ends(pipeline)
    fed: set[str] = set()
    for source, target in pipeline.edges:
        edge = f"the edge {quoted(source)} → {quoted(target)}"
        if source not in makers:
            yield _problem("edge", f"{edge} begins at no output")
        if target not in readers:
            yield _problem("edge", f"{edge} ends at no input")
        if target in fed:
            yield _problem("edge", f"{edge} is the second that ends there")
        fed.add(target)
        if source in makers and target in readers:
            made, read = makers[source], readers[target]
            if made.dtype != read.dtype or not _fit(made.dims, read.dims):
                message = f"{edge} joins {_shown(made)} with {_shown(read)}"
                yield _problem("edge", message)
    called = {module.calls for module in pipeline.modules}
    # What another module calls by itself is fed by that.
    for module in pipeline.modules:
        for tensor in module.inputs if module.name not in called else ():
            if f"{module.name}.{tensor.name}" not in fed:
                yield _problem("edge", f"nothing feeds `{module.name}.{tensor.name}`")
    for tensor in pipeline.outputs:
        if f"{PIPELINE_NODE}.{tensor.name}" not in fed:
            yield _problem("edge", f"nothing makes the pipeline's output `{tensor.name}`")


def _ends(pipeline: Pipeline) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what makes a tensor and what reads one, by the names that edges use."""
    makers = {f"{PIPELINE_NODE}.{tensor.name}": tensor for tensor in pipeline.inputs}
    readers = {f"{PIPELINE_NODE}.{tensor.name}": tensor for tensor in pipeline.outputs}
    for module in pipeline.modules:
        makers |= {f"{module.name}.{tensor.name}": tensor for tensor in module.outputs}
        readers |= {f"{module.name}.{tensor.name}": tensor for tensor in module.inputs}
    return makers, readers


def _fit(made: tuple[int, ...], read: tuple[int, ...]) -> bool:
    return len(made) == len(read) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(made, read, strict=True)
    )


def _shown(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.dims)}"


def _cycles(pipeline: Pipeline) -> Iterator[Problem]:
    """Yield a problem where modules wait for each other."""
    owners = {
        f"{module.name}.{tensor.name}": module.name
        for module in pipeline.modules
        for tensor in (*module.inputs, *module.outputs)
    }
    waiting: dict[str, set[str]] = {module.name: set() for module in pipeline.modules}
    followers: dict[str, set[str]] = {module.name: set() for module in pipeline.modules}
    for source, target in pipeline.edges:
        if source in owners and target in owners:
            waiting[owners[target]].add(owners[source])
            followers[owners[source]].add(owners[target])
    ready = [name for name, makers in waiting.items() if not makers]
    while ready:
        name = ready.pop()
        del waiting[name]
        for follower in followers[name]:
            waiting[follower].discard(name)
            if not waiting[follower]:
                ready.append(follower)
    if waiting:
        names = ", ".join(f"`{name}`" for name in sorted(waiting)[:10])
        yield _problem("cycle", f"these modules wait for each other: {names}")


def engine_faults(pipeline: Pipeline, graph: GraphFile) -> Iterator[Problem]:
    """Yield where the tensors of a module that runs `graph` are not the graph's."""
    inputs, outputs = ([_signature(tensor) for tensor in side] for side in graph.tensors())
    for module in pipeline.modules:
        if module.engine is None or f"{module.engine}/{_GRAPH}" != graph.member:
            continue
        for sentence in disagreements(
            module.max_batch_size, _configured(module), (inputs, outputs)
        ):
            message = f"the module `{module.name}`: {sentence}"
            yield Problem("graph.tensors", graph.member, message, _HINT)


def _configured(module: Module) -> tuple[list[Signature], list[Signature]]:
    inputs, outputs = (
        [
            Signature(t.name, f"TYPE_{t.dtype}", t.dims if t.reshape is None else t.reshape)
            for t in side
        ]
        for side in (module.inputs, module.outputs)
    )
    return inputs, outputs


def _signature(tensor: dict[str, Any]) -> Signature:
    name = _ONNX_NAMES.get(tensor["dtype"], tensor["dtype"])
    dims = tuple(size if isinstance(size, int) else -1 for size in tensor["shape"])
    return Signature(tensor["name"], TRITON_TYPES.get(name, name), dims)


def _problem(name: str, message: str) -> Problem:
    return Problem(f"jmir.{name}", PIPELINE_MEMBER, message, _HINT)
