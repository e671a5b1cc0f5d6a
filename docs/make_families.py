"""Writes docs/reference/families.md from the exporters and the models that tests export.

Usage: python docs/make_families.py
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jarvis_rules.exporters.exporter import SourceModel, export_model
from jarvis_rules.formats.nemo import open_nemo
from jarvis_rules.onnx_graph.graph import Value
from jarvis_rules.reporting.families import describe_families, group_sections

DOCS = Path(__file__).parent
PAGE = DOCS / "reference" / "families.md"
MODELS = DOCS.parent / "tests" / "data" / "models"
HEAD = """\
# Model families

<!-- Written by `python docs/make_families.py`: edit the exporters instead. -->

What `nemo2jarvis` and `env.NemoModel` read, from the tables that the exporters check a \
configuration with. `jarvis-rules families` prints the same, `jarvis-rules inspect model.nemo` \
says it of one checkpoint. What comes out is in [the `.ejrvs` format](ejrvs-format.md).

A key is *used*, understood at some values *only*, or *ignored* for a reason. Every other key is \
refused with [`export.unsupported-config`](errors.md), and so are values of used keys that a \
family does not know: the message says what is understood. At the top of the configuration, keys \
that build no module (no `_target_` in them) may have any name and are ignored: at most other \
keys refer to them. \
Weights that are neither used nor listed as left out are refused with `export.unused-weight`.

Places in the configuration are dotted; `[]` stands for each entry of a list, a name in \
parentheses for one of several forms, `config_file` for the keys in the file that it names. Of \
the graphs' tensors `n` is a size that is fixed in the graph, and *sometimes* those that only some \
models have, as their configuration says.
"""


def render() -> str:
    """Return the page."""
    families = describe_families()
    tensors = _collect_tensors()
    lines = [HEAD, "| family | what | classes |", "|---|---|---|"]
    for family in families:
        classes = ", ".join(f"`{name.rpartition('.')[2]}`" for name in family["classes"])
        lines.append(
            f"| [`{family['family']}`](#{family['family']}) | {family['summary']} | {classes} |"
        )
    told: dict[str, str] = {}
    for family in families:
        lines += _render_family(family, tensors[family["family"]], told)
    return "\n".join(lines) + "\n"


def _render_family(
    family: Mapping[str, Any], tensors: Mapping[tuple[str, str], str], told: dict[str, str]
) -> Iterator[str]:
    """Yield the lines of one family; `told` says which family a section was written out for."""
    yield f"\n## {family['family']}\n\n{family['summary']}\n"
    yield from (f"* class `{name}`" for name in family["classes"])
    yield from (f"* with `encoder._target_` `{name}`" for name in family["encoders"])
    yield "\n| graph | | tensors |\n|---|---|---|"
    for (graph, side), text in tensors.items():
        yield f"| `{graph}` | {side} | {text} |"
    borrowed: dict[str, list[str]] = {}
    for places, keys in group_sections(family["sections"]):
        where = ", ".join(f"`{place}`" if place else "top of the configuration" for place in places)
        first = told.setdefault(repr((places, keys)), family["family"])
        if first != family["family"]:
            borrowed.setdefault(first, []).append(where)
            continue
        yield f"\n| {where} | |\n|---|---|"
        for names, treatment in keys:
            yield f"| {', '.join(f'`{name}`' for name in names)} | {treatment} |"
    for first, places in borrowed.items():
        yield f"\nAs for [`{first}`](#{first}): {', '.join(places)}"
    yield "\n| weights left out | why |\n|---|---|"
    for unused in family["unused_weights"]:
        yield f"| `{unused['pattern']}` | {unused['reason']} |"


def _collect_tensors() -> dict[str, dict[tuple[str, str], str]]:
    """Return the tensors of a family's models in words, by graph and `inputs` or `outputs`."""
    seen: dict[str, dict[tuple[str, str], list[dict[str, str]]]] = {}
    for path in sorted(MODELS.rglob("*.nemo")):
        with open_nemo(path) as archive:
            source = SourceModel(
                archive.target, archive.config, archive.state_dict(), archive.artifact
            )
            model = export_model(source)
        of_family = seen.setdefault(model.family, {})
        for name, graph in model.graphs.items():
            for side, values in (("inputs", graph.inputs), ("outputs", graph.outputs)):
                of_family.setdefault((name, side), []).append(_in_words(values))
    return {
        family: {place: _unite(models) for place, models in places.items()}
        for family, places in seen.items()
    }


def _in_words(values: Iterable[Value]) -> dict[str, str]:
    sizes = {v.name: [d if isinstance(d, str) else "n" for d in v.shape] for v in values}
    return {v.name: f"`{v.name}` {v.dtype} [{', '.join(sizes[v.name])}]" for v in values}


def _unite(models: list[dict[str, str]]) -> str:
    names = dict.fromkeys(name for model in models for name in model)
    parts = []
    for name in names:
        forms = sorted({model[name] for model in models if name in model})
        always = all(name in model for model in models)
        parts.append(" or ".join(forms) + ("" if always else " *sometimes*"))
    return "<br>".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
