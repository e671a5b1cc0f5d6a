"""What the five BERT families refuse, what they ignore, and other ways to say the same."""

import copy
import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from jarvis_rules.errors import IntegrityError, JarvisError
from jarvis_rules.exporters.exporter import export_model

from .exporter_testing import GRAPH, dump
from .language_testing import (
    FOLDER,
    LARGE,
    LEGACY,
    LEGACY_KEYS,
    MODULES,
    SAMPLES,
    encoder_of,
    expected_of,
    load,
    mutate,
    with_artifact,
    with_encoder,
)

# ---- configuration: (model, place, value); the place is the key that must be named

REFUSED = [
    ("qa", "tokenizer", None),
    ("qa", "tokenizer.tokenizer_name", None),
    ("qa", "tokenizer.tokenizer_name", "sentencepiece"),
    ("qa", "tokenizer.tokenizer_name", "word"),
    ("qa", "tokenizer.tokenizer_name", "my-bert"),
    ("qa", "tokenizer.tokenizer_name", "megatron-bert-345m-uncased"),
    ("qa", "tokenizer.vocab_file", None),
    ("qa", "tokenizer.vocab_file", 3),
    ("qa", "tokenizer.special_tokens", {"cls_token": "<s>"}),
    ("qa", "tokenizer.do_lower_case", True),
    ("qa", "language_model", None),
    ("qa", "language_model.pretrained_model_name", None),
    ("qa", "language_model.pretrained_model_name", "megatron-bert-345m-cased"),
    ("qa", "language_model.pretrained_model_name", "biomegatron345m_biovocab_30k_cased"),
    ("qa", "language_model.config_file", None),
    ("qa", "language_model.config_file", ["a"]),
    ("qa", "language_model.config", [1]),
    ("qa", "language_model.max_seq_length", 12),
    ("qa", "token_classifier", None),
    ("qa", "token_classifier.num_layers", 0),
    ("qa", "token_classifier.num_layers", 2**40),
    ("qa", "token_classifier.num_layers", True),
    ("qa", "token_classifier.num_classes", 3),
    ("qa", "token_classifier.log_softmax", "false"),
    ("qa", "token_classifier.norm", True),
    ("qa", "dataset", []),
    ("qa", "dataset.doc_stride", 0),
    ("qa", "dataset.n_best_size", "20"),
    ("qa", "dataset.version_2_with_negative", None),
    ("qa", "dataset.null_score_diff_threshold", float("nan")),
    ("qa", "dataset.new", 1),
    ("qa", "audio_encoder", {"_target_": "nemo.x.ConformerEncoder"}),
    ("token_classification", "head.activation", "gelu"),
    ("token_classification", "head.activation", None),
    ("token_classification", "head.num_fc_layers", None),
    ("token_classification", "head.log_softmax", True),
    ("token_classification", "dataset.pad_label", "X"),
    ("token_classification", "dataset.max_seq_length", "64"),
    ("token_classification", "label_ids", {"O": 0, "B": 2}),
    ("token_classification", "label_ids", {"O": 0, "B": True}),
    ("token_classification", "label_ids", {"O": 0, " B": 1}),
    ("token_classification", "label_ids", {"O": 0, 1: 1}),
    ("token_classification", "label_ids", {"O": 0, "a\nb": 1}),
    ("token_classification", "label_ids", {"O": 0, "\ud800": 1}),
    ("token_classification", "label_ids", "labels.csv"),
    ("token_classification", "class_labels.class_labels_file", 3),
    ("token_classification", "class_labels.other", "x"),
    ("token_classification", "class_labels", "x"),
    ("text_classification", "classifier_head.num_output_layers", "2"),
    ("text_classification", "dataset.num_classes", 0),
    ("intent_slot", "data_desc", None),
    ("intent_slot", "data_desc.intent_labels", " "),
    ("intent_slot", "data_desc.intent_labels", ["a", "a"]),
    ("intent_slot", "data_desc.slot_labels", ["a", None]),
    ("intent_slot", "head.num_output_layers", -1),
    ("intent_slot", "language_model.max_seq_length", "50"),
    ("punctuation", "common_dataset_parameters", None),
    ("punctuation", "punct_head", None),
    ("punctuation", "capit_head.num_fc_layers", 1.5),
    ("punctuation", "punct_head.punct_num_fc_layers", 2),
    ("punctuation", "retain_during_legacy_conversion", {"capit_head": {}}),
    (LEGACY, "punct_head.num_fc_layers", 2),
    (LEGACY, "punct_label_ids", None),
    (LEGACY, "dataset", None),
    (LEGACY, "dataset.tokens_in_batch", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "place", "value"), REFUSED, ids=lambda v: ascii(v)[:50])
