"""Rewards by the truth of the procedural world, named in settings by where they are:

    {kind: "reward_forcing.evaluation.world_rewards:WorldAlignment"}

They see what any reward sees, frames and prompts; to train on them would be to train on the test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from reward_forcing.data.caption_reader import read_caption
from reward_forcing.data.captions import UNSAID
from reward_forcing.data.scenes import Scene
from reward_forcing.evaluation.world_suite import Prompt, judge
from reward_forcing.rewards import Rater, Reward


class WorldAlignment(Reward):
    """The share of what the prompt names that a clip shows, in [0, 1], as the detector sees it."""

    def load(self, device: torch.device) -> Rater:
        """The rater; it computes on the CPU."""
        return _rate_alignment


def _rate_alignment(frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
    clips = (frames.float().clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    shares = []
    for clip, text in zip(clips, prompts, strict=True):
        right = judge(prompt_of(text), clip).right.values()
        shares.append(sum(right) / len(right))
    return torch.tensor(shares, dtype=torch.float32, device=frames.device)


def prompt_of(text: str) -> Prompt:
    """A caption as a prompt whose truth is known. Raises ValueError for a text that names no scene of the world."""
    says = read_caption(text)
    scene = Scene(says["kind"])
    for name in ("shape", "colour", "size", "speed", "direction", "background", "setting"):
        if says[name] != UNSAID:
            scene = replace(scene, **{name: says[name]})
    if says["second_shape"] != UNSAID:
        scene = replace(scene, second=(says["second_shape"], says["second_colour"]))
    return Prompt(0, text, says, scene)
