"""HiFi-GAN: a convolutional vocoder, from a mel spectrogram to audio.

One graph, the generator alone, with weight norm folded. Semantics: NeMo 1.23 HifiGanModel,
Generator, ResBlock1, ResBlock2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from jarvis_rules.exporters._config import (
    Key,
    Section,
    check_model_keys,
    ignored,
    refuse,
    refuse_contradiction,
    used,
)
from jarvis_rules.exporters._facts import describe_graph
from jarvis_rules.exporters._filterbank import KEYS as FILTERBANK_KEYS
from jarvis_rules.exporters._filterbank import read_filterbank
from jarvis_rules.exporters._weight_norm import take_normed_weight
from jarvis_rules.exporters._weights import take_float32
from jarvis_rules.exporters.exporter import ExportedModel, Exporter, SourceModel, UnusedWeight
from jarvis_rules.onnx_graph.graph import Graph, Value

_TARGETS = ("nemo.collections.tts.modules.hifigan_modules.Generator",)
_EDGE_KERNEL = 7  # of the first and the last convolution
_SLOPE, _LAST_SLOPE = 0.1, 0.01  # the last activation has torch's default
_LARGEST_KERNEL = 2**16  # more taps than a second of audio has samples

MODEL_KEYS: tuple[Key, ...] = (
    *used("target", "preprocessor", "generator"),
    *ignored("training and its data", "train_ds", "validation_ds", "test_ds", "optim", "sched"),
    *ignored("training and its data", "max_steps", "max_epochs", "steps_per_epoch"),
    *ignored("weighs a loss, training only", "l1_loss_factor"),
    *ignored("makes small discriminators, training only", "debug"),
    *ignored("NeMo takes the bias out of logged audio only", "denoise_strength"),
    *ignored("logging, training only", "log_audio", "log_config"),
)
"""Other keys of the model are ignored unless they build a module, see `check_model_keys`."""
GENERATOR_KEYS: tuple[Key, ...] = (
    *used("_target_", "resblock", "upsample_rates", "upsample_kernel_sizes"),
    *used("upsample_initial_channel", "resblock_kernel_sizes", "resblock_dilation_sizes"),
    *used("initial_input_size"),
    *ignored("initial weights, training only", "apply_weight_init_conv_pre"),
)


@dataclass(frozen=True, slots=True)
class Upsampling:
    """One transposed convolution; NeMo pads by half of what the kernel exceeds the rate."""

    rate: int
    kernel: int

    @property
    def pad(self) -> int:
        """Return the samples that are cut off at either end."""
        return (self.kernel - self.rate) // 2


@dataclass(frozen=True, slots=True)
class Residual:
    """A chain of convolutions of one kernel, each of them added to its input.

    In the first kind each is followed by one without dilation before it is added.
    """

    kernel: int
    dilations: tuple[int, ...]
    is_first_kind: bool

    def reach(self) -> int:
        """Return the samples at either side that an output depends on."""
        dilations = sum(self.dilations) + len(self.dilations) * self.is_first_kind
        return math.ceil(dilations * (self.kernel - 1) / 2)


@dataclass(frozen=True, slots=True)
class Generator:
    """The understood configuration of a Generator."""

    mels: int
    channels: int
    upsamplings: tuple[Upsampling, ...]
    residuals: tuple[Residual, ...]

    def hop(self) -> int:
        """Return the samples that are made from one frame."""
        return math.prod(up.rate for up in self.upsamplings)

    def context(self) -> dict[str, int]:
        """Return how many frames at either side of its own a sample depends on."""
        edge = _EDGE_KERNEL // 2
        reach = max(residual.reach() for residual in self.residuals)
        # The first sample of a frame looks farthest to the left, the last one to the right.
        left, right = -edge, self.hop() - 1 + edge
        for up in reversed(self.upsamplings):
            left = -(-(left - reach + up.pad - up.kernel + 1) // up.rate)
            right = (right + reach + up.pad) // up.rate
        return {"left": edge - left, "right": edge + right}


def export_hifigan(source: SourceModel) -> ExportedModel:
    """Return the graph and the facts of a HiFi-GAN vocoder.

    `spec` float32 [batch, n_mel, frames] gives `audio` float32 [batch, 1, hop * frames]. There are
    no lengths: what follows the end of an item changes its last `context_frames.right` frames, so
    items of different length run apart, and chunks of one item overlap by `context_frames`.

    Raises JarvisError `export.unsupported-config`, `export.contradicting-config` and
    IntegrityError `export.missing-weight`, `export.wrong-shape`, `export.invalid-weight`.
    """
    model = Section("", source.config)
    check_model_keys(model, MODEL_KEYS)
    features = read_filterbank(model.section("preprocessor"))
    generator = _read_generator(model.section("generator"), source.weights)
    if features["features"] != generator.mels:
        other = "`generator.initial_input_size`, which is 80 if absent,"
        refuse_contradiction("preprocessor.nfilt", features["features"], other, generator.mels)
    if features["n_window_stride"] != generator.hop():
        stride, other = features["n_window_stride"], "the product of `generator.upsample_rates`"
        refuse_contradiction("preprocessor.n_window_stride", stride, other, generator.hop())

    graph = _build_graph(generator, source.weights)
    facts = {
        "task": "vocoder",
        "sample_rate": features["sample_rate"],
        "hop_length": generator.hop(),
        "context_frames": generator.context(),
        "features": features,
        **describe_graph(graph),
    }
    return ExportedModel("hifigan", {"model_graph.onnx": graph}, {}, facts)


def _read_generator(section: Section, weights: Mapping[str, np.ndarray]) -> Generator:
    section.choice("_target_", _TARGETS)
    section.check(GENERATOR_KEYS)
    upsamplings = tuple(
        Upsampling(rate, kernel)
        for rate, kernel in zip(
            _integers(section, "upsample_rates"),
            _integers(section, "upsample_kernel_sizes", "upsample_rates"),
            strict=True,
        )
    )
    for up in upsamplings:
        if up.kernel < up.rate or (up.kernel - up.rate) % 2:
            # NeMo fails, or makes one sample too many.
            understood = f"{up.rate} and an even number for the rate {up.rate}"
            refuse(section.at("upsample_kernel_sizes"), up.kernel, understood)
    channels = section.integer("upsample_initial_channel", minimum=1)
    if channels >> len(upsamplings) == 0:
        understood = f"at least 2 to the power of {len(upsamplings)}, the number of upsamplings"
        refuse(section.at("upsample_initial_channel"), channels, understood)
    return Generator(
        mels=section.integer("initial_input_size", 80, 1),
        channels=channels,
        upsamplings=upsamplings,
        residuals=_read_residuals(section, _is_first_kind(section, weights)),
    )


def _is_first_kind(section: Section, weights: Mapping[str, np.ndarray]) -> bool:
    """Tell which residual block the model has.

    NeMo compares with the number 1, so that the text `1`, as in the original HiFi-GAN, makes the
    second kind. Only the weights can tell what a checkpoint with a text was made by.
    """
    kind = section.values.get("resblock")
    if isinstance(kind, bool) or kind not in (1, 2, "1", "2"):
        refuse(section.at("resblock"), kind, "1 or 2")
    if isinstance(kind, str):
        return any(".convs1." in name for name in weights if name.startswith("generator."))
    return bool(kind == 1)


def _read_residuals(section: Section, is_first_kind: bool) -> tuple[Residual, ...]:
    kernels = _integers(section, "resblock_kernel_sizes")
    key, wanted = "resblock_dilation_sizes", 3 if is_first_kind else 2
    lists = section.values.get(key)
    if not isinstance(lists, list | tuple) or len(lists) != len(kernels):
        understood = f"{len(kernels)} lists, as many as `{section.at('resblock_kernel_sizes')}`"
        refuse(section.at(key), lists, understood)
    residuals = []
    for kernel, values in zip(kernels, lists, strict=True):
        dilations = _integers(Section(section.where, {key: values}), key)[:wanted]
        if len(dilations) < wanted:
            refuse(section.at(key), values, f"{wanted} dilations for each kernel")
        alone = (1,) if is_first_kind else ()
        if any((kernel - 1) * d % 2 for d in (*dilations, *alone)):
            # An odd number of missing samples cannot be padded at both sides.
            understood = "an odd kernel, or even dilations of blocks of the second kind"
            refuse(section.at("resblock_kernel_sizes"), kernel, understood)
        residuals.append(Residual(kernel, dilations, is_first_kind))
    return tuple(residuals)


def _integers(section: Section, key: str, as_many_as: str | None = None) -> tuple[int, ...]:
    """Return a list of positive integers that stay small in products."""
    values = section.values.get(key)
    if not isinstance(values, list | tuple) or not values:
        refuse(section.at(key), values, "a list of integers")
    if as_many_as and len(values) != len(section.values[as_many_as]):
        refuse(section.at(key), values, f"as many integers as `{section.at(as_many_as)}` has")
    for value in values:
        if Section(section.where, {key: value}).integer(key, minimum=1) > _LARGEST_KERNEL:
            refuse(section.at(key), value, f"integers of at most {_LARGEST_KERNEL}")
    return tuple(values)


def _build_graph(g: Generator, weights: Mapping[str, np.ndarray]) -> Graph:
    graph = Graph("hifigan")
    add = functools.partial(_add_conv, graph, weights)
    x = graph.input("spec", "float32", ("batch", g.mels, "frames"))
    x = add("generator.conv_pre", x, g.channels, _EDGE_KERNEL)
    # In old checkpoints the blocks of all stages are one list; see HifiGanModel.load_state_dict.
    nested = any(name.startswith("generator.resblocks.0.0.") for name in weights)
    for i, up in enumerate(g.upsamplings):
        channels = g.channels >> (i + 1)
        name = f"generator.ups.{i}"
        weight = take_normed_weight(weights, name, (g.channels >> i, channels, up.kernel))
        bias = take_float32(weights, f"{name}.bias", (channels,))
        x = _leaky_relu(graph, x)
        x = graph.conv_transpose(x, weight, bias, stride=up.rate, pads=(up.pad, up.pad))
        outputs = []
        for j, residual in enumerate(g.residuals):
            place = f"{i}.{j}" if nested else str(i * len(g.residuals) + j)
            outputs.append(_add_residual(graph, weights, place, residual, x))
        x = functools.reduce(graph.add, outputs)
        x = graph.div(x, graph.number(len(outputs)))
    x = add("generator.conv_post", _leaky_relu(graph, x, _LAST_SLOPE), 1, _EDGE_KERNEL)
    graph.output(graph.apply("Tanh", x), "audio", ("batch", 1, "samples"))
    return graph


def _add_residual(
    graph: Graph, weights: Mapping[str, np.ndarray], place: str, residual: Residual, x: Value
) -> Value:
    name = f"generator.resblocks.{place}.convs"
    first = f"{name}1" if residual.is_first_kind else name
    channels, kernel = int(x.shape[1]), residual.kernel
    for k, dilation in enumerate(residual.dilations):
        inner = _leaky_relu(graph, x)
        inner = _add_conv(graph, weights, f"{first}.{k}", inner, channels, kernel, dilation)
        if residual.is_first_kind:
            inner = _leaky_relu(graph, inner)
            inner = _add_conv(graph, weights, f"{name}2.{k}", inner, channels, kernel)
        x = graph.add(inner, x)
    return x


def _add_conv(
    graph: Graph,
    weights: Mapping[str, np.ndarray],
    name: str,
    x: Value,
    channels: int,
    kernel: int,
    dilation: int = 1,
) -> Value:
    """Add the weight-normalised convolution `name`, which keeps the length."""
    weight = take_normed_weight(weights, name, (channels, int(x.shape[1]), kernel))
    bias = take_float32(weights, f"{name}.bias", (channels,))
    pad = (kernel - 1) * dilation // 2
    return graph.conv(x, weight, bias, dilation=dilation, pads=(pad, pad))


def _leaky_relu(graph: Graph, x: Value, slope: float = _SLOPE) -> Value:
    return graph.apply("LeakyRelu", x, alpha=slope)


EXPORTER = Exporter(
    family="hifigan",
    classes=("nemo.collections.tts.models.hifigan.HifiGanModel",),
    unused=(
        UnusedWeight("mpd.*", "a discriminator, training only"),
        UnusedWeight("msd.*", "a discriminator, training only"),
        UnusedWeight("audio_to_melspec_precessor.*", "spectrograms are computed in training only"),
        UnusedWeight("trg_melspec_fn.*", "spectrograms are computed in training only"),
    ),
    export=export_hifigan,
    sections={"": MODEL_KEYS, "preprocessor": FILTERBANK_KEYS, "generator": GENERATOR_KEYS},
)