def test_refused_by_name(name, place, value):
    model = load(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert error.value.exit_code == 1
    assert f"`{place}: " in error.value.message
    assert "understood is " in error.value.message
    assert len(error.value.message) < 600
    assert error.value.hint


REFUSED_OF_ENCODERS = [
    ("qa", "model_type", "roberta"),
    ("qa", "model_type", "albert"),
    ("qa", "model_type", None),
    ("qa", "model_type", ["bert"]),
    ("qa", "position_embedding_type", "relative_key"),
    ("qa", "position_embedding_type", "relative_key_query"),
    ("qa", "is_decoder", True),
    ("qa", "add_cross_attention", True),
    ("qa", "is_encoder_decoder", True),
    ("qa", "pruned_heads", {"0": [1]}),
    ("qa", "embedding_size", 128),
    ("qa", "hidden_act", "mish"),
    ("qa", "hidden_act", None),
    ("qa", "hidden_size", "48"),
    ("qa", "hidden_size", 0),
    ("qa", "hidden_size", 2**40),
    ("qa", "num_attention_heads", 5),
    ("qa", "num_attention_heads", 0),
    ("qa", "num_hidden_layers", True),
    ("qa", "intermediate_size", 96.0),
    ("qa", "layer_norm_eps", 0),
    ("qa", "layer_norm_eps", "small"),
    ("qa", "layer_norm_eps", float("inf")),
    ("qa", "type_vocab_size", -1),
    ("qa", "max_position_embeddings", None),
    ("qa", "max_position_embeddings", 1),
    ("qa", "adapters", {"a": 1}),
    (f"{FOLDER}/token_distilbert", "n_heads", 5),
    (f"{FOLDER}/token_distilbert", "activation", "mish"),
    (f"{FOLDER}/token_distilbert", "hidden_size", 24),
]


@pytest.mark.parametrize(("name", "key", "value"), REFUSED_OF_ENCODERS, ids=lambda v: str(v)[:50])
def test_encoders_are_refused_by_name(name, key, value):
    with pytest.raises(JarvisError) as error:
        export_model(with_encoder(load(name), **{key: value}))
    assert error.value.slug == "export.unsupported-config"
    assert f"`language_model.config_file.{key}: " in error.value.message
    assert len(error.value.message) < 600


def test_megatron_is_refused_with_the_reason():
    model = load("qa")
    model.config["language_model"]["pretrained_model_name"] = "megatron-bert-uncased"
    with pytest.raises(JarvisError, match="Megatron's normalises before its layers"):
        export_model(model)


def test_a_pretrained_model_that_is_only_named_is_refused():
    """Its sizes would be those of a download."""
    model = load("qa")
    model.config["language_model"]["config_file"] = None
    with pytest.raises(JarvisError, match="encoder's configuration in the archive"):
        export_model(model)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 200_000,
        b" " * (1 << 21),
    ],
    ids=lambda data: str(len(data)),
)
def test_damaged_encoder_configurations_are_refused(data):
    model = load("qa")
    model = with_artifact(model, model.config["language_model"]["config_file"], data)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unsupported-config"
    assert "`language_model.config_file: " in error.value.message
    assert "a JSON object" in error.value.message


def test_the_encoder_may_be_configured_inline():
    model = load("qa")
    expected = dump(export_model(model))
    model.config["language_model"].update(config=encoder_of(model), config_file=None)
    assert dump(export_model(model)) == expected
    del model.config["language_model"]["config"]["model_type"]
    assert dump(export_model(model)) == expected
    model.config["language_model"]["pretrained_model_name"] = "roberta-base"
    with pytest.raises(JarvisError, match=r"pretrained_model_name: 'roberta-base'"):
        export_model(model)


def test_defaults_of_transformers_apply():
    """To a configuration without sizes; they are found to be those of other weights."""
    model = load("qa")
    file = model.config["language_model"]["config_file"]
    for kind, width in (("bert", 768), ("distilbert", 768)):
        data = json.dumps({"model_type": kind}).encode()
        with pytest.raises(
            IntegrityError, match=rf"word_embeddings.weight` must be \[30522, {width}\]"
        ):
            export_model(with_artifact(model, file, data))


