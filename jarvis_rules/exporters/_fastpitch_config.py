"""The configuration of a FastPitch model.

Semantics: NeMo 1.23 FastPitchModel, FastPitchModule.
"""

from __future__ import annotations

from dataclasses import dataclass

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._fastpitch_predictor import Predictor, read_predictor
from jarvis_rules.exporters._fastpitch_transformer import (
    Transformer,
    read_kernel,
    read_transformer,
)

MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "learn_alignment", "labels", "text_tokenizer", "train_ds", "preprocessor"),
    *used("input_fft", "output_fft", "duration_predictor", "pitch_predictor"),
    *used("energy_predictor", "energy_embedding_kernel_size", "pitch_embedding_kernel_size"),
    *used("symbols_embedding_dim", "n_speakers", "speaker_emb_condition_prosody"),
    *used("speaker_emb_condition_decoder", "min_token_duration", "max_token_duration"),
    *used("n_mel_channels", "sample_rate", "n_window_size", "n_window_stride", "n_fft"),
    *used("pitch_mean", "pitch_avg", "pitch_std", "pitch_fmin", "pitch_fmax"),
    *ignored("aligns text and speech, training only", "alignment_module"),
    *ignored("aligns text and speech, training only", "speaker_emb_condition_aligner"),
    *ignored("scales given energies, training only", "use_log_energy"),
    *ignored("weighs a loss, training only", "bin_loss_warmup_epochs", "dur_loss_scale"),
    *ignored("weighs a loss, training only", "pitch_loss_scale", "energy_loss_scale"),
    *ignored("weighs a loss, training only", "aligner_loss_scale"),
    *ignored("training and its data", "validation_ds", "test_ds", "optim", "pitch_processor"),
    *ignored("training and its data", "energy_processor", "align_prior_config"),
    *ignored("training and its data", "pitch_stats_path"),
    *ignored("logging, training only", "log_images", "log_config"),
    *ignored("the pipeline normalises text before it is tokenized", "text_normalizer"),
    *ignored("see `text_normalizer`", "text_normalizer_call_kwargs"),
    *ignored("read with a `speaker_encoder` only", "speaker_embedding_dim"),
    *neutral("speaker_encoder", None, reason="NeMo's own export leaves its inputs out"),
)
"""Other keys of the model are ignored unless they build a module, see `check_model_keys`."""
_ADD: frozenset[str] = frozenset({"add"})
_NONE: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Model:
    """The understood configuration of a FastPitchModel; `speakers` is 0 if there is one."""

    dim: int
    mels: int
    speakers: int
    encoder: Transformer
    decoder: Transformer
    duration: Predictor
    pitch: Predictor
    energy: Predictor | None
    pitch_kernel: int
    energy_kernel: int
    shortest: int
    longest: int


def read_model(config: Section) -> Model:
    """Return the configuration of the networks.

    Raises JarvisError `export.unsupported-config` and `export.contradicting-config`.
    """
    speakers = config.integer("n_speakers", 0, 0)
    speakers = speakers if speakers > 1 else 0
    prosody, decoder = (
        _ADD if config.boolean(f"speaker_emb_condition_{part}", False) else _NONE
        for part in ("prosody", "decoder")
    )
    has_energy = config.values.get("energy_predictor") is not None
    model = Model(
        dim=config.integer("symbols_embedding_dim", minimum=1),
        mels=config.integer("n_mel_channels", minimum=1),
        speakers=speakers,
        encoder=read_transformer(
            config.section("input_fft"), "Encoder", _ADD if speakers else _NONE
        ),
        decoder=read_transformer(config.section("output_fft"), "Decoder", decoder),
        duration=read_predictor(config.section("duration_predictor"), prosody),
        pitch=read_predictor(config.section("pitch_predictor"), prosody),
        energy=read_predictor(config.section("energy_predictor"), _NONE) if has_energy else None,
        pitch_kernel=read_kernel(config, "pitch_embedding_kernel_size"),
        energy_kernel=read_kernel(config, "energy_embedding_kernel_size") if has_energy else 1,
        shortest=config.integer("min_token_duration", 0, 0),
        longest=config.integer("max_token_duration", 75, 1),
    )
    _require_one_size(config, model)
    if model.shortest > model.longest:
        understood = f"at most `max_token_duration`, {model.longest}"
        refuse("min_token_duration", model.shortest, understood)
    if not speakers:
        _refuse_conditions(config)
    return model


def _require_one_size(config: Section, model: Model) -> None:
    """Refuse sizes that differ where NeMo adds one tensor to another."""
    sizes = {
        "input_fft.d_model": model.encoder.dim,
        "output_fft.d_model": model.decoder.dim,
        "duration_predictor.input_size": model.duration.dim,
        "pitch_predictor.input_size": model.pitch.dim,
    }
    encoder = config.section("input_fft")
    if encoder.values.get("d_embed"):
        sizes["input_fft.d_embed"] = encoder.integer("d_embed")
    if model.energy is not None:
        sizes["energy_predictor.input_size"] = model.energy.dim
    for key, size in sizes.items():
        if size != model.dim:
            refuse_contradiction(key, size, "`symbols_embedding_dim`", model.dim)


def _refuse_conditions(config: Section) -> None:
    """Refuse conditions on the speaker of a model that has only one; NeMo fails there too."""
    for key in ("speaker_emb_condition_prosody", "speaker_emb_condition_decoder"):
        if config.values.get(key):
            refuse(key, True, "`false` for one speaker")
    for name in (
        "input_fft",
        "output_fft",
        "duration_predictor",
        "pitch_predictor",
        "energy_predictor",
    ):
        section = config.values.get(name) or {}
        if section.get("condition_types"):
            understood = "an empty list for one speaker"
            refuse(f"{name}.condition_types", section["condition_types"], understood)
