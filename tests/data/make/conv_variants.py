"""The configurations that `record_conv_asr.py` records, documented keys at a second value each.

Combined so that few models show all of them; sizes are as small as they can be.
"""

from __future__ import annotations

from typing import Any


def block(filters: int, kernel: int, **keys: Any) -> dict[str, Any]:
    return {
        "filters": filters,
        "repeat": 1,
        "kernel": [kernel],
        "stride": [1],
        "dilation": [1],
        "dropout": 0.1,
        "residual": False,
        "separable": True,
    } | keys


def dense(filters: int, kernel: int, **keys: Any) -> dict[str, Any]:
    return block(filters, kernel, residual=True, residual_dense=True, **keys)


LAST = block(12, 1, separable=False)
# Each entry: the blocks, encoder keys, preprocessor keys.
VARIANTS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]] = {
    "hardtanh_dilation": (
        [block(8, 5, stride=[2]), block(8, 5, repeat=2, residual=True, dilation=[2]), LAST],
        {"activation": "hardtanh"},
        {"frame_splicing": 1},
    ),
    "swish_stride3_repeat3": (
        [
            block(8, 5, stride=[3], separable=False),
            block(10, 7, repeat=3, residual=True, separable=False),
            LAST,
        ],
        {"activation": "swish", "init_mode": "kaiming_normal"},
        {},
    ),
    "selu_even_kernel": (
        [
            block(8, 4, stride=[2]),
            block(8, 5, repeat=2, residual=True, kernel_size_factor=1.5),
            block(8, 9, residual=True, kernel_size_factor=0.2, residual_mode="add"),
            LAST,
        ],
        {"activation": "selu"},
        {},
    ),
    "gelu_residual_max": (
        [block(8, 5, stride=[2]), block(10, 5, repeat=2, residual=True), LAST],
        {"activation": "gelu", "residual_mode": "max"},
        {},
    ),
    "identity_stride_repeat": (
        [block(8, 5, repeat=2, stride=[2]), block(8, 3, repeat=2, residual=True), LAST],
        {"activation": "identity"},
        {},
    ),
    "silu_no_mask": (
        [
            block(8, 5, stride=[2]),
            block(8, 5, repeat=2, residual=True),
            block(8, 5, dilation=[2], separable=False),
            LAST,
        ],
        {"activation": "silu", "conv_mask": False},
        {},
    ),
    # A plain residual block after dense ones takes the FIRST pane, not the last, as its residual.
    "dense_separable": (
        [
            block(10, 5, stride=[2]),
            dense(8, 5),
            dense(10, 3, separable=False),
            block(12, 3, residual=True),
        ],
        {"activation": "relu"},
        {},
    ),
    # `residual_mode` sticks: the third block inherits it from the second.
    "stride_add": (
        [
            block(8, 5),
            block(
                8,
                5,
                repeat=3,
                stride=[2],
                stride_last=True,
                residual=True,
                residual_mode="stride_add",
            ),
            block(10, 5, stride=[2], residual=True),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    "future_context": (
        [
            block(8, 5, stride=[2], future_context=1),
            block(8, 7, repeat=2, residual=True, future_context=0),
            block(8, 3, future_context=4),
            block(8, 5, residual=True, future_context=4, separable=False),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    # Channels are shuffled behind every norm of a grouped block.
    "groups": (
        [
            block(12, 5, stride=[2], groups=4),
            block(12, 5, repeat=2, residual=True, groups=3),
            block(8, 3, groups=2, separable=False),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    # A block that is not separable has no heads, whatever it says.
    "heads": (
        [
            block(12, 5, stride=[2], heads=4),
            block(12, 7, repeat=2, residual=True, heads=1),
            block(8, 5, heads=12),
            block(8, 5, heads=3, separable=False),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    "future_dilation": (
        [
            block(8, 5, stride=[2], future_context=4),
            block(8, 5, repeat=2, dilation=[2], future_context=1),
            block(8, 3, dilation=[3], future_context=0, separable=False),
            block(8, 3, dilation=[2], future_context=3, residual=True),
            LAST,
        ],
        {"activation": "relu"},
        {},
    ),
    "squeeze_excite": (
        [
            block(9, 5, se=True, se_reduction_ratio=3),
            block(
                8,
                5,
                repeat=3,
                stride=[2],
                stride_last=True,
                residual=True,
                residual_mode="stride_add",
                se=True,
                se_context_size=4,
                se_interpolation_mode="linear",
            ),
            block(10, 5, residual=True, residual_mode="max", se=True, se_reduction_ratio=4),
            LAST | {"se": True},
        ],
        {"activation": "swish"},
        {},
    ),
    "squeeze_excite_no_mask": (
        [
            block(8, 5, stride=[2], se=True, se_reduction_ratio=2),
            block(8, 5, repeat=2, residual=True, groups=2, heads=4, se=True),
            LAST,
        ],
        {"activation": "hardtanh", "conv_mask": False},
        {},
    ),
    "group_norm": (
        [
            block(8, 5, stride=[2]),
            block(12, 5, repeat=2, residual=True, groups=2, se=True, se_reduction_ratio=2),
            LAST,
        ],
        {"activation": "gelu", "normalization_mode": "group", "norm_groups": 4},
        {},
    ),
    "group_norm_each": (
        [block(8, 5, stride=[2]), block(8, 5, dilation=[2]), LAST],
        {"activation": "relu", "normalization_mode": "group", "norm_groups": -1},
        {},
    ),
    "layer_norm": (
        [block(8, 5, stride=[2]), dense(10, 5), dense(8, 5), block(8, 5), LAST],
        {"activation": "relu", "normalization_mode": "layer", "norm_groups": 3},
        {},
    ),
    "instance_norm_no_mask": (
        [block(8, 5, stride=[2]), block(8, 5, repeat=2, residual=True, se=True), LAST],
        {"activation": "silu", "normalization_mode": "instance", "conv_mask": False},
        {},
    ),
    "features_all": (
        [block(8, 5, stride=[2]), LAST],
        {"activation": "relu"},
        {
            "sample_rate": 8000,
            "window_size": False,
            "window_stride": False,
            "n_window_size": 150,
            "n_window_stride": 60,
            "window": "hamming",
            "normalize": "all_features",
            "preemph": None,
            "lowfreq": 100,
            "highfreq": 3800,
            "log_zero_guard_type": "clamp",
            "log_zero_guard_value": 0.001,
            "mag_power": 1.0,
            "pad_to": 0,
            "mel_norm": None,
        },
    ),
    "features_exact_pad": (
        [block(8, 5, stride=[2]), LAST],
        {"activation": "relu"},
        {
            "sample_rate": 8000,
            "window_size": 0.02,
            "window": "blackman",
            "normalize": None,
            "log": False,
            "preemph": 0.9,
            "exact_pad": True,
            "pad_value": -1.5,
            "pad_to": 8,
        },
    ),
    "features_eps": (
        [block(8, 5, stride=[2]), LAST],
        {"activation": "relu"},
        {
            "sample_rate": 8000,
            "window_size": 0.032,
            "n_fft": 512,
            "window": "bartlett",
            "log_zero_guard_value": "eps",
            "pad_to": 4,
            "features": 8,
        },
    ),
}

# Each entry: the kind of tokenizer and the blocks.
SUBWORDS: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "sentencepiece": ("bpe", [block(8, 5, stride=[2], se=True), LAST]),
    "wordpiece": ("wpe", [block(8, 5, stride=[2], se=True), LAST]),
}
CORPUS = ["turn on the light", "turn off the fan", "open the door", "what is the time", "one two"]
# The unknown token only: transformers numbers the special tokens that are missing behind these.
WORDS = ["[UNK]", *"acdefhilmnoprtuw", *(f"##{c}" for c in "acdefhilmnoprtuw"), "the", "turn"]
