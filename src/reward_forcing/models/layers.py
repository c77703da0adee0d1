"""The parts of a Wan2.1 block, with diffusers' parameter names.

B batch, F latent frames, S tokens per latent frame, H heads, D head width, L text tokens, E model width (H D).
Two precisions follow from the parameters alone: where `scale_shift_table` and the norms are float32, modulation, norms
and gating are computed in float32 around matrix products in the other parameters' dtype; where all parameters are
bfloat16, so is everything but the inside of the norms and RoPE.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, layer_norm, linear

from reward_forcing.flow import widen
from reward_forcing.models.attention import AttentionPattern, LayerText, attend, attend_pattern, attend_text
from reward_forcing.models.cpu_linear import is_one_product, product, project
from reward_forcing.models.rope import Rotation, rotate
from reward_forcing.models.sequence_parallel import ALL, SequenceShare


class TimeContext(NamedTuple):
    """Embedded timesteps of a batch's frames: [B, F or 1, E] for the head, [B, F or 1, 6, E] for all blocks."""

    embedding: Tensor
    modulation: Tensor


class LayerPast(NamedTuple):
    """Rotated keys and values [B, P, S, H, D] of one layer's past."""

    keys: Tensor
    values: Tensor


class PatchEmbedding(nn.Conv3d):
    """Latents [B, F, C, h, w] -> tokens [B, F, S, E]: a strided convolution, computed as one matrix product."""

    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Tokens [B, F, S, E], rows first, of latents [B, F, C, h, w] in any dtype."""
        rows, columns = self.kernel_size[1:]
        patches = x.unflatten(4, (-1, columns)).unflatten(3, (-1, rows))  # [B, F, C, y, rows, x, columns]
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)  # [B, F, S, C rows columns]
        return linear(patches.to(self.weight.dtype), self.weight.flatten(1), self.bias)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, which spans all heads together; the mean square is in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x [..., E], in the dtype of x."""
        wide = widen(x)
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return ((wide * scale).to(x.dtype) * self.weight).to(x.dtype)


class Projections(nn.Module):
    """Query, key, value and output projections of an attention, with RMS-normalised queries and keys."""

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.norm_q = RMSNorm(width, eps)
        self.norm_k = RMSNorm(width, eps)

    def query(self, x: Tensor) -> Tensor:
        """Normalised queries [..., H, D] of x [..., E]."""
        return self._split(self.norm_q(project(self.to_q, x)))

    def key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised keys and plain values, each [..., H, D], of x [..., E]."""
        return self._split(self.norm_k(project(self.to_k, x))), self._split(project(self.to_v, x))

    def out(self, x: Tensor) -> Tensor:
        """Heads [..., H, D] joined and projected to [..., E]."""
        return project(self.to_out[0], x.flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class ProjectedGELU(nn.Module):
    """GELU (tanh approximation) of a linear projection named proj."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Activations [..., hidden] of x [..., E]."""
        compiling = torch.compiler.is_compiling()
        if is_one_product(self.proj, x) and not (compiling and x.dtype == torch.float32):
            return product(self.proj, x, "gelu")
        if compiling:  # in float32 the compiler's own fusion is the faster one
            return _sigmoid_gelu(self.proj(x))
        return gelu(self.proj(x), approximate="tanh")


def _sigmoid_gelu(x: Tensor) -> Tensor:
    """GELU's tanh approximation written as x sigmoid(2 u), for (1 + tanh u) / 2 = sigmoid(2 u).

    Compiled for a CPU it takes half the time of the other form, with its gradient, because exp is cheaper than tanh.
    """
    wide = widen(x)
    return (wide * torch.sigmoid((8 / math.pi) ** 0.5 * (wide + 0.044715 * wide**3))).to(x.dtype)


class FeedForward(nn.Module):
    """Linear -> GELU -> Linear, named net.0.proj and net.2."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(ProjectedGELU(width, hidden), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        """Update [..., E] of x [..., E]."""
        return project(self.net[2], self.net[0](x))


class EmbeddingMLP(nn.Module):
    """Linear -> activation -> Linear, named linear_1 and linear_2; takes any dtype, returns that of its parameters."""

    def __init__(self, inputs: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(inputs, width)
        self.activation = activation
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Embedding [..., E] of x [..., inputs]."""
        return self.linear_2(self.activation(self.linear_1(x.to(self.linear_1.weight.dtype))))


