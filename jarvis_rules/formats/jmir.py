"""The pipeline document of a `.jmir`: modules, edges, parameters, and where each option came from.

It knows no GPU. `docs/reference/jmir-format.md` is the specification.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING, Any, Literal

from jarvis_rules.core.canonical_json import dump_readable_json
from jarvis_rules.errors import IntegrityError
from jarvis_rules.formats.engine_inputs import HINTS_MEMBER, INPUTS_MEMBER, Scalar
from jarvis_rules.formats.schema import validate

if TYPE_CHECKING:
    from jarvis_rules.formats.archive import Archive

PIPELINE_MEMBER = "pipeline.json"
PIPELINE_NODE = "pipeline"
CALLS = "calls"
"""The parameter of a backend that names the module which it calls by itself."""

MAX_PIPELINE_SIZE = 512 << 10
Origin = Literal["default", "derived", "given", "no-effect"]


@dataclass(frozen=True, slots=True)
class Tensor:
    """A typed tensor without its batch dimension; -1 is a dimension of any size.

    `reshape` is the shape that the module itself sees where Triton needs another one.
    """

    name: str
    dtype: str
    dims: tuple[int, ...]
    reshape: tuple[int, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        document: dict[str, Any] = {"name": self.name, "dtype": self.dtype, "dims": [*self.dims]}
        if self.reshape is not None:
            document["reshape"] = [*self.reshape]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Tensor:
        """Return the tensor that `to_json` wrote."""
        reshape = document.get("reshape")
        return cls(
            document["name"],
            document["dtype"],
            tuple(document["dims"]),
            None if reshape is None else tuple(reshape),
        )


@dataclass(frozen=True, slots=True)
class Module:
    """One step of a pipeline: a backend of ours or an engine, served as the Triton model `model`.

    `uses` is `backend:<runtime module>` or `engine:<engine name>`; an engine's graph is the
    member `<engine name>/model_graph.onnx`, beside which `inputs.json` and `precision_hints.json`
    lie, and its model is served under the name of what runs it: `jarvis-onnx-<model>`. `files`
    maps names in the version folder to members of the archive.
    """

    name: str
    model: str
    uses: str
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    instance_group_count: int = 1

    @property
    def calls(self) -> str | None:
        """The module that this one calls by itself, and which no edge feeds, or None."""
        called = self.parameters.get(CALLS)
        return None if called is None else str(called)

    @property
    def engine(self) -> str | None:
        """The name of the engine that this module runs, or None."""
        kind, _, name = self.uses.partition(":")
        return name if kind == "engine" else None

    @property
    def backend(self) -> str | None:
        """The runtime module that this module runs, or None."""
        kind, _, name = self.uses.partition(":")
        return name if kind == "backend" else None

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "name": self.name,
            "model": self.model,
            "uses": self.uses,
            "max_batch_size": self.max_batch_size,
            "instance_group_count": self.instance_group_count,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "parameters": dict(self.parameters),
            "files": dict(self.files),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Module:
        """Return the module that `to_json` wrote."""
        return cls(
            name=document["name"],
            model=document["model"],
            uses=document["uses"],
            max_batch_size=document["max_batch_size"],
            inputs=tuple(Tensor.from_json(tensor) for tensor in document["inputs"]),
            outputs=tuple(Tensor.from_json(tensor) for tensor in document["outputs"]),
            parameters=document["parameters"],
            files=document["files"],
            instance_group_count=document.get("instance_group_count", 1),
        )


@dataclass(frozen=True, slots=True)
class EngineChoices:
    """What a pipeline asks of its engines, known without reading a model.

    `toolchain` builds them, where the pipeline insists on one; `options` are build options by
    engine, `precision` among them.
    """

    toolchain: str | None = None
    options: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the form of the manifest."""
        options = {engine: dict(values) for engine, values in self.options.items() if values}
        return {"toolchain": self.toolchain, "options": options}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> EngineChoices:
        """Return the choices that a manifest states: none where it states nothing."""
        return cls() if document is None else cls(document["toolchain"], document["options"])


@dataclass(frozen=True, slots=True)
class OptionValue:
    """An option's value, and whether it was given, derived from the model, or the default."""

    name: str
    value: Scalar
    origin: Origin


