"""The configuration of the convolutional encoder of QuartzNet, Jasper, Citrinet and MatchboxNet.

Semantics: NeMo 1.23 ConvASREncoder, JasperBlock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jarvis_rules.exporters._config import LARGEST, Key, Section, ignored, neutral, refuse, used
from jarvis_rules.onnx_graph.graph import ACTIVATIONS

TARGETS = (
    "nemo.collections.asr.modules.ConvASREncoder",
    "nemo.collections.asr.modules.conv_asr.ConvASREncoder",
)
ENCODER_KEYS: tuple[Key, ...] = (
    *used("_target_", "jasper", "activation", "feat_in", "residual_mode", "conv_mask"),
    *used("normalization_mode", "norm_groups"),
    *ignored("initial weights, training only", "init_mode"),
    *neutral("frame_splicing", 1, reason="stacked frames are not served"),
    *neutral("quantize", False, reason="needs the scales of pytorch-quantization"),
)
BLOCK_KEYS: tuple[Key, ...] = (
    *used("filters", "repeat", "kernel", "kernel_size_factor", "stride", "stride_last"),
    *used("dilation", "residual", "residual_dense", "residual_mode", "separable"),
    *used("future_context", "groups", "heads", "se", "se_reduction_ratio"),
    *ignored("training only", "dropout"),
    *ignored("NeMo averages over the whole item at inference", "se_context_size"),
    *ignored("an average over the whole item is not interpolated", "se_interpolation_mode"),
)
NORMS = ("batch", "layer", "instance", "group")


@dataclass(frozen=True, slots=True)
class Conv:
    """Geometry of a convolution over time; `pads` are frames at the left and right."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    pads: tuple[int, int] = (0, 0)

    @property
    def lost(self) -> int:
        """Frames by which the output is shorter than the input at stride 1."""
        return self.dilation * (self.kernel - 1) - sum(self.pads)


@dataclass(frozen=True, slots=True)
class Block:
    """One entry of `encoder.jasper` with NeMo's defaults filled in.

    `heads` is the number of filters that the channels of a depthwise convolution share, `squeezed`
    the width inside squeeze-excite; 0 is none.
    """

    where: str
    filters: int
    repeat: int
    conv: Conv
    stride_last: bool
    separable: bool
    groups: int
    heads: int
    squeezed: int
    residual: bool
    dense: bool
    residual_mode: str


@dataclass(frozen=True, slots=True)
class Encoder:
    """The understood configuration of a ConvASREncoder; `norm_groups` is -1 for each channel."""

    features: int
    activation: str
    conv_mask: bool
    norm: str
    norm_groups: int
    blocks: tuple[Block, ...]

    @property
    def outputs(self) -> int:
        """The channels of the last block."""
        return self.blocks[-1].filters


def read_encoder(section: Section) -> Encoder:
    """Return the configuration of the encoder; JarvisError `export.unsupported-config`."""
    section.choice("_target_", TARGETS)
    section.check(ENCODER_KEYS)
    conv_mask = section.boolean("conv_mask", True)
    entries = section.values.get("jasper")
    if not isinstance(entries, list | tuple) or not entries:
        refuse(section.at("jasper"), entries, "a list of blocks")
    # NeMo reassigns its default while it loops: a block's mode holds for all later ones.
    mode = _read_residual_mode(section, "add")
    blocks = []
    for i, entry in enumerate(entries):
        where = f"{section.at('jasper')}[{i}]"
        if not isinstance(entry, Mapping):
            refuse(where, entry, "a mapping")
        block = Section(where, entry)
        block.check(BLOCK_KEYS)
        mode = _read_residual_mode(block, mode)
        blocks.append(_read_block(block, mode, conv_mask))
    norm = section.choice("normalization_mode", NORMS, "batch")
    return Encoder(
        features=section.integer("feat_in", minimum=1),
        activation=section.choice("activation", tuple(ACTIVATIONS)),
        conv_mask=conv_mask,
        norm=norm,
        norm_groups=_read_norm_groups(section, norm),
        blocks=tuple(blocks),
    )


def _read_residual_mode(section: Section, default: str) -> str:
    # NeMo takes every other word for `max`, which would hide a mistake.
    return section.choice("residual_mode", ("add", "stride_add", "max"), default)


def _read_norm_groups(section: Section, norm: str) -> int:
    if norm != "group":
        return 1 if norm == "layer" else -1
    groups = section.integer("norm_groups", -1)
    if groups != -1 and groups < 1:
        refuse(section.at("norm_groups"), groups, "`-1` (each channel) or a number of groups")
    return groups


def _read_block(section: Section, residual_mode: str, conv_mask: bool) -> Block:
    filters = section.integer("filters", minimum=1)
    separable = section.boolean("separable", False)
    residual = section.boolean("residual")
    return Block(
        where=section.where,
        filters=filters,
        repeat=section.integer("repeat", minimum=1),
        conv=_read_conv(section, conv_mask, residual),
        stride_last=section.boolean("stride_last", False),
        separable=separable,
        groups=section.integer("groups", 1, minimum=1),
        heads=_read_heads(section) if separable and conv_mask else 0,
        squeezed=_read_squeezed(section, filters) if section.boolean("se", False) else 0,
        residual=residual,
        dense=section.boolean("residual_dense", False),
        residual_mode=residual_mode,
    )


def _read_heads(section: Section) -> int:
    # Only MaskedConv1d has heads, and NeMo gives them to depthwise convolutions alone.
    heads = section.integer("heads", -1)
    if heads != -1 and heads < 1:
        refuse(section.at("heads"), heads, "`-1` (none) or a number of filters")
    return max(heads, 0)


def _read_squeezed(section: Section, filters: int) -> int:
    ratio = section.integer("se_reduction_ratio", 8, minimum=1)
    if ratio > filters:
        refuse(section.at("se_reduction_ratio"), ratio, f"at most `filters: {filters}`")
    return filters // ratio


def _read_conv(section: Section, conv_mask: bool, residual: bool) -> Conv:
    scalar = isinstance(section.values.get("kernel"), int)
    kernel = section.integer("kernel", minimum=1) if scalar else section.single("kernel")
    scaled = kernel * section.number("kernel_size_factor", 1.0, above=0)
    if scaled > LARGEST:
        refuse(section.at("kernel_size_factor"), section.values["kernel_size_factor"], "a factor")
    kernel = max(int(scaled), 1)
    kernel += 1 - kernel % 2  # NeMo makes even kernels odd, at factor 1 too
    stride, dilation = section.single("stride"), section.single("dilation")
    if stride > 1 and dilation > 1:
        refuse(section.at("dilation"), section.values["dilation"], f"`[1]` at stride {stride}")
    half = dilation * (kernel - 1) // 2
    future = section.integer("future_context", -1)
    if not 0 <= future < kernel:
        return Conv(kernel, stride, dilation, (half, half))
    if not conv_mask:
        # NeMo itself fails there.
        refuse(section.at("future_context"), future, "`-1` with `conv_mask: false`")
    if dilation == 1:
        return Conv(kernel, stride, dilation, (kernel - 1 - future, future))
    if residual:
        # As NeMo pads by `dilation - 1` frames too many here, it cannot add the branch either.
        refuse(section.at("future_context"), future, f"`-1` at dilation {dilation} with a residual")
    return Conv(kernel, stride, dilation, (dilation * (kernel - future) - 1, dilation * future))