# ---- every key of every section


def all_keys():
    """Yield family, section and key; what the families share, with the first of them."""
    seen = set()
    for module in MODULES:
        for place, keys in module.EXPORTER.sections.items():
            if id(keys) not in seen:
                seen.add(id(keys))
                yield from ((module.EXPORTER.family, place, key) for key in keys)


KEYS = list(all_keys())


def sample_for(family, place):
    """Return the name of a model that has the section `place`."""
    if place.endswith("(distilbert)"):
        return f"{FOLDER}/token_distilbert"
    is_legacy = family == "punctuation" and place in ("dataset", *LEGACY_KEYS)
    return LEGACY if is_legacy or place.endswith("(legacy)") else SAMPLES[family]


def with_key(family, place, key, value):
    """Return a model with one key changed, and the name of the key in messages."""
    model = load(sample_for(family, place or key))
    place = place.removesuffix(" (legacy)")
    where = f"{place}.{key}".lstrip(".")
    if "(" in place:
        return with_encoder(model, **{key: value}), f"language_model.config_file.{key}"
    mutate(model.config, where, value)
    return model, where


def is_read(entry):
    _, place, key = entry
    if key.treatment == "ignored":
        return False
    # The file wins over `config`, a class chooses the exporter, one layer has no activation.
    unread = {("language_model", "config"), ("", "target"), ("capit_head (legacy)", "activation")}
    return (place, key.name) not in unread


@pytest.mark.parametrize(("family", "place", "key"), [k for k in KEYS if is_read(k)], ids=str)
def test_no_key_that_matters_is_read_carelessly(family, place, key):
    model, where = with_key(family, place, key.name, {"nonsense": 1})
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug in ("export.unsupported-config", "export.contradicting-config")
    assert f"`{where}" in error.value.message


@pytest.mark.parametrize(
    ("family", "place", "key"), [k for k in KEYS if k[2].treatment != "used"], ids=str
)
def test_other_keys_change_nothing(family, place, key):
    values = ["anything"] if key.treatment == "ignored" else key.values
    assert key.reason or key.treatment == "neutral"
    for value in values:
        model, _ = with_key(family, place, key.name, value)
        assert dump(export_model(model)) == expected_of(sample_for(family, place or key.name))


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("qa", "token_classifier.activation", "gelu"),  # one layer has none
        ("qa", "tokenizer.tokenizer_name", "bert-large-uncased"),
        ("qa", "language_model.config_file", "bert-base-uncased_encoder_config.json"),
        ("qa", "tokenizer.vocab_file", "/data/nemo/vocab.txt"),
        ("qa", "nemo_path", "qa.nemo"),
        ("qa", "tensor_model_parallel_size", 1),
        ("token_classification", "class_labels", None),
        ("token_classification", "class_labels.class_labels_file", "elsewhere.csv"),
        ("token_classification", "label_ids", None),
        ("intent_slot", "class_labels", None),
        ("intent_slot", "data_desc.intent_label_ids", None),
        ("intent_slot", "data_desc.slot_labels", None),
        ("punctuation", "common_dataset_parameters.capit_label_ids", {"U": 1, "O": 0}),
        (LEGACY, "punct_head.activation", "tanh"),
    ],
)
def test_other_ways_to_say_the_same(name, place, value):
    model = load(name)
    mutate(model.config, place, value)
    assert dump(export_model(model)) == expected_of(name)


def test_older_configurations_give_the_same_graph():
    """The recorded one of NeMo 1.0 against its 1.23 form."""
    model = load(LEGACY)
    for kind in ("punct", "capit"):
        head = model.config[f"{kind}_head"]
        head["num_fc_layers"] = head.pop(f"{kind}_num_fc_layers")
    model.config["common_dataset_parameters"] = {
        key: model.config.pop(key) for key in ("punct_label_ids", "capit_label_ids")
    } | {"pad_label": model.config.pop("dataset")["pad_label"]}
    assert dump(export_model(model)) == expected_of(LEGACY)
    for key in ("nemo_version", "test_ds", "tokenizer_vocab_dict"):
        del model.config[key]
    assert dump(export_model(model)) == expected_of(LEGACY)


