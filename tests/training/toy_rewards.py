"""Rewards for tests, named in settings as `toy_rewards:Brightness`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_forcing.rewards import Rater, Reward


class Brightness(Reward):
    """The mean of all pixels; remembers what it was asked."""

    sign: float = 1.0

    def load(self, device: torch.device) -> Rater:
        return BrightnessRater(self.sign)


class BrightnessRater:
    def __init__(self, sign: float) -> None:
        self.sign = sign
        self.asked: list[tuple[tuple[int, ...], list[str]]] = []

    def __call__(self, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        self.asked.append((tuple(frames.shape), list(prompts)))
        return self.sign * frames.mean(dim=(1, 2, 3, 4))


class Broken(Reward):
    """Gives something else than one number for each clip."""

    def load(self, device: torch.device) -> Rater:
        return lambda frames, prompts, fps: torch.full((len(frames) + 1,), 1.0)
