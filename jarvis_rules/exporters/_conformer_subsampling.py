"""How a Conformer shortens time: in front of its layers and, rarely, between them.

NeMo does not mask between these convolutions, so in its batches the last frames of an item see
what the convolutions before made of the padding. Here each sees zeros there, as at the end of an
item that is alone. Semantics: NeMo 1.23 ConvSubsampling, StackingSubsampling,
SubsamplingReductionModule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from jarvis_rules.exporters._conformer_builder import Builder, Signal
from jarvis_rules.exporters._conformer_config import Reduction, Subsampling
from jarvis_rules.onnx_graph.graph import Dim, Graph, Value


@dataclass(frozen=True, slots=True)
class _Conv:
    """One convolution: its place in NeMo's `conv` list and its geometry, the same on all axes."""

    index: int
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    pads: tuple[int, int] = (0, 0)
    groups: int = 1
    activated: bool = True
    pooled: bool = False


def add_subsampling(b: Builder, audio: Value, lengths: Value) -> Signal:
    """Return the frames [batch, time, d_model] that the layers start from.

    `audio` is [batch, features, time]. Raises what `take_weight` raises.
    """
    config, name = b.encoder.subsampling, "encoder.pre_encode"
    if b.masked:
        # Not by multiplication: padding may hold what is no number.
        valid = b.graph.unsqueeze(b.graph.valid(lengths, audio, 2), 1)
        audio = b.graph.where(valid, audio, b.graph.number(0.0))
    if config.kind is None:
        x = b.graph.transpose(audio, (0, 2, 1))
        return Signal(b.linear(x, name, b.encoder.width), lengths)
    if config.kind.startswith("stacking"):
        return _add_stacking(b, name, audio, lengths)
    if config.kind.endswith("conv1d"):
        out = _add_convs(b, name, Signal(audio, lengths), _list_convs_1d(b, config))
        return replace(out, value=b.graph.transpose(out.value, (0, 2, 1)))
    x = b.graph.transpose(audio, (0, 2, 1))
    return _add_convs_2d(b, name, Signal(x, lengths), config)


def add_reduction(b: Builder, x: Signal, reduction: Reduction) -> Signal:
    """Return `x` [batch, time, D] at a lower frame rate.

    Raises what `take_weight` raises.
    """
    name = "encoder.reduction_subsampling.reduction_enc"
    if reduction.kind == "striding":
        config = Subsampling("striding", reduction.factor, b.encoder.width)
        return _add_convs_2d(b, name, _zero_padding(b, x, 1), config)
    pooled = b.graph.transpose(x.value, (0, 2, 1))
    # Only whole windows count, so that no frame of an item sees the padding.
    pooled = _pool(b.graph, pooled, reduction.factor, ceil=False)
    lengths = b.graph.div(x.lengths, b.graph.number(reduction.factor, "int64"))
    stride = x.stride * reduction.factor
    return Signal(b.graph.transpose(pooled, (0, 2, 1)), lengths, stride)


def _list_convs_1d(b: Builder, config: Subsampling) -> Iterator[_Conv]:
    """Yield the convolutions of the kinds that take the features as channels."""
    inputs, steps = b.encoder.features, config.factor.bit_length() - 1
    for i in range(steps):
        outputs = b.encoder.width if i == steps - 1 else config.channels
        if config.kind == "striding_conv1d":
            # Causal: as many zeros in front as the kernel sees of the past.
            pads = (4, 1) if config.causal else (2, 2)
            yield _Conv(2 * i, inputs, outputs, 5, 2, pads)
        else:
            # NeMo pads this kind on both sides whatever `causal_downsampling` says.
            yield _Conv(3 * i, inputs, inputs, 5, 2, (2, 2), groups=inputs, activated=False)
            yield _Conv(3 * i + 1, inputs, outputs, 1)
        inputs = outputs


def _list_convs_2d(config: Subsampling) -> Iterator[_Conv]:
    """Yield the convolutions of the kinds that take time and features as an image."""
    channels = config.channels
    pads = (2, 1) if config.causal else (1, 1)
    for i in range(config.factor.bit_length() - 1):
        inputs = channels if i else 1
        if config.kind == "vggnet":
            yield _Conv(5 * i, inputs, channels, 3, pads=(1, 1))
            yield _Conv(5 * i + 2, channels, channels, 3, pads=(1, 1), pooled=True)
        elif config.kind == "striding" or not i:
            yield _Conv(2 * i, inputs, channels, 3, 2, pads)
        else:
            yield _Conv(3 * i - 1, channels, channels, 3, 2, pads, groups=channels, activated=False)
            yield _Conv(3 * i, channels, channels, 1)


