"""The ODE-regression stage: a causal student learns where the teacher's ODE ends from points on its way.

    loss = mean | G(x_t, t) - x_0 |^2      with (x_t, x_0) of one trajectory, t drawn for every chunk

CausVid's initialisation, as in Self Forcing and Reward Forcing: the student sees its input through the block-causal
mask of its window, every chunk at a noise level of its own, one of those stored with the pair. Or Causal Forcing's
(arXiv 2602.02214): it sees clean chunks before each noisy one, those that its causal teacher was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from reward_forcing.flow import TIMESTEPS
from reward_forcing.models.attention import AttentionPattern, Text
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.masks import block_causal, teacher_forcing
from reward_forcing.training.networks import place_transformer, save_transformer
from reward_forcing.training.ode_pairs import CausalTeacher, LmdbSettings, OdePairs
from reward_forcing.training.prompts import PromptEncoder
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage

VALIDATION_PAIRS = 32
"""So many of the held-out pairs are looked at, each at all of its noise levels."""


class OdeRegressionSettings(StageSettings):
    """Settings of the ODE-regression stage.

    pairs: a store made by `rforce data ode-pairs`, or a published LMDB; its noise levels are the student's. lmdb: where
    the points of an LMDB lie. init: a transformer's folder, the teacher as a rule. window_frames: of the student, None
    for all. context: what the student sees before a chunk, `noisy` for the pair's own points (CausVid, Self Forcing),
    `clean` for the clean frames that a causal teacher was given, or the pair's clean end. clean_chunks: with a noisy
    context a chunk may also be drawn clean; it then carries no loss and is what later chunks see, as finished chunks
    are when streaming (CausVid, Self Forcing). validation: part of the pairs, the last ones, that is
    held out for the validation loss, which is logged with the samples (`train.sample_every`).
    """

    roles: ClassVar[tuple[str, ...]] = ("generator",)
    stage: Literal["ode_regression"] = "ode_regression"
    pairs: Path
    lmdb: LmdbSettings | None = None
    text: Path
    init: Path
    batch: PositiveInt = 8
    chunk_frames: PositiveInt = 3
    window_frames: PositiveInt | None = None
    context: Literal["noisy", "clean"] = "noisy"
    clean_chunks: bool = True
    validation: float = Field(0.05, ge=0, lt=1)

    def batches(self) -> tuple[int, ...]:
        return (self.batch,)

    def pattern(self, frames: int) -> AttentionPattern:
        """Who sees whom in a pair of `frames` frames; with a clean context over as many clean frames before them."""
        mask = teacher_forcing if self.context == "clean" else block_causal
        return mask(frames, self.chunk_frames, self.window_frames)


def regression_errors(
    denoiser: Denoiser,
    trajectories: Tensor,
    sigmas: Tensor,
    level: Tensor,
    text: Text,
    pattern: AttentionPattern,
    context: Tensor | None = None,
) -> Tensor:
    """Mean squared errors [B, F] of the clean latents that the student sees behind one point of each frame.

    trajectories: [B, K, F, C, h, w], noisy to clean. sigmas: [B, K], their noise levels. level: [B, F], which of the K
    points each frame is at (CausVid, Self Forcing: ODE initialisation). context: [B, F, C, h, w], clean frames that
    stand before the noisy ones in a `pattern` of 2 F frames (`masks.teacher_forcing`); None for a pattern of F.
    """
    batch, _, frames = trajectories.shape[:3]
    rows = torch.arange(batch, device=level.device)[:, None]
    x = trajectories[rows, level, torch.arange(frames, device=level.device)]
    sigma = sigmas[rows, level]
    if context is not None:
        x, sigma = torch.cat([context, x], dim=1), torch.cat([torch.zeros_like(sigma), sigma], dim=1)
    x0 = denoiser(x, sigma, text, pattern=pattern).x0[:, -frames:]
    return (x0 - trajectories[:, -1]).square().mean(dim=(2, 3, 4))


@dataclass(frozen=True)
class Batch:
    """Pairs side by side: trajectories [B, K, F, C, h, w] at sigmas [B, K], all float32, and their prompts.

    context: the clean frames [B, F, C, h, w], where the student is shown them.
    """

    trajectories: Tensor
    sigmas: Tensor
    context: Tensor | None
    prompts: list[str]


class OdeRegressionStage(Stage[OdeRegressionSettings]):
    """Trains role `generator`; exports a diffusers `transformer/` folder."""

    settings_class = OdeRegressionSettings
    transformers = True

    def __init__(
        self, settings: OdeRegressionSettings, seed: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        self.pairs = OdePairs(settings.pairs, settings.lmdb)
        self.held_out = held_out(len(self.pairs), settings.validation)
        self.points, self.frames, channels = self.pairs.shape[:3]
        self.is_clean = settings.context == "clean"
        if self.is_clean and self.pairs.causal:
            check_sees_what_the_teacher_saw(settings, self.pairs.causal, self.frames)
        self.pattern = settings.pattern(self.frames)
        self.prompts = PromptEncoder(settings.text, device)
        lora = settings.train.lora.get("generator")
        self.network = place_transformer(settings.init, self.placement, lora=lora, seed=seed)
        if self.network.config["in_channels"] != channels:
            raise ValueError(
                f"'{settings.init}' takes latents of {self.network.config['in_channels']} channels, but the pairs in "
                f"'{settings.pairs}' have {channels}"
            )

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.network}

    def edges(self, role: str) -> tuple[str, ...]:
        return ("patch_embedding", "proj_out", "condition_embedder")

    def summary(self) -> str:
        return f"{super().summary()}; {self.pairs.summary()}; {len(self.held_out)} held out"

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Mean squared error of the clean latents over this shard of the batch.

        The mean of a sample is over its noisy frames, that of the batch over samples, however it is cut into shards.
        """
        generators = [draw.sample(index) for index in draw.share(self.settings.batch)]
        with self.clock("data"):
            items = [int(torch.randint(self.held_out.start, (), generator=g)) for g in generators]
            batch = self._read(items)
        levels = self.points if self.settings.clean_chunks and not self.is_clean else self.points - 1
        level = torch.stack([self._draw_levels(levels, generator) for generator in generators])
        error = self._errors(batch, level)
        is_noisy = (level < self.points - 1).to(error)
        return ((error * is_noisy).sum(dim=1) / is_noisy.sum(dim=1).clamp_min(1)).mean(), {}

    @torch.no_grad()
    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """How well the student does on held-out pairs: `loss`, `loss_T` at each timestep T, and `explained`.

        Each pair is seen once at every noisy level in every chunk, with drawn levels around it that are the same at
        every call. explained: 1 - loss / variance of the clean latents; 1 is perfect, 0 as good as their mean.
        """
        items = self.held_out[:VALIDATION_PAIRS]
        if not items:
            return {}
        noisy = self.points - 1
        errors: list[Tensor] = []  # of each piece [B, noisy], the mean over chunks at each level
        moments: list[Tensor] = []
        for first in range(0, len(items), self.settings.batch):
            piece = items[first : first + self.settings.batch]
            batch = self._read(piece)
            start = torch.stack([self._draw_levels(noisy, torch.Generator().manual_seed(item)) for item in piece])
            at_level = torch.zeros(len(piece), noisy, device=self.device)
            for turn in range(noisy):
                level = (start + turn) % noisy
                error = self._errors(batch, level)
                at_level.scatter_add_(1, level.to(self.device), error / self.frames)
            errors.append(at_level)
            clean = batch.trajectories[:, -1]
            moments.append(torch.stack([clean.mean(dim=(1, 3, 4)), clean.square().mean(dim=(1, 3, 4))], dim=1))
        mean, mean_square = torch.cat(moments).mean(dim=0)  # [C] each
        variance = (mean_square - mean.square()).mean().clamp_min(1e-12)
        levels = torch.cat(errors).mean(dim=0)
        loss = levels.mean()
        names = [f"loss_{TIMESTEPS * sigma:.0f}" for sigma in self.pairs.read(items[0]).sigmas.tolist()[:noisy]]
        return {"loss": loss, "explained": 1 - loss / variance, **dict(zip(names, levels, strict=True))}

    def _read(self, items: Sequence[int]) -> Batch:
        pairs = [self.pairs.read(item) for item in items]

        def stacked(tensors: Iterable[Tensor]) -> Tensor:
            # float32 before they are stacked: under autocast to bfloat16, float16 cannot be
            return torch.stack([tensor.float() for tensor in tensors]).to(self.device)

        return Batch(
            stacked(pair.trajectory for pair in pairs),
            stacked(pair.sigmas for pair in pairs),
            stacked(pair.context for pair in pairs) if self.is_clean else None,
            [pair.prompt for pair in pairs],
        )

    def _draw_levels(self, levels: int, generator: torch.Generator) -> Tensor:
        """A level below `levels` for each frame [F], the same within a chunk."""
        chunk = self.settings.chunk_frames
        drawn = torch.randint(levels, (math.ceil(self.frames / chunk),), generator=generator)
        return drawn.repeat_interleave(chunk)[: self.frames]

    def _errors(self, batch: Batch, level: Tensor) -> Tensor:
        text = self.network.encode_text(self.prompts(batch.prompts))
        denoiser, level = Denoiser(self.network), level.to(self.device)
        return regression_errors(denoiser, batch.trajectories, batch.sigmas, level, text, self.pattern, batch.context)

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write `folder`/transformer."""
        save_transformer(networks["generator"], folder / "transformer", self.settings.init)


def check_sees_what_the_teacher_saw(settings: OdeRegressionSettings, teacher: CausalTeacher, frames: int) -> None:
    """Raises ValueError unless a mask shows the student the clean frames that its causal teacher's cache showed.

    Otherwise the end of a trajectory is no function of what the student sees, and the regression learns a mean.
    """
    cache = teacher.cache
    if settings.chunk_frames != cache.chunk_frames:
        raise ValueError(f"the teacher of these pairs made chunks of {cache.chunk_frames}; set chunk_frames to that")
    if not teacher.sees_all(frames) and cache.sink.frames:
        raise ValueError(
            f"the teacher of these pairs saw a sink beside its window, which no mask shows a student; make pairs of at "
            f"most {cache.window_frames} frames, or without a sink"
        )
    windows = [min(window or frames, frames) for window in (settings.window_frames, cache.window_frames)]
    if windows[0] != windows[1]:
        raise ValueError(f"the teacher of these pairs saw {windows[1]} frames; set window_frames={windows[1]}")


def held_out(count: int, share: float) -> range:
    """The last `share` of `count` pairs, at least one if share > 0. Raises ValueError if none is left to train on."""
    held = math.ceil(share * count)
    if held >= count:
        raise ValueError(
            f"{count} pairs with validation={share} leave none to train on; make more, or set validation=0"
        )
    return range(count - held, count)
