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
    """Keys or values [B, F, S, H, D] as int8 [B, F, S + 4, H, D]: their numbers, then the bytes of the scales.

    Scales are float32, one for each channel of a head over a frame's tokens: the largest magnitude / 127, so that no
    number is off by more than half of it. Some channels of keys are large in all tokens; a scale of a token and head
    would leave the others few steps (docs/performance.md has the errors of both).
    """
    wide = widen(x).float()
    scale = wide.abs().amax(dim=2, keepdim=True) / 127  # [B, F, 1, H, D]
    numbers = (wide / scale.clamp(min=torch.finfo(torch.float32).tiny)).round().to(torch.int8)
    bytes_of_scale = scale.view(torch.int8).unflatten(-1, (-1, SCALE_BYTES)).movedim(-1, 2).squeeze(3)
    return torch.cat([numbers, bytes_of_scale], dim=2)


def from_int8(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Keys or values [B, F, S, H, D] of what `to_int8` made of them."""
    numbers, bytes_of_scale = stored.tensor_split([stored.shape[2] - SCALE_BYTES], dim=2)
    scale = bytes_of_scale.movedim(2, -1).clone(memory_format=torch.contiguous_format).view(torch.float32)
    return (numbers.float() * scale.squeeze(-1).unsqueeze(2)).to(dtype)
