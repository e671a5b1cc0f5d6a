"""The convolutional encoder of QuartzNet, Jasper, Citrinet and MatchboxNet: its part of the graph.

Semantics: NeMo 1.23 ConvASREncoder, JasperBlock, MaskedConv1d, GroupShuffle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from jarvis_rules.exporters._config import refuse
from jarvis_rules.exporters._group_norm import add_group_norm
from jarvis_rules.exporters._jasper_config import Block, Conv, Encoder
from jarvis_rules.exporters._squeeze_excite import add_squeeze_excite
from jarvis_rules.exporters._weights import require_finite, take_float32, take_weight
from jarvis_rules.onnx_graph.folding import fold_batch_norm
from jarvis_rules.onnx_graph.graph import Graph, Value

_BATCH_NORM_EPS = 1e-3  # JasperBlock's own, not torch's 1e-5


@dataclass(frozen=True, slots=True)
class Signal:
    """A tensor [batch, channels, time], its valid lengths and the stride from the input."""

    value: Value
    lengths: Value
    channels: int
    stride: int = 1


@dataclass(frozen=True, slots=True)
class Builder:
    """The graph in the making; without `batch_invariant`, padding leaks as it does in NeMo."""

    graph: Graph
    weights: Mapping[str, np.ndarray]
    encoder: Encoder
    batch_invariant: bool = True

    @property
    def is_masked(self) -> bool:
        """Whether convolutions see zeros beyond the lengths, and lengths follow the strides."""
        return self.encoder.conv_mask or self.batch_invariant

    def mask(self, x: Signal) -> Value:
        """Return float32 [batch, 1, time]: 1 on the frames within the lengths of `x`."""
        if self.is_masked:
            return self.graph.mask(x.lengths, x.value)
        # Here one length tensor meets several time axes.
        valid = self.graph.valid(x.lengths, x.value, 2)
        return self.graph.cast(self.graph.unsqueeze(valid, 1), "float32")


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
            out = _add_depthwise(b, f"{name}.mconv.{index}", block, conv, out)
            conv = Conv()
            index += 1
        out = _add_conv_norm(b, f"{name}.mconv", index, out, block, conv, block.groups)
        index += 2
        if block.groups > 1:
            out = replace(out, value=_shuffle(b.graph, out, block.groups))
            index += 1
        if not final:
            out = replace(out, value=b.graph.activate(out.value, b.encoder.activation))
            index += 2
    if block.squeezed:
        excited = add_squeeze_excite(
            b.graph,
            b.weights,
            f"{name}.mconv.{index}",
            out.value,
            channels=out.channels,
            squeezed=block.squeezed,
            activation=b.encoder.activation,
            mask=b.mask(out),
        )
        out = replace(out, value=excited)
    if block.residual:
        for k, channels in enumerate(branches):
            branch = _take_pane(block, panes, k, channels, out.stride)
            conv = Conv(stride=out.stride // branch.stride)
            branch = _add_conv_norm(b, f"{name}.res.{k}", 0, branch, block, conv)
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


def _add_depthwise(b: Builder, name: str, block: Block, conv: Conv, x: Signal) -> Signal:
    key = f"{name}.conv.weight" if b.encoder.conv_mask else f"{name}.weight"
    heads = block.heads or x.channels
    _require_divisor(block, "heads", heads, x.channels)
    weight = take_float32(b.weights, key, (heads, 1, conv.kernel))
    return _convolve(b, x, conv, np.tile(weight, (x.channels // heads, 1, 1)))


def _add_conv_norm(
    b: Builder, name: str, index: int, x: Signal, block: Block, conv: Conv, groups: int = 1
) -> Signal:
    """Add convolution `index` of the list `name` and the norm behind it."""
    key = f"{name}.{index}.conv.weight" if b.encoder.conv_mask else f"{name}.{index}.weight"
    norm = f"{name}.{index + 1}"
    for channels in (x.channels, block.filters):
        _require_divisor(block, "groups", groups, channels)
    shape = (block.filters, x.channels // groups, conv.kernel)
    if b.encoder.norm == "batch":
        return _convolve(b, x, conv, *_take_folded(b.weights, key, norm, shape))
    out = _convolve(b, x, conv, take_float32(b.weights, key, shape))
    norm_groups = out.channels if b.encoder.norm_groups == -1 else b.encoder.norm_groups
    if out.channels % norm_groups:
        refuse("encoder.norm_groups", norm_groups, f"a divisor of {out.channels} channels")
    gain, shift = (
        take_float32(b.weights, f"{norm}.{leaf}", (out.channels,)) for leaf in ("weight", "bias")
    )
    mask = b.mask(out) if b.batch_invariant else None
    value = add_group_norm(
        b.graph, out.value, groups=norm_groups, gain=gain, shift=shift, mask=mask
    )
    return replace(out, value=value)


def _require_divisor(block: Block, key: str, number: int, channels: int) -> None:
    if channels % number:
        refuse(f"{block.where}.{key}", number, f"a divisor of {channels} channels")


def _take_folded(
    weights: Mapping[str, np.ndarray], key: str, norm: str, shape: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of the convolution `key` with the batch norm `norm` folded in."""
    gain, shift, mean, variance = (
        take_weight(weights, f"{norm}.{leaf}", shape[:1])
        for leaf in ("weight", "bias", "running_mean", "running_var")
    )
    folded = fold_batch_norm(
        take_weight(weights, key, shape),
        gain=gain,
        shift=shift,
        mean=mean,
        variance=variance,
        eps=_BATCH_NORM_EPS,
    )
    for array in folded:
        # A negative variance or a gain beyond float32 shows here only.
        require_finite(f"`{key}` with the batch norm `{norm}`", array)
    return folded


def _shuffle(graph: Graph, x: Signal, groups: int) -> Value:
    """Return `x` with its channels interleaved: the first of every group, then then the second."""
    batch, channels, time = x.value.shape
    width = x.channels // groups
    split = graph.reshape(x.value, (0, groups, width, -1), (batch, groups, width, time))
    turned = graph.transpose(split, (0, 2, 1, 3))
    return graph.reshape(turned, (0, x.channels, -1), (batch, channels, time))


def _convolve(
    b: Builder, x: Signal, conv: Conv, weight: np.ndarray, bias: np.ndarray | None = None
) -> Signal:
    """Add a convolution of the valid frames of `x`, with the lengths that come out of it."""
    value, lengths = x.value, x.lengths
    if b.is_masked:
        value = b.graph.mul(value, b.mask(x))
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
