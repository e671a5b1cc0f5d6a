"""The convolutional encoder of QuartzNet and Jasper: its configuration and its part of the graph.

Semantics: NeMo 1.23 ConvASREncoder, JasperBlock, MaskedConv1d.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from jarvis_rules.exporters._config import LARGEST, Key, Section, ignored, neutral, refuse, used
from jarvis_rules.exporters._weights import require_finite, take_float32, take_weight
from jarvis_rules.onnx_graph.folding import fold_batch_norm
from jarvis_rules.onnx_graph.graph import ACTIVATIONS, Graph, Value

TARGETS = (
    "nemo.collections.asr.modules.ConvASREncoder",
    "nemo.collections.asr.modules.conv_asr.ConvASREncoder",
)
ENCODER_KEYS: tuple[Key, ...] = (
    *used("_target_", "jasper", "activation", "feat_in", "residual_mode", "conv_mask"),
    *ignored("initial weights, training only", "init_mode"),
    *ignored("read for `normalization_mode: group` only", "norm_groups"),
    *neutral("normalization_mode", "batch", reason="other norms depend on the whole item"),
    *neutral("frame_splicing", 1, reason="stacked frames are not served"),
    *neutral("quantize", False, reason="needs the scales of pytorch-quantization"),
)
BLOCK_KEYS: tuple[Key, ...] = (
    *used("filters", "repeat", "kernel", "kernel_size_factor", "stride", "stride_last"),
    *used("dilation", "residual", "residual_dense", "residual_mode", "separable"),
    *used("future_context"),
    *ignored("training only", "dropout"),
    *ignored("read for `se: true` only", "se_reduction_ratio", "se_context_size"),
    *ignored("read for `se: true` only", "se_interpolation_mode"),
    *neutral("se", False, reason="squeeze-excite belongs to Citrinet"),
    *neutral("groups", 1, reason="grouped convolutions are shuffled"),
    *neutral("heads", -1, reason="convolution heads share their weights"),
)
_BATCH_NORM_EPS = 1e-3  # JasperBlock's own, not torch's 1e-5


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
    """One entry of `encoder.jasper` with NeMo's defaults filled in."""

    where: str
    filters: int
    repeat: int
    conv: Conv
    stride_last: bool
    separable: bool
    residual: bool
    dense: bool
    residual_mode: str


@dataclass(frozen=True, slots=True)
class Encoder:
    """The understood configuration of a ConvASREncoder."""

    features: int
    activation: str
    conv_mask: bool
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """A tensor [batch, channels, time], its valid lengths and the stride from the input."""

    value: Value
    lengths: Value
    channels: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Builder:
    """The graph in the making; `masked`: frames beyond the lengths are zeroed."""

    graph: Graph
    weights: Mapping[str, np.ndarray]
    encoder: Encoder
    masked: bool


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
    return Encoder(
        features=section.integer("feat_in", minimum=1),
        activation=section.choice("activation", tuple(ACTIVATIONS)),
        conv_mask=conv_mask,
        blocks=tuple(blocks),
    )


def add_encoder(b: Builder, x: Signal) -> Signal:
    """Add all blocks to the graph and return the encoded signal.

    Raises JarvisError `export.unsupported-config` for blocks that do not fit together and what
    `take_weight` raises.
    """
    panes = [x]
    dense_channels: list[int] = []
    for i, block in enumerate(b.encoder.blocks):
        channels = [panes[-1].channels]
        if block.dense:
            dense_channels += channels
            channels = list(dense_channels)
        out = _add_block(b, f"encoder.encoder.{i}", block, panes, channels)
        panes = [*panes, out] if block.residual and block.dense else [out]
    return panes[-1]


def _read_residual_mode(section: Section, default: str) -> str:
    # NeMo takes every other word for `max`, which would hide a mistake.
    return section.choice("residual_mode", ("add", "stride_add", "max"), default)


def _read_block(section: Section, residual_mode: str, conv_mask: bool) -> Block:
    return Block(
        where=section.where,
        filters=section.integer("filters", minimum=1),
        repeat=section.integer("repeat", minimum=1),
        conv=_read_conv(section, conv_mask),
        stride_last=section.boolean("stride_last", False),
        separable=section.boolean("separable", False),
        residual=section.boolean("residual"),
        dense=section.boolean("residual_dense", False),
        residual_mode=residual_mode,
    )


def _read_conv(section: Section, conv_mask: bool) -> Conv:
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
    if dilation > 1:
        # NeMo pads by `dilation - 1` frames too many here.
        refuse(section.at("future_context"), future, f"`-1` at dilation {dilation}")
    if not conv_mask:
        refuse(section.at("future_context"), future, "`-1` with `conv_mask: false`")
    return Conv(kernel, stride, dilation, (kernel - 1 - future, future))


