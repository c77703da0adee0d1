"""The flow-matching stage: trains the transformer on encoded clips, as a bidirectional teacher or causally.

    x = (1 - sigma) x0 + sigma noise        loss = mean (velocity(x, sigma) - (noise - x0))^2

`bidirectional` makes the teacher. `teacher_forcing` makes a causal network: noisy chunks see the clean chunks before
them, laid out as a streaming cache would show them (CausVid, Self Forcing; the causal initialisation of a student).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from reward_forcing.config import Settings
from reward_forcing.flow import TIMESTEPS, add_noise, ode_sigmas, shift_sigma, warp_denoising_steps
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.masks import teacher_forcing
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout.kv_cache import CacheSettings
from reward_forcing.rollout.sinks import NoSink, StaticSink
from reward_forcing.training.latents import JoinedLatents, open_latents
from reward_forcing.training.networks import check_network, load_vae, place_transformer, prepared, save_transformer
from reward_forcing.training.phases import Phase, phase_at
from reward_forcing.training.prompts import PromptEncoder, PromptTimeline
from reward_forcing.training.sampling import causal_trajectory, ode_trajectory
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage
from reward_forcing.training.world_latents import WorldLatents


class TransformerSettings(Settings):
    """Size of a transformer; the names are those of diffusers' WanTransformer3DModel."""

    num_attention_heads: PositiveInt = 3
    attention_head_dim: PositiveInt = 64
    num_layers: PositiveInt = 8
    ffn_dim: PositiveInt = 768
    freq_dim: PositiveInt = 128
    patch_size: tuple[int, int, int] = (1, 2, 2)

    def build(self, channels: int, text_dim: int) -> WanDiT:
        """A transformer with fresh weights."""
        return WanDiT(in_channels=channels, out_channels=channels, text_dim=text_dim, **self.model_dump())


class Bidirectional(Settings):
    """All frames see each other and share one noise level, drawn uniformly and then shifted by `shift`."""

    kind: Literal["bidirectional"] = "bidirectional"
    shift: float = 3.0


class TeacherForcing(Settings):
    """Clean and noisy chunks side by side; every noisy chunk has a noise level of its own.

    frames: the length of what a cache shows, a multiple of chunk_frames; with `sink_frames` > 0 half of the clips are
    the first chunk followed by a later stretch, as a sink and a window show them, and the rest are contiguous.
    denoising_steps, shift: the student's own levels, drawn with probability `few_step`; all others are uniform (then
    shifted), as all are of a causal teacher, with `few_step` 0. context_noise: clean frames carry up to so much noise,
    as a student's own frames are never perfect.
    """

    kind: Literal["teacher_forcing"] = "teacher_forcing"
    frames: PositiveInt = 12
    chunk_frames: PositiveInt = 3
    sink_frames: int = 3
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: float = 5.0
    few_step: float = Field(0.6, ge=0, le=1)
    context_noise: float = Field(0.1, ge=0, lt=1)

    @property
    def cache(self) -> CacheSettings:
        """The cache that shows what the network is trained on. Raises ValueError unless sink and chunk fit `frames`."""
        sink = StaticSink(frames=self.sink_frames) if self.sink_frames else NoSink()
        return CacheSettings(window_frames=self.frames, chunk_frames=self.chunk_frames, sink=sink)

    @model_validator(mode="after")
    def _sink_and_chunk_fit(self) -> TeacherForcing:
        _ = self.cache
        return self


class Switches(Settings):
    """Clips whose prompt changes on the way, so that a network learns to follow a prompt against what it has shown.

    latents: a store made with `rforce data make --switch-chunk`. share: of the steps on clips of full length.
    """

    latents: Path
    share: float = Field(0.25, gt=0, le=1)


Generators = Sequence[torch.Generator]
"""One for each clip of a batch, so that what a clip is given does not depend on the others."""

Objective = Annotated[Bidirectional | TeacherForcing, Field(discriminator="kind")]


