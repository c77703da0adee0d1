"""A reward of one's own: copy it to where `rforce train` is run, and name it `rewards:Calm`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_forcing.rewards import Rater, Reward


class Calm(Reward):
    """Little change from frame to frame."""

    def load(self, device: torch.device) -> Rater:
        """The rater; a network would be read here, and put on `device`."""
        return rate_calm


def rate_calm(frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
    """frames: [B, T, 3, H, W] in [0, 1]. Returns [B]; higher is better."""
    return -(frames[:, 1:] - frames[:, :-1]).abs().mean(dim=(1, 2, 3, 4))
