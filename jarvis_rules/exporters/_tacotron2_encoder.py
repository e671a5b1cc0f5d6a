"""Text encoder and postnet of Tacotron 2: their configuration and their graphs.

Semantics: NeMo 1.23 nemo.collections.tts.modules.tacotron2, Encoder and Postnet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._config import Key, Section, ignored, refuse, used
from jarvis_rules.exporters._weights import require_finite, take_float32, take_weight
from jarvis_rules.onnx_graph.folding import fold_batch_norm
from jarvis_rules.onnx_graph.graph import Graph, Value

EMBEDDING = 512  # Tacotron2Model's own number: `text_embedding` has it whatever the encoder says
_HIDDEN = EMBEDDING // 2
_ENCODERS = (
    "nemo.collections.tts.modules.tacotron2.Encoder",
    "nemo.collections.tts.modules.Taco2Encoder",
)
_POSTNETS = (
    "nemo.collections.tts.modules.tacotron2.Postnet",
    "nemo.collections.tts.modules.Taco2Postnet",
)
ENCODER_KEYS: tuple[Key, ...] = used(
    "_target_", "encoder_n_convolutions", "encoder_embedding_dim", "encoder_kernel_size"
)
POSTNET_KEYS: tuple[Key, ...] = (
    *used("_target_", "n_mel_channels", "postnet_embedding_dim", "postnet_kernel_size"),
    *used("postnet_n_convolutions"),
    *ignored("training only", "p_dropout"),
)
_BATCH_NORM_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class Encoder:
    """The understood configuration of an Encoder."""

    convolutions: int
    kernel: int


@dataclass(frozen=True, slots=True)
class Postnet:
    """The understood configuration of a Postnet; `convolutions` as NeMo makes them, at least 2."""

    mels: int
    channels: int
    kernel: int
    convolutions: int


def read_encoder(section: Section) -> Encoder:
    """Return the configuration of the encoder; JarvisError `export.unsupported-config`."""
    section.choice("_target_", _ENCODERS)
    section.check(ENCODER_KEYS)
    size = section.integer("encoder_embedding_dim")
    if size != EMBEDDING:
        refuse(section.at("encoder_embedding_dim"), size, f"`{EMBEDDING}`, NeMo's text embedding")
    return Encoder(
        convolutions=section.integer("encoder_n_convolutions", minimum=0),
        kernel=read_odd(section, "encoder_kernel_size"),
    )


def read_postnet(section: Section) -> Postnet:
    """Return the configuration of the postnet; JarvisError `export.unsupported-config`."""
    section.choice("_target_", _POSTNETS)
    section.check(POSTNET_KEYS)
    return Postnet(
        mels=section.integer("n_mel_channels", minimum=1),
        channels=section.integer("postnet_embedding_dim", minimum=1),
        kernel=read_odd(section, "postnet_kernel_size"),
        # The first and the last one are always there.
        convolutions=max(2, section.integer("postnet_n_convolutions", minimum=0)),
    )


def read_odd(section: Section, key: str) -> int:
    """Return an odd kernel size: an even one shortens the axis, and NeMo fails when it adds up."""
    size = section.integer(key, minimum=1)
    if not size % 2:
        refuse(section.at(key), size, "an odd number")
    return size


def build_encoder(
    encoder: Encoder,
    weights: Mapping[str, np.ndarray],
    *,
    vocabulary: int,
    attention: int,
    batch_invariant: bool,
) -> Graph:
    """Return the graph from token ids to what the decoder attends to.

    `text` int64 [batch, tokens] and `text_length` int64 [batch] give `encoder_embedding` float32
    [batch, tokens, 512] and `processed_memory` float32 [batch, tokens, attention], both 0 beyond
    the lengths, and `mask` bool [batch, tokens], true beyond them. `vocabulary` is the number
    of tokens. Ids beyond the lengths may be anything unless `batch_invariant` is false: then
    they are embedded and enter the convolutions, as in NeMo. Raises what `take_weight` raises.
    """
    graph = Graph("tacotron2_encoder")
    text = graph.input("text", "int64", ("batch", "tokens"))
    lengths = graph.input("text_length", "int64", ("batch",))
    valid = graph.valid(lengths, text, 1)
    mask = graph.mask(lengths, text)
    if batch_invariant:
        text = graph.where(valid, text, graph.number(0, "int64"))
    table = take_float32(weights, "text_embedding.weight", (vocabulary, EMBEDDING))
    x = graph.transpose(graph.gather(graph.constant(table), text), (0, 2, 1))
    for i in range(encoder.convolutions):
        if batch_invariant:
            x = graph.mul(x, mask)
        name, size = f"encoder.convolutions.{i}", (EMBEDDING, EMBEDDING, encoder.kernel)
        x = graph.activate(_add_conv_norm(graph, weights, name, x, size), "relu")
    x = graph.transpose(x, (2, 0, 1))
    forward = _add_lstm(graph, weights, "_l0", x)
    # LSTM has lengths of its own, but TensorRT cannot build that in half precision.
    turned = _add_lstm(graph, weights, "_l0_reverse", _reverse(graph, x, lengths))
    both = graph.concat((forward, _reverse(graph, turned, lengths)), 2)
    memory = graph.transpose(both, (1, 0, 2))
    memory = graph.mul(memory, graph.transpose(mask, (0, 2, 1)))
    name = "decoder.attention_layer.memory_layer.linear_layer.weight"
    processed = graph.linear(memory, take_float32(weights, name, (attention, EMBEDDING)))
    graph.output(memory, "encoder_embedding")
    graph.output(processed, "processed_memory")
    graph.output(graph.apply("Not", valid), "mask")
    return graph


def build_postnet(postnet: Postnet, weights: Mapping[str, np.ndarray]) -> Graph:
    """Return the graph from `mel` to `mel_postnet`, both float32 [batch, n_mel, frames].

    There are no lengths: pass each item with its own frames alone. Raises what `take_weight`
    raises.
    """
    graph = Graph("tacotron2_postnet")
    mel = graph.input("mel", "float32", ("batch", postnet.mels, "frames"))
    x, inputs = mel, postnet.mels
    for i in range(postnet.convolutions):
        last = i == postnet.convolutions - 1
        size = (postnet.mels if last else postnet.channels, inputs, postnet.kernel)
        x, inputs = _add_conv_norm(graph, weights, f"postnet.convolutions.{i}", x, size), size[0]
        if not last:
            x = graph.apply("Tanh", x)
    graph.output(graph.add(mel, x), "mel_postnet")
    return graph


def _add_conv_norm(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    name: str,
    x: Value,
    size: tuple[int, int, int],
) -> Value:
    """Add a convolution with the batch norm behind it folded in."""
    key, norm, channels = f"{name}.0.conv", f"{name}.1", size[:1]
    gain, shift, mean, variance = (
        take_weight(weights, f"{norm}.{leaf}", channels)
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    folded = fold_batch_norm(
        take_weight(weights, f"{key}.weight", size),
        bias=take_weight(weights, f"{key}.bias", channels),
        gain=gain,
        shift=shift,
        mean=mean,
        variance=variance,
        eps=_BATCH_NORM_EPS,
    )
    for array in folded:
        # A negative variance or a gain beyond float32 shows here only.
        require_finite(f"`{key}` with the batch norm `{norm}`", array)
    return graph.conv(x, *folded, pads=(size[2] // 2, size[2] // 2))


def _add_lstm(graph: Graph, weights: Mapping[str, np.ndarray], suffix: str, x: Value) -> Value:
    """Return the outputs [tokens, batch, hidden] of one direction of the LSTM over `x`."""
    name, rows = "encoder.lstm", 4 * _HIDDEN
    inner = take_float32(weights, f"{name}.weight_ih{suffix}", (rows, EMBEDDING))
    recurrent = take_float32(weights, f"{name}.weight_hh{suffix}", (rows, _HIDDEN))
    biases = [
        _order_gates(take_float32(weights, f"{name}.bias_{side}{suffix}", (rows,)))
        for side in ("ih", "hh")
    ]
    out = graph.apply(
        "LSTM",
        x,
        graph.constant(_order_gates(inner)[None]),
        graph.constant(_order_gates(recurrent)[None]),
        graph.constant(np.concatenate(biases)[None]),
        shape=(x.shape[0], 1, x.shape[1], _HIDDEN),
        hidden_size=_HIDDEN,
    )
    return graph.squeeze(out, 1)


def _order_gates(array: np.ndarray) -> np.ndarray:
    """Return the rows of torch's gates i, f, g, o in ONNX's order i, o, f, c."""
    i, f, g, o = np.split(array, 4)
    return np.concatenate([i, o, f, g])


def _reverse(graph: Graph, x: Value, lengths: Value) -> Value:
    """Return `x` [tokens, batch, …] with the first `lengths` of each item in reverse."""
    return graph.apply("ReverseSequence", x, lengths, time_axis=0, batch_axis=1)
