"""Specs of `tlt <task> export`: YAML fields, values of the command line over them, a masked key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jarvis_rules.errors import IntegrityError, UsageError, did_you_mean

KEY = "encryption_key"
TASK_NAME = "exp_manager.task_name"
RESULTS = "exp_manager.explicit_log_dir"
FIELDS = ("restore_from", "export_to", "export_format", KEY, TASK_NAME, RESULTS)
# All formats give the same archive, which holds ONNX graphs; only its usual name differs.
FORMATS = {"JARVIS": ".ejrvs", "RIVA": ".ejrvs", "ONNX": ".eonnx"}
_NEEDED = (
    ("restore_from", "checkpoint", "-m MODEL"),
    (RESULTS, "results folder", "-r RESULTS"),
)

_STEM = "exported-model"
_MASK = "***"
_UNSET = "???"  # OmegaConf's mark of a value that is given elsewhere
_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Given:
    """Values from one place, by dotted field; `place` names it in messages."""

    place: str
    values: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Fields:
    """What an export runs with; `results` is `exp_manager.explicit_log_dir`."""

    restore_from: str
    export_to: str
    export_format: str
    encryption_key: str | None
    results: str

    def dump(self) -> str:
        """Return the spec that runs the same again; a key that is written out is masked."""
        import yaml

        key = self.encryption_key
        document = {
            "restore_from": self.restore_from,
            "export_to": self.export_to,
            "export_format": self.export_format,
            KEY: key if key is None or key.startswith(("env:", "file:")) else _MASK,
            "exp_manager": {"task_name": "export", "explicit_log_dir": self.results},
        }
        return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1 << 30)


def read_spec(path: Path) -> Given:
    """Return the fields of a spec.

    UsageError `file.*` where it cannot be read, `tlt.spec` where it is not plain YAML, and
    `tlt.spec-field` or `tlt.spec-value` where a field is unknown or its value cannot be taken.
    """
    from jarvis_rules.formats.input_file import open_regular, unreadable
    from jarvis_rules.formats.nemo import load_config

    try:
        with open_regular(path) as file:
            data = file.read(_MAX_SIZE + 1)
    except OSError as error:
        raise unreadable(path, error) from None
    if len(data) > _MAX_SIZE:
        raise _spec_error(f"it has more than {_MAX_SIZE} bytes", path)
    place = f"`{path}`"
    # Comments alone are a spec too, one without values.
    if all(line.strip()[:1] in (b"", b"#") for line in data.splitlines()):
        return Given(place, {})
    try:
        document = load_config(data, str(path))
    except IntegrityError as error:
        raise _spec_error(error.message, path) from None
    return Given(place, _checked(_flat(document), str(path)))


def parse_overrides(words: Sequence[str]) -> Given:
    """Return the values of `field=value` words; as in Hydra, the last one of a field counts."""
    values: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UsageError(
                f"expected `field=value`, got `{word}`", slug="usage", hint=_known_fields()
            )
        # In Hydra `+` adds a field and `++` adds or changes it, which is the same here.
        values[name.removeprefix("+").removeprefix("+")] = _typed(text)
    return Given("`field=value`", _checked(values, None))


def resolve(given: Sequence[Given]) -> tuple[Fields, list[str]]:
    """Return the fields, and a sentence for each value that lost against another.

    The first place that has a value counts. UsageError `tlt.spec-value` where nobody gives one
    that is needed, or it is not among the choices.
    """
    chosen: dict[str, str | None] = dict.fromkeys(FIELDS)
    contests = []
    for name in FIELDS:
        having = [
            (place.place, value) for place in given if (value := place.values.get(name)) is not None
        ]
        for place, value in having:
            if not value:
                raise UsageError(
                    f"`{name}` of {place} is empty",
                    slug="tlt.spec-value",
                    hint="give a value; the shell variable that should hold it may be unset",
                )
            if value != having[0][1]:
                contests.append(_contest(name, having[0], (place, value)))
        if having:
            chosen[name] = having[0][1]
    for name, what, option in _NEEDED:
        if chosen[name] is None:
            raise UsageError(
                f"no {what} given",
                slug="tlt.spec-value",
                hint=f"name it with `{option}`, or as `{name}` in the spec",
            )
    export_format = (chosen["export_format"] or "JARVIS").upper()
    if export_format not in FORMATS:
        near = did_you_mean(export_format, FORMATS)
        raise UsageError(
            f"`export_format` is `{chosen['export_format']}`, expected "
            + ", ".join(f"`{name}`" for name in FORMATS),
            slug="tlt.spec-value",
            hint=near or "`export_format=JARVIS`",
        )
    fields = Fields(
        restore_from=str(chosen["restore_from"]),
        export_to=chosen["export_to"] or f"{_STEM}{FORMATS[export_format]}",
        export_format=export_format,
        encryption_key=chosen[KEY],
        results=str(chosen[RESULTS]),
    )
    return fields, contests


def default_spec(program: str, task: str, summary: str, models: str) -> str:
    """Return the commented spec that `download_specs` writes."""
    return f"""\
