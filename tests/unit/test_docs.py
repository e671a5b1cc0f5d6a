"""The documentation says what the code says: slugs, options, GPU targets, dependencies, links."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import runpy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import jarvis_rules
from jarvis_rules.core.gpus import load_gpus
from jarvis_rules.engines.engine import engine_names
from jarvis_rules.pipelines._engine_options import PRECISION, engine_options
from jarvis_rules.pipelines.pipeline import find_pipeline, pipeline_names

PACKAGE = Path(jarvis_rules.__file__).parent
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "tests").rglob("*.md")],
    key=lambda path: path.as_posix(),
)

# --- slugs ------------------------------------------------------------------------------------

# Places where the code computes a slug from data, and all that comes out of it.
COMPUTED: dict[tuple[str, str], tuple[str, ...]] = {
    # NaN or infinity.
    ("formats/nemo.py", "check_finite"): ("checkpoint.nan", "checkpoint.inf"),
    # `_FORBIDDEN_TYPES` of a tar, see below.
    ("formats/tar.py", "checked"): tuple(
        f"{kind}.member-{name}"
        for kind in ("archive", "nemo")
        for name in ("link", "device", "sparse")
    ),
    # What another process of ours reported: a slug of its own code.
    ("errors.py", "error_from_json"): (),
}
# `refuse(name, …)` of a tar: the first half is the kind that `open_tar` was given.
TAR = "formats/tar.py"
TAR_KINDS = ("archive", "nemo")
# Printed by `run_command` for what is no JarvisError.
BUG = "bug"


@dataclass(frozen=True)
class Taker:
    """A function, or a class, that takes a slug, or what follows `head` of one."""

    head: str
    place: int
    keyword: str


@dataclass
class Slugs:
    """The slugs of one package, found by following constants to where `slug=` takes them."""

    found: set[str] = field(default_factory=set)
    unread: list[str] = field(default_factory=list)
    takers: dict[tuple[str, str], set[Taker]] = field(default_factory=dict)

    def takers_of(self, file: str, call: ast.Call, imported: dict[str, str]) -> set[Taker]:
        """Return what the called function takes; `imported` maps names to their files."""
        match call.func:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                return self.takers.get((imported.get(name, file), name), set())
        return set()

    def take(self, file: str, function: ast.FunctionDef | None, head: str, value: ast.expr) -> None:
        """Follow one value: a constant is a slug, an argument makes its function a taker."""
        name = "" if function is None else function.name
        match value:
            case ast.Constant(value=str(text)):
                self.found.add(head + text)
            case ast.Constant():
                pass
            case ast.IfExp(body=body, orelse=other):
                self.take(file, function, head, body)
                self.take(file, function, head, other)
            case ast.JoinedStr(
                values=[ast.Constant(value=str(text)), ast.FormattedValue(value=rest)]
            ):
                self.take(file, function, head + text, rest)
            case ast.Name(id=variable) if function and variable in (names := parameters(function)):
                taker = Taker(head, names.index(variable), variable)
                self.takers.setdefault((file, name), set()).add(taker)
            case _ if (file, name) in COMPUTED:
                self.found |= set(COMPUTED[file, name])
            case _ if (file, name) != (TAR, "__call__"):
                self.unread.append(f"{file}:{value.lineno} in {name}")


def parameters(function: ast.FunctionDef) -> list[str]:
    """Return the names of the positional parameters as a caller counts them, then the others."""
    names = [a.arg for a in (*function.args.posonlyargs, *function.args.args)]
    return names[names[:1] in (["self"], ["cls"]) :] + [a.arg for a in function.args.kwonlyargs]


def functions_and_calls(tree: ast.Module) -> Iterator[tuple[ast.FunctionDef | None, ast.Call]]:
    """Yield every call with the innermost function that it stands in."""

    def walk(node: ast.AST, inside: ast.FunctionDef | None) -> Iterator[Any]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Call):
                yield inside, child
            yield from walk(child, child if isinstance(child, ast.FunctionDef) else inside)

    return walk(tree, None)


@functools.cache
def slugs_in_code() -> Slugs:
    trees = {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_bytes())
        for path in sorted(PACKAGE.rglob("*.py"))
    }
    slugs = Slugs()
    slugs.takers[TAR, "refuse"] = {Taker(f"{kind}.", 0, "name") for kind in TAR_KINDS}
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                fields = [f.target.id for f in node.body if isinstance(f, ast.AnnAssign)]
                if "slug" in fields:
                    slugs.takers[file, node.name] = {Taker("", fields.index("slug"), "slug")}
    # A function may pass its argument on to one that is found to be a taker only later.
    before = None
    while before != slugs.takers:
        before = {key: set(takers) for key, takers in slugs.takers.items()}
        slugs.found, slugs.unread = {BUG}, []
        for file, tree in trees.items():
            follow_calls(slugs, file, tree)
    return slugs


def follow_calls(slugs: Slugs, file: str, tree: ast.Module) -> None:
    imported = {
        alias.name: f"{node.module.removeprefix('jarvis_rules.').replace('.', '/')}.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
    }
    for function, call in functions_and_calls(tree):
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        takers = slugs.takers_of(file, call, imported)
        for taker in takers or {Taker("", len(call.args), "slug")}:
            values = [*call.args, keywords.get(taker.keyword)]
            value = values[min(taker.place, len(call.args))]
            if value is not None:
                slugs.take(file, function, taker.head, value)


def slugs_in_reference() -> list[str]:
    """Return the slugs in the first column of the tables of errors.md, in order."""
    found = []
    for line in (DOCS / "reference" / "errors.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            found += re.findall(r"`([^`]+)`", line.split("|")[1])
    return found


def test_every_slug_can_be_read_off_the_code():
    """A slug that is computed in a new way needs a line in the tables above."""
    assert slugs_in_code().unread == []


def test_every_kind_of_tar_is_known():
    from jarvis_rules.formats.tar import _FORBIDDEN_TYPES

    kinds = set()
    for path in PACKAGE.rglob("*.py"):
        for _, call in functions_and_calls(ast.parse(path.read_bytes())):
            match call:
                case ast.Call(func=ast.Name(id="open_tar"), args=[_, ast.Constant(value=kind)]):
                    kinds.add(kind)
    assert kinds == set(TAR_KINDS)
    forbidden = {f"{kind}.{name}" for kind in kinds for name, _ in _FORBIDDEN_TYPES.values()}
    assert forbidden == set(COMPUTED[TAR, "checked"])


def test_slugs_are_documented():
    documented, code = slugs_in_reference(), slugs_in_code().found
    undocumented, unknown = sorted(code - set(documented)), sorted(set(documented) - code)
    assert not undocumented, f"add to docs/reference/errors.md: {undocumented}"
    assert not unknown, f"not in the code, remove from docs/reference/errors.md: {unknown}"
    assert len(documented) == len(set(documented))


# --- tables -----------------------------------------------------------------------------------


def first_column(document: Path, heading: str) -> list[str]:
    """Return the back-quoted words of the first column of the table under a heading."""
    text = document.read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.M)[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [word for row in rows for word in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize(
    ("heading", "effect"),
    [
        ("Used", "used"),
        ("Accepted, without effect", "no-effect"),
        ("Planned", "planned"),
    ],
)
@pytest.mark.parametrize("kind", pipeline_names())
def test_options_of_pipelines_are_documented(kind, heading, effect):
    document = DOCS / "reference" / f"{kind}.md"
    shared = {PRECISION.name, *(option.name for option in engine_options("nn"))}
    options = [option.name for option in find_pipeline(kind).options if option.effect == effect]
    assert first_column(document, heading) == [name for name in options if name not in shared]
    assert effect != "used" or shared <= {*options}


def test_options_of_engines_are_documented():
    options = [PRECISION.name, *(option.name for option in engine_options("nn"))]
    assert first_column(DOCS / "reference" / "engines.md", "Options") == options


def test_engine_toolchains_are_documented():
    toolchains = first_column(DOCS / "reference" / "engines.md", "Toolchains")
    assert sorted(toolchains) == sorted(engine_names())


def test_gpu_targets_are_documented():
    assert first_column(DOCS / "reference" / "gpus.md", "GPU targets") == list(load_gpus())


def test_dependencies_are_explained():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    lists = re.findall(
        r"^(?:dependencies|test|dev|tensorrt(?:-rtx)?) = \[(.*?)\]$", text, re.M | re.S
    )
    quoted = [word for group in lists for word in re.findall(r'"([^"\n]+)"', group)]
    names = {re.match(r"[\w-]+", word)[0] for word in quoted} - {"jarvis-rules"}
    explained = {
        word.partition("[")[0] for word in first_column(ROOT / "CONTRIBUTING.md", "Dependencies")
    }
    assert explained == names


def test_the_page_of_families_is_what_the_exporters_say():
    make = runpy.run_path(str(DOCS / "make_families.py"))
    is_current = make["render"]() == make["PAGE"].read_text(encoding="utf-8")
    assert is_current, "docs/reference/families.md is stale; run: python docs/make_families.py"


# --- commands ---------------------------------------------------------------------------------


def option_lines(run: Callable[[list[str]], int], capsys, *words: str) -> set[str]:
    with pytest.raises(SystemExit):
        run([*words, "--help"])
    # What stands behind `examples:` may name other commands.
    return set(re.findall(r"--[a-z][\w.-]*", capsys.readouterr().out.partition("\nexamples:")[0]))


def section(command: str) -> str:
    text = (DOCS / "reference" / "commands.md").read_text(encoding="utf-8")
    return text.partition(f"\n## {command}\n")[2].partition("\n## ")[0]


COMMANDS = [
    ("nemo2jarvis", ()),
    ("jarvis_deploy", ()),
    *(
        ("jarvis_rules", (module.__name__.rpartition(".")[2].replace("_", "-"),))
        for module in importlib.import_module("jarvis_rules.cli.jarvis_rules")._COMMANDS
    ),
]


@pytest.mark.parametrize(("module", "words"), COMMANDS, ids=str)
def test_options_of_commands_are_documented(module, words, capsys):
    run = importlib.import_module(f"jarvis_rules.cli.{module}")._run
    text = section(" ".join([module.replace("_", "-"), *words]))
    documented = set(re.findall(r"--[a-z][\w-]*", text.partition("\n|")[2]))
    everywhere = {"--help", "--version"}
    assert option_lines(run, capsys, *words) - everywhere == documented - everywhere


@pytest.mark.parametrize("program", ["tlt", "tao"])
def test_options_of_tlt_are_documented(program, capsys):
    from jarvis_rules.cli import tlt

    run = functools.partial(tlt._run, program=program)
    documented = set(re.findall(r"--[a-z][\w-]*", section("tlt").partition("\n|")[2]))
    shown = {
        option
        for verb in ("export", "download_specs")
        for option in option_lines(run, capsys, "vocoder", verb)
    }
    assert shown - {"--help"} == documented


def test_tasks_and_fields_of_tlt_are_documented():
    from jarvis_rules.cli.tlt_spec import FIELDS
    from jarvis_rules.cli.tlt_tasks import TASKS

    rows = dict(re.findall(r"^\| `(TASK|field=value)` \| (.*) \|$", section("tlt"), re.M))
    assert re.findall(r"`(\w+)`", rows["TASK"].partition(";")[0]) == list(TASKS)
    assert tuple(re.findall(r"`([\w.]+)`", rows["field=value"])) == FIELDS


# --- links ------------------------------------------------------------------------------------


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as code hosts make them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_resolve(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", text)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        linked = document if not name else document.parent / name
        assert linked.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in anchors(linked), f"{target} has no such heading"


def test_every_document_is_linked_from_the_index():
    for folder in (DOCS, DOCS / "adr"):
        index = (folder / "README.md").read_text(encoding="utf-8")
        pages = folder.glob("*.md") if folder.name == "adr" else folder.glob("[!a]*/*.md")
        for page in pages:
            if page.name != "README.md":
                assert f"({page.relative_to(folder).as_posix()})" in index