class FlowMatchingSettings(StageSettings):
    """Settings of the flow-matching stage.

    latents, validation_latents: stores made by `rforce data make` or `rforce data encode`; several are read as one.
    text: folder with text_encoder/ and tokenizer/. vae: to look at samples. model: size of a fresh transformer; init: a
    transformer's folder to start from instead. phases: clip lengths in latent frames, and batches. drop_text: part of
    the captions replaced by the empty prompt, for guidance. first_frame_weight: of the first latent frame in the
    bidirectional loss; it alone is one pixel frame.
    switches: see `Switches`; none if left out.
    """

    roles: ClassVar[tuple[str, ...]] = ("transformer",)
    stage: Literal["flow_matching"] = "flow_matching"
    latents: Path | tuple[Path, ...]
    validation_latents: Path
    text: Path
    vae: Path
    model: TransformerSettings = TransformerSettings()
    init: Path | None = None
    objective: Objective = Bidirectional()
    phases: tuple[Phase, ...]
    drop_text: float = Field(0.1, ge=0, le=1)
    first_frame_weight: PositiveFloat = 1.0
    switches: Switches | None = None
    sample_steps: PositiveInt = 25
    sample_shift: float = 5.0
    guidance: float = 4.0

    def batches(self) -> tuple[int, ...]:
        return tuple(phase.batch for phase in self.phases)

    @model_validator(mode="after")
    def _clips_hold_what_a_cache_shows(self) -> Self:
        shortest = min((phase.frames for phase in self.phases), default=0)
        if isinstance(self.objective, TeacherForcing) and self.objective.frames > shortest:
            raise ValueError(
                f"objective.frames={self.objective.frames} are cut from each clip, and the shortest phase's clips have "
                f"{shortest}; make phases longer or objective.frames smaller"
            )
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        if self.train.lora and self.init is None:
            raise ValueError(
                "train.lora adapts a trained transformer; give its folder as init, or leave train.lora out"
            )
        return self


