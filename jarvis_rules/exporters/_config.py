"""Reading a NeMo configuration: every key is understood, ignored for a reason, or refused."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from jarvis_rules.errors import JarvisError, did_you_mean

LARGEST = 2**31 - 1  # no size of a real model comes near, and arithmetic with it stays finite

_SHOWN = 80
_SHORT = reprlib.Repr()  # a hostile value could be endless when written out
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _SHOWN


@dataclass(frozen=True, slots=True)
class Key:
    """How one configuration key is treated; `values` are what a neutral key may hold."""

    name: str
    treatment: Literal["used", "ignored", "neutral"]
    reason: str = ""
    values: tuple[object, ...] = ()


def used(*names: str) -> tuple[Key, ...]:
    """Return keys that the exporter reads."""
    return tuple(Key(name, "used") for name in names)


def ignored(reason: str, *names: str) -> tuple[Key, ...]:
    """Return keys without effect on inference."""
    return tuple(Key(name, "ignored", reason) for name in names)


def neutral(name: str, *values: object, reason: str = "") -> tuple[Key, ...]:
    """Return a key that is refused at any value other than `values`."""
    return (Key(name, "neutral", reason, values),)


def shorten(value: object) -> str:
    """Return `value` as Python writes it, in at most 80 characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def refuse(key: str, value: object, understood: str) -> NoReturn:
    """Raise JarvisError `export.unsupported-config` naming key, value and what is understood."""
    raise JarvisError(
        f"the configuration has `{key}: {shorten(value)}`; understood is {understood}",
        slug="export.unsupported-config",
        hint="another value would change the results of the model, so it is not exported",
    )


def refuse_contradiction(key: str, value: object, other: str, expected: object) -> NoReturn:
    """Raise JarvisError `export.contradicting-config`: two places disagree about one fact."""
    raise JarvisError(
        f"the configuration has `{key}: {shorten(value)}`, but {other} says {shorten(expected)}",
        slug="export.contradicting-config",
        hint="correct `model_config.yaml`, or save the model again with NeMo",
    )


@dataclass(frozen=True, slots=True)
class Section:
    """One mapping of the configuration and its dotted place, for messages."""

    where: str
    values: Mapping[str, Any]

    def at(self, key: str) -> str:
        """Return the dotted name of `key`."""
        return f"{self.where}.{key}" if self.where else key

    def check(self, keys: Sequence[Key]) -> None:
        """Refuse a key that is not among `keys`, or a neutral one that holds another value."""
        known = {key.name: key for key in keys}
        for name, value in self.values.items():
            key = known.get(name)
            if key is None:
                near = did_you_mean(str(name), known)
                also = f" ({near})" if near else ""
                refuse(self.at(str(name)), value, f"no key of that name here{also}")
            if key.treatment == "neutral" and not any(_same(value, v) for v in key.values):
                options = " or ".join(f"`{v!r}`" for v in key.values)
                refuse(self.at(name), value, options + (f": {key.reason}" if key.reason else ""))

    def section(self, key: str) -> Section:
        """Return the mapping under `key`."""
        value = self.values.get(key)
        if not isinstance(value, Mapping):
            refuse(self.at(key), value, "a mapping")
        return Section(self.at(key), value)

    def integer(self, key: str, default: int | None = None, minimum: int | None = None) -> int:
        """Return an integer; without a default the key must be there."""
        value = self.values.get(key, default)
        wanted = "an integer" if minimum is None else f"an integer of at least {minimum}"
        if isinstance(value, bool) or not isinstance(value, int):
            refuse(self.at(key), value, wanted)
        if value > LARGEST or (minimum is not None and value < minimum):
            refuse(self.at(key), value, wanted)
        return value

    def single(self, key: str) -> int:
        """Return the positive integer of a list of one, as NeMo writes kernels and strides."""
        value = self.values.get(key)
        if not isinstance(value, list | tuple) or len(value) != 1:
            refuse(self.at(key), value, "a list of one integer")
        return Section(self.where, {key: value[0]}).integer(key, minimum=1)

    def number(
        self, key: str, default: float | None = None, *, above: float | None = None
    ) -> float:
        """Return a finite number; text such as `1e-05` counts, since YAML readers differ there."""
        value = self.values.get(key, default)
        wanted = "a number" if above is None else f"a number above {above:g}"
        try:
            if isinstance(value, bool) or value is None:
                raise ValueError
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            refuse(self.at(key), value, wanted)
        if not abs(number) < float("inf") or (above is not None and number <= above):
            refuse(self.at(key), value, wanted)
        return number

    def boolean(self, key: str, default: bool | None = None) -> bool:
        """Return true or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            refuse(self.at(key), value, "`true` or `false`")
        return value

    def choice(self, key: str, choices: Sequence[str], default: str | None = None) -> str:
        """Return one of `choices`."""
        value = self.values.get(key, default)
        if not isinstance(value, str) or value not in choices:
            refuse(self.at(key), value, "one of " + ", ".join(f"`{c}`" for c in choices))
        return value


def check_model_keys(model: Section, keys: Sequence[Key]) -> None:
    """Check `keys` as `Section.check` does, and refuse any other key that builds a module.

    NeMo builds modules by `_target_` alone. Everything else at this level is a variable for the
    keys below (`repeat`, `separable`, `model_defaults` …) or a setting of the trainer, and
    projects add their own.
    """
    names = {key.name for key in keys}
    Section("", {name: v for name, v in model.values.items() if name in names}).check(keys)
    for name, value in model.values.items():
        if name not in names and _builds_module(value):
            refuse(str(name), value, "no further module")


def _builds_module(value: object) -> bool:
    # Iterative, and each object once: YAML aliases make deep values that are cheap to write.
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            if "_target_" in value:
                return True
            waiting += value.values()
        elif isinstance(value, list | tuple):
            waiting += value
    return False


def _same(a: object, b: object) -> bool:
    # `True == 1` holds in Python, but `groups: true` is not `groups: 1`.
    return a == b and isinstance(a, bool) == isinstance(b, bool)