# Spec of `{program} {task} export`: {summary}.
# What the command line gives counts before what stands here.

# The checkpoint, a .nemo or .tlt: {models}.
# `-m` names it, too.
restore_from: {_UNSET}

# JARVIS, RIVA or ONNX. The archive is the same: it holds ONNX graphs.
export_format: JARVIS

# The archive to write, relative to the results folder `-r`: *.ejrvs, or for ONNX *.eonnx.
export_to: {_STEM}.ejrvs

# The key to encrypt the archive with: env:NAME, file:PATH, or the key itself. `-k` gives it, too.
{KEY}: null
"""


def _contest(name: str, won: tuple[str, str | None], lost: tuple[str, str | None]) -> str:
    if name == KEY:
        return f"`{name}` of {won[0]} wins over that of {lost[0]}"
    return f"`{name}`: `{won[1]}` of {won[0]} wins over `{lost[1]}` of {lost[0]}"


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec with dotted names; its one section is `exp_manager`."""
    values = dict(document)
    section = values.get("exp_manager")
    if isinstance(section, dict):
        del values["exp_manager"]
        values |= {f"exp_manager.{name}": value for name, value in section.items()}
    return values


def _checked(values: Mapping[str, Any], where: str | None) -> dict[str, str | None]:
    for name, value in values.items():
        if name not in FIELDS:
            near = did_you_mean(name, FIELDS)
            raise UsageError(
                f"unknown field `{name}`",
                slug="tlt.spec-field",
                where=where,
                hint=f"{near + ' ' if near else ''}{_known_fields()}",
            )
        if value is None:
            continue
        if not isinstance(value, str) or "\0" in value:
            raise _value_error(name, f"must be text, got {_kind(value)}", where)
        if "${" in value:
            raise _value_error(name, "refers to another value by `${…}`", where)
        if name == KEY and value == _MASK:
            raise UsageError(
                f"`{name}` is masked: the key itself is not here",
                slug="tlt.spec-value",
                where=where,
                hint="give it with `-k`, or put `env:NAME` or `file:PATH` here",
            )
    return {name: None if value == _UNSET else value for name, value in values.items()}


def _typed(text: str) -> Any:
    """Return the value of an override with the type that YAML gives it."""
    from jarvis_rules.formats.nemo import load_config

    # What YAML would take for a comment or another line belongs to the value.
    if "#" in text or "\n" in text:
        return text
    try:
        return load_config(b"value: " + text.encode("utf-8", "surrogateescape"), "")["value"]
    except IntegrityError:
        return text


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "a truth value"
        case int() | float():
            return "a number"
        case list():
            return "a list"
        case dict():
            return "a section"
        case _:
            return "a zero byte"


def _value_error(name: str, message: str, where: str | None) -> UsageError:
    return UsageError(
        f"`{name}` {message}",
        slug="tlt.spec-value",
        where=where,
        hint=f'write text, in quotes if need be: `{name}: "…"`',
    )


def _spec_error(message: str, path: Path) -> UsageError:
    return UsageError(
        f"not a spec: {message}",
        slug="tlt.spec",
        where=str(path),
        hint="expected YAML lines such as `restore_from: model.tlt`; `download_specs` writes an "
        "example",
    )


def _known_fields() -> str:
    return f"known: {', '.join(f'`{name}`' for name in FIELDS)}"
