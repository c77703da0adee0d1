"""A small network that looks at a video and gives one vector of features, for distances between sets of videos.

B batch, T frames, D features. It learns to name what a clip of the procedural world shows; its features mean little
outside that world.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class VideoFeatures(ModelMixin, ConfigMixin):
    """Features [B, D] of videos, and logits of what they show.

    Takes frames [B, T, 3, H, W] in [0, 1] of any size and length, and looks at `length` of them, evenly spread, brought
    to `size` x `size` pixels. labels: trait -> number of values that its heads tell apart.
    """

    @register_to_config
    def __init__(
        self,
        labels: Mapping[str, int],
        widths: Sequence[int] = (16, 32, 48, 64),
        features: int = 48,
        size: int = 64,
        length: int = 21,
    ) -> None:
        super().__init__()
        if len(widths) != 4 or size % 16 or length < 5:
            raise ValueError(f"expected four widths, size in 16s and length >= 5, got {widths}, {size}, {length}")
        a, b, c, d = widths
        self.size, self.length = size, length
        self.layers = nn.Sequential(
            _Layer(3, a, (1, 5, 5), (1, 2, 2)),
            _Layer(a, b, (3, 3, 3), (1, 2, 2)),
            _Layer(b, c, (3, 3, 3), (2, 2, 2)),
            _Layer(c, d, (3, 3, 3), (2, 2, 2)),
        )
        self.out = nn.Linear(2 * d * (size // 16) ** 2 + 2 * d, features)
        self.heads = nn.ModuleDict({trait: nn.Linear(features, values) for trait, values in labels.items()})

    def forward(self, frames: Tensor) -> Tensor:
        """Features [B, D] of frames [B, T, 3, H, W] in [0, 1]."""
        x = self._prepared(frames)
        x = self.layers(2 * x - 1)  # [B, d, about length / 4, size / 16, size / 16]
        over_time = torch.cat([x.mean(2), x.std(2)], dim=1)
        everywhere = torch.cat([x.mean((2, 3, 4)), x.amax((2, 3, 4))], dim=1)
        return self.out(torch.cat([over_time.flatten(1), everywhere], dim=1))

    def logits(self, features: Tensor) -> dict[str, Tensor]:
        """Logits [B, values] of every trait."""
        hidden = F.gelu(features)
        return {trait: cast(nn.Linear, head)(hidden) for trait, head in self.heads.items()}

    def _prepared(self, frames: Tensor) -> Tensor:
        """Frames as [B, 3, length, size, size]."""
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.shape[1] == 0:
            raise ValueError(f"expected frames [B, T >= 1, 3, H, W], got {list(frames.shape)}")
        batch, count = frames.shape[:2]
        index = torch.linspace(0, count - 1, self.length).round().long().to(frames.device)
        x = frames[:, index]
        if x.shape[3:] != (self.size, self.size):
            resized = F.interpolate(x.flatten(0, 1), (self.size, self.size), mode="bilinear", antialias=True)
            x = resized.unflatten(0, (batch, self.length))
        return x.transpose(1, 2)


class _Layer(nn.Module):
    """Convolution over time and space, group norm, GELU."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(inputs, outputs, kernel, stride, padding)
        self.norm = nn.GroupNorm(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, inputs, T, H, W] -> [B, outputs, T', H', W']."""
        return F.gelu(self.norm(self.conv(x)))
