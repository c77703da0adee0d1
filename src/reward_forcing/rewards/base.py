"""What a reward is: settings that say which, and a rater that gives every clip one number, higher for better.

B clips, T frames, H W pixels. A reward from outside derives from `Reward` and is called `package.module:Class` in
settings. Rewards see frames and prompts, never latents, and are never differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Protocol

import torch
from pydantic import BeforeValidator, PositiveFloat, SerializeAsAny
from torch import Tensor

from reward_forcing.config import Variant, read_variant


class Rater(Protocol):
    """A loaded reward."""

    def __call__(self, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Raw scores [B], float32, of clips [B, T, 3, H, W] in [0, 1] made for `prompts`, one for each clip."""
        ...


class Reward(Variant):
    """Settings of a reward. mean, std: the constants of its z-score, so that rewards of all kinds are of one size."""

    mean: float = 0.0
    std: PositiveFloat = 1.0

    def load(self, device: torch.device) -> Rater:
        """The rater. Raises FileNotFoundError or ValueError, in one line, for weights or services that are missing."""
        raise NotImplementedError

    def normalised(self, raw: Tensor) -> Tensor:
        """(raw - mean) / std, float32."""
        return (raw.float() - self.mean) / self.std


@torch.no_grad()
def rate(reward: Reward, rater: Rater, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
    """Normalised scores [B] of clips [B, T, 3, H, W] in [0, 1], float32, on their device and without a graph.

    The rater computes in its own precision, whatever a training around it does.
    Raises ValueError for frames of another shape or range, prompts that are not one for each clip, and a rater that
    does not give one finite number for each clip.
    """
    if frames.ndim != 5 or frames.shape[2] != 3 or len(prompts) != len(frames):
        raise ValueError(f"expected frames [B, T, 3, H, W] and B prompts, got {list(frames.shape)} and {len(prompts)}")
    if not (frames.amin() >= -1e-3 and frames.amax() <= 1 + 1e-3):
        low, high = float(frames.amin()), float(frames.amax())
        raise ValueError(f"a reward takes frames in [0, 1], got [{low:.3g}, {high:.3g}]")
    with torch.autocast(frames.device.type, enabled=False):
        raw = rater(frames.detach(), prompts, fps).to(frames.device)
    if raw.shape != (len(frames),) or not bool(raw.isfinite().all()):
        raise ValueError(f"reward '{reward.kind}' must give a finite number for each of {len(frames)} clips, got {raw}")
    return reward.normalised(raw)


def _reward(value: object) -> object:
    from reward_forcing.rewards import REWARDS

    return read_variant("reward", value, Reward, REWARDS)


RewardSettings = Annotated[SerializeAsAny[Reward], BeforeValidator(_reward)]
"""A reward in settings, for example `{kind: motion}`."""
