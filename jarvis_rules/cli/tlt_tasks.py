"""The tasks and verbs of `tlt`: which models a task exports, and where its other verbs went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jarvis_rules.errors import UsageError, did_you_mean


@dataclass(frozen=True, slots=True)
class Task:
    """One task: what it is for, and the models that it exports.

    `classes` are NeMo's class names without their modules, `encoder` the last part of
    `encoder._target_` where that tells models of one class apart.
    """

    name: str
    summary: str
    classes: tuple[str, ...]
    encoder: str | None = None

    def fits(self, target: str, config: Mapping[str, Any]) -> bool:
        """Return whether the task exports a model of the class `target` with this `config`."""
        return _last(target) in self.classes and self.encoder in (None, _encoder(config))

    def models(self) -> str:
        """Return the models of the task in words."""
        names = " or ".join(f"`{name}`" for name in self.classes)
        return f"{names} with a `{self.encoder}`" if self.encoder else names


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "speech_to_text",
            "Speech recognition: QuartzNet and Jasper",
            ("EncDecCTCModel",),
            "ConvASREncoder",
        ),
        Task(
            "speech_to_text_citrinet",
            "Speech recognition on subwords: Citrinet",
            ("EncDecCTCModelBPE",),
            "ConvASREncoder",
        ),
        Task(
            "speech_to_text_conformer",
            "Speech recognition: Conformer",
            ("EncDecCTCModelBPE", "EncDecCTCModel"),
            "ConformerEncoder",
        ),
        Task(
            "intent_slot_classification",
            "Intent of a sentence and slots of its words",
            ("IntentSlotClassificationModel",),
        ),
        Task(
            "punctuation_and_capitalization",
            "Punctuation and capitals for plain words",
            ("PunctuationCapitalizationModel",),
        ),
        Task("question_answering", "Answers in a given text", ("QAModel", "BERTQAModel")),
        Task("text_classification", "One label for a text", ("TextClassificationModel",)),
        Task("token_classification", "A label for each word", ("TokenClassificationModel",)),
        Task("spectro_gen", "Text to a mel spectrogram", ("FastPitchModel", "Tacotron2Model")),
        Task("vocoder", "A mel spectrogram to audio", ("HifiGanModel", "WaveGlowModel")),
    )
}

# The verbs of TLT and TAO that are not done here: what they did, and where to go.
_ELSEWHERE = {
    "dataset_convert": (
        "converts a data set for training",
        "use the scripts in `scripts/dataset_processing` of NeMo",
    ),
    "train": ("trains a model", "train with NeMo, then export what `model.save_to` wrote"),
    "finetune": (
        "trains a model further",
        "restore and train it with NeMo, then export what `model.save_to` wrote",
    ),
    "evaluate": ("measures a model on a data set", "measure with NeMo, before exporting"),
    "infer": (
        "runs a checkpoint on examples",
        "run it with NeMo; or export it, build and deploy a pipeline, and ask that with "
        "`jarvis-rules infer`",
    ),
    "infer_onnx": (
        "runs an exported model on examples",
        "build and deploy a pipeline, and ask that with `jarvis-rules infer`; the archive holds "
        "plain ONNX graphs",
    ),
}
VERBS = ("export", "download_specs")

# Commands of the launcher itself that have no subject here.
_LAUNCHER = {
    "stop": ("stops containers of the launcher", "nothing runs in a container here; use Ctrl-C"),
    "info": (
        "describes the launcher's containers",
        "there are none here; see `{program} --version` and `jarvis-rules doctor`",
    ),
}
# Tasks of TAO that have no NeMo model.
_NO_MODEL = {
    "n_gram": (
        "trains and converts n-gram language models",
        "use `lmplz` and `build_binary` of KenLM",
    ),
}


def find_task(name: str, program: str) -> Task:
    """Return the task; UsageError `tlt.task` where there is none or it is not done here."""
    if name in TASKS:
        return TASKS[name]
    if name in _LAUNCHER or name in _NO_MODEL:
        what, hint = (_LAUNCHER | _NO_MODEL)[name]
        raise UsageError(
            f"`{name}` {what}, which `{program}` does not do here",
            slug="tlt.task",
            hint=hint.format(program=program),
        )
    if name in VERBS or name in _ELSEWHERE:
        raise UsageError(
            f"expected a task before `{name}`",
            slug="tlt.task",
            hint=f"`{program} TASK {name}`; `{program} list` lists the tasks",
        )
    near = did_you_mean(name, (*TASKS, "list"))
    raise UsageError(
        f"unknown task `{name}`",
        slug="tlt.task",
        hint=f"{near + ' ' if near else ''}`{program} list` lists the tasks",
    )


def require_verb(task: Task, verb: str, program: str) -> None:
    """Raise UsageError `tlt.verb` unless `verb` is one of `VERBS`."""
    if verb in VERBS:
        return
    if verb in _ELSEWHERE:
        what, hint = _ELSEWHERE[verb]
        message = f"`{verb}` {what}, which `{program}` does not do here"
    else:
        message = f"expected a verb after `{task.name}`, got `{verb}`"
        hint = did_you_mean(verb, (*VERBS, *_ELSEWHERE)) or "known: " + ", ".join(
            f"`{name}`" for name in VERBS
        )
    raise UsageError(message, slug="tlt.verb", hint=hint)


def require_fit(
    task: Task, target: str, config: Mapping[str, Any], where: str, program: str
) -> None:
    """Raise UsageError `tlt.wrong-task` unless the task exports models of this class."""
    if task.fits(target, config):
        return
    encoder = _encoder(config)
    model = f"`{_last(target)}`"
    if encoder and any(other.encoder for other in TASKS.values() if _last(target) in other.classes):
        model += f" with a `{encoder}`"
    right = next((other for other in TASKS.values() if other.fits(target, config)), None)
    raise UsageError(
        f"`{task.name}` exports {task.models()}, this is {model}",
        slug="tlt.wrong-task",
        where=where,
        hint=f"`{program} {right.name} export`"
        if right
        else "no task exports it; `jarvis-rules families` lists what `nemo2jarvis` exports",
    )


def _encoder(config: Mapping[str, Any]) -> str | None:
    encoder = config.get("encoder")
    target = encoder.get("_target_") if isinstance(encoder, Mapping) else None
    return _last(target) if isinstance(target, str) else None


def _last(target: str) -> str:
    return target.rpartition(".")[2]
