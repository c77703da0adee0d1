"""The causal video VAE: one definition of its walk, run over a whole clip or over a stream with an explicit state.

The modules, their parameter names and their config are diffusers' `AutoencoderKLWan` (Wan2.1, section 4.1; with
`patch_size` and `is_residual` also Wan2.2). This module owns the order in which they run and what each causal
convolution remembers between two chunks; it knows nothing of rollouts or files.

B batch, T pixel frames, H W pixel size, F latent frames, C latent channels, h w latent size. A clip of F latent frames
has T = 1 + r (F - 1) pixel frames, where r is the temporal factor (4 in Wan).
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    AutoencoderKLWan,
    WanAttentionBlock,
    WanCausalConv3d,
    WanMidBlock,
    WanResample,
    WanResidualBlock,
    WanResidualDownBlock,
    WanResidualUpBlock,
    WanRMS_norm,
)
from torch import Tensor


@dataclass(frozen=True)
class VAEState:
    """What one stream remembers: the last input frames of every layer that looks back in time, in running order.

    A value: `StreamingVAE` never writes into it, so a stream can be branched by keeping a reference.
    kind: "encoder" or "decoder". features: tensors [B, channels, 1 or 2, height, width].
    """

    kind: str
    features: tuple[Tensor, ...]


def encode_parallel(vae: AutoencoderKLWan, frames: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, F, C, h, w] of the posterior, raw (not normalised), in one differentiable pass.

    Equals `vae.encode`, which feeds 1, 4, 4, ... frames through caches. frames: [B, T, 3, H, W] in [0, 1] with
    T = 1 + r (F - 1). The log-variance is clamped to [-30, 20] as in diffusers.
    Raises ValueError if the number or the size of the frames does not divide.
    """
    return _encode(vae, frames, _Tape("encoder", None, keeps=False))


