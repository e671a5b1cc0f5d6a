"""What the pipelines for text share: options, tokenizer, engine, and how they are put together.

A pipeline's ensemble has one step, the processor: a runtime module that tokenizes, calls the
engine and finishes its answers (docs/adr/0014-language-modules-call-their-engine.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jarvis_rules.errors import IntegrityError, UsageError
from jarvis_rules.formats.engine_inputs import EngineInput, Extent, Scalar
from jarvis_rules.formats.jmir import Module, Pipeline, SourceArchive, Tensor
from jarvis_rules.pipelines._engine_options import PRECISION, engine_options
from jarvis_rules.pipelines._execution_environment import (
    EXECUTION_ENV_PATH,
    environment_parameters,
)
from jarvis_rules.pipelines.pipeline import (
    Composition,
    ModelSource,
    Option,
    OptionValues,
    PipelineKind,
    Slot,
    SourceMember,
    require_name,
)

SLOT = "language_model"
PROCESSOR, ENGINE = "processor", "language_model"
OURS = "(our name: Jarvis's is not publicly known)"
_VOCABULARY = "vocab.txt"
_TRITON_TYPES = {"int64": "INT64", "int32": "INT32", "float32": "FP32"}
_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}

TEXT = (Tensor("TEXT", "STRING", (1,)),)


@dataclass(frozen=True, slots=True)
class Task:
    """What one kind of pipeline adds to the shared parts.

    `facts` are those of the archive that it needs, by type; `outputs` names the engine's outputs;
    `files` are members of the archive that the processor reads, by the parameter that names them;
    `parameters` gives the processor's own parameters.
    """

    name: str
    help: str
    family: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    facts: Mapping[str, type | tuple[type, ...]]
    engine_outputs: Callable[[Mapping[str, Any]], tuple[str, ...]]
    parameters: Callable[[Mapping[str, Any], OptionValues], Mapping[str, Scalar]]
    files: Mapping[str, str] = field(default_factory=dict)
    options: tuple[Option, ...] = ()
    domain: bool = True


def language_pipeline(task: Task) -> PipelineKind:
    """Return the pipeline kind of a task."""

    def compose(name: str, models: Mapping[str, ModelSource], options: OptionValues) -> Composition:
        return _compose(task, name, models[SLOT], options)

    return PipelineKind(
        name=task.name,
        help=task.help,
        slots=(Slot(SLOT, families=(task.family,)),),
        options=_options(task),
        components={ENGINE: "nn"},
        backends=(task.name,),
        model_names=_model_names,
        compose=compose,
    )


def option_of_the_model(
    name: str,
    kind: type[int] | type[float] | type[bool],
    help_text: str,
    minimum: float | None = None,
) -> Option:
    """Return an option whose default is the model's own value."""
    return Option(name, kind, None, f"{help_text}; default: the model's {OURS}", minimum=minimum)


def longest_text(what_happens: str) -> Option:
    """Return the option `max_seq_length` of the tasks that take a text as one row."""
    return Option(
        "max_seq_length", int, None,
        f"longest text in tokens, with [CLS] and [SEP]; {what_happens}; default: all positions "
        f"that the model knows {OURS}",
        minimum=3,
    )  # fmt: skip


def row_length(facts: Mapping[str, Any], options: OptionValues) -> int:
    """Return the option `max_seq_length`; UsageError where the model has fewer positions."""
    positions = facts["max_position_embeddings"]
    options.derived.setdefault("max_seq_length", positions)
    length = options.integer("max_seq_length")
    if length > positions:
        raise UsageError(
            f"{length} tokens, and the model knows {positions} positions",
            slug="option.contradicts-model",
            where="option `max_seq_length`",
            hint=f"give at most {positions}",
        )
    return length


def span_tensors(name: str) -> tuple[Tensor, ...]:
    """Return the outputs that hold spans of a text."""
    return (
        Tensor(f"{name}_LABELS", "STRING", (-1,)),
        Tensor(f"{name}_TEXTS", "STRING", (-1,)),
        Tensor(f"{name}_START_END", "INT32", (-1, 2)),
        Tensor(f"{name}_SCORES", "FP32", (-1,)),
    )


