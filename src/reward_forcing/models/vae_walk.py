"""The causal video VAE as one walk over its layers, from any moment of a stream: a whole clip is the walk from nothing.

The modules, their parameter names and their config are diffusers' `AutoencoderKLWan` (the VAE of Wan2.1; with
`patch_size` and `is_residual` also that of Wan2.2). This module owns the order in which they run and what each causal
layer remembers between two chunks; it knows nothing of normalised latents, rollouts or files.

B batch, c channels, t frames at the current rate, T pixel frames, H W pixel size, F latent frames, C latent channels,
h w latent size. A clip of F latent frames has T = 1 + r (F - 1) pixel frames; r is the temporal factor (4 in Wan).
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanRMS_norm,
)
from torch import Tensor, nn

Activation = Callable[[Tensor, float, Tensor], Tensor]
"""Activated features of features [B, c, t, height, width], the norm's scale and its gamma [c, 1, 1, 1]."""


@dataclass(frozen=True)
class VAEState:
    """What one stream remembers: the last input frames of every layer that looks back in time, in running order.

    A value: no walk writes into it, so a stream branches by keeping a reference.
    kind: whose state it is, "encoder", "decoder" or "tiny decoder". features: tensors [B, c, 1 or 2, height, width].
    """

    kind: str
    features: tuple[Tensor, ...]


class Tape:
    """Reads what the layers kept of the last chunk and records what they keep for the next, in running order.

    kind: "encoder" or "decoder". keeps: False where no next chunk follows, so that nothing is copied. activate: what
    comes before the convolutions, `normed_silu` or the same compiled.
    """

    def __init__(self, kind: str, state: VAEState | None, keeps: bool, activate: Activation | None = None) -> None:
        self.kind = kind
        self.activate = activate or normed_silu
        self.is_first = state is None
        self._past = deque(state.features if state is not None else ())
        self._keeps = keeps
        self._kept: list[Tensor] = []

    def extend(self, x: Tensor, frames: int, pad: bool = True) -> Tensor:
        """`x` [B, c, t, ...] behind the `frames` frames before it: at a clip's start zeros, or none without `pad`."""
        if not self.is_first:
            x = torch.cat([self._past.popleft(), x], dim=2)
        elif pad:
            x = F.pad(x, (0, 0, 0, 0, frames, 0))
        if self._keeps:
            self._kept.append(x[:, :, -frames:].clone())  # a view would keep the whole chunk alive
        return x

    def state(self) -> VAEState:
        """What this walk recorded."""
        return VAEState(self.kind, tuple(self._kept))


def encode_walk(vae: AutoencoderKLWan, frames: Tensor, tape: Tape) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, F, C, h, w] of the posterior of frames [B, T, 3, H, W] in [0, 1], raw."""
    encoder: Any = vae.encoder
    x = _causal_conv(encoder.conv_in, _to_patches(frames * 2 - 1, _patch_size(vae)), tape)
    for block in encoder.down_blocks:
        x = _down_block(block, x, tape)
    x = _head(encoder, _mid_block(encoder.mid_block, x, tape), tape)
    mean, logvar = _causal_conv(vae.quant_conv, x, tape).transpose(1, 2).chunk(2, dim=2)
    return mean, logvar.clamp(-30.0, 20.0)


def decode_walk(vae: AutoencoderKLWan, latents: Tensor, tape: Tape) -> Tensor:
    """Frames [B, T, 3, H, W] of raw latents [B, F, C, h, w], not clamped to [0, 1]."""
    decoder: Any = vae.decoder
    x = _causal_conv(vae.post_quant_conv, latents.transpose(1, 2), tape)
    x = _mid_block(decoder.mid_block, _causal_conv(decoder.conv_in, x, tape), tape)
    for block in decoder.up_blocks:
        x = _up_block(block, x, tape)
    return _from_patches(_head(decoder, x, tape), _patch_size(vae)) / 2 + 0.5


def _down_block(block: nn.Module, x: Tensor, tape: Tape) -> Tensor:
    match block:
        case WanResidualBlock():
            return _residual_block(block, x, tape)
        case WanResample():
            return _downsample(block, x, tape)
        case WanResidualDownBlock():
            # The shortcut pads an odd number of frames in front, which only a clip's first chunk has.
            shortcut = block.avg_shortcut(x)
            for resnet in block.resnets:
                x = _residual_block(resnet, x, tape)
            return (_downsample(block.downsampler, x, tape) if block.downsampler is not None else x) + shortcut
    raise TypeError(f"unknown encoder block {type(block).__name__}")


def _up_block(block: Any, x: Tensor, tape: Tape) -> Tensor:
    entered = x
    for resnet in block.resnets:
        x = _residual_block(resnet, x, tape)
    if not isinstance(block, WanResidualUpBlock):
        return x if block.upsamplers is None else _upsample(block.upsamplers[0], x, tape)
    if block.upsampler is not None:
        x = _upsample(block.upsampler, x, tape)
    return x if block.avg_shortcut is None else x + block.avg_shortcut(entered, first_chunk=tape.is_first)


def _mid_block(block: WanMidBlock, x: Tensor, tape: Tape) -> Tensor:
    x = _residual_block(block.resnets[0], x, tape)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual_block(resnet, attention(x), tape)
    return x


def _residual_block(block: Any, x: Tensor, tape: Tape) -> Tensor:
    skip = block.conv_shortcut
    shortcut = _causal_conv(skip, x, tape) if isinstance(skip, WanCausalConv3d) else x
    x = _causal_conv(block.conv1, _activated(block.norm1, x, tape), tape)
    x = block.dropout(_activated(block.norm2, x, tape))
    return _causal_conv(block.conv2, x, tape) + shortcut


def _head(coder: Any, x: Tensor, tape: Tape) -> Tensor:
    return _causal_conv(coder.conv_out, _activated(coder.norm_out, x, tape), tape)


def _causal_conv(conv: WanCausalConv3d, x: Tensor, tape: Tape) -> Tensor:
    """The convolution over the frames so far: zeros stand before the first frame of a clip."""
    return _conv3d(conv, tape.extend(x, conv.kernel_size[0] - 1) if conv.kernel_size[0] > 1 else x)


def _downsample(block: WanResample, x: Tensor, tape: Tape) -> Tensor:
    """Half the size; where time is halved too, a clip's first frame stays alone: [x0, conv(x0 x1 x2), ...]."""
    x = _per_frame(block.resample, x)
    if block.mode != "downsample3d":
        return x
    first = x[:, :, : 1 if tape.is_first else 0]
    x = tape.extend(x, 1, pad=False)
    if x.shape[2] < block.time_conv.kernel_size[0]:
        return first
    return torch.cat([first, _conv3d(block.time_conv, x)], dim=2)


