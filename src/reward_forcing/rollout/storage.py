"""How a cache stores its local past: as passes read it, or in less memory.

B batch, F latent frames, S tokens per latent frame, H heads, D head width.
Knows neither what is evicted nor when; `KVCache` stores what it keeps with these functions, frame by frame, and no
frame is rounded twice.
"""

from typing import Literal

import torch
from torch import Tensor

from reward_forcing.flow import widen

Storage = Literal["exact", "lean", "int8"]
"""exact: sink and local past side by side, which all passes of a chunk read, with keys that are rotated once for them.
lean: the local past alone; what a layer reads is made anew in every pass, the same numbers in less memory. int8: as
lean, in 8 bits, which changes the output."""

SCALE_BYTES = 4


def to_int8(x: Tensor) -> Tensor:
    """Keys or values [B, F, S, H, D] as int8 [B, F, S, H, D + 4]: each head's numbers, then the bytes of their scale.

    The scale is float32, the largest magnitude of a token's head / 127, so that no number is off by more than half of
    it. Rounding is to the nearest.
    """
    wide = widen(x).float()
    scale = wide.abs().amax(dim=-1, keepdim=True) / 127
    numbers = (wide / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    return torch.cat([numbers, scale.view(torch.int8)], dim=-1)


def from_int8(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values [B, F, S, H, D] of what `to_int8` made of them."""
    numbers, scale = stored.tensor_split([stored.shape[-1] - SCALE_BYTES], dim=-1)
    scale = scale.clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (numbers.float() * scale).to(dtype)
