"""Recorded language models for the tests of their exporters, and changes to them."""

import functools
import json
from dataclasses import replace

import numpy as np

from jarvis_rules.exporters import (
    intent_slot,
    punctuation,
    question_answering,
    text_classification,
    token_classification,
)
from jarvis_rules.exporters.exporter import export_model

from .exporter_testing import GRAPH, dump, source, variants

MODULES = (
    question_answering,
    token_classification,
    text_classification,
    intent_slot,
    punctuation,
)
LARGE = ("qa", "token_classification", "text_classification", "intent_slot", "punctuation")
VARIANTS = variants("language_model")
FOLDER = "variants/language_model"
# For each family one model whose heads have an activation, so that all keys matter.
SAMPLES = {
    "question_answering": f"{FOLDER}/qa_log_softmax",
    "token_classification": "token_classification",
    "text_classification": "text_classification",
    "intent_slot": "intent_slot",
    "punctuation": f"{FOLDER}/punct_heads",
}
LEGACY = f"{FOLDER}/punct_legacy"
LEGACY_KEYS = ("punct_label_ids", "capit_label_ids")  # at the top of older configurations
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@functools.cache
def artifact_of(name):
    return functools.cache(source(name).artifact)


def load(name):
    return replace(source(name), artifact=artifact_of(name))


def with_artifact(model, reference, data):
    """Return `model` with other bytes, or an error, for one artifact."""

    def artifact(name):
        if name != reference:
            return model.artifact(name)
        if isinstance(data, Exception):
            raise data
        return data

    return replace(model, artifact=artifact)


def encoder_of(model):
    return json.loads(model.artifact(model.config["language_model"]["config_file"]))


def with_encoder(model, **changes):
    """Return `model` with changes in the archived configuration of its encoder."""
    data = json.dumps(encoder_of(model) | changes).encode()
    return with_artifact(model, model.config["language_model"]["config_file"], data)


def mutate(config, place, value):
    *parents, last = place.split(".")
    for part in parents:
        config = config[part]
    config[last] = value


def with_garbage(name, record):
    """Return the inputs of a record with random tokens where the mask hides them."""
    encoder = encoder_of(load(name))
    noise, hidden = np.random.RandomState(5), record["attention_mask"] == 0
    noisy = {"attention_mask": record["attention_mask"]}
    for key, rows in (
        ("input_ids", encoder["vocab_size"]),
        ("token_type_ids", encoder.get("type_vocab_size", 2)),
    ):
        noisy[key] = np.where(hidden, noise.randint(0, rows, hidden.shape), record[key])
    return noisy


class Runner:
    """An exported language model in onnxruntime, on one thread; extra inputs are left out."""

    def __init__(self, model):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            dump(model)[GRAPH], options, providers=["CPUExecutionProvider"]
        )
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def __call__(self, feed):
        results = self.session.run(None, {name: feed[name] for name in self.inputs})
        return dict(zip(self.outputs, results, strict=True))


@functools.cache
def runner(name):
    return Runner(export_model(load(name)))


@functools.cache
def expected_of(name):
    return dump(export_model(load(name)))