def _upsample(block: Any, x: Tensor, tape: Tape) -> Tensor:
    """Twice the size; where time is doubled too, a clip's first frame stays alone, unseen by the later ones."""
    resize, conv = block.resample
    if block.mode == "upsample3d":
        alone = 1 if tape.is_first else 0
        first, x = x[:, :, :alone], tape.extend(x[:, :, alone:], block.time_conv.kernel_size[0] - 1)
        if x.shape[2] < block.time_conv.kernel_size[0]:
            x = first
        else:
            pairs = _conv3d(block.time_conv, x).unflatten(1, (2, -1))  # [B, 2, c, t, ...]
            x = torch.cat([first, pairs.movedim(1, 3).flatten(2, 3)], dim=2)  # [B, c, 2t, ...]
    # `resize` itself would go through float32, which copies values as they are, only more slowly.
    return _per_frame(lambda y: conv(F.interpolate(y, scale_factor=resize.scale_factor, mode=resize.mode)), x)


def _per_frame(layer: Any, x: Tensor) -> Tensor:
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _conv3d(conv: WanCausalConv3d, x: Tensor) -> Tensor:
    """`conv` with its padding in space and none in time."""
    padding = (0, conv.kernel_size[1] // 2, conv.kernel_size[2] // 2)
    if _is_onednn_float32(x):
        return torch.mkldnn_convolution(x, conv.weight, conv.bias, padding, conv.stride, conv.dilation, conv.groups)
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)


def _is_onednn_float32(x: Tensor) -> bool:
    """Whether to ask for oneDNN by name: for small float32 inputs torch takes a kernel that is ten times slower."""
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return on_cpu and torch.backends.mkldnn.is_available() and not torch.is_autocast_enabled("cpu")


def _activated(norm: WanRMS_norm, x: Tensor, tape: Tape) -> Tensor:
    return tape.activate(x, norm.scale, norm.gamma)


def normed_silu(x: Tensor, scale: float, gamma: Tensor) -> Tensor:
    """SiLU of x [B, c, t, ...] over its root mean square in the channels, times gamma, in the dtype of `x`.

    scale: the root of the number of channels. The statistic is in float32 or better.
    """
    statistic = torch.promote_types(x.dtype, torch.float32)
    length = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=statistic).clamp_min(1e-12)
    return F.silu(x * (scale / length).to(x.dtype) * gamma.to(x.dtype))


def _patch_size(vae: AutoencoderKLWan) -> int:
    return vae.config["patch_size"] or 1


def _to_patches(frames: Tensor, size: int) -> Tensor:
    """Frames [B, T, 3, H, W] as [B, 3 size^2, T, H / size, W / size]; channels run (colour, column, row)."""
    x = frames.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # [B, T, 3, H', row, W', column]
    return x.permute(0, 2, 6, 4, 1, 3, 5).flatten(1, 3)


def _from_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of `_to_patches`."""
    x = x.unflatten(1, (-1, size, size))  # [B, 3, column, row, T, H', W']
    return x.permute(0, 4, 1, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
