"""Settings of the Wan2.1 text-to-video networks by name, to be passed on as `WanDiT(**WAN_1_3B)`."""

from typing import Any, TypedDict


class Size(TypedDict):
    """The settings in which the published networks differ; all others are `WanDiT`'s defaults."""

    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    num_layers: int


WAN_1_3B: Size = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
WAN_14B: Size = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}

SIZES: dict[str, dict[str, Any]] = {
    "wan-1.3b": dict(WAN_1_3B),
    "wan-14b": dict(WAN_14B),
    "mini": {
        "num_attention_heads": 3,
        "attention_head_dim": 64,
        "num_layers": 8,
        "ffn_dim": 768,
        "freq_dim": 128,
        "text_dim": 64,
    },
}
"""Transformers that can be planned without weights: `WanDiT`'s settings where they differ from its defaults."""

PUBLISHED = "wan-2.1"
"""Names Wan2.1's text encoder and VAE, which all published sizes share, where no folder has theirs."""