@dataclass(frozen=True, slots=True)
class SourceArchive:
    """What a pipeline was made from."""

    family: str
    obj_cls: str
    content_digest: str


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A whole pipeline: the document of a `.jmir`.

    `edges` are pairs `module.TENSOR` → `module.TENSOR`; the pipeline's own inputs and outputs are
    those of the node `pipeline`.
    """

    name: str
    kind: str
    language_code: str
    max_batch_size: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    modules: tuple[Module, ...]
    edges: tuple[tuple[str, str], ...]
    models: Mapping[str, SourceArchive]
    options: tuple[OptionValue, ...]
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the document form."""
        return {
            "version": 1,
            "name": self.name,
            "kind": self.kind,
            "language_code": self.language_code,
            "max_batch_size": self.max_batch_size,
            "parameters": dict(self.parameters),
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "modules": [module.to_json() for module in self.modules],
            "edges": [list(edge) for edge in self.edges],
            "models": {
                slot: {
                    "family": model.family,
                    "obj_cls": model.obj_cls,
                    "content_digest": model.content_digest,
                }
                for slot, model in self.models.items()
            },
            "options": [
                {"name": option.name, "value": option.value, "origin": option.origin}
                for option in self.options
            ],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Pipeline:
        """Return the pipeline that `to_json` wrote."""
        return cls(
            name=document["name"],
            kind=document["kind"],
            language_code=document["language_code"],
            max_batch_size=document["max_batch_size"],
            inputs=tuple(Tensor.from_json(tensor) for tensor in document["inputs"]),
            outputs=tuple(Tensor.from_json(tensor) for tensor in document["outputs"]),
            modules=tuple(Module.from_json(module) for module in document["modules"]),
            edges=tuple((source, target) for source, target in document["edges"]),
            models={slot: SourceArchive(**model) for slot, model in document["models"].items()},
            options=tuple(OptionValue(**option) for option in document["options"]),
            parameters=document["parameters"],
        )


def dump_pipeline(pipeline: Pipeline) -> bytes:
    """Return the bytes of `pipeline.json`; IntegrityError where they do not follow the schema."""
    document = pipeline.to_json()
    validate(document, "pipeline", PIPELINE_MEMBER)
    return dump_readable_json(document)


def load_pipeline(data: bytes, where: str) -> Pipeline:
    """Return the pipeline of `pipeline.json`'s bytes; IntegrityError where they are not valid."""
    if len(data) > MAX_PIPELINE_SIZE:
        raise _refused("pipeline-size", f"{len(data)} bytes, at most {MAX_PIPELINE_SIZE}", where)
    try:
        document = json.loads(data, parse_constant=_refuse_constant)
        json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise _refused("pipeline-json", f"not JSON: {error}", where) from None
    validate(document, "pipeline", where)
    pipeline = Pipeline.from_json(document)
    for what, names in (
        ("module", [PIPELINE_NODE, *(module.name for module in pipeline.modules)]),
        ("Triton model", [pipeline.name, *(module.model for module in pipeline.modules)]),
    ):
        if twice := [name for name, count in Counter(names).items() if count > 1]:
            raise _refused("duplicate-name", f"two of it are the {what} `{twice[0]}`", where)
    _check_edges(pipeline, where)
    return pipeline


def _check_edges(pipeline: Pipeline, where: str) -> None:
    """Refuse edges that lead nowhere, feed a tensor twice or never, or make modules wait."""
    from jarvis_rules.formats.tar import quoted

    made = {f"{PIPELINE_NODE}.{tensor.name}" for tensor in pipeline.inputs}
    made |= {f"{m.name}.{tensor.name}" for m in pipeline.modules for tensor in m.outputs}
    read = {f"{PIPELINE_NODE}.{tensor.name}" for tensor in pipeline.outputs}
    called = {module.calls for module in pipeline.modules}
    wired = [module for module in pipeline.modules if module.name not in called]
    read |= {f"{m.name}.{tensor.name}" for m in wired for tensor in m.inputs}
    fed: set[str] = set()
    before: dict[str, set[str]] = {}
    for source, target in pipeline.edges:
        if source not in made or target not in read or target in fed:
            what = "feeds a tensor for the second time" if target in fed else "leads nowhere"
            message = f"the edge from {quoted(source)} to {quoted(target)} {what}"
            raise _refused("edge", message, where)
        fed.add(target)
        maker, reader = (end.partition(".")[0] for end in (source, target))
        if PIPELINE_NODE not in (maker, reader):
            before.setdefault(reader, set()).add(maker)
    if unfed := sorted(read - fed):
        raise _refused("edge", f"no edge feeds {quoted(unfed[0])}", where)
    try:
        TopologicalSorter(before).prepare()
    except CycleError as error:
        shown = ", ".join(map(quoted, error.args[1][:8]))
        raise _refused("cycle", f"modules wait for each other: {shown}", where) from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _refused(name: str, message: str, where: str) -> IntegrityError:
    return IntegrityError(
        message,
        slug=f"jmir.{name}",
        where=where,
        hint="make the archive again with `jarvis-build`",
    )


def read_pipeline(archive: Archive) -> Pipeline:
    """Return the pipeline of an open `.jmir`; IntegrityError where its manifest names another."""
    from jarvis_rules.formats.tar import quoted

    where = f"{archive.path}!{PIPELINE_MEMBER}"
    pipeline = load_pipeline(archive.read(PIPELINE_MEMBER), where)
    metadata = archive.manifest.metadata
    if (metadata["name"], metadata["kind"]) != (pipeline.name, pipeline.kind):
        raise _refused(
            "manifest-mismatch",
            f"this is `{pipeline.name}`, a {pipeline.kind} pipeline; "
            f"the manifest says `{metadata['name']}`, {metadata['kind']}",
            where,
        )
    for module in pipeline.modules:
        engine_members = ("model_graph.onnx", INPUTS_MEMBER, HINTS_MEMBER)
        graphs = [f"{module.engine}/{name}" for name in engine_members] if module.engine else []
        if missing := sorted({*graphs, *module.files.values()} - archive.manifest.files.keys()):
            message = f"module `{module.name}` needs the member {quoted(missing[0])}: not there"
            raise _refused("missing-member", message, where)
    return pipeline
