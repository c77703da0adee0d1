"""Wan2.1's transformer the naive way, on the parameters of a `WanDiT`: eager, float64 complex RoPE on the whole window.

B batch, F latent frames, C latent channels, T tokens, L text tokens, H heads, D head width, E model width (H D).
Written from the published equations and apart from `models.wan_dit` on purpose: each is the other's oracle. It does the
same multiplications on the same weights; what it wastes is what published code wastes. Never made faster.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention, silu

from reward_forcing.benchmarks.naive_cache import NaiveLayerCache
from reward_forcing.models.wan_dit import WanDiT

POSITIONS = 1024
"""Length of the RoPE table, as published: absolute positions end there."""

CrossCache = list[tuple[Tensor, Tensor]]
"""Keys and values [B, L, H, D] of the text in every layer; empty until a pass has filled it."""


class NaiveNetwork:
    """Velocities of noisy latents, with the parameters of `network`, which are shared and not copied."""

    def __init__(self, network: WanDiT) -> None:
        self.parameters = dict(network.named_parameters())
        self.layers = len(network.blocks)
        self.head_dim = network.head_dim
        self.patch = network.patch
        self.eps = network.eps
        self.freq_dim = network.condition_embedder.freq_dim
        self.device = network.patch_embedding.weight.device
        self.dtype = network.patch_embedding.weight.dtype
        self.turns = _turns(self.head_dim, self.device)

    def embed_text(self, embeddings: Tensor) -> Tensor:
        """Text [B, L, E] of the text encoder's embeddings [B, L, text_dim]."""
        return self._mlp(
            "condition_embedder.text_embedder", embeddings.to(self.device, self.dtype), torch.nn.GELU("tanh")
        )

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Tensor,
        cross: CrossCache,
        caches: Sequence[NaiveLayerCache],
        start: int,
        own: int,
        with_sink: bool = True,
    ) -> Tensor:
        """Velocities [B, F, C, h, w] of latents x at timesteps [B, F]; writes and reads `caches`, fills `cross` once.

        text: [B, L, E] from `embed_text`. start: latent frames of video before x. own: how many frames of x enter the
        cache. with_sink: see `CacheSettings.clean_pass_sees_sink`.
        """
        batch, frames, channels, height, width = x.shape
        _, rows, columns = self.patch
        grid = torch.tensor([frames, height // rows, width // columns], device=self.device)
        tokens = int(grid[1:].prod().item())
        patches = x.view(batch, frames, channels, height // rows, rows, width // columns, columns)
        patches = patches.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, frames * tokens, channels * rows * columns)
        weight = self.parameters["patch_embedding.weight"]
        stream = linear(patches.to(self.dtype), weight.flatten(1), self.parameters["patch_embedding.bias"])
        embedding, modulation = self._time(timestep)
        for layer in range(self.layers):
            write = (caches[layer], start * tokens, own * tokens, with_sink)
            stream = self._block(f"blocks.{layer}", stream, modulation, text, cross, layer, grid, write)
        table = (self.parameters["scale_shift_table"] + embedding.unsqueeze(2)).unsqueeze(3)  # [B, F, 2, 1, E]
        out = self._linear("proj_out", self._modulated(stream, table[:, :, 0], table[:, :, 1]))
        out = out.view(batch, frames, height // rows, width // columns, rows, columns, -1)
        return out.permute(0, 1, 6, 2, 4, 3, 5).reshape(batch, frames, -1, height, width)

    def _time(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding [B, F, E] and modulation [B, F, 6, E]."""
        half = self.freq_dim // 2
        powers = torch.arange(half, dtype=torch.float64, device=self.device).div(half)
        angles = torch.outer(timestep.flatten().to(torch.float64), torch.pow(10000, -powers))
        features = torch.cat([torch.cos(angles), torch.sin(angles)], dim=1)
        own = self.parameters["condition_embedder.time_embedder.linear_1.weight"].dtype
        embedding = self._mlp("condition_embedder.time_embedder", features.to(own), torch.nn.SiLU())
        dtype = self.parameters["condition_embedder.time_proj.weight"].dtype
        modulation = self._linear("condition_embedder.time_proj", silu(embedding).to(dtype))
        return embedding.view(*timestep.shape, -1), modulation.view(*timestep.shape, 6, -1)

    def _block(
        self,
        name: str,
        x: Tensor,
        modulation: Tensor,
        text: Tensor,
        cross: CrossCache,
        layer: int,
        grid: Tensor,
        write: tuple[NaiveLayerCache, int, int, bool],
    ) -> Tensor:
        table = (self.parameters[f"{name}.scale_shift_table"] + modulation).unsqueeze(3)  # [B, F, 6, 1, E]
        shift1, scale1, gate1, shift2, scale2, gate2 = table.unbind(2)
        y = self._self_attention(f"{name}.attn1", self._modulated(x, shift1, scale1), grid, write)
        x = self._gated(x, y, gate1)
        x = x + self._cross_attention(name, x, text, cross, layer)
        y = gelu(self._linear(f"{name}.ffn.net.0.proj", self._modulated(x, shift2, scale2)), approximate="tanh")
        return self._gated(x, self._linear(f"{name}.ffn.net.2", y), gate2)

    def _self_attention(
        self, name: str, x: Tensor, grid: Tensor, write: tuple[NaiveLayerCache, int, int, bool]
    ) -> Tensor:
        cache, start, own, with_sink = write
        query = self._heads(self._rms_norm(f"{name}.norm_q", self._linear(f"{name}.to_q", x)))
        key = self._heads(self._rms_norm(f"{name}.norm_k", self._linear(f"{name}.to_k", x)))
        value = self._heads(self._linear(f"{name}.to_v", x))
        shown = cache.attend_to(key, value, start, own, with_sink)
        query = self._rotate(query, shown.query_positions, grid)
        key = self._rotate(shown.keys, shown.key_positions, grid)
        return self._linear(f"{name}.to_out.0", _attention(query, key, shown.values))

    def _cross_attention(self, name: str, x: Tensor, text: Tensor, cross: CrossCache, layer: int) -> Tensor:
        if len(cross) == layer:
            key = self._heads(self._rms_norm(f"{name}.attn2.norm_k", self._linear(f"{name}.attn2.to_k", text)))
            cross.append((key, self._heads(self._linear(f"{name}.attn2.to_v", text))))
        key, value = cross[layer]
        normed = self._layer_norm(f"{name}.norm2", x)
        query = self._heads(self._rms_norm(f"{name}.attn2.norm_q", self._linear(f"{name}.attn2.to_q", normed)))
        return self._linear(f"{name}.attn2.to_out.0", _attention(query, key, value))

    def _rotate(self, x: Tensor, positions: Tensor, grid: Tensor) -> Tensor:
        """x [B, T, H, D] turned by its tokens' angles, in complex128, back in its own dtype."""
        last, frames = int(positions.max().item()), len(positions)
        if last >= POSITIONS:
            raise ValueError(f"the naive mode's RoPE table has {POSITIONS} positions, frame {last} is beyond its end")
        rows, columns = (int(size.item()) for size in grid[1:])
        time, row, column = self.turns
        shape = (frames, rows, columns, -1)
        by = torch.cat(
            [
                time[positions].view(frames, 1, 1, -1).expand(shape),
                row[:rows].view(1, rows, 1, -1).expand(shape),
                column[:columns].view(1, 1, columns, -1).expand(shape),
            ],
            dim=-1,
        ).reshape(frames * rows * columns, 1, -1)
        pairs = torch.view_as_complex(x.to(torch.float64).reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * by).flatten(3).to(x.dtype)

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """LN(x) (1 + scale) + shift, [B, T, E], one shift and scale for each frame; in the dtype of the tables."""
        normed = layer_norm(x.to(scale.dtype), x.shape[-1:], eps=self.eps).unflatten(1, (scale.shape[1], -1))
        return (normed * (1 + scale) + shift).flatten(1, 2).to(x.dtype)

    @staticmethod
    def _gated(x: Tensor, update: Tensor, gate: Tensor) -> Tensor:
        scaled = update.to(gate.dtype).unflatten(1, (gate.shape[1], -1)) * gate
        return (x.to(gate.dtype) + scaled.flatten(1, 2)).to(x.dtype)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        if f"{name}.weight" not in self.parameters:
            return x
        weight, bias = self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"]
        return layer_norm(x.to(weight.dtype), x.shape[-1:], weight, bias, self.eps).to(x.dtype)

    def _rms_norm(self, name: str, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(dim=-1, keepdim=True) + self.eps)
        return (normed.to(x.dtype) * self.parameters[f"{name}.weight"]).to(x.dtype)

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], -1, self.head_dim)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return linear(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])

    def _mlp(self, name: str, x: Tensor, activation: torch.nn.Module) -> Tensor:
        return self._linear(f"{name}.linear_2", activation(self._linear(f"{name}.linear_1", x)))


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """torch's fused attention, [B, Q, H, D] with [B, K, H, D], its heads joined: [B, Q, E]."""
    out = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return out.transpose(1, 2).flatten(2)


def _turns(head_dim: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Complex128 tables [1024, pairs] of the axes time, row and column."""
    space = 2 * (head_dim // 6)
    time, row, column = (_angles(width, device) for width in (head_dim - 2 * space, space, space))
    ones = torch.ones(1, dtype=torch.float64, device=device)
    return torch.polar(ones, time), torch.polar(ones, row), torch.polar(ones, column)


def _angles(width: int, device: torch.device) -> Tensor:
    powers = torch.arange(0, width, 2, dtype=torch.float64, device=device).div(max(width, 1))
    return torch.outer(torch.arange(POSITIONS, dtype=torch.float64, device=device), torch.pow(10000, -powers))
