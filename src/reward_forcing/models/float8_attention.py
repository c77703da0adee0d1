"""Self-attention whose queries, keys and values are rounded to float8 e4m3, one scale for each head.

H heads, D head width. On a Hopper GPU the kernel is FlashAttention 3's, by torch's interface; anywhere else what is
rounded is multiplied as ever, which saves nothing and shows what the rounding changes. The kernel also rounds the
softmax's weights to float8, which only it does.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from reward_forcing.models.attention import attend

LARGEST = 448.0
"""The largest number of e4m3."""
KERNEL = "flash_attn_interface"
"""The module of FlashAttention 3, which is a package of its own."""


def attend_in_float8(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over tokens without a mask: [B, Q, H, D] x [B, K, H, D] -> [B, Q, H, D], in the given dtype."""
    rounded = [round_heads(tensor) for tensor in (query, key, value)]
    if query.device.type != "cuda":
        return attend(*((numbers.float() * scale).to(query.dtype) for numbers, scale in rounded))
    from torch.nn.attention.experimental._scaled_dot_product_attention_quantized import (
        _scaled_dot_product_attention_quantized,
    )

    _use_kernel()
    (q, q_scale), (k, k_scale), (v, v_scale) = (
        (numbers.transpose(1, 2), scale[:, 0, :, 0]) for numbers, scale in rounded
    )
    out = _scaled_dot_product_attention_quantized(q, k, v, q_descale=q_scale, k_descale=k_scale, v_descale=v_scale)
    return out.transpose(1, 2).to(query.dtype)


def round_heads(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Heads [B, T, H, D] in float8, and what they are to be multiplied with again, float32 [B, 1, H, 1]."""
    scale = tensor.abs().amax(dim=(1, 3), keepdim=True).float().clamp(min=1e-12) / LARGEST
    return (tensor / scale).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scale


def check_kernel(device: torch.device) -> None:
    """Raise ValueError for a GPU without the kernel."""
    if device.type != "cuda":
        return
    if torch.cuda.get_device_capability(device)[0] != 9:
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"attention=fp8 needs a Hopper GPU (9.0), not {name}; use attention=exact")
    if find_spec(KERNEL) is None:
        raise ValueError(
            f"attention=fp8 needs FlashAttention 3, whose module {KERNEL} is not installed; use attention=exact"
        )


@cache
def _use_kernel() -> None:
    """Have torch's flash attention be FlashAttention 3's, in this process and for all that use it."""
    torch.nn.attention.activate_flash_attention_impl("FA3")