def _add_convs_2d(b: Builder, name: str, x: Signal, config: Subsampling) -> Signal:
    """Return `x` [batch, time, features] as frames [batch, shorter time, d_model]."""
    image = replace(x, value=b.graph.unsqueeze(x.value, 1))
    image = _add_convs(b, name, image, _list_convs_2d(config))
    batch, _, time, features = image.value.shape
    width = config.channels * int(features)
    frames = b.graph.transpose(image.value, (0, 2, 1, 3))
    frames = b.graph.reshape(frames, (0, 0, width), (batch, time, width))
    return replace(image, value=b.linear(frames, f"{name}.out", b.encoder.width))


def _add_convs(b: Builder, name: str, x: Signal, convs: Iterator[_Conv]) -> Signal:
    """Add convolutions over [batch, channels, time] or [batch, channels, time, features].

    The padding of `x` is zeros already, if that of the item alone matters.
    """
    for i, conv in enumerate(convs):
        if i and conv.kernel > 1:
            x = _zero_padding(b, x, 2)
        taps = (conv.kernel,) * (len(x.value.shape) - 2)
        key = f"{name}.conv.{conv.index}"
        value = b.graph.conv(
            x.value,
            b.take(f"{key}.weight", conv.outputs, conv.inputs // conv.groups, *taps),
            b.take(f"{key}.bias", conv.outputs),
            stride=conv.stride,
            pads=conv.pads,
            groups=conv.groups,
        )
        if conv.activated:
            value = b.graph.activate(value, "relu")
        lengths = x.lengths
        if conv.stride > 1:
            lengths = _count_frames(b.graph, lengths, conv.stride, sum(conv.pads) - conv.kernel)
        x = Signal(value, lengths, x.stride * conv.stride)
        if conv.pooled:
            # Behind a ReLU, zeros are a maximum only where there is nothing else.
            x = _zero_padding(b, x, 2)
            lengths = _count_frames(b.graph, x.lengths, 2, -1)
            x = Signal(_pool(b.graph, x.value, 2, ceil=True), lengths, x.stride * 2)
    return x


def _zero_padding(b: Builder, x: Signal, axis: int) -> Signal:
    """Return `x` with zeros beyond the lengths along `axis`, unless NeMo's leak is wanted."""
    if not b.masked:
        return x
    others = [k for k in range(1, len(x.value.shape)) if k != axis]
    mask = b.graph.cast(b.graph.valid(x.lengths, x.value, axis), "float32")
    return replace(x, value=b.graph.mul(x.value, b.graph.unsqueeze(mask, *others)))


def _add_stacking(b: Builder, name: str, audio: Value, lengths: Value) -> Signal:
    """Stack frames; a convolution as wide as its stride is that and the projection in one."""
    g, factor, features = b.graph, b.encoder.subsampling.factor, b.encoder.features
    weight = b.take(f"{name}.proj_out.weight", b.encoder.width, factor * features)
    bias = b.take(f"{name}.proj_out.bias", b.encoder.width)
    x, pads = audio, (0, factor - 1)
    if b.encoder.subsampling.kind == "stacking_norm":
        # NeMo pads before the norm, which makes its shift of the zeros.
        longer = (*x.shape[:2], f"{x.shape[2]}_padded")
        ends = g.ints(0, 0, 0, 0, 0, factor - 1)
        x = g.apply("Pad", x, ends, shape=longer, mode="constant")
        x = b.layer_norm(g.transpose(x, (0, 2, 1)), f"{name}.pre_norm")
        x, pads = g.transpose(x, (0, 2, 1)), (0, 0)
    taps = weight.reshape(b.encoder.width, factor, features).transpose(0, 2, 1)
    out = g.conv(x, taps, bias, stride=factor, pads=pads)
    if b.masked:
        lengths = _count_frames(g, lengths, factor, -1)
    else:
        # NeMo adds what the longest item of the batch lacks to every item.
        steps = g.number(factor, "int64")
        missing = g.sub(g.mul(g.size_of(out, 2), steps), g.size_of(audio, 2))
        lengths = g.div(g.add(lengths, missing), steps)
    return Signal(g.transpose(out, (0, 2, 1)), lengths, factor)


def _pool(graph: Graph, x: Value, size: int, *, ceil: bool) -> Value:
    """Return the maxima of `size` frames (and features) of `x` [batch, channels, time, …]."""
    sizes: list[Dim] = [f"{x.shape[2]}_pooled"]
    for n in x.shape[3:]:
        sizes.append(-(-n // size) if isinstance(n, int) else f"{n}_pooled")
    return graph.apply(
        "MaxPool",
        x,
        shape=(*x.shape[:2], *sizes),
        ceil_mode=int(ceil),
        kernel_shape=(size,) * len(sizes),
        strides=(size,) * len(sizes),
    )


def _count_frames(graph: Graph, lengths: Value, stride: int, gain: int) -> Value:
    """Return the int64 lengths behind a window: floor((n + gain) / stride) + 1.

    Added before the division, which truncates towards zero: length 0 stays 0 where NeMo, which
    computes in float32, says so. Source: NeMo 1.23 calc_length.
    """
    rest = graph.add(lengths, graph.number(gain + stride, "int64"))
    return graph.div(rest, graph.number(stride, "int64"))
