"""The DMD stage: a few-step causal generator learns on its own rollouts to match a teacher's distribution.

    grad = E_t [ (mu_fake(x_t, t) - mu_real(x_t, t)) / mean |x - mu_real| ]  dx / dtheta      x = rollout(theta)

Distribution matching distillation on self-generated rollouts (DMD; Self Forcing; Reward Forcing, Eqs. 1-2). The
rollout is the one that generates: same cache, same sink, evictions included.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

from reward_forcing.data.dataset import wording
from reward_forcing.data.switches import switch_captions, switched_scene
from reward_forcing.flow import add_noise, warp_denoising_steps
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.noise import SeededNoise
from reward_forcing.rollout.rollout import Rollout
from reward_forcing.rollout.schedule import chunkwise
from reward_forcing.training.flow_matching import SAMPLE_PROMPTS
from reward_forcing.training.losses import dmd_gradient, dmd_loss, flow_loss, score_sigma
from reward_forcing.training.networks import load_transformer, load_vae
from reward_forcing.training.prompts import PromptEncoder, PromptTimeline
from reward_forcing.training.sampling import guided_x0
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage


class DmdSettings(StageSettings):
    """Settings of the DMD stage.

    generator, real_score, fake_score: transformer folders to start from (fake_score: the teacher if left out). frames:
    latent frames of a rollout. latent_size: rows and columns of a latent frame. guidance: the teacher's CFG weight, in
    the usual convention (the reference's 3.0 is 4.0 here). generator_every: critic updates per generator update.
    score_shift, score_range: where on the noise axis the scores are compared. switch_share: of the rollouts whose
    prompt is switched between two chunks, all three networks reading each frame's own prompt. first_frame_weight:
    factor of the gradient of the first latent frame, which is a single pixel frame and has no past to go by.
    """

    stage: Literal["dmd"] = "dmd"
    generator: Path
    real_score: Path
    fake_score: Path | None = None
    text: Path
    vae: Path
    batch: PositiveInt = 8
    frames: PositiveInt = 21
    latent_size: tuple[PositiveInt, PositiveInt] = (8, 8)
    cache: CacheSettings = CacheSettings()
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: PositiveFloat = 5.0
    guidance: float = 4.0
    generator_every: PositiveInt = 5
    score_shift: PositiveFloat = 5.0
    score_range: tuple[float, float] = (0.02, 0.98)
    captions: PositiveInt = 100_000
    switch_share: float = Field(0.0, ge=0, le=1)
    first_frame_weight: PositiveFloat = 1.0


class DmdStage(Stage[DmdSettings]):
    """Trains roles `generator` and `fake_score`; exports the generator as a diffusers `transformer/` folder."""

    settings_class = DmdSettings

    def __init__(self, settings: DmdSettings, seed: int, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        self.sigmas = warp_denoising_steps(settings.denoising_steps, settings.shift)
        self.prompts = PromptEncoder(settings.text, device)
        self.generator = load_transformer(settings.generator, device)
        self.real_score = load_transformer(settings.real_score, device).requires_grad_(False)
        self.fake_score = load_transformer(settings.fake_score or settings.real_score, device)
        self.shape = (self.generator.config["in_channels"], *settings.latent_size)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "fake_score": self.fake_score}

    def edges(self, role: str) -> tuple[str, ...]:
        return ("patch_embedding", "proj_out", "condition_embedder")

    def updates(self, step: int) -> tuple[str, ...]:
        """The critic at every step, the generator before it at every `generator_every`-th."""
        return ("generator", "fake_score") if step % self.settings.generator_every == 0 else ("fake_score",)

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of one role on a fresh rollout."""
        generators = [draw.sample(index) for index in draw.share(self.settings.batch)]
        seeds = [int(torch.randint(2**62, (), generator=g)) for g in generators]
        scenes = [int(torch.randint(self.settings.captions, (), generator=g)) for g in generators]
        # one exit step for the whole batch, so that all processes do the same work (Self Forcing)
        steps = 1 + int(torch.randint(len(self.sigmas), (), generator=draw.shared))
        prompts = self._prompts(scenes, seeds, draw.shared)
        with torch.set_grad_enabled(role == "generator" and torch.is_grad_enabled()):
            x = self._rollout(prompts, seeds, self.sigmas[:steps])
        sigma = score_sigma(len(x), self.settings.score_shift, *self.settings.score_range, draw.local).to(x)
        noise = torch.randn(x.shape, generator=draw.local).to(x)
        if role == "generator":
            return self._generator_loss(x, sigma, noise, prompts)
        return self._critic_loss(x, sigma, noise, prompts)

    def _prompts(self, scenes: Sequence[int], seeds: Sequence[int], shared: torch.Generator) -> PromptTimeline:
        """Captions of scenes of the world, or at times of switched ones, all of a batch switched at the same chunk."""
        chunk, frames = self.settings.cache.chunk_frames, self.settings.frames
        wordings = [seed % 2**31 for seed in seeds]
        if float(torch.rand((), generator=shared)) >= self.settings.switch_share or frames <= chunk:
            captions = [wording(scene, "train", seed) for scene, seed in zip(scenes, wordings, strict=True)]
            return PromptTimeline(self.prompts(captions))
        at = chunk * int(torch.randint(1, -(-frames // chunk), (), generator=shared))
        switches = [switched_scene(scene, "train") for scene in scenes]
        pairs = [switch_captions(switch, seed) for switch, seed in zip(switches, wordings, strict=True)]
        first, second = (self.prompts([pair[half].text for pair in pairs]) for half in (0, 1))
        return PromptTimeline(first, second, at)

    def _rollout(self, prompts: PromptTimeline, seeds: Sequence[int], sigmas: Sequence[float]) -> Tensor:
        """Latents [B, frames, C, h, w] that the generator streams; every chunk's last pass carries the gradient."""
        chunk, frames = self.settings.cache.chunk_frames, self.settings.frames
        rollout = Rollout(
            Denoiser(self.generator),
            chunkwise(sigmas, grad_from=0),
            KVCache.empty(self.settings.cache),
            SeededNoise(tuple(seeds)),
            self.generator.encode_text(prompts.first),
            self.shape,
            device=self.device,
        )
        pieces = []
        for start in range(0, frames, chunk):
            if prompts.second is not None and start == prompts.switch:
                rollout.text = self.generator.encode_text(prompts.second)
            pieces.append(next(rollout).latents)
        return torch.cat(pieces, dim=1)[:, :frames]

    def _generator_loss(
        self, x: Tensor, sigma: Tensor, noise: Tensor, prompts: PromptTimeline
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        with torch.no_grad():
            frames = range(x.shape[1])
            levels = sigma[:, None].expand(x.shape[:2])
            noisy = add_noise(x, noise, sigma)
            real_text = prompts.text(self.real_score, frames)
            null = self.real_score.encode_text(self.prompts([""])).expand(len(x))
            real = guided_x0(Denoiser(self.real_score), noisy, levels, real_text, null, self.settings.guidance)
            fake = Denoiser(self.fake_score)(noisy, levels, prompts.text(self.fake_score, frames)).x0
            gradient = dmd_gradient(x, real, fake)
            gradient[:, 0] *= self.settings.first_frame_weight
        motion = (x[:, 1:] - x[:, :-1]).detach().abs().mean()
        return dmd_loss(x, gradient), {"gradient": gradient.abs().mean(), "motion": motion}

    def _critic_loss(
        self, x: Tensor, sigma: Tensor, noise: Tensor, prompts: PromptTimeline
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        x = x.detach()
        levels = sigma[:, None].expand(x.shape[:2])
        text = prompts.text(self.fake_score, range(x.shape[1]))
        velocity = Denoiser(self.fake_score)(add_noise(x, noise, sigma), levels, text).velocity
        return flow_loss(velocity, noise, x), {}

    @torch.no_grad()
    def samples(self, step: int) -> dict[str, Tensor]:
        """Streamed clips for SAMPLE_PROMPTS with all steps, about ten frames of each."""
        prompts = PromptTimeline(self.prompts(list(SAMPLE_PROMPTS)))
        latents = self._rollout(prompts, range(1, 1 + len(SAMPLE_PROMPTS)), self.sigmas)
        decoded = load_vae(self.settings.vae).decode(latents.cpu())[0].clamp(0, 1)
        return {"samples": decoded[:, :: max(1, decoded.shape[1] // 10)]}

    def export(self, folder: Path) -> None:
        """Write `folder`/transformer, the generator."""
        self.generator.save_pretrained(folder / "transformer")