def _options(task: Task) -> tuple[Option, ...]:
    domain = Option(
        "domain_name", str, "", "domain that clients ask for; a parameter of the ensemble"
    )
    one_model = "no effect here: one model tokenizes and finishes, see `processor.max_batch_size`"
    return (
        Option("language_code", str, "en-US", "language tag (BCP 47) that clients ask for"),
        *([domain] if task.domain else []),
        Option("max_batch_size", int, 8, "largest batch of the pipeline", minimum=1),
        *task.options,
        Option(
            "tokenizer.to_lower", bool, None,
            f"whether the tokenizer lower-cases, derived from the model {OURS}",
        ),
        Option(
            "processor.max_batch_size", int, None,
            f"largest batch of what tokenizes and finishes {OURS}", minimum=1,
        ),
        Option("nn.max_batch_size", int, 32, "largest batch of the engine, in rows", minimum=1),
        Option(
            "instance_group_count", int, 1, "instances of every model of the pipeline", minimum=1
        ),
        EXECUTION_ENV_PATH,
        Option("tokenizer.max_batch_size", int, None, one_model, effect="no-effect"),
        Option("postprocessor.max_batch_size", int, None, one_model, effect="no-effect"),
        PRECISION,
        *engine_options("nn"),
    )  # fmt: skip


def _model_names(name: str) -> tuple[str, ...]:
    return (name, f"{name}-processor", f"{name}-nn")


def _compose(task: Task, name: str, model: ModelSource, options: OptionValues) -> Composition:
    """Return the pipeline for one model; UsageError where options and model disagree."""
    facts = model.facts
    require_name(name)
    _check_facts(task, facts)
    batch = options.integer("max_batch_size")
    options.derived["processor.max_batch_size"] = batch
    options.derive("tokenizer.to_lower", facts["tokenizer"]["lowercase"], "of its tokenizer")
    if options.integer("processor.max_batch_size") < batch:
        raise UsageError(
            f"max_batch_size {options['processor.max_batch_size']} of {PROCESSOR} is below the "
            f"pipeline's {batch}",
            slug="option.batch-size",
            where=f"pipeline `{name}`",
            hint="lower `max_batch_size`, or raise the component's",
        )
    processor = _processor(task, name, facts, options)
    domain = options.text("domain_name") if task.domain else ""
    pipeline = Pipeline(
        name=name,
        kind=task.name,
        language_code=options.text("language_code"),
        max_batch_size=batch,
        inputs=task.inputs,
        outputs=processor.outputs,
        modules=(processor, _engine(task, name, facts, options)),
        edges=(
            *((f"pipeline.{t.name}", f"{PROCESSOR}.{t.name}") for t in task.inputs),
            *((f"{PROCESSOR}.{t.name}", f"pipeline.{t.name}") for t in processor.outputs),
        ),
        models={SLOT: SourceArchive(model.family, model.obj_cls, model.content_digest)},
        options=options.provenance(),
        parameters={"kind": task.name, "language_code": options.text("language_code")}
        | ({"domain_name": domain} if domain else {}),
    )
    files = {member: SourceMember(SLOT, member) for member in (_VOCABULARY, *task.files.values())}
    return Composition(
        pipeline,
        {
            f"{ENGINE}/model_graph.onnx": SourceMember(SLOT, "model_graph.onnx"),
            **{f"{PROCESSOR}/{member}": source for member, source in files.items()},
        },
        {ENGINE: _engine_inputs(facts, options)},
    )


