"""speech_recognition: features → acoustic model → CTC decoder, for whole utterances."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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

# The suffix of every helper of an offline pipeline in public Riva listings.
_MODE = "streaming-offline"
_WINDOW, _FILTERBANK, _VOCABULARY = (
    "featurizer_window.npy",
    "featurizer_fb.npy",
    "jarvis_decoder_vocabulary.txt",
)
_TOKENIZATIONS = ("character", "sentencepiece", "wordpiece")
_WORD_START, _CONTINUED = "\u2581", "##"
_TYPICAL_SECONDS, _LEAST_FRAMES = 10, 8
_FACTS = ("sample_rate", "ms_per_timestep", "blank_id")
_FEATURE_PARAMETERS = (
    "n_window_size", "n_window_stride", "n_fft", "features", "preemph", "log",
    "log_zero_guard_type", "log_zero_guard_value", "mag_power", "normalize", "pad_to", "pad_value",
    "exact_pad", "frame_splicing",
)  # fmt: skip


def _no_effect(name: str, kind: type[Any], help_text: str) -> Option:
    return Option(name, kind, None, help_text, effect="no-effect")


def _planned(name: str, kind: type[Any], help_text: str, default: Scalar = None) -> Option:
    return Option(name, kind, default, help_text, effect="planned")


_NORMALISE = "no effect here: the model's own normalisation"
_WHOLE = "no effect here: a whole utterance is one piece"
OPTIONS = (
    Option("language_code", str, "en-US", "language tag (BCP 47) that clients ask for"),
    Option("offline", bool, True, "recognise whole utterances"),
    Option("max_batch_size", int, 8, "largest batch of the pipeline", minimum=1),
    Option(
        "decoder_type", str, "greedy", "CTC decoder",
        choices=("greedy",),
        planned_choices=("flashlight", "kaldi", "nemo", "os2s", "pass_through"),
    ),
    Option("ms_per_timestep", float, None, "duration of an acoustic step, derived from the model"),
    Option(
        "featurizer.max_batch_size", int, None, "largest batch of the feature extractor",
        minimum=1,
    ),
    Option("nn.max_batch_size", int, None, "largest batch of the acoustic model", minimum=1),
    Option("greedy_decoder.max_batch_size", int, None, "largest batch of the decoder", minimum=1),
    Option(
        "greedy_decoder.asr_model_delay", int, -1,
        "acoustic steps by which time stamps are moved earlier; -1: the model's own delay, 0",
        minimum=-1,
    ),
    Option(
        "nn.longest_utterance", float, 60.0,
        "longest utterance in seconds that an engine compiled for a GPU takes (our name)",
        minimum=1,
    ),
    PRECISION,
    *engine_options("nn"),
    Option("instance_group_count", int, 1, "instances of every model of the pipeline", minimum=1),
    EXECUTION_ENV_PATH,
    _no_effect("acoustic_model_name", str, "no effect here: names follow from --name"),
    _no_effect("featurizer_name", str, "no effect here: names follow from --name"),
    _no_effect("chunk_size", float, _WHOLE),
    _no_effect("padding_size", float, _WHOLE),
    _no_effect("padding_factor", float, _WHOLE),
    _no_effect("left_padding_size", float, _WHOLE),
    _no_effect("right_padding_size", float, _WHOLE),
    _no_effect("featurizer.use_utterance_norm_params", bool, _NORMALISE),
    _no_effect("featurizer.precalc_norm_time_steps", int, _NORMALISE),
    _no_effect("featurizer.precalc_norm_params", bool, _NORMALISE),
    _no_effect("featurizer.max_execution_batch_size", int, "no effect here"),
    _no_effect("return_separate_utterances", bool, "no effect here"),
    _no_effect("vad.residue_blanks_at_start", int, "no effect here: no voice activity detection"),
    _no_effect("vad.vad_type", str, "no effect here: no voice activity detection"),
    _no_effect("vad.vad_start_history", int, "no effect here: no voice activity detection"),
    _no_effect("vad.vad_start_th", float, "no effect here: no voice activity detection"),
    _no_effect("vad.vad_stop_history", int, "no effect here: no voice activity detection"),
    _no_effect("vad.vad_stop_th", float, "no effect here: no voice activity detection"),
    _no_effect("endpointing.residue_blanks_at_start", int, "no effect here: no endpointing"),
    _no_effect("endpointing.start_history", int, "no effect here: no endpointing"),
    _no_effect("endpointing.start_th", float, "no effect here: no endpointing"),
    _no_effect("endpointing.stop_history", int, "no effect here: no endpointing"),
    _no_effect("endpointing.stop_th", float, "no effect here: no endpointing"),
    _no_effect("endpointing.residue_blanks_at_end", int, "no effect here: no endpointing"),
    _planned("streaming", bool, "streaming recognition", default=False),
    _planned("decoding_language_model_arpa", str, "beam search with a language model"),
    _planned("decoding_language_model_binary", str, "beam search with a language model"),
    _planned("decoding_language_model_fst", str, "decoding with a weighted transducer"),
    _planned("decoding_language_model_words", str, "decoding with a weighted transducer"),
    _planned("decoding_vocab", str, "beam search with a word list"),
    _planned("decoding_lexicon", str, "beam search with a lexicon"),
    _planned("lm_decoder_cpu.beam_search_width", int, "beam search with a language model"),
    _planned("lm_decoder_cpu.language_model_alpha", float, "beam search with a language model"),
    _planned("lm_decoder_cpu.language_model_beta", float, "beam search with a language model"),
    _planned("os2s_decoder.beam_search_width", int, "beam search with a language model"),
    _planned("os2s_decoder.language_model_alpha", float, "beam search with a language model"),
    _planned("os2s_decoder.language_model_beta", float, "beam search with a language model"),
    _planned("flashlight_decoder.lm_weight", float, "beam search with a lexicon"),
    _planned("flashlight_decoder.word_insertion_score", float, "beam search with a lexicon"),
    _planned("flashlight_decoder.beam_size", int, "beam search with a lexicon"),
    _planned("flashlight_decoder.beam_size_token", int, "beam search with a lexicon"),
    _planned("flashlight_decoder.beam_threshold", float, "beam search with a lexicon"),
    _planned("flashlight_decoder.num_tokenization", int, "beam search with a lexicon"),
    _planned("flashlight_decoder.asr_model_delay", int, "beam search with a lexicon"),
    _planned(
        "flashlight_decoder.use_lexicon_free_decoding", bool, "beam search with a lexicon",
        default=False,
    ),
    _planned("kaldi_decoder.default_beam", float, "decoding with a weighted transducer"),
    _planned("kaldi_decoder.max_active", int, "decoding with a weighted transducer"),
    _planned("kaldi_decoder.determinize_lattice", bool, "decoding with a weighted transducer"),
    _planned("kaldi_decoder.max_batch_size", int, "decoding with a weighted transducer"),
    _planned("kaldi_decoder.asr_model_delay", int, "decoding with a weighted transducer"),
    _planned("gpu_decoder", bool, "decoding with a weighted transducer", default=False),
    _planned("wfst_tokenizer_model", str, "inverse text normalisation"),
    _planned("wfst_verbalizer_model", str, "inverse text normalisation"),
    _planned("speech_hints_model", str, "word boosting"),
)  # fmt: skip


def _model_names(name: str) -> tuple[str, ...]:
    return (
        name,
        f"{name}-feature-extractor-{_MODE}",
        f"{name}-am-{_MODE}",
        f"{name}-ctc-decoder-cpu-{_MODE}",
    )


def _compose(name: str, models: Mapping[str, ModelSource], options: OptionValues) -> Composition:
    """Return the pipeline for one acoustic model; UsageError where options and model disagree."""
    model = models["acoustic_model"]
    facts = model.facts
    require_name(name)
    _check_facts(facts)
    if not options["offline"]:
        raise UsageError(
            "streaming recognition is not available yet",
            slug="option.planned",
            where="option `offline`",
            hint="build with `--offline` (in a SConscript: `offline=True`)",
        )
    batch = options.integer("max_batch_size")
    for component in ("featurizer", "nn", "greedy_decoder"):
        options.derived[f"{component}.max_batch_size"] = batch
    options.derive(
        "ms_per_timestep", facts["ms_per_timestep"], "window stride × stride of the encoder"
    )
    _, extractor, acoustic, decoder = _model_names(name)
    modules = (
        _feature_extractor(extractor, facts, options),
        _acoustic_model(acoustic, facts, options),
        _ctc_decoder(decoder, facts, options),
    )
    for module in modules:
        if module.max_batch_size < batch:
            raise UsageError(
                f"max_batch_size {module.max_batch_size} of {module.name} is below the "
                f"pipeline's {batch}",
                slug="option.batch-size",
                where=f"pipeline `{name}`",
                hint="lower `max_batch_size`, or raise the component's",
            )
    pipeline = Pipeline(
        name=name,
        kind="speech_recognition",
        language_code=options.text("language_code"),
        max_batch_size=batch,
        inputs=modules[0].inputs,
        outputs=modules[2].outputs,
        modules=modules,
        edges=(
            ("pipeline.AUDIO_SIGNAL", "feature_extractor.AUDIO_SIGNAL"),
            ("pipeline.SAMPLE_COUNT", "feature_extractor.SAMPLE_COUNT"),
            ("feature_extractor.AUDIO_FEATURES", "acoustic_model.audio_signal"),
            ("feature_extractor.AUDIO_FEATURES_LENGTH", "acoustic_model.length"),
            ("acoustic_model.logprobs", "ctc_decoder.LOGPROBS"),
            ("acoustic_model.encoded_length", "ctc_decoder.LOGPROBS_LENGTH"),
            *((f"ctc_decoder.{t.name}", f"pipeline.{t.name}") for t in modules[2].outputs),
        ),
        models={"acoustic_model": SourceArchive(model.family, model.obj_cls, model.content_digest)},
        options=options.provenance(),
        parameters={
            "sample_rate": facts["sample_rate"],
            "language_code": options.text("language_code"),
            "offline": True,
        },
    )
    labels, _ = _spelling(facts)
    vocabulary = "".join(json.dumps(label, ensure_ascii=False) + "\n" for label in labels)
    return Composition(
        pipeline,
        {
            "acoustic_model/model_graph.onnx": SourceMember("acoustic_model", "model_graph.onnx"),
            f"feature_extractor/{_WINDOW}": SourceMember("acoustic_model", _WINDOW),
            f"feature_extractor/{_FILTERBANK}": SourceMember("acoustic_model", _FILTERBANK),
            f"ctc_decoder/{_VOCABULARY}": vocabulary.encode(),
        },
        {"acoustic_model": _engine_inputs(facts, options)},
    )


def _check_facts(facts: Mapping[str, Any]) -> None:
    """Raise IntegrityError where the archive does not say all that serving needs."""
    features = facts.get("features")
    labels = facts.get("labels")
    missing = [name for name in _FACTS if not isinstance(facts.get(name), int | float)]
    if facts.get("tokenization") not in _TOKENIZATIONS:
        missing.append("tokenization")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        missing.append("labels")
    if not isinstance(features, Mapping):
        missing.append("features")
    else:
        missing += [f"features.{key}" for key in _FEATURE_PARAMETERS if key not in features]
    if missing:
        raise IntegrityError(
            f"the archive's facts lack or misstate: {', '.join(missing)}",
            slug="ejrvs.facts",
            hint="make the archive again with `nemo2jarvis`",
        )


def _spelling(facts: Mapping[str, Any]) -> tuple[list[str], str]:
    """Return the labels as the decoder joins them, and what begins a word among them.

    WordPiece marks the pieces that go on, SentencePiece those that begin: the decoder knows the
    latter.
    """
    labels: list[str] = facts["labels"]
    if facts["tokenization"] == "wordpiece":
        labels = [
            piece.removeprefix(_CONTINUED) if piece.startswith(_CONTINUED) else _WORD_START + piece
            for piece in labels
        ]
    return labels, " " if facts["tokenization"] == "character" else _WORD_START


def _feature_extractor(model: str, facts: Mapping[str, Any], options: OptionValues) -> Module:
    features = facts["features"]
    return Module(
        name="feature_extractor",
        model=model,
        uses="backend:feature_extractor",
        max_batch_size=options.integer("featurizer.max_batch_size"),
        inputs=(Tensor("AUDIO_SIGNAL", "FP32", (-1,)), Tensor("SAMPLE_COUNT", "INT64", (1,))),
        outputs=(
            Tensor("AUDIO_FEATURES", "FP32", (features["features"], -1)),
            Tensor("AUDIO_FEATURES_LENGTH", "INT64", (1,)),
        ),
        parameters={
            "sample_rate": facts["sample_rate"],
            **{key: features[key] for key in _FEATURE_PARAMETERS},
            "window_file": _WINDOW,
            "fb_file": _FILTERBANK,
            **environment_parameters(options),
        },
        files={
            _WINDOW: f"feature_extractor/{_WINDOW}",
            _FILTERBANK: f"feature_extractor/{_FILTERBANK}",
        },
        instance_group_count=options.integer("instance_group_count"),
    )


def _acoustic_model(model: str, facts: Mapping[str, Any], options: OptionValues) -> Module:
    return Module(
        name="acoustic_model",
        model=model,
        uses="engine:acoustic_model",
        max_batch_size=options.integer("nn.max_batch_size"),
        inputs=(
            Tensor("audio_signal", "FP32", (facts["features"]["features"], -1)),
            Tensor("length", "INT64", (1,), reshape=()),
        ),
        outputs=(
            Tensor("logprobs", "FP32", (-1, len(facts["labels"]) + 1)),
            Tensor("encoded_length", "INT64", (1,), reshape=()),
        ),
        instance_group_count=options.integer("instance_group_count"),
    )


def _engine_inputs(facts: Mapping[str, Any], options: OptionValues) -> tuple[EngineInput, ...]:
    """Return the inputs of the acoustic model: utterances of up to `nn.longest_utterance`."""
    features = facts["features"]
    batch = options.integer("nn.max_batch_size")
    per_second = facts["sample_rate"] / features["n_window_stride"]
    longest = math.ceil(float(options["nn.longest_utterance"] or 0) * per_second) + 1
    # Features are padded to a multiple, so that the longest utterance has a few frames more.
    pad_to = features["pad_to"] or 1
    longest = -(-longest // pad_to) * pad_to
    rows = Extent(1, min(4, batch), batch)
    typical = min(math.ceil(_TYPICAL_SECONDS * per_second), longest)
    frames = Extent(min(_LEAST_FRAMES, longest), typical, longest)
    width = Extent(features["features"], features["features"], features["features"])
    return (
        EngineInput("audio_signal", "FP32", (rows, width, frames), {"kind": "normal"}),
        EngineInput(
            "length", "INT64", (rows,), {"kind": "lengths", "input": "audio_signal", "axis": 2}
        ),
    )


def _ctc_decoder(model: str, facts: Mapping[str, Any], options: OptionValues) -> Module:
    return Module(
        name="ctc_decoder",
        model=model,
        uses="backend:ctc_decoder",
        max_batch_size=options.integer("greedy_decoder.max_batch_size"),
        inputs=(
            Tensor("LOGPROBS", "FP32", (-1, len(facts["labels"]) + 1)),
            Tensor("LOGPROBS_LENGTH", "INT64", (1,)),
        ),
        outputs=(
            Tensor("FINAL_TRANSCRIPTS", "STRING", (1,)),
            Tensor("FINAL_TRANSCRIPTS_SCORE", "FP32", (1,)),
            Tensor("FINAL_WORDS", "STRING", (-1,)),
            Tensor("FINAL_WORDS_START_END", "INT32", (-1, 2)),
            Tensor("FINAL_WORDS_SCORE", "FP32", (-1,)),
        ),
        parameters={
            "decoder_type": options.text("decoder_type"),
            "vocab_file": _VOCABULARY,
            "blank_id": facts["blank_id"],
            "ms_per_timestep": facts["ms_per_timestep"],
            "asr_model_delay": options.integer("greedy_decoder.asr_model_delay"),
            "word_separator": _spelling(facts)[1],
            **environment_parameters(options),
        },
        files={_VOCABULARY: f"ctc_decoder/{_VOCABULARY}"},
        instance_group_count=options.integer("instance_group_count"),
    )


PIPELINE = PipelineKind(
    name="speech_recognition",
    help="speech to text with word time stamps",
    slots=(Slot("acoustic_model", families=("conv_asr", "conformer_ctc")),),
    options=OPTIONS,
    components={"acoustic_model": "nn"},
    backends=("feature_extractor", "ctc_decoder"),
    model_names=_model_names,
    compose=_compose,
)
