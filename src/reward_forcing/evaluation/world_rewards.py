"""Rewards by the truth of the procedural world, named in settings by where they are:

    {kind: "reward_forcing.evaluation.world_rewards:WorldAlignment"}

They see what any reward sees, frames and prompts. `WorldAlignment` and `WorldMotion` are how students are judged: to
train on them would be to train on the test. `WorldReading` is for training: a network of its own reads the clips.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn

from reward_forcing.data.caption_reader import read_caption
from reward_forcing.data.captions import TRAITS, UNSAID
from reward_forcing.data.scenes import Scene
from reward_forcing.evaluation.world_regions import Pixels
from reward_forcing.evaluation.world_suite import Prompt, judge
from reward_forcing.evaluation.world_tracking import tracked_motion
from reward_forcing.models.video_features import VideoFeatures
from reward_forcing.rewards import Rater, Reward


class WorldAlignment(Reward):
    """The share of what the prompt names that a clip shows, in [0, 1], as the detector sees it."""

    def load(self, device: torch.device) -> Rater:
        """The rater; it computes on the CPU."""
        return _rate_alignment


class WorldMotion(Reward):
    """How much of the motion that the prompt means a clip shows, by tracking; 1 is all of it."""

    def load(self, device: torch.device) -> Rater:
        """The rater; it computes on the CPU."""
        return _rate_motion


class WorldReading(Reward):
    """How sure a trained reader is that a clip shows what the prompt names: the mean probability, in [0, 1].

    The mean is over all traits that the prompt names. network: the folder of a `VideoFeatures` network, as the stage
    `video_features` exports it. mean and std: of rendered validation clips the reader is nearly always sure, so that
    the score is left as it is.
    """

    network: Path

    def load(self, device: torch.device) -> Rater:
        """The rater, on `device`. Raises FileNotFoundError or ValueError where the folder holds no such network."""
        if not (self.network / "config.json").is_file():
            raise FileNotFoundError(f"no VideoFeatures network in '{self.network}'; train the stage video_features")
        network = VideoFeatures.from_pretrained(self.network, torch_dtype=torch.float32)
        if dict(network.config["labels"]) != {trait: len(values) for trait, values in TRAITS.items()}:
            raise ValueError(f"'{self.network}' reads other traits than captions of the world name")
        nn.Module.to(network.eval().requires_grad_(False), device)
        return partial(_rate_reading, network)


def _rate_reading(network: VideoFeatures, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
    logits = network.logits(network(frames.float()))
    sure = {trait: values.softmax(-1) for trait, values in logits.items()}
    scores = []
    for row, text in enumerate(prompts):
        named = {trait: value for trait, value in read_caption(text).items() if value != UNSAID}
        chances = [sure[trait][row, TRAITS[trait].index(value)] for trait, value in named.items()]
        scores.append(torch.stack(chances).mean())
    return torch.stack(scores)


def _rate_alignment(frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
    return _each(frames, prompts, lambda clip, prompt: fmean(judge(prompt, clip).right.values()))


def _rate_motion(frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
    return _each(frames, prompts, lambda clip, prompt: float(tracked_motion(clip, prompt).mean()))


def _each(frames: Tensor, prompts: Sequence[str], score: Callable[[Pixels, Prompt], float]) -> Tensor:
    """The scores [B] of clips [B, T, 3, H, W] in [0, 1] and their prompts."""
    clips = (frames.float().clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
    scores = [score(clip, prompt_of(text)) for clip, text in zip(clips, prompts, strict=True)]
    return torch.tensor(scores, dtype=torch.float32, device=frames.device)


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
