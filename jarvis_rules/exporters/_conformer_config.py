"""The configuration of a ConformerEncoder, understood or refused.

Semantics: NeMo 1.23 ConformerEncoder.
"""

from __future__ import annotations

from dataclasses import dataclass

from jarvis_rules.exporters._config import Key, Section, ignored, neutral, refuse, used

TARGETS = (
    "nemo.collections.asr.modules.ConformerEncoder",
    "nemo.collections.asr.modules.conformer_encoder.ConformerEncoder",
)
KEYS: tuple[Key, ...] = (
    *used("_target_", "feat_in", "feat_out", "n_layers", "d_model", "n_heads"),
    *used("subsampling", "subsampling_factor", "subsampling_conv_channels", "causal_downsampling"),
    *used("reduction", "reduction_position", "reduction_factor", "ff_expansion_factor"),
    *used("self_attention_model", "att_context_size", "att_context_style", "xscaling"),
    *used("conv_kernel_size", "conv_norm_type", "conv_context_size"),
    *ignored("training only", "dropout", "dropout_pre_encoder", "dropout_emb", "dropout_att"),
    *ignored("layers are dropped in training only", "stochastic_depth_drop_prob"),
    *ignored("layers are dropped in training only", "stochastic_depth_mode"),
    *ignored("layers are dropped in training only", "stochastic_depth_start_layer"),
    *ignored("training draws a context; inference takes the first", "att_context_probs"),
    *ignored("positions are computed for the input at hand", "pos_emb_max_len"),
    *ignored("every layer has its biases in the checkpoint, tied or not", "untie_biases"),
    *ignored("cuts the same computation into pieces", "subsampling_conv_chunking_factor"),
    *ignored("read with global tokens only", "global_tokens_spacing", "global_attn_separate"),
    *ignored("another implementation of the same attention", "use_pytorch_sdpa"),
    *ignored("another implementation of the same attention", "use_pytorch_sdpa_backends"),
    *ignored("distributed training only", "sync_max_audio_length"),
    *neutral("global_tokens", 0, reason="global attention is not written"),
    *neutral("use_bias", True, reason="layers without biases are not written"),
    *neutral("conv_dual_mode", False, reason="dual mode belongs to streaming"),
)
SUBSAMPLING = (
    "striding",
    "dw_striding",
    "vggnet",
    "striding_conv1d",
    "dw_striding_conv1d",
    "stacking",
    "stacking_norm",
)
GROUP_NORM = "group_norm"
_NORMS = ("batch_norm", "fused_batch_norm", "layer_norm", "instance_norm")
# NeMo's stand-in for an unlimited number of chunks to the left.
_CHUNKS = 10000


@dataclass(frozen=True, slots=True)
class Context:
    """Which frames attend to which: both are counted in units of `unit` frames.

    A query in unit i sees keys of the units i - left … i + right; None is unlimited.
    """

    unit: int = 1
    left: int | None = None
    right: int | None = None


@dataclass(frozen=True, slots=True)
class Subsampling:
    """How the encoder shortens its input; `kind` None is a linear layer on every frame."""

    kind: str | None
    factor: int
    channels: int
    causal: bool = False


@dataclass(frozen=True, slots=True)
class Reduction:
    """A further shortening behind layer `position`, behind the last one for -1."""

    kind: str
    factor: int
    position: int


@dataclass(frozen=True, slots=True)
class Encoder:
    """The understood configuration of a ConformerEncoder, NeMo's defaults filled in."""

    features: int
    layers: int
    width: int
    outputs: int
    heads: int
    inner: int
    subsampling: Subsampling
    reduction: Reduction | None
    relative: bool
    context: Context
    scaled: bool
    kernel: int
    conv_pads: tuple[int, int]
    norm: str
    norm_groups: int


def read_encoder(section: Section) -> Encoder:
    """Return the configuration of the encoder; JarvisError `export.unsupported-config`."""
    section.choice("_target_", TARGETS)
    section.check(KEYS)
    width = section.integer("d_model", minimum=2)
    if width % 2:
        refuse(section.at("d_model"), width, "an even size: positions are pairs of sine and cosine")
    heads = section.integer("n_heads", 4, 1)
    if width % heads:
        refuse(section.at("n_heads"), heads, f"a divisor of `d_model: {width}`")
    outputs = section.integer("feat_out", -1)
    layers = section.integer("n_layers", minimum=1)
    kernel = section.integer("conv_kernel_size", 31, 1)
    if kernel % 2 == 0:
        refuse(section.at("conv_kernel_size"), kernel, "an odd size")
    attention = section.choice(
        "self_attention_model", ("rel_pos", "abs_pos", "rel_pos_local_attn"), "rel_pos"
    )
    norm, groups = _read_norm(section, width)
    return Encoder(
        features=section.integer("feat_in", minimum=1),
        layers=layers,
        width=width,
        outputs=outputs if outputs > 0 else width,
        heads=heads,
        inner=width * section.integer("ff_expansion_factor", 4, 1),
        subsampling=_read_subsampling(section, width),
        reduction=_read_reduction(section, layers, projected=0 < outputs != width),
        relative=attention != "abs_pos",
        context=_read_context(section, local=attention == "rel_pos_local_attn"),
        scaled=section.boolean("xscaling", True),
        kernel=kernel,
        conv_pads=_read_conv_pads(section, kernel),
        norm=norm,
        norm_groups=groups,
    )