class FlowMatchingStage(Stage[FlowMatchingSettings]):
    """Trains role `transformer`; exports a diffusers `transformer/` folder."""

    settings_class = FlowMatchingSettings
    transformers = True

    def __init__(
        self, settings: FlowMatchingSettings, seed: int, rank: int, world_size: int, device: torch.device
    ) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        folders = (settings.latents,) if isinstance(settings.latents, Path) else settings.latents
        self.data = JoinedLatents([open_latents(folder) for folder in folders])
        self.validation = open_latents(settings.validation_latents)
        self.switching = WorldLatents(settings.switches.latents) if settings.switches else None
        if self.switching and not (self.switching.switches and self.switching.shape == self.data.shape):
            raise ValueError(
                f"'{self.switching.folder}' should hold clips of {self.data.shape} with switches "
                "(rforce data make --switch-chunk)"
            )
        cut = settings.objective.frames if isinstance(settings.objective, TeacherForcing) else 1
        longest = max(phase.frames for phase in settings.phases)
        for what, data, needed in (("latents", self.data, longest), ("validation_latents", self.validation, cut)):
            if data.shape[0] < needed:
                raise ValueError(
                    f"{what} are clips of {data.shape[0]} latent frames, and {needed} are asked for; encode longer "
                    "clips (--frames), or shorten phases and objective"
                )
        check_network(settings.vae, "VAE")
        self.prompts = PromptEncoder(settings.text, device)
        torch.manual_seed(seed)
        if settings.init is not None:
            lora = settings.train.lora.get("transformer")
            self.network = place_transformer(settings.init, self.placement, lora=lora, seed=seed)
        else:
            fresh = settings.model.build(self.data.shape[1], self.prompts.text_dim)
            nn.Module.to(fresh, device)
            self.network = prepared(fresh, self.placement)

    def networks(self) -> dict[str, nn.Module]:
        return {"transformer": self.network}

    def edges(self, role: str) -> tuple[str, ...]:
        return ("patch_embedding", "proj_out", "condition_embedder")

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Mean squared error of the velocity over this shard of the batch."""
        phase = phase_at(self.settings.phases, step, self.settings.train.steps)
        with self.clock("data"):
            samples = draw.share(phase.batch)
            generators = [draw.sample(index) for index in samples]
            x0, prompts = self._clips(phase.frames, generators, draw.shared)
            # stratified over the global batch: the levels of one step cover [0, 1] evenly
            u = torch.tensor([(i + float(torch.rand((), generator=g))) / phase.batch
                              for i, g in zip(samples, generators, strict=True)])  # fmt: skip
        return self._loss(x0, u, prompts, generators, draw.shared), {"frames": float(phase.frames)}

    def _clips(self, frames: int, generators: Generators, shared: torch.Generator) -> tuple[Tensor, PromptTimeline]:
        """Latents [B, frames, C, h, w] and their prompts, one clip drawn with each generator."""
        switching = self.switching if frames == self.data.shape[0] else None
        if switching and self.settings.switches and _draw(shared) < self.settings.switches.share:
            at = switching.switches[int(torch.randint(len(switching.switches), (), generator=shared))]
            among = switching.switching_at(at)
            clips = [among[int(torch.randint(len(among), (), generator=g))] for g in generators]
            pairs = [self._switch_captions(switching, clip, g) for clip, g in zip(clips, generators, strict=True)]
            first, second = (self.prompts([pair[half] for pair in pairs]) for half in (0, 1))
            return switching.read(clips, frames).to(self.device), PromptTimeline(first, second, at)
        clips = [int(torch.randint(len(self.data), (), generator=g)) for g in generators]
        captions = [self._caption(clip, g) for clip, g in zip(clips, generators, strict=True)]
        return self.data.read(clips, frames).to(self.device), PromptTimeline(self.prompts(captions))

    def _caption(self, clip: int, generator: torch.Generator) -> str:
        if _draw(generator) < self.settings.drop_text:
            return ""
        return self.data.caption(clip, int(torch.randint(2**31, (), generator=generator)))

    def _switch_captions(self, data: WorldLatents, clip: int, generator: torch.Generator) -> tuple[str, str]:
        if _draw(generator) < self.settings.drop_text:
            return "", ""
        return data.switch_captions(clip, int(torch.randint(2**31, (), generator=generator)))

    def _loss(
        self, x0: Tensor, u: Tensor, prompts: PromptTimeline, generators: Generators, shared: torch.Generator
    ) -> Tensor:
        objective = self.settings.objective
        if isinstance(objective, Bidirectional):
            return self._bidirectional(x0, u, prompts, generators, objective)
        return self._teacher_forcing(x0, u, prompts, generators, shared, objective)

    def _bidirectional(
        self, x0: Tensor, u: Tensor, prompts: PromptTimeline, generators: Generators, objective: Bidirectional
    ) -> Tensor:
        sigma = shift_sigma(u, objective.shift).to(x0)
        noise = _noise_like(x0, generators)
        text = prompts.text(self.network, range(x0.shape[1]))
        velocity, _ = self.network(add_noise(x0, noise, sigma), TIMESTEPS * sigma, text)
        error = (velocity.float() - (noise - x0)).square().mean(dim=(0, 2, 3, 4))
        weight = torch.ones_like(error)
        weight[0] = self.settings.first_frame_weight
        return (weight * error).sum() / weight.sum()

    def _teacher_forcing(
        self,
        x0: Tensor,
        u: Tensor,
        prompts: PromptTimeline,
        generators: Generators,
        shared: torch.Generator,
        objective: TeacherForcing,
    ) -> Tensor:
        chunks = objective.frames // objective.chunk_frames
        index, weight = _as_a_cache_shows_it(x0, objective, generators, shared, prompts.switch)
        x0 = x0[torch.arange(len(x0), device=x0.device)[:, None], index]
        # the first chunk's level is stratified, the others follow it at even distances
        levels = (u.to(x0)[:, None] + torch.arange(chunks).to(x0) / chunks + _uniform(1, generators).to(x0)) % 1.0
        few = torch.tensor(warp_denoising_steps(objective.denoising_steps, objective.shift)).to(x0)
        chosen = few[(levels * len(few)).long().clamp_max(len(few) - 1)]
        free = shift_sigma(levels.clamp_min(1e-3), objective.shift)
        sigma = torch.where(_uniform(chunks, generators).to(x0) < objective.few_step, chosen, free)
        sigma = sigma.repeat_interleave(objective.chunk_frames, dim=1)
        noise = _noise_like(x0, generators)
        context_sigma = objective.context_noise * _uniform(1, generators)[:, 0].to(x0)
        context = add_noise(x0, _noise_like(x0, generators), context_sigma)
        # the clean half is told timestep 0, noise or not: that is how a cache is filled when streaming
        timestep = TIMESTEPS * torch.cat([torch.zeros_like(sigma), sigma], dim=1)
        pattern = teacher_forcing(objective.frames, objective.chunk_frames)
        text = prompts.text(self.network, index[0].tolist() * 2)  # a switch lies at one place in all clips
        velocity, _ = self.network(
            torch.cat([context, add_noise(x0, noise, sigma)], dim=1), timestep, text, pattern=pattern
        )
        error = (velocity[:, objective.frames :].float() - (noise - x0)).square().mean(dim=(2, 3, 4))
        # a mean over each clip and then over clips, so that it does not matter how the batch is cut into shards
        return ((weight * error).sum(dim=1) / weight.sum(dim=1).clamp_min(1)).mean()

    @torch.no_grad()
    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """Loss on 64 validation clips of full length, with noise that is the same at every call."""
        data = self.validation
        count = min(64, len(data))
        losses = []
        for piece in torch.arange(count).split(8):
            indices = piece.tolist()
            prompts = PromptTimeline(self.prompts([data.caption(i, 0) for i in indices]))
            generators = [torch.Generator().manual_seed(index) for index in indices]
            x0, u = data.read(indices, data.shape[0]).to(self.device), (piece + 0.5) / count
            losses.append(self._loss(x0, u, prompts, generators, torch.Generator().manual_seed(indices[0])))
        return {"loss": torch.stack(losses).mean()}

    def samples(self, step: int) -> dict[str, Tensor]:
        """Clips of a few captions by the flow ODE with guidance; a causal network streams whole chunks of them."""
        objective, frames, prompts = self.settings.objective, self.data.shape[0], list(self.data.examples)
        text = self.network.encode_text(self.prompts(prompts))
        null = self.network.encode_text(self.prompts([""])).expand(len(prompts))
        sigmas = ode_sigmas(self.settings.sample_steps, self.settings.sample_shift)
        shape, denoiser = (len(prompts), frames, *self.data.shape[1:]), Denoiser(self.network)
        noise, how = torch.randn(shape, generator=torch.Generator().manual_seed(1)), (text, null, sigmas)
        if isinstance(objective, TeacherForcing):
            noise = noise[:, : frames - frames % objective.chunk_frames]
            found = causal_trajectory(denoiser, noise, *how, self.settings.guidance, objective.cache)
        else:
            found = ode_trajectory(denoiser, noise.to(self.device), *how, self.settings.guidance)
        latents = found[:, 0]
        decoded = load_vae(self.settings.vae).decode(latents.cpu())[0].clamp(0, 1)
        return {"samples": decoded[:, :: max(1, decoded.shape[1] // 10)]}

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write `folder`/transformer."""
        save_transformer(networks["transformer"], folder / "transformer", self.settings.init)


