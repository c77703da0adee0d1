"""What all tests share: a tiny transformer with weights that make every part of it matter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import settings

from reward_forcing.models.wan_dit import WanDiT

settings.register_profile("package", deadline=None, derandomize=True, max_examples=30)
settings.load_profile("package")

TINY: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
}


@pytest.fixture(scope="session")
def tiny_dit() -> Callable[..., WanDiT]:
    """Makes a `WanDiT` of tiny size: tiny_dit(seed=0, **settings) draws every parameter, zero-initialised ones too."""

    def make(seed: int = 0, **changes: Any) -> WanDiT:
        network = WanDiT(**TINY | changes)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in network.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            fan_in = parameter[0].numel() if name.endswith("weight") and parameter.ndim > 1 else 25
            parameter.data = noise / fan_in**0.5 + ("norm" in name and name.endswith("weight"))
        return network

    return make
