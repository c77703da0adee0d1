"""The video-features stage: a small network learns to name what a clip of the world shows.

Its features then tell how far a set of generated videos is from rendered ones (`evaluation/frechet.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from reward_forcing.config import Settings
from reward_forcing.data.captions import TRAITS, UNSAID
from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import FPS, Scene, render
from reward_forcing.data.switches import shown
from reward_forcing.models.video_features import VideoFeatures
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage

LABELS = {trait: len(values) for trait, values in TRAITS.items()}


class FeatureSettings(Settings):
    """Size of the network; see `VideoFeatures`."""

    widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (16, 32, 48, 64)
    features: PositiveInt = 48
    size: PositiveInt = 64
    length: PositiveInt = 21

    def build(self) -> VideoFeatures:
        """A network with fresh weights that tells the world's traits apart."""
        return VideoFeatures(LABELS, **self.model_dump())


class VideoFeaturesSettings(StageSettings):
    """Settings of the video-features stage.

    frames: pixel frames of a clip; of these the network looks at its `length`. noise: standard deviation, of 1, of the
    Gaussian noise that is added at most.
    """

    roles: ClassVar[tuple[str, ...]] = ("video_features",)
    stage: Literal["video_features"] = "video_features"
    model: FeatureSettings = FeatureSettings()
    batch: PositiveInt = 32
    frames: PositiveInt = 81
    noise: float = 0.04
    captions: PositiveInt = 1_000_000

    def batches(self) -> tuple[int, ...]:
        return (self.batch,)


class VideoFeaturesStage(Stage[VideoFeaturesSettings]):
    """Trains role `video_features`; exports a `video_features/` folder."""

    settings_class = VideoFeaturesSettings

    def __init__(
        self, settings: VideoFeaturesSettings, seed: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        torch.manual_seed(seed)
        self.network = settings.model.build()
        nn.Module.to(self.network, device)

    def networks(self) -> dict[str, nn.Module]:
        return {"video_features": self.network}

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Cross-entropy of all traits, and the part of them that is right."""
        with self.clock("data"):
            generators = [draw.sample(index) for index in draw.share(self.settings.batch)]
            scenes = [world_scene(int(torch.randint(self.settings.captions, (), generator=g))) for g in generators]
            frames = self._render(scenes)
            noise = torch.stack([torch.randn(frames.shape[1:], generator=g) for g in generators])
            level = torch.stack([torch.rand((), generator=g) for g in generators]) * self.settings.noise
            frames = (frames + level.view(-1, 1, 1, 1, 1) * noise).clamp(0, 1).to(self.device)
        loss, right = self._judge(frames, scenes)
        return loss, {"right": right}

    def _render(self, scenes: list[Scene]) -> Tensor:
        """Frames [B, length, 3, size, size] of the scenes: those of a clip that the network looks at, and no others."""
        model = self.settings.model
        fps = FPS * (model.length - 1) / (self.settings.frames - 1)
        pixels = np.stack([render(scene, model.length, model.size, fps=fps) for scene in scenes])
        return torch.from_numpy(pixels).permute(0, 1, 4, 2, 3).float() / 255

    def _judge(self, frames: Tensor, scenes: list[Scene]) -> tuple[Tensor, Tensor]:
        logits = self.network.logits(self.network(frames))
        losses, right = [], []
        for trait, values in TRAITS.items():
            wanted = [values.index(shown(scene).get(trait) or UNSAID) for scene in scenes]
            target = torch.tensor(wanted, device=self.device)
            losses.append(F.cross_entropy(logits[trait].float(), target))
            right.append((logits[trait].argmax(-1) == target).float().mean())
        return torch.stack(losses).mean(), torch.stack(right).mean()

    @torch.no_grad()
    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """Loss and part of the traits right on 64 validation scenes."""
        scenes = [world_scene(index, "validation") for index in range(64)]
        parts = [
            self._judge(self._render(scenes[i : i + 16]).to(self.device), scenes[i : i + 16]) for i in (0, 16, 32, 48)
        ]
        return {"loss": torch.stack([loss for loss, _ in parts]).mean(),
                "right": float(np.mean([float(right) for _, right in parts]))}  # fmt: skip

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write `folder`/video_features, in bfloat16."""
        stored = copy.deepcopy(self.network)
        nn.Module.to(stored, torch.bfloat16)
        stored.save_pretrained(folder / "video_features")