class AffineNorm(nn.LayerNorm):
    """Layer norm with weight and bias, computed in the parameters' dtype and returned in the dtype of the input."""

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalised x [..., E], in the dtype of x."""
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def modulate(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, computed in the dtype of `scale`, returned in that of `x`."""
    normed = layer_norm(x.to(scale.dtype), x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale).to(x.dtype)


def gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
    """x + update gate, computed in the dtype of `gate`, returned in that of `x`."""
    return torch.addcmul(x.to(gate.dtype), update.to(gate.dtype), gate).to(x.dtype)


class WanBlock(nn.Module):
    """Modulated self-attention, cross-attention to the text, modulated feed-forward."""

    def __init__(self, width: int, hidden: int, heads: int, cross_attn_norm: bool, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.share: SequenceShare = ALL
        self.attend: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None
        """In place of `attend` in self-attention where no pattern is given."""
        self.attn1 = Projections(width, heads, eps)
        self.attn2 = Projections(width, heads, eps)
        self.norm2 = AffineNorm(width, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(width, hidden)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, width) / width**0.5)

    def encode_text(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-attention keys and values, each [B, L, H, D], of embedded text [B, L, E]."""
        return self.attn2.key_value(text)

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        text: LayerText,
        by: Rotation,
        past: LayerPast | None,
        pattern: AttentionPattern | None,
        only_kv: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens x [B, F, S, E] after the block, and the un-rotated keys and values [B, F, S, H, D] it used.

        modulation: [B, F or 1, 6, E], the projected time embedding. text: for each span of frames their number,
        and weights, keys and values from `encode_text`. only_kv: the tokens come back as they were given. Where
        processes share the tokens, x is this one's share of them, and keys and values are those of its heads.
        """
        table = (self.scale_shift_table + modulation).unsqueeze(3)  # [B, F or 1, 6, 1, E]
        shift1, scale1, gate1, shift2, scale2, gate2 = table.unbind(2)

        y = modulate(x, shift1, scale1, self.eps)
        if only_kv:
            key, value = self.share.to_heads(self.attn1.key_value(y), by.cos.shape[1])
            return x, key, value
        y, key, value = self._self_attention(y, by, past, pattern)
        x = gated(x, y, gate1)
        x = x + self._cross_attention(x, text).to(x.dtype)
        x = gated(x, self.ffn(modulate(x, shift2, scale2, self.eps)), gate2)
        return x, key, value

    def _cross_attention(self, x: Tensor, text: LayerText) -> Tensor:
        query = self.attn2.query(self.norm2(x))  # [B, F, S, H, D]
        spans = query.split([frames for frames, _ in text], dim=1)
        read = [
            attend_text(span.flatten(1, 2), readings).view_as(span)
            for span, (_, readings) in zip(spans, text, strict=True)
        ]
        return self.attn2.out(read[0] if len(read) == 1 else torch.cat(read, dim=1))

    def _self_attention(
        self, x: Tensor, by: Rotation, past: LayerPast | None, pattern: AttentionPattern | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        tokens = by.cos.shape[1]  # of a latent frame, of which x may be a share
        query, raw_key, value = self.share.to_heads((self.attn1.query(x), *self.attn1.key_value(x)), tokens)
        query, key = rotate(query, by), rotate(raw_key, by)
        attend_tokens = self.attend or attend
        if pattern is not None:
            y = attend_pattern(query, key, value, pattern)
        elif past is None:
            y = attend_tokens(query.flatten(1, 2), key.flatten(1, 2), value.flatten(1, 2))
        else:
            keys = torch.cat([past.keys.to(key.dtype), key], dim=1).flatten(1, 2)
            values = torch.cat([past.values.to(value.dtype), value], dim=1).flatten(1, 2)
            y = attend_tokens(query.flatten(1, 2), keys, values)
        return self.attn1.out(self.share.to_tokens(y.view_as(query))), raw_key, value