def _add_block(
    b: Builder, name: str, block: Block, panes: list[Signal], branches: list[int]
) -> Signal:
    """Add one JasperBlock; `branches` are the input channels of its residual branches."""
    out = panes[-1]
    index = 0  # place in NeMo's `mconv` list, which counts activations and dropouts too
    for turn in range(block.repeat):
        final = turn == block.repeat - 1
        conv = block.conv if final or not block.stride_last else replace(block.conv, stride=1)
        if block.separable:
            out = _add_depthwise(b, f"{name}.mconv.{index}", conv, out)
            conv = Conv()
            index += 1
        out = _add_conv_norm(b, f"{name}.mconv", index, out, conv=conv, filters=block.filters)
        index += 2
        if not final:
            out = replace(out, value=b.graph.activate(out.value, b.encoder.activation))
            index += 2
    if block.residual:
        for k, channels in enumerate(branches):
            branch = _take_pane(block, panes, k, channels, out.stride)
            conv = Conv(stride=out.stride // branch.stride)
            filters = block.filters
            branch = _add_conv_norm(b, f"{name}.res.{k}", 0, branch, conv=conv, filters=filters)
            join = b.graph.maximum if block.residual_mode == "max" else b.graph.add
            out = replace(out, value=join(out.value, branch.value))
    return replace(out, value=b.graph.activate(out.value, b.encoder.activation))


def _take_pane(block: Block, panes: list[Signal], k: int, channels: int, stride: int) -> Signal:
    """Return the input of residual branch `k`, refusing what NeMo itself cannot add up."""
    # NeMo counts branches over all dense blocks but passes on the panes since the last plain one.
    if k >= len(panes) or panes[k].channels != channels:
        key = "residual_dense" if block.dense else "residual"
        refuse(f"{block.where}.{key}", True, "dense blocks without a plain block among them")
    branch = block.conv.stride if block.residual_mode == "stride_add" else 1
    if panes[k].stride * branch != stride:
        refuse(
            f"{block.where}.residual_mode",
            block.residual_mode,
            f"a branch as long as the block's output: the block strides by "
            f"{stride // panes[k].stride}, the branch by {branch}",
        )
    return panes[k]


def _add_depthwise(b: Builder, name: str, conv: Conv, x: Signal) -> Signal:
    key = f"{name}.conv.weight" if b.encoder.conv_mask else f"{name}.weight"
    return _convolve(b, x, conv, take_float32(b.weights, key, (x.channels, 1, conv.kernel)))


def _add_conv_norm(
    b: Builder, name: str, index: int, x: Signal, *, conv: Conv, filters: int
) -> Signal:
    """Add convolution `index` of the list `name` with the batch norm behind it folded in."""
    key = f"{name}.{index}.conv.weight" if b.encoder.conv_mask else f"{name}.{index}.weight"
    norm = f"{name}.{index + 1}"
    gain, shift, mean, variance = (
        take_weight(b.weights, f"{norm}.{leaf}", (filters,))
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    weight, bias = fold_batch_norm(
        take_weight(b.weights, key, (filters, x.channels, conv.kernel)),
        gain=gain,
        shift=shift,
        mean=mean,
        variance=variance,
        eps=_BATCH_NORM_EPS,
    )
    for folded in (weight, bias):
        # A negative variance or a gain beyond float32 shows here only.
        require_finite(f"`{key}` with the batch norm `{norm}`", folded)
    return _convolve(b, x, conv, weight, bias)


def _convolve(
    b: Builder, x: Signal, conv: Conv, weight: np.ndarray, bias: np.ndarray | None = None
) -> Signal:
    """Add a convolution of the valid frames of `x`, with the lengths that come out of it."""
    value, lengths = x.value, x.lengths
    if b.masked:
        value = b.graph.mul(value, b.graph.mask(lengths, value))
        lengths = _count_frames(b.graph, lengths, conv)
    value = b.graph.conv(
        value,
        weight,
        bias,
        stride=conv.stride,
        dilation=conv.dilation,
        pads=conv.pads,
        groups=x.channels // weight.shape[1],
    )
    return Signal(value, lengths, weight.shape[0], x.stride * conv.stride)


def _count_frames(graph: Graph, lengths: Value, conv: Conv) -> Value:
    """Return the int64 lengths behind `conv`; source: MaskedConv1d.get_seq_len.

    The division truncates towards zero, so that a stride turns length 0 into 1, in NeMo and here.
    """
    if conv.stride == 1 and conv.lost == 0:
        return lengths
    one, stride = (graph.constant(np.array(n, np.int64)) for n in (1, conv.stride))
    rest = graph.add(lengths, graph.constant(np.array(-conv.lost - 1, np.int64)))
    return graph.add(graph.div(rest, stride), one)