def _read_subsampling(section: Section, width: int) -> Subsampling:
    kind = section.values.get("subsampling", "striding")
    factor = section.integer("subsampling_factor", 4, 1)
    channels = section.integer("subsampling_conv_channels", -1)
    causal = section.boolean("causal_downsampling", False)
    if kind is not None and kind is not False:
        kind = section.choice("subsampling", SUBSAMPLING, "striding")
    if channels != -1 and channels < 1:
        refuse(section.at("subsampling_conv_channels"), channels, "-1 or a number of channels")
    if not kind or factor == 1:
        return Subsampling(None, 1, width)
    if not kind.startswith("stacking") and factor & (factor - 1):
        refuse(section.at("subsampling_factor"), factor, "a power of 2")
    return Subsampling(kind, factor, width if channels == -1 else channels, causal)


def _read_reduction(section: Section, layers: int, *, projected: bool) -> Reduction | None:
    factor = section.integer("reduction_factor", 1, 1)
    position = section.values.get("reduction_position")
    if position is not None and section.integer("reduction_position", None, -1) >= layers:
        refuse(section.at("reduction_position"), position, f"at most {layers - 1}")
    if not section.values.get("reduction"):
        return None
    kind = section.choice("reduction", ("pooling", "striding"))
    if factor == 1:
        return None
    if position is None:
        refuse(section.at("reduction_position"), position, f"an integer from -1 to {layers - 1}")
    if factor & (factor - 1):
        refuse(section.at("reduction_factor"), factor, "a power of 2")
    if kind == "pooling" and factor > 2:
        # NeMo divides the lengths by the factor once per doubling, the frames only once.
        refuse(section.at("reduction_factor"), factor, "`2` for pooling")
    if position == -1 and kind == "striding" and projected:
        refuse(section.at("reduction_position"), position, "a layer, since `feat_out` is set")
    return Reduction(kind, factor, position)


def _read_norm(section: Section, width: int) -> tuple[str, int]:
    """Return the norm of the convolution module, and the groups of a group norm."""
    value = section.values.get("conv_norm_type", "batch_norm")
    number = value.removeprefix(GROUP_NORM) if isinstance(value, str) else ""
    if number != value and number.isascii() and number.isdigit() and len(number) < 10:
        groups = int(number)
        if not groups or width % groups:
            refuse(section.at("conv_norm_type"), value, f"groups that divide `d_model: {width}`")
        return GROUP_NORM, groups
    if not isinstance(value, str) or value not in _NORMS:
        known = ", ".join(f"`{name}`" for name in (*_NORMS, f"{GROUP_NORM}<N>"))
        refuse(section.at("conv_norm_type"), value, f"one of {known}")
    return value, width


def _read_conv_pads(section: Section, kernel: int) -> tuple[int, int]:
    value = section.values.get("conv_context_size")
    if value is None:
        return kernel // 2, kernel // 2
    if value == "causal":
        return kernel - 1, 0
    left, right = _read_pair(section, "conv_context_size", value, 0)
    if left + right + 1 != kernel:
        refuse(
            section.at("conv_context_size"), value, f"two sizes with the sum {kernel - 1}, `causal`"
        )
    return left, right


def _read_context(section: Section, *, local: bool) -> Context:
    """Return what inference sees: NeMo takes the first of several contexts."""
    key = "att_context_size"
    value = section.values.get(key)
    style = section.choice("att_context_style", ("regular", "chunked_limited"), "regular")
    first = value
    if isinstance(value, list | tuple) and value and isinstance(value[0], list | tuple):
        first = value[0]
    left, right = _read_pair(section, key, first, -1) if value else (-1, -1)
    if local:
        # NeMo looks the positions of unequal sides up in the wrong places.
        if first is not value or left != right or left < 1:
            refuse(section.at(key), value, "two equal sizes for `rel_pos_local_attn`")
        return Context(1, left, right)
    if style == "regular" or right < 0:
        limits = [None if size < 0 else size for size in (left, right)]
        return Context(1, *limits)
    chunk = right + 1
    if left > 0 and left % chunk:
        refuse(section.at(key), value, "a left size that is a multiple of the right size + 1")
    return Context(chunk, _CHUNKS if left < 0 else left // chunk, 0)


def _read_pair(section: Section, key: str, value: object, minimum: int) -> tuple[int, int]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        refuse(section.at(key), value, "two integers")
    left, right = (Section(section.where, {key: v}).integer(key, None, minimum) for v in value)
    return left, right
