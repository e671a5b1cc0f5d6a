"""What a pipeline file declares: slots, typed options, engines, and how models make a pipeline."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from jarvis_rules.core.registry import entry_names, load_entry, require_known
from jarvis_rules.errors import UsageError, did_you_mean
from jarvis_rules.formats.engine_inputs import EngineInput, Scalar
from jarvis_rules.formats.jmir import OptionValue, Origin, Pipeline

Effect = Literal["used", "no-effect", "planned"]
# What protobuf's int32 holds.
_MAXIMUM = 2**31 - 1
_TRUE, _FALSE = frozenset({"true", "1", "yes"}), frozenset({"false", "0", "no"})


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a pipeline, in one of three classes.

    `used`; `no-effect`: known to Jarvis, accepted so that old command lines run, and without
    effect here; `planned`: asks for something that is not built yet, refused, as is a value among
    `planned_choices`.
    """

    name: str
    type: type[str] | type[int] | type[float] | type[bool]
    default: Scalar
    help: str
    effect: Effect = "used"
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    planned_choices: tuple[str, ...] = ()

    def parse(self, value: object) -> Scalar:
        """Return `value` as this option's type; UsageError for anything else."""
        parsed = self._convert(value)
        if parsed is None:
            raise self._refuse(f"expected {_TYPE_NAMES[self.type]}, got {value!r}")
        if parsed in self.planned_choices:
            raise UsageError(
                f"`{parsed}` is not available yet",
                slug="option.planned",
                where=f"option `{self.name}`",
                hint=f"available: {', '.join(self.choices)}",
            )
        if self.choices and parsed not in self.choices:
            suggestion = did_you_mean(str(parsed), self.choices)
            raise self._refuse(
                f"unknown value `{parsed}`",
                f"{suggestion + ' ' if suggestion else ''}known: {', '.join(self.choices)}",
            )
        if self.minimum is not None and isinstance(parsed, int | float) and parsed < self.minimum:
            raise self._refuse(f"expected at least {self.minimum:g}, got {parsed:g}")
        if isinstance(parsed, int | float) and abs(parsed) > _MAXIMUM:
            raise self._refuse(f"expected at most {_MAXIMUM}, got {parsed:g}")
        return parsed

    def _convert(self, value: object) -> Scalar:
        """Return `value` as this option's type, or None where it has no such form."""
        if self.type is bool:
            text = str(value).lower()
            return True if text in _TRUE else False if text in _FALSE else None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        try:
            parsed: str | int | float = self.type(value)
            # Bytes of the command line that are no UTF-8, which no document can hold.
            str(parsed).encode()
        except (ValueError, OverflowError):
            return None
        if isinstance(parsed, float) and not math.isfinite(parsed):
            return None
        # int() would cut a fraction off.
        return None if isinstance(value, float) and parsed != value else parsed

    def _refuse(self, message: str, hint: str | None = None) -> UsageError:
        return UsageError(
            message, slug="option.invalid", where=f"option `{self.name}`", hint=hint or self.help
        )


_TYPE_NAMES: dict[type, str] = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
}


def parse_options(
    what: str, options: Sequence[Option], given: Mapping[str, object]
) -> dict[str, Scalar]:
    """Return the given options, typed; UsageError for an unknown or planned one."""
    known = {option.name: option for option in options}
    parsed: dict[str, Scalar] = {}
    for name, value in given.items():
        require_known(what, name, known, "option.unknown")
        option = known[name]
        parsed[name] = option.parse(value)
        if option.effect == "planned" and parsed[name] != option.default:
            raise UsageError(
                f"not available yet: {option.help}",
                slug="option.planned",
                where=f"option `{name}`",
                hint="see `What it does not do (yet)` in the README",
            )
    return parsed


def without_effect(options: Sequence[Option], given: Iterable[str]) -> list[str]:
    """Return the names of the given options that are accepted and ignored."""
    ignored = {option.name for option in options if option.effect == "no-effect"}
    return sorted(ignored & {*given})