@pytest.mark.parametrize(
    ("name", "place", "value"),
    [
        ("qa", "dataset.max_seq_length", 513),
        ("qa", "language_model.config", {"num_attention_heads": 2}),
        ("qa", "language_model.config", {"layer_norm_eps": 1e-5, "hidden_size": 48}),
        ("token_classification", "label_ids", {"O": 0, "B-LOC": 1}),
        ("token_classification", "label_ids", {"O": 0, "X": 1, "B-ORG": 2, "B-PER": 3, "I-LOC": 4}),
        ("text_classification", "dataset.num_classes", 4),
        ("intent_slot", "data_desc.intent_labels", ["light.off", "light.on", "a", "b"]),
        ("intent_slot", "data_desc.slot_label_ids", {"O": 0}),
        ("punctuation", "common_dataset_parameters.capit_label_ids", {"O": 1, "U": 0}),
        ("punctuation", "common_dataset_parameters.pad_label", ","),
        ("punctuation", "common_dataset_parameters.pad_label", None),
    ],
)  # fmt: skip
def test_contradictions_are_refused(name, place, value):
    model = load(name)
    mutate(model.config, place, value)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.contradicting-config"
    assert error.value.exit_code == 1
    assert len(error.value.message) < 600


@pytest.mark.timeout(30)
def test_shared_and_circular_values_do_no_harm():
    model = load("punctuation")
    shared = ["x"]
    for _ in range(100):
        shared = [shared, shared]
    circle = {}
    circle["again"] = circle
    model.config.update(notes=shared, circle=circle)
    export_model(model)
    for place in ("language_model.pretrained_model_name", "class_labels", "punct_head.activation"):
        broken = load("variants/language_model/punct_heads")
        mutate(broken.config, place, shared)
        with pytest.raises(JarvisError, match=place):
            export_model(broken)


# ---- artifacts


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (b"", "`[PAD]`, `[UNK]`, `[CLS]`, `[SEP]`"),
        (b"[PAD]\n[UNK]\n[CLS]\n", "`[SEP]`"),
        (b"\xff\xfe[PAD]", "`[PAD]`"),
    ],
)
def test_vocabularies_that_lack_a_token_are_refused(data, named):
    model = load("qa")
    with pytest.raises(JarvisError) as error:
        export_model(with_artifact(model, model.config["tokenizer"]["vocab_file"], data))
    assert error.value.slug == "export.unsupported-config"
    assert "`tokenizer.vocab_file: " in error.value.message
    assert named in error.value.message


def test_a_vocabulary_fits_the_embeddings():
    """Fewer tokens than rows are fine; lines end as in a text file of Python."""
    model = load("qa")
    file = model.config["tokenizer"]["vocab_file"]
    crlf = b"[PAD]\r\n[UNK]\r\n\xe2\x80\xa8\r\n[CLS]\r\n[SEP]"
    tokenizer = export_model(with_artifact(model, file, crlf)).facts["tokenizer"]
    assert [tokenizer[f"{kind}_id"] for kind in ("pad", "unk", "cls", "sep")] == [0, 1, 3, 4]
    longer = model.artifact(file) + b"one\nmore\n"
    with pytest.raises(JarvisError) as error:
        export_model(with_artifact(model, file, longer))
    assert error.value.slug == "export.contradicting-config"
    assert "2220 tokens" in error.value.message
    assert "the number of word embeddings says 2218" in error.value.message


@pytest.mark.parametrize("data", [b"", b"a\n\nb", b"a\na", b"\xff"])
def test_label_files_that_make_no_sense_are_refused(data):
    model = load("text_classification")
    file = model.config["class_labels"]["class_labels_file"]
    with pytest.raises(JarvisError, match=r"`class_labels\.class_labels_file: "):
        export_model(with_artifact(model, file, data))


def test_a_label_file_that_the_archive_promises_must_be_there():
    """A plain name is only what training was told to write; a broken archive stays an error."""
    model = load("token_classification")
    file = model.config["class_labels"]["class_labels_file"]
    missing = IntegrityError("no member", slug="nemo.missing-artifact", hint="-")
    with pytest.raises(IntegrityError, match="no member"):
        export_model(with_artifact(model, file, missing))
    broken = IntegrityError("two of them", slug="nemo.ambiguous-artifact", hint="-")
    model.config["class_labels"]["class_labels_file"] = "labels.csv"
    with pytest.raises(IntegrityError, match="two of them"):
        export_model(with_artifact(model, "labels.csv", broken))
    model.config["label_ids"] = None
    with pytest.raises(JarvisError, match=r"`label_ids: None`"):
        export_model(model)