def decode_parallel(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Frames [B, T, 3, H, W] of raw (not normalised) latents [B, F, C, h, w], in one differentiable pass.

    Equals `vae.decode` before its clamp: values may leave [0, 1], so that a loss sees by how much.
    """
    return _decode(vae, latents, _Tape("decoder", None, keeps=False))


class _Tape:
    """Reads the features of the previous chunk and records those for the next, in the order the layers run."""

    def __init__(self, kind: str, state: VAEState | None, keeps: bool) -> None:
        if state is not None and state.kind != kind:
            raise ValueError(f"expected the state of the {kind}, got the state of the {state.kind}")
        self.kind = kind
        self.is_first = state is None
        self.past = iter(state.features) if state is not None else iter(())
        self.keeps = keeps
        self.features: list[Tensor] = []

    def state(self) -> VAEState:
        return VAEState(self.kind, tuple(self.features))

    def extend(self, x: Tensor, frames: int, pad: bool = True) -> Tensor:
        """`x` [B, c, t, h, w] with the `frames` frames before it in front: zeros (or, without `pad`, none) at first."""
        if not self.is_first:
            x = torch.cat([next(self.past).to(x.dtype), x], dim=2)
        elif pad:
            x = F.pad(x, (0, 0, 0, 0, frames, 0))
        if self.keeps:
            self.features.append(x[:, :, -frames:].clone())
        return x


def _encode(vae: AutoencoderKLWan, frames: Tensor, tape: _Tape) -> tuple[Tensor, Tensor]:
    encoder = vae.encoder
    x = _causal_conv(encoder.conv_in, _to_patches(frames * 2 - 1, vae.config.patch_size or 1), tape)
    for block in encoder.down_blocks:
        x = _down_block(block, x, tape)
    x = _head(encoder, _mid_block(encoder.mid_block, x, tape), tape)
    mean, logvar = _causal_conv(vae.quant_conv, x, tape).transpose(1, 2).chunk(2, dim=2)
    return mean, logvar.clamp(-30.0, 20.0)


def _decode(vae: AutoencoderKLWan, latents: Tensor, tape: _Tape) -> Tensor:
    decoder = vae.decoder
    x = _causal_conv(vae.post_quant_conv, latents.transpose(1, 2), tape)
    x = _mid_block(decoder.mid_block, _causal_conv(decoder.conv_in, x, tape), tape)
    for block in decoder.up_blocks:
        x = _up_block(block, x, tape)
    x = _head(decoder, x, tape)
    return _from_patches(x, vae.config.patch_size or 1) / 2 + 0.5


def _down_block(block: torch.nn.Module, x: Tensor, tape: _Tape) -> Tensor:
    match block:
        case WanResidualBlock():
            return _residual_block(block, x, tape)
        case WanAttentionBlock():
            return block(x)
        case WanResample():
            return _downsample(block, x, tape)
        case WanResidualDownBlock():
            # The shortcut pads its first, odd chunk in front: over a whole clip that is the same padding.
            shortcut = block.avg_shortcut(x)
            for resnet in block.resnets:
                x = _residual_block(resnet, x, tape)
            return (_downsample(block.downsampler, x, tape) if block.downsampler is not None else x) + shortcut
    raise TypeError(f"unknown encoder block {type(block).__name__}")


def _up_block(block: torch.nn.Module, x: Tensor, tape: _Tape) -> Tensor:
    entered = x
    for resnet in block.resnets:
        x = _residual_block(resnet, x, tape)
    if not isinstance(block, WanResidualUpBlock):
        return x if block.upsamplers is None else _upsample(block.upsamplers[0], x, tape)
    if block.upsampler is not None:
        x = _upsample(block.upsampler, x, tape)
    return x if block.avg_shortcut is None else x + block.avg_shortcut(entered, first_chunk=tape.is_first)


def _mid_block(block: WanMidBlock, x: Tensor, tape: _Tape) -> Tensor:
    x = _residual_block(block.resnets[0], x, tape)
    for attention, resnet in zip(block.attentions, block.resnets[1:], strict=True):
        x = _residual_block(resnet, attention(x), tape)
    return x


def _residual_block(block: WanResidualBlock, x: Tensor, tape: _Tape) -> Tensor:
    skip = block.conv_shortcut
    shortcut = _causal_conv(skip, x, tape) if isinstance(skip, WanCausalConv3d) else x
    x = _causal_conv(block.conv1, block.nonlinearity(_rms_norm(block.norm1, x)), tape)
    x = block.dropout(block.nonlinearity(_rms_norm(block.norm2, x)))
    return _causal_conv(block.conv2, x, tape) + shortcut


def _head(coder: torch.nn.Module, x: Tensor, tape: _Tape) -> Tensor:
    return _causal_conv(coder.conv_out, coder.nonlinearity(_rms_norm(coder.norm_out, x)), tape)


def _causal_conv(conv: WanCausalConv3d, x: Tensor, tape: _Tape) -> Tensor:
    """The convolution over the frames so far: zeros stand before the first frame of a clip."""
    time, height, width = conv.kernel_size
    if time > 1:
        x = tape.extend(x, time - 1)
    return F.conv3d(x, conv.weight, conv.bias, padding=(0, height // 2, width // 2))


def _downsample(block: WanResample, x: Tensor, tape: _Tape) -> Tensor:
    """Half the size; where time is halved too, the first frame of a clip stays alone: [x0, conv(x0 x1 x2), ...]."""
    x = _per_frame(block.resample, x)
    if block.mode != "downsample3d":
        return x
    conv = block.time_conv
    first = x[:, :, :1] if tape.is_first else None
    x = tape.extend(x, 1, pad=False)
    if x.shape[2] < conv.kernel_size[0]:
        return x
    x = F.conv3d(x, conv.weight, conv.bias, stride=conv.stride)
    return x if first is None else torch.cat([first, x], dim=2)


def _upsample(block: WanResample, x: Tensor, tape: _Tape) -> Tensor:
    """Twice the size; where time is doubled too, the first frame of a clip stays alone and later ones do not see it."""
    if block.mode == "upsample3d":
        first, rest = (x[:, :, :1], x[:, :, 1:]) if tape.is_first else (x[:, :, :0], x)
        rest = tape.extend(rest, block.time_conv.kernel_size[0] - 1)
        if rest.shape[2] < block.time_conv.kernel_size[0]:
            return _per_frame(block.resample, first)
        doubled = F.conv3d(rest, block.time_conv.weight, block.time_conv.bias)
        doubled = doubled.unflatten(1, (2, -1)).movedim(1, 3).flatten(2, 3)  # [B, 2c, t, ...] -> [B, c, 2t, ...]
        x = torch.cat([first, doubled], dim=2)
    return _per_frame(block.resample, x)


def _per_frame(layer: torch.nn.Module, x: Tensor) -> Tensor:
    return layer(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)


def _rms_norm(norm: WanRMS_norm, x: Tensor) -> Tensor:
    """`norm(x)` over channels, the statistic in float32 or better, in the dtype of `x` (diffusers would return float32)."""
    length = torch.linalg.vector_norm(
        x, dim=1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32)
    ).clamp_min(1e-12)
    return x * (norm.scale / length).to(x.dtype) * norm.gamma.to(x.dtype)


def _to_patches(frames: Tensor, size: int) -> Tensor:
    """Frames [B, T, 3, H, W] as [B, 3 size^2, T, H / size, W / size]; channels run (colour, column, row)."""
    x = frames.unflatten(4, (-1, size)).unflatten(3, (-1, size))  # [B, T, 3, H', p, W', p]
    return x.permute(0, 2, 6, 4, 1, 3, 5).flatten(1, 3)


def _from_patches(x: Tensor, size: int) -> Tensor:
    """The inverse of `_to_patches`."""
    x = x.unflatten(1, (-1, size, size))  # [B, 3, column, row, T, H', W']
    return x.permute(0, 4, 1, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)