def _check_facts(task: Task, facts: Mapping[str, Any]) -> None:
    """Raise IntegrityError where the archive does not say all that serving needs."""
    counts = ("max_position_embeddings", "vocabulary_size", "token_types")
    wanted = {**dict.fromkeys(counts, int), **task.facts}
    missing = [name for name, kind in wanted.items() if not isinstance(facts.get(name), kind)]
    tokenizer = facts.get("tokenizer")
    if not isinstance(tokenizer, Mapping) or tokenizer.get("kind") != "wordpiece":
        missing.append("tokenizer")
    else:
        flags = ("lowercase", "strip_accents")
        missing += [f"tokenizer.{key}" for key in flags if not isinstance(tokenizer.get(key), bool)]
    missing += [side for side in ("inputs", "outputs") if not _are_tensors(facts.get(side))]
    if not missing:
        names = {tensor["name"] for tensor in facts["inputs"]}
        outputs = {tensor["name"] for tensor in facts["outputs"]}
        missing += [] if names <= _INPUTS else ["inputs"]
        missing += [] if outputs >= set(task.engine_outputs(facts)) else ["outputs"]
    if missing:
        raise IntegrityError(
            f"the archive's facts lack or misstate: {', '.join(missing)}",
            slug="ejrvs.facts",
            hint="make the archive again with `nemo2jarvis`",
        )


def _are_tensors(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(tensor, Mapping) and _is_tensor(tensor) for tensor in value)
    )


def _is_tensor(value: Mapping[str, Any]) -> bool:
    return (
        isinstance(value.get("name"), str)
        and isinstance(value.get("shape"), list)
        and value.get("dtype") in _TRITON_TYPES
    )


def _processor(task: Task, name: str, facts: Mapping[str, Any], options: OptionValues) -> Module:
    tokenizer = facts["tokenizer"]
    return Module(
        name=PROCESSOR,
        model=_model_names(name)[1],
        uses=f"backend:{task.name}",
        max_batch_size=options.integer("processor.max_batch_size"),
        inputs=task.inputs,
        outputs=task.outputs,
        parameters={
            "calls": ENGINE,
            "engine_inputs": ",".join(tensor["name"] for tensor in facts["inputs"]),
            "engine_outputs": ",".join(task.engine_outputs(facts)),
            "engine_max_batch_size": options.integer("nn.max_batch_size"),
            "vocab_file": _VOCABULARY,
            "to_lower": tokenizer["lowercase"],
            "strip_accents": tokenizer["strip_accents"],
            **task.files,
            **task.parameters(facts, options),
            **environment_parameters(options),
        },
        files={member: f"{PROCESSOR}/{member}" for member in (_VOCABULARY, *task.files.values())},
        instance_group_count=options.integer("instance_group_count"),
    )


def _engine(task: Task, name: str, facts: Mapping[str, Any], options: OptionValues) -> Module:
    outputs = task.engine_outputs(facts)
    return Module(
        name=ENGINE,
        model=_model_names(name)[2],
        uses=f"engine:{ENGINE}",
        max_batch_size=options.integer("nn.max_batch_size"),
        inputs=tuple(map(_tensor, facts["inputs"])),
        outputs=tuple(_tensor(t) for t in facts["outputs"] if t["name"] in outputs),
        instance_group_count=options.integer("instance_group_count"),
    )


def _engine_inputs(facts: Mapping[str, Any], options: OptionValues) -> tuple[EngineInput, ...]:
    """Return the inputs of the engine: up to its largest batch of up to the longest row."""
    batch, longest = options.integer("nn.max_batch_size"), row_length(facts, options)
    rows = Extent(1, min(8, batch), batch)
    tokens = Extent(1, min(128, longest), longest)
    samples = {
        "input_ids": {"kind": "integers", "below": facts["vocabulary_size"]},
        "attention_mask": {"kind": "mask"},
        "token_type_ids": {"kind": "integers", "below": max(1, facts["token_types"])},
    }
    return tuple(
        EngineInput(
            tensor["name"], _TRITON_TYPES[tensor["dtype"]], (rows, tokens), samples[tensor["name"]]
        )
        for tensor in facts["inputs"]
    )


def _tensor(described: Mapping[str, Any]) -> Tensor:
    """Return a tensor of the graph without its batch dimension."""
    dims = tuple(size if isinstance(size, int) else -1 for size in described["shape"][1:])
    return Tensor(described["name"], _TRITON_TYPES[described["dtype"]], dims)
