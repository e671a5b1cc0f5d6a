"""What all language models share: configuration, encoder, tokenizer, and the finished archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jarvis_rules.exporters._bert import add_encoder
from jarvis_rules.exporters._bert_config import (
    BERT_KEYS,
    DISTILBERT_KEYS,
    LANGUAGE_MODEL_KEYS,
    Encoder,
    read_encoder,
)
from jarvis_rules.exporters._classifier import Head, add_head
from jarvis_rules.exporters._config import Key, Section, check_model_keys, ignored, used
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._language_artifacts import (
    TOKENIZER_KEYS,
    VOCABULARY,
    dump_labels,
    read_tokenizer,
)
from jarvis_rules.exporters.exporter import ExportedModel, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph, Value

MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "tokenizer", "language_model"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim"),
    *ignored("the vocabulary once more; NeMo reads `tokenizer.vocab_file`", "tokenizer_vocab_dict"),
    *ignored("which NeMo saved it; older files mean the same", "nemo_version"),
)
"""Of every language model, each adds its own. Others are ignored unless they build a module."""

SHARED_SECTIONS: Mapping[str, tuple[Key, ...]] = {
    "tokenizer": TOKENIZER_KEYS,
    "language_model": LANGUAGE_MODEL_KEYS,
    "language_model.config_file (bert)": BERT_KEYS,
    "language_model.config_file (distilbert)": DISTILBERT_KEYS,
    "language_model.config (bert)": BERT_KEYS,
    "language_model.config (distilbert)": DISTILBERT_KEYS,
}

UNUSED: tuple[UnusedWeight, ...] = (
    UnusedWeight("bert_model.pooler.*", "NeMo classifies hidden states, not the pooled one"),
    UnusedWeight("bert_model.embeddings.position_ids", "0, 1, 2 …, saved by older transformers"),
)
CLASS_WEIGHTS = "class weights of a training loss"


@dataclass(slots=True)
class LanguageModel:
    """A model under construction: its graph so far, and the last hidden states."""

    family: str
    graph: Graph
    weights: Mapping[str, np.ndarray]
    encoder: Encoder
    hidden: Value
    tokenizer: Mapping[str, Any]
    assets: dict[str, bytes]

    def add_output(self, name: str, head: Head, weights: str, x: Value, classes: int) -> None:
        """Write a head on `x` as the graph's output `name`."""
        scores = add_head(self.graph, self.weights, weights, head, x, self.encoder.width, classes)
        self.graph.output(scores, name)

    def add_labels(self, file: str, labels: list[str]) -> None:
        """Add a label file to the archive."""
        self.assets[file] = dump_labels(labels)

    def finish(self, facts: Mapping[str, Any]) -> ExportedModel:
        """Return the model, with what serving needs of every language model added to `facts`."""
        shared = {
            "task": self.family,
            "encoder": self.encoder.architecture,
            "max_position_embeddings": self.encoder.positions,
            "vocabulary_size": self.encoder.vocabulary,
            "token_types": self.encoder.token_types,
            "tokenizer": dict(self.tokenizer),
            **describe_graph(self.graph),
        }
        graphs = {"model_graph.onnx": self.graph}
        return ExportedModel(self.family, graphs, self.assets, {**shared, **facts})


def start_language_model(
    family: str, source: SourceModel, sections: Mapping[str, Sequence[Key]]
) -> LanguageModel:
    """Return a model with the encoder written; `sections` are all that the family reads.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`, and what
    reading an artifact raises.
    """
    model = Section("", source.config)
    check_model_keys(model, sections[""])
    language_model = model.section("language_model")
    language_model.check(sections["language_model"])
    encoder = read_encoder(language_model, source.artifact)
    tokenizer = model.section("tokenizer")
    facts, vocabulary = read_tokenizer(tokenizer, source.artifact, encoder.vocabulary)
    graph = Graph(family)
    hidden = add_encoder(graph, source.weights, encoder)
    assets = {VOCABULARY: vocabulary}
    return LanguageModel(family, graph, source.weights, encoder, hidden, facts, assets)


def trained_length(section: Section) -> int | None:
    """Return `max_seq_length` of `section`: what training cut its texts to, if it did."""
    if section.values.get("max_seq_length") is None:
        return None
    length = section.integer("max_seq_length")
    return length if length > 0 else None