def _draw(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _uniform(count: int, generators: Generators) -> Tensor:
    return torch.stack([torch.rand(count, generator=generator) for generator in generators])


def _noise_like(x0: Tensor, generators: Generators) -> Tensor:
    return torch.stack([torch.randn(x0.shape[1:], generator=generator) for generator in generators]).to(x0)


def _as_a_cache_shows_it(
    x0: Tensor,
    objective: TeacherForcing,
    generators: Generators,
    shared: torch.Generator,
    switch: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Frame numbers [B, frames] that cut clips [B, F, C, h, w] as sink and window show them, and their loss weights.

    Half of the clips are cut at the video's beginning. The others are its first `sink_frames` and a stretch from later
    on; of these the chunks that could not see enough of the past in a cache carry no loss. With a switch at a frame all
    clips are cut alike, so that the switch or what follows it is seen.
    """
    batch, total = x0.shape[:2]
    frames, sink, chunk = objective.frames, objective.sink_frames, objective.chunk_frames
    index = torch.arange(frames).expand(batch, -1)
    weight = torch.ones(batch, frames)
    if sink and total > frames:
        longest = (total - frames) // chunk
        drawn = [int(torch.randint(1, longest + 1, (), generator=g)) * (_draw(g) < 0.5) for g in generators]
        jumps = torch.tensor(drawn) * chunk
        if switch is not None:
            last_shown = [jump for jump in range(0, total - frames + 1, chunk) if switch < frames + jump]
            choice = int(torch.randint(len(last_shown), (), generator=shared))
            jumps = torch.full((batch,), last_shown[choice])
        index = index + (index >= sink) * jumps[:, None]
        weight = weight.masked_fill((jumps > 0)[:, None] & (torch.arange(frames) < sink + chunk), 0.0)
    return index.to(x0.device), weight.to(x0)
