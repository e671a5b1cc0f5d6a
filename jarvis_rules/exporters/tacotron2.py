"""Tacotron 2: from text to a mel spectrogram, frame by frame.

NeMo cannot export this model, so the three graphs and their names are ours; they follow NVIDIA's
Tacotron 2 sample for TensorRT where that has the same tensor. Semantics: NeMo 1.23 Tacotron2Model.

* `encoder.onnx`: `text`, `text_length` → `encoder_embedding`, `processed_memory`, `mask`
* `decoder_step.onnx`: `decoder_input`, `prenet_dropout`, `attention_hidden`, `attention_cell`,
  `decoder_hidden`, `decoder_cell`, `attention_weights`, `attention_weights_cum`,
  `attention_context`, `memory`, `processed_memory`, `mask` → `mel`, `gate`, and each of the seven
  states as `<name>_next`
* `postnet.onnx`: `mel` → `mel_postnet`

The loop is the caller's. It starts with zeros for `decoder_input` and states and feeds `mel` and
the next states back. NeMo draws new dropout in each step: of the two rows of `prenet_dropout`, each
entry is 0 with probability `prenet_dropout` of the facts and 1 / (1 - it) otherwise, for the whole
batch. An item is finished from the first step on whose sigmoid(`gate`) exceeds `gate_threshold`;
its spectrogram has the steps before. Decoding ends without the frames of the step in which the last
item is finished, though not before one step is kept, or with the frames of step
`max_decoder_steps`; that alone ends it unless `early_stopping`. The postnet runs over the frames of
the whole batch in NeMo, which then sets those behind an item's end to `pad_value`.
"""

from __future__ import annotations

from typing import Any

from jarvis_rules.exporters._config import Key, Section, ignored, refuse_contradiction, used
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._filterbank import KEYS as FILTERBANK_KEYS
from jarvis_rules.exporters._filterbank import read_filterbank
from jarvis_rules.exporters._tacotron2_decoder import KEYS as DECODER_KEYS
from jarvis_rules.exporters._tacotron2_decoder import (
    build_decoder_step,
    read_decoder,
    state_sizes,
)
from jarvis_rules.exporters._tacotron2_encoder import (
    EMBEDDING,
    ENCODER_KEYS,
    POSTNET_KEYS,
    build_encoder,
    build_postnet,
    read_encoder,
    read_postnet,
)
from jarvis_rules.exporters._tts_tokenizer import (
    G2P_KEYS,
    PHONEMES_KEYS,
    read_labels,
    read_tts_tokenizer,
)
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight

MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "encoder", "decoder", "postnet", "labels", "text_tokenizer"),
    *used("sample_rate"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim"),
    *ignored("normal text is the pipeline's", "text_normalizer", "text_normalizer_call_kwargs"),
    *ignored("variables of other keys", "n_mel_channels", "n_window_size", "n_window_stride"),
    *ignored("variables of other keys", "n_fft", "lowfreq", "highfreq", "window", "pad_value"),
    *ignored("pitch is a feature of other models", "pitch_fmin", "pitch_fmax"),
)
"""Other keys of the model are ignored: Tacotron2Model reads none, and weights of a module that they
might build would be left over, which is an error."""


def export_tacotron2(source: SourceModel, *, batch_invariant: bool = True) -> ExportedModel:
    """Return encoder, decoder step and postnet, and the facts of a Tacotron 2 model.

    Names, and how the graphs are run, are in the head of this file; shapes are with each graph.
    NeMo's encoder lets the embedding of the padding token into its convolutions, so that an item
    depends on its batch; the graph gives what NeMo gives for the item alone, and
    `batch_invariant=False` reproduces NeMo's leak, for comparison with recorded batches. NeMo's
    loop hands no mask to a batch of one, which is the same while its text is not padded.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`.
    """
    model = Section("", source.config)
    features = read_filterbank(model.section("preprocessor"))
    encoder = read_encoder(model.section("encoder"))
    decoder = read_decoder(model.section("decoder"))
    postnet = read_postnet(model.section("postnet"))
    if "text_tokenizer" in source.config:
        section = model.section("text_tokenizer")
        tokenizer, assets = read_tts_tokenizer(section, source.artifact)
    else:
        tokenizer, assets = read_labels(model), {}
    _check_agreement(model, features, decoder.mels, postnet.mels)

    graphs = {
        "encoder.onnx": build_encoder(
            encoder,
            source.weights,
            vocabulary=len(tokenizer["tokens"]),
            attention=decoder.attention,
            batch_invariant=batch_invariant,
        ),
        "decoder_step.onnx": build_decoder_step(decoder, source.weights),
        "postnet.onnx": build_postnet(postnet, source.weights),
    }
    facts = {
        "task": "text_to_spectrogram",
        "sample_rate": features["sample_rate"],
        "tokenizer": tokenizer,
        "n_frames_per_step": decoder.frames_per_step,
        "max_decoder_steps": decoder.max_steps,
        "gate_threshold": decoder.gate_threshold,
        "early_stopping": decoder.early_stopping,
        "prenet_dropout": decoder.prenet_dropout,
        "pad_value": features["pad_value"],
        "states": {name: ["batch", axis] for name, axis in state_sizes(decoder).items()},
        "features": features,
        "graphs": {name: describe_graph(graph) for name, graph in graphs.items()},
    }
    return ExportedModel("tacotron2", graphs, assets, facts)


def _check_agreement(model: Section, features: dict[str, Any], decoder: int, postnet: int) -> None:
    """Refuse sizes that two sections give differently."""
    pairs = (
        ("decoder.n_mel_channels", decoder, "`preprocessor.nfilt`", features["features"]),
        ("postnet.n_mel_channels", postnet, "`decoder.n_mel_channels`", decoder),
        (
            "decoder.encoder_embedding_dim",
            model.section("decoder").integer("encoder_embedding_dim"),
            "`encoder.encoder_embedding_dim`",
            EMBEDDING,
        ),
        (
            "sample_rate",
            model.integer("sample_rate", features["sample_rate"]),
            "`preprocessor.sample_rate`",
            features["sample_rate"],
        ),
    )
    for key, value, other, expected in pairs:
        if value != expected:
            refuse_contradiction(key, value, other, expected)


EXPORTER = Exporter(
    family="tacotron2",
    classes=("nemo.collections.tts.models.tacotron2.Tacotron2Model",),
    unused=(
        UnusedWeight("audio_to_melspec_precessor.*", "features are computed in training only"),
        UnusedWeight("*.num_batches_tracked", "counts training steps"),
    ),
    export=export_tacotron2,
    sections={
        "": MODEL_KEYS,
        "text_tokenizer": PHONEMES_KEYS,
        "text_tokenizer.g2p": G2P_KEYS,
        "preprocessor": FILTERBANK_KEYS,
        "encoder": ENCODER_KEYS,
        "decoder": DECODER_KEYS,
        "postnet": POSTNET_KEYS,
    },
)