@dataclass(frozen=True, slots=True)
class Slot:
    """A place for a model: its name and the families that fit."""

    name: str
    families: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """What a pipeline knows of a model: the archive's facts, and which members it has."""

    family: str
    obj_cls: str
    content_digest: str
    facts: Mapping[str, Any]
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SourceMember:
    """A member of the source archive in a slot, carried over as it is."""

    slot: str
    member: str


@dataclass(frozen=True, slots=True)
class Composition:
    """A pipeline, the content of every member that it names, and the inputs of its engines."""

    pipeline: Pipeline
    members: Mapping[str, SourceMember | bytes]
    engine_inputs: Mapping[str, tuple[EngineInput, ...]]


@dataclass(slots=True)
class OptionValues:
    """The values of a pipeline's options while it is composed; keeps where each came from."""

    options: Mapping[str, Option]
    given: Mapping[str, Scalar]
    derived: dict[str, Scalar] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Scalar:
        if name in self.given:
            return self.given[name]
        return self.derived.get(name, self.options[name].default)

    def integer(self, name: str) -> int:
        """Return the value of a whole-number option."""
        value = self[name]
        if not isinstance(value, int):
            raise TypeError(f"{name} is {value!r}")
        return value

    def text(self, name: str) -> str:
        """Return the value of a text option."""
        return str(self[name])

    def derive(self, name: str, value: Scalar, reason: str) -> None:
        """Set an option from the model; UsageError where another value was given."""
        if name in self.given and self.given[name] != value:
            raise UsageError(
                f"`{self.given[name]}` contradicts the model: it is {value} ({reason})",
                slug="option.contradicts-model",
                where=f"option `{name}`",
                hint=f"leave `{name}` out: it is derived from the model",
            )
        self.derived[name] = value

    def provenance(self) -> tuple[OptionValue, ...]:
        """Return every option in force with its origin, by name."""
        values = []
        for name, option in sorted(self.options.items()):
            origin: Origin = "default"
            if option.effect != "used":
                if name not in self.given:
                    continue
                origin = "no-effect"
            elif name in self.given:
                origin = "given"
            elif name in self.derived:
                origin = "derived"
            values.append(OptionValue(name, self[name], origin))
        return tuple(values)


@dataclass(frozen=True, slots=True)
class PipelineKind:
    """A kind of pipeline: what a file of this folder declares as `PIPELINE`.

    `components` are the engines that it runs, each the folder of its graph in the `.jmir`, with
    the component that names its options; `backends` the runtime modules; `model_names` the Triton
    models that a pipeline of a given name is served as, engines by their unprefixed name.
    """

    name: str
    help: str
    slots: tuple[Slot, ...]
    options: tuple[Option, ...]
    components: Mapping[str, str]
    backends: tuple[str, ...]
    model_names: Callable[[str], tuple[str, ...]]
    compose: Callable[[str, Mapping[str, ModelSource], OptionValues], Composition]

    def parse_options(self, given: Mapping[str, object]) -> dict[str, Scalar]:
        """Return the given options, typed; UsageError for an unknown or planned one."""
        return parse_options(f"option of {self.name}", self.options, given)

    @property
    def engines(self) -> tuple[str, ...]:
        """The names of the engines."""
        return tuple(self.components)

    def without_effect(self, given: Mapping[str, object]) -> list[str]:
        """Return the names of the given options that are accepted and ignored."""
        return without_effect(self.options, given)

    def values(self, given: Mapping[str, Scalar]) -> OptionValues:
        """Return the option values to compose with."""
        return OptionValues({option.name: option for option in self.options}, given)


_PACKAGE = "jarvis_rules.pipelines"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def require_name(name: str) -> None:
    """Raise UsageError where `name` cannot be the name of a pipeline and of its models."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a pipeline cannot be named {name!a}",
            slug="pipeline.name",
            hint="use letters, digits, `_`, `-` and `.`, a letter or digit first",
        )


def pipeline_names() -> tuple[str, ...]:
    """Return the names of the pipeline kinds."""
    return entry_names(_PACKAGE)


@functools.cache
def find_pipeline(kind: str) -> PipelineKind:
    """Return the pipeline kind of that name; UsageError with a suggestion for an unknown one."""
    require_known("pipeline", kind, pipeline_names(), "pipeline.unknown")
    return load_entry(_PACKAGE, kind, "PIPELINE", PipelineKind)
