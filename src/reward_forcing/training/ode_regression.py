"""The ODE-regression stage: a causal student learns where the teacher's ODE ends from points on its way.

    loss = mean | G(x_t, t) - x_0 |^2      with (x_t, x_0) of one trajectory, t drawn for every chunk

CausVid's initialisation, as in Self Forcing and Reward Forcing. The student sees its input through the block-causal
mask of its window; every chunk has a noise level of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.masks import block_causal
from reward_forcing.training.networks import load_transformer
from reward_forcing.training.ode_pairs import OdePairs
from reward_forcing.training.prompts import PromptEncoder
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage


class OdeRegressionSettings(StageSettings):
    """Settings of the ODE-regression stage.

    pairs: a store made by `rforce data ode-pairs`; its noise levels are the student's. init: a transformer's folder,
    the teacher as a rule. window_frames: of the student, None for all.
    """

    stage: Literal["ode_regression"] = "ode_regression"
    pairs: Path
    text: Path
    init: Path
    batch: PositiveInt = 8
    chunk_frames: PositiveInt = 3
    window_frames: PositiveInt | None = None


class OdeRegressionStage(Stage[OdeRegressionSettings]):
    """Trains role `generator`; exports a diffusers `transformer/` folder."""

    settings_class = OdeRegressionSettings

    def __init__(
        self, settings: OdeRegressionSettings, seed: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        self.pairs = OdePairs(settings.pairs)
        self.prompts = PromptEncoder(settings.text, device)
        self.sigmas = torch.tensor(self.pairs.manifest.sigmas(), device=device)
        self.network = load_transformer(settings.init, device)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.network}

    def edges(self, role: str) -> tuple[str, ...]:
        return ("patch_embedding", "proj_out", "condition_embedder")

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Mean squared error of the clean latents over this shard of the batch."""
        generators = [draw.sample(index) for index in draw.share(self.settings.batch)]
        items = [int(torch.randint(len(self.pairs), (), generator=g)) for g in generators]
        trajectories = self.pairs.trajectories[items].float().to(self.device)  # [B, K, F, C, h, w]
        frames, chunk = trajectories.shape[2], self.settings.chunk_frames
        levels = torch.stack([torch.randint(len(self.sigmas), (-(-frames // chunk),), generator=g) for g in generators])
        level = levels.to(self.device).repeat_interleave(chunk, dim=1)[:, :frames]
        batch = torch.arange(len(items), device=self.device)[:, None]
        x = trajectories[batch, level, torch.arange(frames, device=self.device)]
        text = self.network.encode_text(self.prompts([self.pairs.caption(item) for item in items]))
        pattern = block_causal(frames, chunk, self.settings.window_frames)
        x0 = Denoiser(self.network)(x, self.sigmas[level], text, pattern=pattern).x0
        error = (x0 - trajectories[:, -1]).square()
        return error.mean(), {}

    def export(self, folder: Path) -> None:
        """Write `folder`/transformer."""
        self.network.save_pretrained(folder / "transformer")
