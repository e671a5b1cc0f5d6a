"""The layers of a Conformer: half a feed-forward, attention, convolution, the other half.

Within a layer only attention, convolution and the norms over time look at other frames, and none
of them sees the padding. Semantics: NeMo 1.23 ConformerEncoder, ConformerLayer,
ConformerConvolution.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from jarvis_rules.exporters._conformer_attention import (
    Scene,
    add_absolute_positions,
    add_attention,
    add_scene,
)
from jarvis_rules.exporters._conformer_builder import EPS, Builder, Signal
from jarvis_rules.exporters._conformer_config import GROUP_NORM
from jarvis_rules.exporters._conformer_subsampling import add_reduction, add_subsampling
from jarvis_rules.exporters._group_norm import add_group_norm
from jarvis_rules.exporters._weights import require_finite, take_weight
from jarvis_rules.onnx_graph.folding import fold_batch_norm
from jarvis_rules.onnx_graph.graph import Value


def add_encoder(b: Builder, audio: Value, lengths: Value) -> Signal:
    """Return the encoded frames [batch, time_out, outputs] of `audio` [batch, features, time].

    Raises what `take_weight` raises.
    """
    config, g = b.encoder, b.graph
    x = add_subsampling(b, audio, lengths)
    if config.scaled:
        x = replace(x, value=g.mul(x.value, g.number(math.sqrt(config.width))))
    if not config.relative:
        x = replace(x, value=add_absolute_positions(b, x.value))
    scene = add_scene(b, x.value, x.lengths)
    reduction = config.reduction
    for i in range(config.layers):
        x = replace(x, value=_add_layer(b, f"encoder.layers.{i}", x.value, scene))
        if reduction and reduction.position == i:
            x = add_reduction(b, x, reduction)
            scene = add_scene(b, x.value, x.lengths)
    if config.outputs != config.width:
        x = replace(x, value=b.linear(x.value, "encoder.out_proj", config.outputs))
    if reduction and reduction.position == -1:
        x = add_reduction(b, x, reduction)
    return x


def _add_layer(b: Builder, name: str, x: Value, scene: Scene) -> Value:
    g = b.graph
    x = _add_feed_forward(b, name, 1, x)
    attended = b.layer_norm(x, f"{name}.norm_self_att")
    x = g.add(x, add_attention(b, f"{name}.self_attn", attended, scene))
    x = g.add(x, _add_convolution(b, f"{name}.conv", b.layer_norm(x, f"{name}.norm_conv"), scene))
    x = _add_feed_forward(b, name, 2, x)
    return b.layer_norm(x, f"{name}.norm_out")


def _add_feed_forward(b: Builder, name: str, half: int, x: Value) -> Value:
    inner = b.layer_norm(x, f"{name}.norm_feed_forward{half}")
    inner = b.linear(inner, f"{name}.feed_forward{half}.linear1", b.encoder.inner)
    inner = b.graph.activate(inner, "swish")
    inner = b.linear(inner, f"{name}.feed_forward{half}.linear2", b.encoder.width)
    return b.graph.add(x, b.graph.mul(inner, b.graph.number(0.5)))


def _add_convolution(b: Builder, name: str, x: Value, scene: Scene) -> Value:
    """Add the convolution module on `x` [batch, time, d_model].

    Its convolutions of one tap are linear layers here.
    """
    g, width = b.graph, b.encoder.width
    weight = b.take(f"{name}.pointwise_conv1.weight", 2 * width, width, 1)
    both = g.linear(x, weight[:, :, 0], b.take(f"{name}.pointwise_conv1.bias", 2 * width))
    value, gate = g.split(both, (width, width), 2)
    x = g.mul(g.mul(value, g.apply("Sigmoid", gate)), scene.mask)
    weight, bias = _take_depthwise(b, name)
    x = g.conv(g.transpose(x, (0, 2, 1)), weight, bias, pads=b.encoder.conv_pads, groups=width)
    x = g.transpose(_add_time_norm(b, name, x, scene), (0, 2, 1))
    if b.encoder.norm == "layer_norm":
        x = b.layer_norm(x, f"{name}.batch_norm")
    weight = b.take(f"{name}.pointwise_conv2.weight", width, width, 1)
    bias = b.take(f"{name}.pointwise_conv2.bias", width)
    return g.linear(g.activate(x, "swish"), weight[:, :, 0], bias)


def _take_depthwise(b: Builder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weight and bias of the depthwise convolution, a batch norm folded in."""
    width, shape = b.encoder.width, (b.encoder.width, 1, b.encoder.kernel)
    conv, norm = f"{name}.depthwise_conv", f"{name}.batch_norm"
    if b.encoder.norm not in ("batch_norm", "fused_batch_norm"):
        return b.take(f"{conv}.weight", *shape), b.take(f"{conv}.bias", width)
    gain, shift = (take_weight(b.weights, f"{norm}.{s}", (width,)) for s in ("weight", "bias"))
    # A fused norm holds the finished factor and shift.
    mean, variance, eps = np.zeros(width), np.ones(width), 0.0
    if b.encoder.norm == "batch_norm":
        mean = take_weight(b.weights, f"{norm}.running_mean", (width,))
        variance, eps = take_weight(b.weights, f"{norm}.running_var", (width,)), EPS
    folded = fold_batch_norm(
        take_weight(b.weights, f"{conv}.weight", shape),
        bias=take_weight(b.weights, f"{conv}.bias", (width,)),
        gain=gain,
        shift=shift,
        mean=mean,
        variance=variance,
        eps=eps,
    )
    for array in folded:
        # A negative variance or a gain beyond float32 shows here only.
        require_finite(f"`{conv}` with `{norm}`", array)
    return folded


def _add_time_norm(b: Builder, name: str, x: Value, scene: Scene) -> Value:
    """Add a norm whose statistics run over time to `x` [batch, d_model, time], if there is one.

    NeMo counts the frames of the padding, too; here only those of the item do.
    """
    width, groups = b.encoder.width, b.encoder.norm_groups
    if b.encoder.norm == "instance_norm":
        gain, shift = np.ones(width, np.float32), np.zeros(width, np.float32)
    elif b.encoder.norm == GROUP_NORM:
        gain, shift = (b.take(f"{name}.batch_norm.{leaf}", width) for leaf in ("weight", "bias"))
    else:
        return x
    mask = b.graph.mask(scene.lengths, x) if b.masked else None
    return add_group_norm(b.graph, x, groups=groups, gain=gain, shift=shift, mask=mask)
