"""A weighted sum of rewards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.rewards.base import Rater, Reward, RewardSettings, rate


class Part(Settings):
    """One reward of a sum and its weight."""

    reward: RewardSettings
    weight: float = 1.0


class CombinedReward(Reward):
    """The weighted sum of the normalised scores of its parts."""

    kind: Literal["combine"] = "combine"  # pyright: ignore[reportIncompatibleVariableOverride]
    parts: tuple[Part, ...] = Field(min_length=1)

    def load(self, device: torch.device) -> Rater:
        """The rater of all parts. Raises as theirs do."""
        return _Sum(self.parts, device)


class _Sum:
    def __init__(self, parts: Sequence[Part], device: torch.device) -> None:
        self.parts = [(part, part.reward.load(device)) for part in parts]

    def __call__(self, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Raw scores [B] of clips [B, T, 3, H, W]."""
        scores = [part.weight * rate(part.reward, rater, frames, prompts, fps) for part, rater in self.parts]
        return torch.stack(scores).sum(0)
