"""What the configuration says of the encoder, in `language_model` and in the file it names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from jarvis_rules.exporters._activations import ENCODER_ACTIVATIONS
from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    neutral,
    refuse,
    refuse_contradiction,
    used,
)

LANGUAGE_MODEL_KEYS: tuple[Key, ...] = (
    *used("pretrained_model_name", "config_file", "config"),
    *ignored("where training started; the archive holds all weights", "lm_checkpoint"),
    *ignored("of Megatron, which is refused by its name", "nemo_file"),
)
_TRANSFORMERS_KEYS: tuple[Key, ...] = (
    *used("model_type", "vocab_size", "max_position_embeddings"),
    *neutral("pruned_heads", {}, None, reason="pruned layers have other shapes"),
    *neutral("is_decoder", False, reason="an encoder sees what follows"),
    *neutral("add_cross_attention", False),
    *neutral("is_encoder_decoder", False),
    *ignored("memory, not results", "chunk_size_feed_forward", "gradient_checkpointing"),
    *ignored("initial weights, training only", "initializer_range"),
    *ignored(
        "which of its results the encoder returns; NeMo takes the last hidden states",
        *("output_attentions", "output_hidden_states", "return_dict", "torchscript", "use_cache"),
        *("output_past", "use_return_dict"),
    ),
    *ignored(
        "heads of transformers, which NeMo replaces",
        *("architectures", "classifier_dropout", "finetuning_task", "id2label", "label2id"),
        *(
            "num_labels",
            "_num_labels",
            "problem_type",
            "task_specific_params",
            "tie_word_embeddings",
        ),
        *("tie_encoder_decoder", "cross_attention_hidden_size"),
    ),
    *ignored(
        "where the file comes from",
        *("_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "torch_dtype"),
        *("use_bfloat16", "tf_legacy_loss", "xla_device", "language", "name", "auto_map"),
        *("attn_implementation", "_attn_implementation_autoset"),
    ),
    *ignored(
        "tokens of the vocabulary, which the tokenizer names",
        *("tokenizer_class", "prefix", "bos_token_id", "pad_token_id", "eos_token_id"),
        *("eos_token_ids", "sep_token_id", "decoder_start_token_id"),
    ),
    *ignored(
        "generation of text",
        *("max_length", "min_length", "do_sample", "early_stopping", "num_beams"),
        *("num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
        *("repetition_penalty", "length_penalty", "no_repeat_ngram_size", "bad_words_ids"),
        *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "forced_bos_token_id", "forced_eos_token_id"),
        *("remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens"),
        *("begin_suppress_tokens",),
    ),
)
BERT_KEYS: tuple[Key, ...] = (
    *_TRANSFORMERS_KEYS,
    *used("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *used("hidden_act", "layer_norm_eps", "type_vocab_size"),
    *neutral("position_embedding_type", "absolute", reason="relative ones add terms to scores"),
    *ignored("training only", "hidden_dropout_prob", "attention_probs_dropout_prob"),
    *ignored(
        "the pooler is not used",
        *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"),
        *("pooler_size_per_head", "pooler_type"),
    ),
    *ignored("written by the first BERT, read by nothing", "directionality"),
)
DISTILBERT_KEYS: tuple[Key, ...] = (
    *_TRANSFORMERS_KEYS,
    *used("dim", "n_layers", "n_heads", "hidden_dim", "activation"),
    *ignored("initial weights of the position table, which training keeps", "sinusoidal_pos_embds"),
    *ignored("training only", "dropout", "attention_dropout", "qa_dropout", "seq_classif_dropout"),
    *ignored("masked language modelling", "tie_weights_"),
)
_KEYS = {"bert": BERT_KEYS, "distilbert": DISTILBERT_KEYS}
_FILE = "language_model.config_file"
_LARGEST_FILE = 1 << 20


@dataclass(frozen=True, slots=True)
class Encoder:
    """The sizes of an encoder.

    `token_types` is 0 for a DistilBERT, which has none. There are at least two `positions`: a
    single one would broadcast to an input of any length.
    """

    architecture: str
    vocabulary: int
    positions: int
    token_types: int
    width: int
    layers: int
    heads: int
    inner: int
    activation: str
    epsilon: float


def read_encoder(language_model: Section, artifact: Callable[[str], bytes]) -> Encoder:
    """Return the encoder that the checked `language_model` describes, in a file or by itself.

    NeMo writes the file whenever it saves, so one that only names a pretrained model is refused:
    its sizes would be those of a download. Source: NeMo 1.23 `get_huggingface_lm_model`, and the
    defaults of BertConfig and DistilBertConfig of transformers 4.36.
    """
    key = language_model.at("pretrained_model_name")
    name = language_model.values.get("pretrained_model_name")
    if not isinstance(name, str):
        refuse(key, name, "the name of a pretrained model")
    refuse_megatron(key, name)
    config = _find_config(language_model, artifact)
    architecture = _read_architecture(config, key, name)
    config.check(_KEYS[architecture])
    encoder = _read_bert(config) if architecture == "bert" else _read_distilbert(config)
    if encoder.width % encoder.heads:
        heads = "num_attention_heads" if architecture == "bert" else "n_heads"
        refuse(config.at(heads), encoder.heads, f"a divisor of the {encoder.width} hidden values")
    if language_model.values.get("config"):
        _refuse_disagreement(language_model.section("config"), config, architecture)
    return encoder


def refuse_megatron(key: str, name: str) -> None:
    """Refuse a model of Megatron-LM, and say why."""
    if "megatron" in name.lower():
        refuse(
            key,
            name,
            "an encoder of transformers; Megatron's normalises before its layers instead of "
            "behind them, fuses its projections, and is built by Megatron itself",
        )


def _read_bert(config: Section) -> Encoder:
    return Encoder(
        architecture="bert",
        vocabulary=config.integer("vocab_size", 30522, minimum=1),
        positions=config.integer("max_position_embeddings", 512, minimum=2),
        token_types=config.integer("type_vocab_size", 2, minimum=1),
        width=config.integer("hidden_size", 768, minimum=1),
        layers=config.integer("num_hidden_layers", 12, minimum=1),
        heads=config.integer("num_attention_heads", 12, minimum=1),
        inner=config.integer("intermediate_size", 3072, minimum=1),
        activation=config.choice("hidden_act", tuple(ENCODER_ACTIVATIONS), "gelu"),
        epsilon=config.number("layer_norm_eps", 1e-12, above=0),
    )


def _read_distilbert(config: Section) -> Encoder:
    return Encoder(
        architecture="distilbert",
        vocabulary=config.integer("vocab_size", 30522, minimum=1),
        positions=config.integer("max_position_embeddings", 512, minimum=2),
        token_types=0,
        width=config.integer("dim", 768, minimum=1),
        layers=config.integer("n_layers", 6, minimum=1),
        heads=config.integer("n_heads", 12, minimum=1),
        inner=config.integer("hidden_dim", 3072, minimum=1),
        activation=config.choice("activation", tuple(ENCODER_ACTIVATIONS), "gelu"),
        epsilon=1e-12,  # not configurable there
    )


def _read_architecture(config: Section, key: str, name: str) -> str:
    if "model_type" in config.values:
        return config.choice("model_type", tuple(_KEYS))
    architecture = name.rpartition("/")[2].partition("-")[0]
    if architecture not in _KEYS:
        names = " or ".join(f"`{known}-`" for known in _KEYS)
        refuse(key, name, f"a name that begins with {names}, where there is no `model_type`")
    return architecture


def _find_config(language_model: Section, artifact: Callable[[str], bytes]) -> Section:
    """Return the encoder's own configuration, for which NeMo prefers the file."""
    file = language_model.values.get("config_file")
    if not file and language_model.values.get("config"):
        return language_model.section("config")
    if not isinstance(file, str) or not file:
        refuse(_FILE, file, "the name of the encoder's configuration in the archive")
    data = artifact(file)
    try:
        config = json.loads(data) if len(data) <= _LARGEST_FILE else None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        refuse(_FILE, file, f"a JSON object of at most {_LARGEST_FILE} bytes")
    return Section(_FILE, config)


def _refuse_disagreement(inline: Section, config: Section, architecture: str) -> None:
    """Refuse an inline configuration that says something else than the file, which was read."""
    read = {key.name for key in _KEYS[architecture] if key.treatment == "used"}
    for key in sorted(read & inline.values.keys() & config.values.keys()):
        value, expected = inline.values[key], config.values[key]
        if value != expected:
            refuse_contradiction(inline.at(key), value, f"`{config.where}`", expected)
