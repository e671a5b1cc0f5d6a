"""Checks of one ensemble's graph: who makes each tensor, who reads it, and do they agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from jarvis_rules.errors import did_you_mean
from jarvis_rules.triton.model_folder import LintFinding, Model


@dataclass(frozen=True, slots=True)
class End:
    """One end of an ensemble tensor: who holds it, its type, its dims without the batch."""

    owner: str
    data_type: str
    dims: tuple[int, ...]
    batched: bool

    @property
    def full_dims(self) -> tuple[int, ...]:
        """The dims with the batch."""
        return (-1, *self.dims) if self.batched else self.dims


@dataclass(slots=True)
class Wiring:
    """All ends of the ensemble's tensors, and the steps they lie between.

    `unclear` are those mapped to a tensor that a step's model does not have: they are reported
    as that and as nothing else.
    """

    makers: dict[str, list[End]] = field(default_factory=dict)
    readers: dict[str, list[End]] = field(default_factory=dict)
    unclear: set[str] = field(default_factory=set)
    steps: list[tuple[set[str], set[str]]] = field(default_factory=list)

    def add(self, side: dict[str, list[End]], tensor: str, end: End) -> None:
        """Record that `end` makes or reads `tensor`."""
        side.setdefault(tensor, []).append(end)


def lint_ensemble(
    ensemble: Model, models: dict[str, Model], folders: set[str]
) -> Iterator[LintFinding]:
    """Yield the faults of an ensemble.

    `models` are those with a readable configuration; a step whose folder exists but could not be
    read is reported there and not here.
    """
    wiring = Wiring()
    config = ensemble.config
    for tensor in config.input:
        wiring.add(wiring.makers, tensor.name, _end(ensemble, tensor, "the ensemble's input"))
    for tensor in config.output:
        wiring.add(wiring.readers, tensor.name, _end(ensemble, tensor, "the ensemble's output"))
    complete = True
    if not config.ensemble_scheduling.step:
        yield _finding(
            ensemble, "steps", "no step in `ensemble_scheduling`", "add at least one step"
        )
        return
    for number, step in enumerate(config.ensemble_scheduling.step, 1):
        member = models.get(step.model_name)
        if member is None:
            complete = False
            if step.model_name not in folders:
                yield _unknown_model(ensemble, number, step.model_name, folders)
            continue
        yield from _lint_step(ensemble, number, step, member)
        _connect(wiring, step, member)
    if complete:
        yield from _lint_tensors(ensemble, wiring)
        yield from _lint_order(ensemble, wiring)


def _end(model: Model, tensor: Any, owner: str = "") -> End:
    from tritonclient.grpc import model_config_pb2

    return End(
        owner=owner or f"`{model.name}`",
        data_type=model_config_pb2.DataType.Name(tensor.data_type),
        dims=tuple(int(dim) for dim in tensor.dims),
        batched=model.config.max_batch_size > 0,
    )


def _connect(wiring: Wiring, step: Any, member: Model) -> None:
    for side, mapping, tensors in (
        (wiring.readers, step.input_map, member.config.input),
        (wiring.makers, step.output_map, member.config.output),
    ):
        known = {tensor.name: tensor for tensor in tensors}
        # Sorted, because a protobuf map has another order each time.
        for key, tensor in sorted(mapping.items()):
            if key in known:
                wiring.add(side, tensor, _end(member, known[key]))
            else:
                wiring.unclear.add(tensor)
    wiring.steps.append((set(step.input_map.values()), set(step.output_map.values())))


def _lint_step(
    ensemble: Model,
    number: int,
    step: Any,
    member: Model,
) -> Iterator[LintFinding]:
    sides = (
        ("input", "input_map", step.input_map, member.config.input),
        ("output", "output_map", step.output_map, member.config.output),
    )
    for kind, map_name, mapping, tensors in sides:
        known = [tensor.name for tensor in tensors]
        for key in sorted(mapping):
            if key not in known:
                yield _finding(
                    ensemble,
                    "unknown-tensor",
                    f"step {number}: {map_name} names `{key}`, which is no {kind} of "
                    f"`{member.name}`",
                    did_you_mean(key, known)
                    or f"`{member.name}` has {', '.join(f'`{n}`' for n in known) or 'none'}",
                )
    for tensor in member.config.input:
        if not tensor.optional and tensor.name not in step.input_map:
            yield _finding(
                ensemble,
                "input-unmapped",
                f"step {number}: input `{tensor.name}` of `{member.name}` gets no tensor",
                f'add it to the step\'s input_map: `{{ key: "{tensor.name}" value: … }}`',
            )
    ours, theirs = ensemble.config.max_batch_size, member.config.max_batch_size
    if ours > theirs:
        yield _finding(
            ensemble,
            "batch",
            f"max_batch_size is {ours}, but step {number}, `{member.name}`, allows {theirs}",
            f"lower the ensemble's to {theirs} or raise the step's to {ours}",
        )


def _lint_tensors(ensemble: Model, wiring: Wiring) -> Iterator[LintFinding]:
    for tensor, makers in sorted(wiring.makers.items()):
        if len(makers) > 1:
            yield _finding(
                ensemble,
                "tensor-twice",
                f"tensor `{tensor}` is made by {' and by '.join(end.owner for end in makers)}",
                "give each output_map its own tensor name",
            )
        if tensor not in wiring.readers and tensor not in wiring.unclear:
            yield _finding(
                ensemble,
                "tensor-unused",
                f"tensor `{tensor}` of {makers[0].owner} is read by no step and is no output",
                "leave it out of the output_map, or read it",
            )
        for reader in wiring.readers.get(tensor, []) if len(makers) == 1 else []:
            yield from _agree(ensemble, tensor, makers[0], reader)
    for tensor, readers in sorted(wiring.readers.items()):
        if tensor not in wiring.makers and tensor not in wiring.unclear:
            yield _finding(
                ensemble,
                "tensor-missing",
                f"tensor `{tensor}`, wanted by {readers[0].owner}, is made by no step",
                did_you_mean(tensor, wiring.makers) or "map a step's output to it",
            )


def _agree(ensemble: Model, tensor: str, maker: End, reader: End) -> Iterator[LintFinding]:
    if maker.data_type != reader.data_type:
        yield _finding(
            ensemble,
            "dtype",
            f"tensor `{tensor}` is {maker.data_type} from {maker.owner}, but {reader.owner} "
            f"takes {reader.data_type}",
            "make both configurations name the same data_type",
        )
    # As `ValidateTensorConsistency` of Triton's core: where only one end has a batch, the server
    # adds a batch of 1, or takes the first dimension for it.
    if not (_match(maker.dims, reader.dims) or _match(maker.full_dims, reader.full_dims)):
        yield _finding(
            ensemble,
            "dims",
            f"tensor `{tensor}` is {list(maker.full_dims)} from {maker.owner}, but "
            f"{reader.owner} takes {list(reader.full_dims)} (the batch counted)",
            "make the dims of both configurations agree",
        )


def _match(left: tuple[int, ...], right: tuple[int, ...]) -> bool:
    return len(left) == len(right) and all(
        -1 in pair or pair[0] == pair[1] for pair in zip(left, right, strict=True)
    )


def _lint_order(ensemble: Model, wiring: Wiring) -> Iterator[LintFinding]:
    """Find a cycle: what is left when no further step has all its tensors."""
    available = set(wiring.makers) - set().union(*(made for _, made in wiring.steps))
    # A tensor that nobody makes is reported on its own and must not look like a cycle.
    available |= set(wiring.readers) - set(wiring.makers)
    waiting = list(wiring.steps)
    while ready := [step for step in waiting if step[0] <= available]:
        available |= set().union(*(made for _, made in ready))
        waiting = [step for step in waiting if step not in ready]
    if waiting:
        names = sorted(set().union(*(read - available for read, _ in waiting)))
        yield _finding(
            ensemble,
            "cycle",
            f"steps wait for each other through {', '.join(f'`{name}`' for name in names)}",
            "break the cycle: each step may read only what earlier ones made",
        )


def _unknown_model(ensemble: Model, number: int, name: str, folders: set[str]) -> LintFinding:
    return _finding(
        ensemble,
        "unknown-model",
        f"step {number} runs `{name}`, which is not in the repository",
        did_you_mean(name, folders - {ensemble.name}) or f"add the model `{name}`",
    )


def _finding(ensemble: Model, slug: str, message: str, hint: str) -> LintFinding:
    return LintFinding(f"ensemble.{slug}", ensemble.name, message, hint)
