"""The SCons tool: variables `GPU`, `OUT`, `DEST`; `env.NemoModel`, `env.Pipeline`; aliases."""

from __future__ import annotations

import functools
import gc
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import SCons.Action
import SCons.Builder
import SCons.Errors
import SCons.Script
from SCons.Variables import Variables

from jarvis_rules.core.cache_directory import cache_directory
from jarvis_rules.core.gpu import GpuTarget
from jarvis_rules.core.gpus import detect_gpu, find_gpus, load_gpus
from jarvis_rules.core.registry import require_known
from jarvis_rules.engines.engine import PRECISIONS, engine_names
from jarvis_rules.errors import JarvisError, UsageError, did_you_mean
from jarvis_rules.execution.delivery import Destination, delivered_paths
from jarvis_rules.execution.process import install_signal_handlers
from jarvis_rules.formats.key_source import Key, read_key
from jarvis_rules.pipelines.pipeline import find_pipeline, pipeline_names, require_name
from jarvis_rules.rules.engine_plan import AUTO, EngineRequest, plan_engines
from jarvis_rules.rules.engine_rules import (
    assemble_repository,
    build_engines,
    check_engines,
    convert_graphs,
)
from jarvis_rules.rules.providers import DeclaredAction, PipelineInfo
from jarvis_rules.rules.rules import build_pipeline, export_model
from jarvis_rules.scons.session import Session
from jarvis_rules.triton.publish import publish_release

ALIASES = {
    "archives": "every model as .ejrvs",
    "jmirs": "every pipeline as .jmir",
    "engines": "the engines for the GPU targets, checked against their graphs",
    "repository": "the Triton model repositories, OUT/<gpu>/models",
    "deploy": "repository, and with DEST=DIR a release in DIR and DIR/current",
}
_DETERMINISM = "determinism"
_GC_THRESHOLD = 100_000
F = TypeVar("F", bound=Callable[..., Any])