# ---- weights


def needed(name):
    weights = load(name).weights
    return [w for w in weights if "pooler" not in w and not w.endswith("loss.weight")]


@pytest.mark.parametrize("name", [*LARGE, f"{FOLDER}/text_distilbert"])
def test_every_missing_weight_is_named(name):
    for weight in needed(name):
        model = load(name)
        del model.weights[weight]
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.missing-weight"
        assert error.value.exit_code == 3
        assert f"`{weight}`" in error.value.message


@pytest.mark.parametrize("name", [*LARGE, f"{FOLDER}/text_distilbert"])
def test_every_wrong_shape_is_named(name):
    for weight in needed(name):
        model = load(name)
        array = model.weights[weight]
        model.weights[weight] = np.concatenate([array, array[:1]])
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.wrong-shape"
        assert f"`{weight}` must be {list(array.shape)} " in error.value.message


@pytest.mark.parametrize("name", LARGE)
def test_weights_that_are_no_numbers_are_refused(name):
    for weight in ("bert_model.embeddings.word_embeddings.weight", needed(name)[-1]):
        model = load(name)
        array = model.weights[weight]
        model.weights[weight] = np.where(np.arange(array.size).reshape(array.shape), array, np.nan)
        with pytest.raises(IntegrityError) as error:
            export_model(model)
        assert error.value.slug == "export.invalid-weight"
        assert f"`{weight}`" in error.value.message
        model.weights[weight] = array.astype(np.int64)
        with pytest.raises(IntegrityError, match="must be floating point"):
            export_model(model)


def test_labels_must_fit_the_head():
    model = load("token_classification")
    model.config["label_ids"]["B-NEW"] = 5
    model.config["class_labels"] = None
    with pytest.raises(IntegrityError, match=r"layer2.weight` must be \[6, 48\] .* is \[5, 48\]"):
        export_model(model)


@pytest.mark.parametrize("name", LARGE)
def test_unused_weights_are_named(name):
    model = load(name)
    model.weights["bert_model.embeddings.position_ids"] = np.arange(512)[None]
    assert dump(export_model(model)) == expected_of(name)
    model.weights["bert_model.encoder.layer.2.output.dense.bias"] = np.zeros(48)
    with pytest.raises(JarvisError) as error:
        export_model(model)
    assert error.value.slug == "export.unused-weight"
    assert "`bert_model.encoder.layer.2.output.dense.bias`" in error.value.message


@pytest.mark.timeout(30)
def test_huge_sizes_end_at_the_first_weight():
    for changes, weight in (
        ({"num_hidden_layers": 10**9}, r"layer\.2\.attention\.self\.query\.weight` \[48, 48\] is"),
        ({"vocab_size": 2**31 - 1}, r"word_embeddings\.weight` must be \[2147483647, 48\]"),
        ({"hidden_size": 2**30, "num_attention_heads": 1}, "word_embeddings"),
    ):
        with pytest.raises(IntegrityError, match=weight):
            export_model(with_encoder(load("qa"), **changes))
    model = load("token_classification")
    model.config["head"]["num_fc_layers"] = 10**9
    with pytest.raises(IntegrityError, match=r"mlp\.layer2\.weight"):
        export_model(model)


def test_weights_in_half_precision_are_widened():
    model = load("intent_slot")
    halves = {
        k: v.astype(np.float16) if v.dtype.kind == "f" else v for k, v in model.weights.items()
    }
    graph = onnx.load_from_string(dump(export_model(replace(model, weights=halves)))[GRAPH]).graph
    assert {i.data_type for i in graph.initializer} == {1, 7}


def test_the_source_is_left_as_it_was():
    model = load("punctuation")
    config = copy.deepcopy(model.config)
    weights = {k: v.copy() for k, v in model.weights.items()}
    dump(export_model(model))
    assert model.config == config
    assert all(np.array_equal(model.weights[k], v) for k, v in weights.items())


def test_sections_list_each_key_once():
    for module in MODULES:
        for keys in module.EXPORTER.sections.values():
            names = [key.name for key in keys]
            assert len(set(names)) == len(names)
