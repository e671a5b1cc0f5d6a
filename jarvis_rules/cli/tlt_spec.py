"""Specs of `tlt <task> export`: YAML fields, command-line values over them, masked secrets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from jarvis_rules.errors import IntegrityError, UsageError, did_you_mean

KEY = "encryption_key"
RESULTS = "exp_manager.explicit_log_dir"
MASK = "***"
FIELDS = (
    "restore_from",
    "export_to",
    "export_format",
    KEY,
    "exp_manager.task_name",
    RESULTS,
)
# JARVIS, RIVA and ONNX give the same archive, which holds ONNX graphs; only its name differs.
FORMATS = {"JARVIS": ".ejrvs", "RIVA": ".ejrvs", "ONNX": ".eonnx"}
_STEM = "exported-model"
_MISSING = "???"  # OmegaConf's mark of a value that somebody else must give
_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class Given:
    """The values of one place, by dotted field; `place` names it in messages."""

    place: str
    values: Mapping[str, str | None]


def read_spec(path: Path) -> Given:
    """Return the fields of a spec; UsageError where it is not one."""
    from jarvis_rules.formats.nemo import load_config

    try:
        if path.stat().st_size > _MAX_SIZE:
            raise _spec_error(f"more than {_MAX_SIZE} bytes", path)
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(
            f"cannot read the spec: {error.strerror}",
            slug="file.missing" if isinstance(error, FileNotFoundError) else "file.unreadable",
            where=str(path),
            hint=_similar(path) or "`download_specs` writes a default one",
        ) from None
    if all(line.strip()[:1] in (b"", b"#") for line in data.splitlines()):
        return Given(str(path), {})
    try:
        document = load_config(data, str(path))
    except IntegrityError as error:
        raise _spec_error(error.message, path) from None
    return Given(str(path), _checked(_flat(document), str(path)))


def parse_overrides(words: Sequence[str]) -> Given:
    """Return the values of `field=value` words, as Hydra reads them: the last one counts."""
    values = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not equals or not name:
            raise UsageError(
                f"expected `field=value`, got `{word}`",
                slug="usage",
                hint=f"fields: {', '.join(FIELDS)}",
            )
        # Hydra's `+` adds a field and `++` adds or changes it; there is none to add here.
        values |= {name.removeprefix("+").removeprefix("+"): _value(text)}
    return Given("the command line", _checked(values, None))


def resolve(
    task: str, given: Sequence[Given], defaults: Mapping[str, str | None]
) -> tuple[dict[str, str | None], list[str]]:
    """Return the value of every field, and notes on values that lost against others.

    Of `given`, the first place that has a value counts. UsageError where nobody gives one that is
    needed, or it is none of the choices.
    """
    fields: dict[str, str | None] = {}
    notes = []
    for name in FIELDS:
        having = [place for place in given if place.values.get(name) is not None]
        fields[name] = having[0].values[name] if having else defaults.get(name)
        for lost in having[1:]:
            if lost.values[name] != fields[name]:
                notes.append(_contest(name, having[0], lost))
    for name, option in (("restore_from", "-m MODEL"), (RESULTS, "-r RESULTS")):
        if not fields[name]:
            raise UsageError(
                f"no value for `{name}`",
                slug="tlt.spec-value",
                where=f"{task} export",
                hint=f"give it with `{option}`",
            )
    chosen = str(fields["export_format"] or "JARVIS").upper()
    if chosen not in FORMATS:
        raise UsageError(
            f"`export_format` is `{fields['export_format']}`, expected one of {_listed(FORMATS)}",
            slug="tlt.spec-value",
            hint=did_you_mean(chosen, FORMATS) or "`export_format=JARVIS`",
        )
    fields["export_format"] = chosen
    fields["export_to"] = fields["export_to"] or f"{_STEM}{FORMATS[chosen]}"
    return fields, notes


def dump_spec(fields: Mapping[str, str | None], is_secret: bool, comment: str) -> str:
    """Return the fields as a spec; `is_secret` masks the key."""
    import yaml

    shown: dict[str, Any] = {name: fields[name] for name in FIELDS if "." not in name}
    shown[KEY] = MASK if is_secret else fields[KEY]
    shown["exp_manager"] = {name.partition(".")[2]: fields[name] for name in FIELDS if "." in name}
    text = yaml.safe_dump(shown, sort_keys=False, allow_unicode=True, width=1 << 30)
    return f"# {comment}\n{text}"


def default_spec(program: str, task: str, summary: str, models: str) -> str:
    """Return the commented spec that `download_specs` writes."""
    return f"""\
# Spec of `{program} {task} export`, {summary}.
# What the command line gives counts before what stands here.

# The checkpoint: a .nemo, or a .tlt that is not encrypted, of {models}.
# Given by `-m`, too.
restore_from: {_MISSING}

# JARVIS, RIVA or ONNX. All three give the same archive, which holds ONNX graphs.
export_format: JARVIS

# The archive to write, below the results folder `-r`: *.ejrvs, or *.eonnx for ONNX.
export_to: {_STEM}.ejrvs

# A key to encrypt the archive with: env:NAME, file:PATH, or the key itself. Given by `-k`, too.
encryption_key: null
"""


def _contest(name: str, won: Given, lost: Given) -> str:
    if name == KEY:
        return f"`{name}`: {won.place} wins over {lost.place}"
    return (
        f"`{name}`: `{won.values[name]}` of {won.place} wins over `{lost.values[name]}` "
        f"of {lost.place}"
    )


def _flat(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec with dotted names; only `exp_manager` is a section."""
    values = dict(document)
    section = values.pop("exp_manager", None)
    if isinstance(section, dict):
        values |= {f"exp_manager.{name}": value for name, value in section.items()}
    elif section is not None:
        values["exp_manager"] = section
    return values


def _checked(values: Mapping[str, Any], where: str | None) -> dict[str, str | None]:
    for name, value in values.items():
        if name not in FIELDS:
            near = did_you_mean(name, FIELDS)
            raise UsageError(
                f"unknown field `{name}`",
                slug="tlt.spec-field",
                where=where,
                hint=f"{near + ' ' if near else ''}fields: {', '.join(FIELDS)}",
            )
        if value is not None and not isinstance(value, str):
            raise _value_error(name, f"must be text, got {type(value).__name__}", where)
        if value is not None and "${" in value:
            raise _value_error(name, "refers to another value, which is not supported", where)
        if name == KEY and value == MASK:
            raise _value_error(name, "is masked, so the key is not here", where, "-k KEY")
    return {name: None if value == _MISSING else value for name, value in values.items()}


def _value(text: str) -> Any:
    """Return the value of an override with the type that YAML gives it."""
    from jarvis_rules.formats.nemo import load_config

    # What YAML would take for a comment or a second line belongs to the value.
    if " #" in text or "\n" in text:
        return text
    try:
        return load_config(f"value: {text}".encode(), "")["value"]
    except IntegrityError:
        return text


def _value_error(name: str, message: str, where: str | None, fix: str | None = None) -> UsageError:
    hint = f"give it with `{fix}`" if fix else f'write it out, in quotes: `{name}: "…"`'
    return UsageError(f"`{name}` {message}", slug="tlt.spec-value", where=where, hint=hint)


def _spec_error(message: str, path: Path) -> UsageError:
    return UsageError(
        f"not a spec: {message}",
        slug="tlt.spec",
        where=str(path),
        hint="expected YAML with lines such as `restore_from: model.tlt`; `download_specs` "
        "writes a default one",
    )


def _similar(path: Path) -> str | None:
    return did_you_mean(path.name, [p.name for p in path.parent.glob("*.y*ml")])


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