def generate(env: Any) -> None:
    """Add the builders, variables and aliases to `env`: SCons calls this for the tool `jarvis`."""
    try:
        _configure(env)
    except JarvisError as error:
        # The command line is at fault, so no line of an SConstruct is named.
        print(f"scons: *** {error.render()}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    env.AddMethod(_user_errors(_nemo_model), "NemoModel")
    env.AddMethod(_user_errors(_pipeline), "Pipeline")


def exists(_: Any) -> bool:
    """Return that the tool can be used: SCons asks before it generates."""
    return True


def _user_errors(function: F) -> F:
    """Turn a JarvisError into the error that SCons prints with the line of the SConscript."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except JarvisError as error:
            raise SCons.Errors.UserError(f"{error.render()}\n") from None

    # SCons names the deepest frame outside its own folder: let that be the SConscript's line.
    wrapped.__code__ = wrapped.__code__.replace(co_filename=f"/SCons/{__name__}")
    return functools.wraps(function)(wrapped)  # type: ignore[return-value]


def _configure(env: Any) -> None:
    if "JARVIS_SESSION" in env:
        return
    variables = Variables(None, SCons.Script.ARGUMENTS)
    gpus = ",".join(load_gpus())
    variables.Add(
        "GPU", f"GPU targets, several with commas, one engine for several with `+`: {gpus}", ""
    )
    variables.Add("ENGINE", f"engine toolchain: {AUTO}, {', '.join(engine_names())}", AUTO)
    variables.Add(
        "PRECISION", f"precision of pipelines that ask for none: {', '.join(PRECISIONS)}", ""
    )
    variables.Add("TIMING_CACHE", "timing cache of an earlier build (ENGINE=tensorrt)", "")
    variables.Add("OUT", "folder of everything that is built", "out")
    variables.Add("DEST", "folder to publish a release of the repository to", "")
    variables.Add("CHECK", "`determinism`: run every action twice and compare the bytes", "")
    known = set(variables.keys())
    unknown = [name for name in SCons.Script.ARGUMENTS if name not in known]
    variables.Update(env)
    for name in unknown:
        if name not in env:
            suggestion = did_you_mean(name, known)
            raise UsageError(
                f"unknown variable `{name}`",
                slug="variable.unknown",
                hint=f"{suggestion + ' ' if suggestion else ''}known: {', '.join(sorted(known))}",
            )
    helping = SCons.Script.GetOption("help")
    # A relative one starts here, and SCons changes folders while it reads.
    cache_directory()
    if env["CHECK"]:
        require_known("check", env["CHECK"], (_DETERMINISM,), "variable.check")
    # SCons keeps its whole graph until it ends: looking for garbage in it is a waste of time.
    gc.set_threshold(_GC_THRESHOLD)
    # Here, since only the main thread may: with several jobs the executor opens in another.
    install_signal_handlers()
    session = _session(
        _out(env), _gpus(env["GPU"]), _engine_request(env), env["CHECK"] == _DETERMINISM
    )
    env["JARVIS_SESSION"] = session
    env["BUILDERS"]["JarvisAction"] = _builder()
    env["GPU"] = ",".join(gpu.name for gpu in session.gpus)
    if env["DEST"] and len(session.gpus) > 1:
        raise UsageError(
            f"DEST takes the repository of one GPU target, got {env['GPU']}",
            slug="deploy.several-gpus",
            hint="run once for each: `scons deploy GPU=… DEST=…`",
        )
    SCons.Script.SetOption("max_drift", 1)
    env.Help(_help_text(variables, env), append=True)
    if not helping:
        _declare_aliases(env)


def _out(env: Any) -> Path:
    """Return the output folder as SCons names what lies in it, without `..`."""
    text = str(env["OUT"])
    if "$" in text or not text.strip("#/. "):
        raise UsageError(
            f"OUT must be a folder of its own, got `{text}`",
            slug="variable.out",
            hint="for example `OUT=out`",
        )
    try:
        node = env.Dir(text if text.startswith(("/", "#")) else f"#{text}")
    except TypeError:
        raise UsageError(
            "OUT is a file", slug="variable.out", where=text, hint="name a folder"
        ) from None
    return Path(node.get_internal_path())


def _gpus(names: str) -> tuple[GpuTarget, ...]:
    return find_gpus(names) if names else (detect_gpu()[0],)


def _engine_request(env: Any) -> EngineRequest:
    """Return what is asked for on the command line."""
    cache = env["TIMING_CACHE"]
    return EngineRequest(
        toolchain=str(env["ENGINE"]).lower(),
        precision=str(env["PRECISION"]).lower() or None,
        timing_cache=_one_file(env, cache, "a timing cache") if cache else None,
    )


@functools.cache
def _session(
    out: Path, gpus: tuple[GpuTarget, ...], request: EngineRequest, check_determinism: bool
) -> Session:
    SCons.Script.AddOption(
        "--require-cached",
        dest="require_cached",
        action="store_true",
        help="fail at the first action that is not in the cache, and say why.",
    )
    return Session(out, gpus, request, check_determinism)


def _help_text(variables: Variables, env: Any) -> str:
    aliases = "".join(f"  {name:12}{text}\n" for name, text in ALIASES.items())
    return (
        "\nTrained NeMo models to a served Triton repository.\n\n"
        f"Targets (default: deploy):\n{aliases}\nVariables:"
        f"{variables.GenerateHelpText(env, sort=True)}\n"
        "Examples:\n  scons deploy GPU=a100\n  scons deploy GPU=cpu,t4 OUT=/tmp/out\n"
        "  scons deploy GPU=a100+l4 ENGINE=tensorrt_rtx PRECISION=fp16\n"
        "  scons deploy DEST=/srv/models\n"
        "  scons deploy --require-cached\n  scons deploy CHECK=determinism\n"
    )


def _declare_aliases(env: Any) -> None:
    for name in ALIASES:
        env["JARVIS_SESSION"].aliases[name] = env.Alias(name)[0]
    env.AlwaysBuild(env.Alias("repository", [], _quiet(_remove_undeclared)))
    deploy = env.Alias("deploy", "repository", _quiet(_publish) if env["DEST"] else None)
    if env["DEST"]:
        env.AlwaysBuild(deploy)


def _quiet(function: Callable[..., Any]) -> Any:
    return SCons.Action.Action(function, strfunction=_nothing)


# SCons signs an action by its function's code and closure, so these close over nothing.


def _nothing(target: Any, source: Any, env: Any) -> None:
    """Print no command line."""


def _remove_undeclared(target: Any, source: Any, env: Any) -> None:  # noqa: ARG001
    try:
        env["JARVIS_SESSION"].remove_undeclared()
    except JarvisError as error:
        raise SCons.Errors.BuildError(target[0], f"{error.render()}\n", 1, 2) from None


def _publish(target: Any, source: Any, env: Any) -> None:  # noqa: ARG001
    session: Session = env["JARVIS_SESSION"]
    destination = Path(env["DEST"])
    models = session.out / session.gpus[0].name / "models"
    try:
        release = publish_release(models, destination)
    except JarvisError as error:
        raise SCons.Errors.BuildError(target[0], f"{error.render()}\n", 1, 2) from None
    session.console.note(f"published {release}; current is {destination / 'current'}")


def _run(target: Any, source: Any, env: Any) -> int:  # noqa: ARG001
    env["JARVIS_SESSION"].run(target[0])
    return 0


def _label(target: Any, source: Any, env: Any) -> str | None:  # noqa: ARG001
    """Name the action where SCons only pretends; the console reports those that run."""
    return f"{env['JARVIS_LABEL']}" if SCons.Script.GetOption("no_exec") else None


def _builder() -> Any:
    action = SCons.Action.Action(_run, strfunction=_label, varlist=["JARVIS_STATIC_KEY"])
    return SCons.Builder.Builder(action=action)


def _node(env: Any, action: DeclaredAction, alias: str) -> Any:
    """Return the SCons node of a declared action, with our decider and outside SCons' cache."""
    session: Session = env["JARVIS_SESSION"]
    known = session.declared(action)
    if known is not None:
        return known
    spec, destination = action.spec, action.destination
    own = session.environment(env)
    nodes = own.JarvisAction(
        target=_file(own, destination.file),
        source=[session.node(path) or _file(own, path) for path in action.sources],
        JARVIS_STATIC_KEY=spec.static_key(),
        JARVIS_LABEL=f"{spec.mnemonic} {spec.target}",
    )
    for node in nodes:
        node.set_nocache()
    if SCons.Script.GetOption("clean"):
        # SConscripts are read in their own folders, so paths must not be relative here.
        top = Path(env.Dir("#").get_abspath())
        absolute = Destination(
            top / destination.file,
            top / destination.tree if destination.tree else None,
            top / destination.record if destination.record else None,
        )
        own.Clean(nodes, [str(path) for path in delivered_paths(absolute)])
    # `own.Alias(alias, nodes)` means the same and makes a builder call of each.
    if alias in session.aliases:
        own.Depends(session.aliases[alias], nodes)
    session.declare(action, nodes)
    return nodes


def _file(env: Any, path: Path) -> Any:
    """Return the node of `path`, which is relative to the top folder in any SConscript."""
    return env.fs.File(str(path) if path.is_absolute() else f"#{path}")


def _path(node: Any) -> Path:
    return Path(node.get_internal_path())


def _nemo_model(env: Any, source: Any, key: str | None = None, format: str = "ONNX") -> Any:
    """Declare the `.ejrvs` of a `.nemo` checkpoint and return its node.

    It lands at `OUT/any/<folder of the checkpoint>/<stem>.ejrvs`, encrypted with `key` if given:
    `env:NAME`, `file:PATH`, or the key itself. `format="CKPT"` keeps the weights and makes no
    graph.
    """
    session: Session = env["JARVIS_SESSION"]
    nemo = _one_file(env, source, "a `.nemo` checkpoint")
    if nemo.suffix not in (".nemo", ".tlt"):
        raise UsageError(
            f"expected a `.nemo` checkpoint, got {nemo}",
            slug="model.suffix",
            hint="an `.ejrvs` archive goes to `env.Pipeline` as it is",
        )
    folder = Path() if nemo.is_absolute() or ".." in nemo.parts else nemo.parent
    archive = session.out / "any" / folder / f"{nemo.stem}.ejrvs"
    secret = _key(env, key)
    info = export_model(nemo, archive, format, key=secret)
    if secret is not None:
        session.keys[str(archive)] = secret
    return _node(env, info.action, "archives")


def _key(env: Any, text: str | None) -> Key | None:
    """Return the key that a SConscript names; a file is relative to it, `#` is the top folder."""
    if text is None:
        return None
    if text.startswith("file:"):
        text = f"file:{env.File(text.removeprefix('file:')).get_abspath()}"
    key = read_key(text)
    if key.warning is not None:
        env["JARVIS_SESSION"].note_once(key.warning)
    return key


def _pipeline(
    env: Any,
    name: str,
    kind: str,
    models: Any = (),
    key: str | None = None,
    engine: str | None = None,
    **options: Any,
) -> Any:
    """Declare a pipeline for every GPU target and return the nodes of its repositories.

    `models` is the model of the only slot, a list in the order of the slots, or a mapping from
    slot to model; a model is what `env.NemoModel` returned or the path of an `.ejrvs`, with `:KEY`
    behind it if it is encrypted. `key` encrypts the `.jmir`, as that of `env.NemoModel` the model.
    `engine` is the toolchain of its engines for GPUs, whatever ENGINE says.
    """
    session: Session = env["JARVIS_SESSION"]
    declared = find_pipeline(kind)
    require_name(str(name))
    if name in session.pipelines:
        raise UsageError(
            f"two pipelines are named `{name}`",
            slug="pipeline.duplicate",
            hint="a pipeline's name is the name that clients ask for: give each its own",
        )
    slots = _slots(env, [slot.name for slot in declared.slots], models)
    jmir = session.out / "any" / f"{name}.jmir"
    keys = {slot: session.keys[str(p)] for slot, p in slots.items() if str(p) in session.keys}
    info, action = build_pipeline(
        kind, name, slots, options, jmir, key=_key(env, key), model_keys=keys
    )
    if action.spec.confidential:
        session.note_once(
            f"pipeline `{name}`: an encrypted model goes into `{jmir}`, which is not: give `key=`"
        )
    if engine is not None:
        info = _with_engine(info, engine)
    session.pipelines[name] = info
    session.declare_models(name, declared.model_names(name))
    for option in declared.without_effect(options):
        session.console.note(f"pipeline `{name}`: option `{option}` has no effect here")
    _node(env, action, "jmirs")
    return [node for gpu in session.gpus for node in _repository(env, info, gpu)]


def _with_engine(pipeline: PipelineInfo, engine: object) -> PipelineInfo:
    """Return a pipeline that insists on a toolchain; UsageError where its options do on another."""
    require_known("engine toolchain", str(engine), engine_names(), "engine.unknown")
    choices = pipeline.choices
    if choices.toolchain not in (None, engine):
        raise UsageError(
            f"`engine` says {engine}, the options say {choices.toolchain}",
            slug="option.contradiction",
            where=f"pipeline `{pipeline.name}`",
            hint="leave `nn.use_onnx_runtime` out, or `engine`",
        )
    return replace(pipeline, choices=replace(choices, toolchain=str(engine)))


def _repository(env: Any, pipeline: PipelineInfo, gpu: GpuTarget) -> Any:
    """Declare what makes the repository of a pipeline for one GPU target, and return its nodes."""
    session: Session = env["JARVIS_SESSION"]
    name, root = pipeline.name, session.out / gpu.name
    plan = plan_engines(pipeline, gpu, session.request)
    # An engine's model is served under the name of what runs it.
    models = find_pipeline(pipeline.kind).model_names(name)
    session.declare_models(name, [f"jarvis-{plan.engine.prefix}-{model}" for model in models])
    for note in plan.notes:
        session.note_once(note)
    graphs = None
    if plan.converted():
        variant = f"{name}.{plan.variant()}"
        folder = session.out / "any"
        manifest = folder / f"{variant}.graphs.json"
        graphs = convert_graphs(pipeline, plan, manifest, folder / "graphs" / variant)
        _node(env, graphs.action, "engines")
    manifest = root / f"{name}.engines.json"
    engines = build_engines(pipeline, plan, graphs, manifest, root / "engines" / name)
    _node(env, engines.action, "engines")
    check = check_engines(pipeline, plan, graphs, engines, root / f"{name}.check.json")
    _node(env, check.action, "engines")
    record = root / f"{name}.repository.json.action.json"
    repository = assemble_repository(pipeline, plan, engines, check, root / "models", record)
    return _node(env, repository.action, "repository")


def _slots(env: Any, names: list[str], models: Any) -> dict[str, Path]:
    if isinstance(models, Mapping):
        return {str(slot): _archive(env, model) for slot, model in models.items()}
    flat = env.Flatten([models])
    if len(flat) != len(names):
        raise UsageError(
            f"expected {len(names)} models ({', '.join(names)}), got {len(flat)}",
            slug="pipeline.models",
            hint=f"known pipelines: {', '.join(pipeline_names())}",
        )
    return {slot: _archive(env, model) for slot, model in zip(names, flat, strict=True)}


def _one_file(env: Any, source: Any, expected: str) -> Path:
    """Return the path of a file given by name, as a node, or as what a builder returned."""
    try:
        nodes = env.arg2nodes(source, env.fs.File) if source else []
    except (TypeError, SCons.Errors.UserError) as error:
        raise UsageError(
            f"expected {expected}: {error}", slug="model.suffix", hint="name one file"
        ) from None
    if len(nodes) != 1:
        raise UsageError(
            f"expected {expected}, got {len(nodes)} files",
            slug="model.suffix",
            hint="name one file",
        )
    return _path(nodes[0])


def _archive(env: Any, model: Any) -> Path:
    key = None
    if isinstance(model, str):
        file, found, text = model.partition(".ejrvs:")
        model, key = (f"{file}.ejrvs", _key(env, text)) if found else (model, None)
    path = _one_file(env, model, "a model (`env.NemoModel(…)`) or an `.ejrvs`")
    if path.suffix != ".ejrvs":
        raise UsageError(
            f"expected a model (`env.NemoModel(…)`) or an `.ejrvs`, got {path}",
            slug="pipeline.models",
            hint=f'write `env.NemoModel("{path.name}")`',
        )
    if key is not None:
        env["JARVIS_SESSION"].keys[str(path)] = key
    return path
