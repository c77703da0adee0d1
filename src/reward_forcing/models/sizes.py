"""Settings of the published Wan2.1 text-to-video networks, to be passed on as `WanDiT(**WAN_1_3B)`."""

from typing import TypedDict


class Size(TypedDict):
    """The settings in which the published networks differ; all others are `WanDiT`'s defaults."""

    num_attention_heads: int
    attention_head_dim: int
    ffn_dim: int
    num_layers: int


WAN_1_3B: Size = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
WAN_14B: Size = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
