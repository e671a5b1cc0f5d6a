"""WaveGlow: a vocoder of invertible flows, from a mel spectrogram and noise to audio.

One graph, the inverse direction alone: weight norm is folded and the 1×1 convolutions are inverted
at export. Semantics: NeMo 1.23 WaveGlowModel, WaveGlowModule, WaveNet, Invertible1x1Conv.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jarvis_rules.exporters._config import (
    Key,
    Section,
    ignored,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._filterbank import KEYS as FILTERBANK_KEYS
from jarvis_rules.exporters._filterbank import read_filterbank
from jarvis_rules.exporters._weight_norm import take_normed_weight
from jarvis_rules.exporters._weights import require_finite, take_float32
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.folding import invert_matrix
from jarvis_rules.onnx_graph.graph import Graph, Value

_TARGETS = (
    "nemo.collections.tts.modules.waveglow.WaveGlowModule",
    "nemo.collections.tts.modules.WaveGlowModule",
)
# The upsampling is fixed in WaveGlowModule, whatever the preprocessor says.
HOP = 256
_UPSAMPLE_KERNEL = 1024
_MOST_LAYERS = 24  # the dilation doubles from layer to layer: more span hours of audio
# Defaults of `convert_spectrogram_to_audio`, and the zero frames that its denoiser listens to.
_SIGMA = 1.0
_DENOISER: Mapping[str, Any] = {
    "in_graph": False,
    "strength": 0.01,
    "bias_frames": 88,
    "bias_sigma": 0.0,
}

MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "waveglow", "sigma"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim"),
)
"""Other keys of the model are ignored: WaveGlowModel reads none, and weights of a module that they
might build would be left over, which is an error."""
MODULE_KEYS: tuple[Key, ...] = (
    *used("_target_", "n_mel_channels", "n_flows", "n_group", "n_early_every", "n_early_size"),
    *used("n_wn_channels", "n_wn_layers", "wn_kernel_size"),
)


@dataclass(frozen=True, slots=True)
class Module:
    """The understood configuration of a WaveGlowModule."""

    mels: int
    flows: int
    group: int
    early_every: int
    early_size: int
    channels: int
    layers: int
    kernel: int

    def channels_at(self, flow: int) -> int:
        """Return how many of the `group` samples still take part in a flow."""
        return self.group - self.early_size * (flow // self.early_every)

    def context(self) -> int:
        """Return how many frames at either side a sample depends on, upsampling not counted."""
        reach = self.flows * (self.kernel // 2) * ((1 << self.layers) - 1)
        return -(-reach * self.group // HOP)


def export_waveglow(source: SourceModel) -> ExportedModel:
    """Return the graph and the facts of a WaveGlow vocoder.

    `spec` float32 [batch, n_mel, frames] and `z` float32 [batch, n_group, 256 * frames / n_group]
    give `audio` float32 [batch, 256 * frames]. `z` is normal noise times sigma: the caller draws
    and scales it, so that a result can be repeated. NeMo's bias denoiser is not part of the graph;
    the facts have what it needs. There are no lengths: items of different length run apart, or
    are cut `context_frames` beyond their end.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`.
    """
    model = Section("", source.config)
    features = read_filterbank(model.section("preprocessor"))
    module = _read_module(model.section("waveglow"))
    _require_equal(features, "n_window_stride", HOP, "the upsampling of WaveGlowModule")
    _require_equal(features, "features", module.mels, "`waveglow.n_mel_channels`")
    training_sigma = model.number("sigma", 1.0, above=0)

    graph = _build_graph(module, source.weights)
    context = module.context()
    facts = {
        "task": "vocoder",
        "sample_rate": features["sample_rate"],
        "hop_length": HOP,
        "n_group": module.group,
        "groups_per_frame": HOP // module.group,
        "sigma": _SIGMA,
        "training_sigma": training_sigma,
        "denoiser": dict(_DENOISER),
        "context_frames": {"left": context + _UPSAMPLE_KERNEL // HOP - 1, "right": context},
        "features": features,
        **describe_graph(graph),
    }
    return ExportedModel("waveglow", {"model_graph.onnx": graph}, {}, facts)


def _read_module(section: Section) -> Module:
    section.choice("_target_", _TARGETS)
    section.check(MODULE_KEYS)
    module = Module(
        mels=section.integer("n_mel_channels", minimum=1),
        flows=section.integer("n_flows", minimum=1),
        group=section.integer("n_group", minimum=2),
        early_every=section.integer("n_early_every", minimum=1),
        early_size=section.integer("n_early_size", minimum=0),
        channels=section.integer("n_wn_channels", minimum=2),
        layers=section.integer("n_wn_layers", minimum=1),
        kernel=section.integer("wn_kernel_size", minimum=1),
    )
    if module.group % 2 or HOP % module.group:
        # NeMo pads the last group with zeros then, and the audio grows beyond its frames.
        refuse(section.at("n_group"), module.group, f"an even divisor of {HOP}")
    if module.early_size % 2 or module.channels_at(module.flows - 1) < 2:
        refuse(section.at("n_early_size"), module.early_size, "an even size that leaves samples")
    if module.layers > _MOST_LAYERS:
        refuse(section.at("n_wn_layers"), module.layers, f"at most {_MOST_LAYERS} layers")
    if module.channels % 2:
        refuse(section.at("n_wn_channels"), module.channels, "an even number")
    if not module.kernel % 2:
        refuse(section.at("wn_kernel_size"), module.kernel, "an odd number")
    return module


def _require_equal(features: Mapping[str, Any], key: str, expected: int, other: str) -> None:
    if features[key] != expected:
        name = {"features": "nfilt"}.get(key, key)
        refuse_contradiction(f"preprocessor.{name}", features[key], other, expected)


def _build_graph(m: Module, weights: Mapping[str, np.ndarray]) -> Graph:
    graph = Graph("waveglow")
    spec = graph.input("spec", "float32", ("batch", m.mels, "frames"))
    noise = graph.input("z", "float32", ("batch", m.group, "groups"))
    spec = _upsample(graph, m, weights, spec)
    # The samples pass through every flow, and in half precision each would round them again, to 11
    # bits. The networks that compute shift and scale may be less exact.
    with graph.full_precision():
        audio, late = _split_noise(graph, m, noise)
    for flow in reversed(range(m.flows)):
        channels = m.channels_at(flow)
        half = channels // 2
        with graph.full_precision():
            kept, turned = graph.split(audio, (half, half), 1)
        scores = _add_wavenet(graph, m, weights, flow, kept, spec)
        inverse = _take_inverse(weights, f"waveglow.convinv.{flow}.conv.weight", channels)
        with graph.full_precision():
            shift, scale = graph.split(scores, (half, half), 1)
            turned = graph.div(graph.sub(turned, shift), graph.apply("Exp", scale))
            audio = graph.conv(graph.concat((kept, turned), 1), inverse)
            if late and flow % m.early_every == 0:
                audio = graph.concat((late.pop(0), audio), 1)
    with graph.full_precision():
        audio = graph.transpose(audio, (0, 2, 1))
        audio = graph.reshape(audio, (0, -1), ("batch", "samples"))
    graph.output(audio, "audio")
    return graph


def _split_noise(graph: Graph, m: Module, noise: Value) -> tuple[Value, list[Value]]:
    """Return the samples of the last flow and those that join later, in order of joining."""
    first = m.channels_at(m.flows - 1)
    if first == m.group:
        return noise, []
    sizes = [m.early_size] * ((m.group - first) // m.early_size)
    audio, *late = graph.split(noise, (first, *sizes), 1)
    return audio, late


def _upsample(graph: Graph, m: Module, weights: Mapping[str, np.ndarray], spec: Value) -> Value:
    """Return `spec` with one column [n_mel * n_group] for each group of samples.

    NeMo upsamples to single samples and gathers them into groups; a transposed convolution that
    strides by groups, with one output channel for each place in the group, gives the same columns.
    Frames that the kernel adds at the end are cut off by its padding.
    """
    size = (m.mels, m.mels, _UPSAMPLE_KERNEL)
    weight = take_float32(weights, "waveglow.upsample.weight", size)
    bias = take_float32(weights, "waveglow.upsample.bias", (m.mels,))
    taps = _UPSAMPLE_KERNEL // m.group
    grouped = weight.reshape(m.mels, m.mels, taps, m.group).transpose(0, 1, 3, 2)
    return graph.conv_transpose(
        spec,
        grouped.reshape(m.mels, m.mels * m.group, taps),
        np.repeat(bias, m.group),
        stride=HOP // m.group,
        pads=(0, (_UPSAMPLE_KERNEL - HOP) // m.group),
    )


def _add_wavenet(
    graph: Graph,
    m: Module,
    weights: Mapping[str, np.ndarray],
    flow: int,
    audio: Value,
    spec: Value,
) -> Value:
    """Add the WaveNet of a flow: shift and log scale, behind one another, for half the samples."""
    name, half = f"waveglow.wavenet.{flow}", m.channels_at(flow) // 2
    c = m.channels

    def conv(x: Value, layer: str, *shape: int, dilation: int = 1) -> Value:
        weight = take_normed_weight(weights, f"{name}.{layer}", shape)
        bias = take_float32(weights, f"{name}.{layer}.bias", shape[:1])
        pad = (shape[2] - 1) * dilation // 2
        return graph.conv(x, weight, bias, dilation=dilation, pads=(pad, pad))

    x = conv(audio, "start", c, half, 1)
    condition = conv(spec, "cond_layer", 2 * c * m.layers, m.mels * m.group, 1)
    conditions = graph.split(condition, (2 * c,) * m.layers, 1)
    skips: list[Value] = []
    for i, of_spec in enumerate(conditions):
        last = i == m.layers - 1
        inner = conv(x, f"in_layers.{i}", 2 * c, c, m.kernel, dilation=2**i)
        signal, gate = graph.split(graph.add(inner, of_spec), (c, c), 1)
        inner = graph.mul(graph.apply("Tanh", signal), graph.apply("Sigmoid", gate))
        inner = conv(inner, f"res_skip_layers.{i}", c if last else 2 * c, c, 1)
        if not last:
            added, inner = graph.split(inner, (c, c), 1)
            x = graph.add(x, added)
        skips.append(inner)
    weight = take_float32(weights, f"{name}.end.weight", (2 * half, c, 1))
    bias = take_float32(weights, f"{name}.end.bias", (2 * half,))
    return graph.conv(functools.reduce(graph.add, skips), weight, bias)


def _take_inverse(weights: Mapping[str, np.ndarray], name: str, channels: int) -> np.ndarray:
    matrix = take_float32(weights, name, (channels, channels, 1))
    with np.errstate(over="ignore"):
        inverse = invert_matrix(matrix[:, :, 0], name).astype(np.float32)
    require_finite(f"the inverse of `{name}`", inverse)
    return inverse[:, :, None]


EXPORTER = Exporter(
    family="waveglow",
    classes=("nemo.collections.tts.models.waveglow.WaveGlowModel",),
    unused=(
        UnusedWeight("audio_to_melspec_precessor.*", "features are computed in training only"),
        UnusedWeight("waveglow.convinv.*.inv_conv.weight", "is computed from `conv.weight`"),
    ),
    export=export_waveglow,
    sections={"": MODEL_KEYS, "preprocessor": FILTERBANK_KEYS, "waveglow": MODULE_KEYS},
)
