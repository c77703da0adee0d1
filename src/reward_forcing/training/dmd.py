"""The DMD stage: a few-step causal generator learns on its own rollouts to match a teacher's distribution.

    grad = E_t [ (mu_fake(x_t, t) - mu_real(x_t, t)) / mean |x - mu_real| ]  dx / dtheta      x = rollout(theta)

Distribution matching distillation on self-generated rollouts (DMD; Self Forcing; Reward Forcing, Eqs. 1-2). The
rollout is the one that generates: same cache, same sink, evictions included.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from reward_forcing.config import first_few
from reward_forcing.flow import add_noise
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.rewards import Rater, Reward, RewardSettings, rate
from reward_forcing.rollout.kv_cache import KVCache
from reward_forcing.rollout.noise import SeededNoise
from reward_forcing.rollout.rollout import KVGrad, Rollout
from reward_forcing.rollout.switches import SwitchPolicy
from reward_forcing.training.long_tuning import LongTuning, RunningVideos
from reward_forcing.training.losses import dmd_gradient, dmd_loss, flow_loss, score_sigma
from reward_forcing.training.networks import (
    check_latent_size,
    check_network,
    load_vae,
    place_transformer,
    save_transformer,
)
from reward_forcing.training.prompt_sources import FilePrompts, PromptSource, WorldPrompts
from reward_forcing.training.prompts import PromptEncoder, PromptTimeline
from reward_forcing.training.rollouts import (
    Course,
    RolloutSettings,
    course_at,
    draw_course,
    draw_exit,
    streamed_course,
)
from reward_forcing.training.sampling import guided_x0
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage

logger = logging.getLogger(__name__)

WORDS_SHOWN = 10
"""Unknown words that a warning names."""
WATCH_BATCH = 8
"""Clips that are rolled out side by side for the watched rewards."""
LOOK_BACK = 8
"""Latent frames before a scored clip that are decoded to see its first frame: with the miniature's VAE it then differs
from the frame of the whole video by 57 dB, that is by less than bfloat16 makes of it."""


def check_levels(name: str, levels: tuple[float, float]) -> None:
    """Raise ValueError unless the setting `name` is a range of noise levels."""
    if not levels[0] < levels[1]:
        raise ValueError(f"{name}={levels} is no range; give the lower noise level first")


def is_between(sigma: Tensor, low: float, high: float) -> Tensor:
    """Which noise levels lie in a range, its ends included."""
    return (sigma >= low) & (sigma <= high)


class DmdSettings(RolloutSettings):
    """Settings of the DMD stage: those of its rollouts, and

    generator, real_score, fake_score: transformer folders to start from (fake_score: the teacher if left out). Of a
    rollout longer than `frames` the first scored frame is encoded anew as the single frame that begins a clip, and the
    first scored chunk has no gradient (Self Forcing). kv_grad: see `rollout.KVGrad`. latent_size: rows and columns of a
    latent frame. guidance: the teacher's CFG weight, in the usual convention (the reference's 3.0 is 4.0 here).
    guidance_range: the noise levels at which the teacher is guided; at others its conditional prediction stands alone
    (guidance in a limited interval, arXiv 2404.07724). generator_every: critic updates per generator update.
    critic_reuse: critic updates in a row that learn from one rollout, each with noise levels and noise of its own; it
    divides generator_every, so that all of them see what the generator makes now. What a rollout costs, and its reward,
    is then shared by them.
    score_shift, score_range: where on the noise axis the scores are compared. Where a prompt is switched all three
    networks read each frame's own prompt. long: videos run on from update to update instead (LongLive's streaming long
    tuning, see `long_tuning`); switch_share is then that of the videos, and a clip is scored with the prompt of its new
    frames, which alone count for both roles. first_frame_weight: factor of the gradient of the first latent frame,
    which is a single pixel frame and has no past to go by. prompts: a file with a prompt in each line, in place of
    `captions` captions of the world; its last `validation_prompts` are not trained with. negative_prompt: what guidance
    leads away from. watched: rewards that nothing optimises, by name; whenever samples are drawn they rate
    `watch_clips` clips of validation prompts. fps: of the decoded frames.
    """

    roles: ClassVar[tuple[str, ...]] = ("generator", "fake_score")
    stage: Literal["dmd"] = "dmd"
    generator: Path
    real_score: Path
    fake_score: Path | None = None
    text: Path
    vae: Path
    batch: PositiveInt = 8
    kv_grad: KVGrad = "none"
    latent_size: tuple[PositiveInt, PositiveInt] = (8, 8)
    guidance: float = 4.0
    guidance_range: tuple[float, float] = (0.0, 1.0)
    generator_every: PositiveInt = 5
    critic_reuse: PositiveInt = 1
    score_shift: PositiveFloat = 5.0
    score_range: tuple[float, float] = (0.02, 0.98)
    captions: PositiveInt = 100_000
    prompts: Path | None = None
    validation_prompts: NonNegativeInt = 16
    negative_prompt: str = ""
    long: LongTuning | None = None
    first_frame_weight: PositiveFloat = 1.0
    watched: dict[str, RewardSettings] = Field(default_factory=dict)
    watch_clips: int = Field(16, ge=2)
    fps: PositiveFloat = 16.0

    def batches(self) -> tuple[int, ...]:
        return (self.batch,)

    @model_validator(mode="after")
    def _some_noise_is_guided(self) -> Self:
        check_levels("guidance_range", self.guidance_range)
        return self

    @model_validator(mode="after")
    def _scores_are_compared_at_noise(self) -> Self:
        low, high = self.score_range
        if not 0 < low < high <= 1:
            raise ValueError(f"score_range={self.score_range} must be two noise levels, 0 < low < high <= 1")
        return self

    @model_validator(mode="after")
    def _what_is_watched_is_seen(self) -> Self:
        if self.watched and not self.train.sample_every:
            raise ValueError("watched rewards rate the samples of a run; set train.sample_every, or leave watched out")
        return self

    @model_validator(mode="after")
    def _reused_rollouts_are_the_generators_own(self) -> Self:
        if self.generator_every % self.critic_reuse:
            raise ValueError(
                f"critic_reuse={self.critic_reuse} must divide generator_every={self.generator_every}: a rollout by "
                "the generator before its update would be learned from after it"
            )
        if self.critic_reuse > 1 and self.long is not None:
            raise ValueError(f"long goes on with every update; with critic_reuse={self.critic_reuse} some would not")
        return self

    @model_validator(mode="after")
    def _videos_run_on_chunk_by_chunk(self) -> Self:
        if self.long is not None:
            if self.longest_frames is not None:
                raise ValueError("longest_frames is for rollouts of their own, long for videos that run on; give one")
            if self.rolling_share:
                raise ValueError(
                    f"long goes on from finished chunks; with rolling_share={self.rolling_share:g} some would still be "
                    "noisy where an update ends; give one"
                )
            self.long.check_fit(self.frames, self.cache, self.generator_every, self.switch_share)
        return self


@dataclass(frozen=True)
class Rolled:
    """A rollout as the scores see it.

    clip: latents [B, F, C, h, w]. first: the number of its first frame in the rollout. mask: [B, F], the frames that
    carry gradient, None for all. sink_updates: how often the sink changed on the way.
    """

    clip: Tensor
    first: int
    mask: Tensor | None
    sink_updates: int

    def numbers(self) -> range:
        """The frames' numbers in the rollout."""
        return range(self.first, self.first + self.clip.shape[1])


RolledOut: TypeAlias = tuple[Rolled, PromptTimeline, Sequence[Sequence[str]]]
"""A rollout, what the scores read with it, and its prompts in words."""
Weighed: TypeAlias = tuple[Rolled, PromptTimeline, Tensor | None]
"""A rollout, what the scores read with it, and its weights."""

DmdSettingsT = TypeVar("DmdSettingsT", bound=DmdSettings)


class DmdStage(Stage[DmdSettingsT]):
    """Trains roles `generator` and `fake_score`; exports both as diffusers folders."""

    settings_class: ClassVar[type[StageSettings]] = DmdSettings
    transformers = True

    def __init__(self, settings: DmdSettingsT, seed: int, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        self.streamed = streamed_course(settings)
        check_network(settings.vae, "VAE")
        check_latent_size(settings.generator, settings.latent_size)
        self.prompts = PromptEncoder(settings.text, device)
        self.source = self._prompt_source()
        lora = settings.train.lora
        self.generator = place_transformer(settings.generator, self.placement, lora=lora.get("generator"), seed=seed)
        self.real_score = place_transformer(settings.real_score, self.placement, trained=False)
        self.fake_score = place_transformer(self.critic_folder, self.placement, lora=lora.get("fake_score"), seed=seed)
        self.shape = (self.generator.config["in_channels"], *settings.latent_size)
        self.videos = RunningVideos(settings.long, settings.frames, settings.cache) if settings.long else None
        self._held: dict[int, tuple[int, Weighed]] = {}
        """By shard, the step and what was rolled out for the critic then."""
        self.raters: dict[str, tuple[Reward, Rater]] = {
            name: (reward, reward.load(device)) for name, reward in settings.watched.items()
        }

    def _prompt_source(self) -> PromptSource:
        """Where prompts come from; tells of words that the text encoder cannot read."""
        settings = self.settings
        if settings.prompts is None:
            return WorldPrompts(settings.captions)
        source = FilePrompts(settings.prompts, settings.validation_prompts)
        if self.rank == 0 and (words := self.prompts.unknown_words(source.lines)):
            named = first_few([f"'{word}'" for word in words], WORDS_SHOWN)
            logger.warning("'%s' has words that '%s' does not know: %s", settings.prompts, settings.text, named)
        return source

    @property
    def critic_folder(self) -> Path:
        """Where the critic starts: the teacher, if nothing is said."""
        return self.settings.fake_score or self.settings.real_score

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.generator, "fake_score": self.fake_score}

    def edges(self, role: str) -> tuple[str, ...]:
        return ("patch_embedding", "proj_out", "condition_embedder")

    def updates(self, step: int) -> tuple[str, ...]:
        """The critic at every step, the generator before it at every `generator_every`-th."""
        return ("generator", "fake_score") if step % self.settings.generator_every == 0 else ("fake_score",)

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss of one role on a fresh rollout, or on the next stretch of the running videos."""
        (rolled, prompts, weight), metrics = self._weighed(role, step, draw)
        x = rolled.clip
        generators = [draw.sample(index, "score") for index in draw.share(self.settings.batch)]
        shift, levels = self.settings.score_shift, self.settings.score_range
        sigma = torch.cat([score_sigma(1, shift, *levels, generator) for generator in generators]).to(x)
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in generators]).to(x)
        weight = self.weight_at(weight, sigma)
        if role == "generator":
            loss, more = self._generator_loss(rolled, sigma, noise, prompts, weight)
            return loss, {**metrics, **more}
        return self._critic_loss(rolled, sigma, noise, prompts, weight), metrics

    def _weighed(self, role: str, step: int, draw: Draw) -> tuple[Weighed, dict[str, Tensor | float]]:
        """What the role's update learns from, and metrics: a rollout of now, or the critic's of some steps ago.

        What a run that was stopped held is rolled out again, by the same generator from the same draw.
        """
        at = self.rolled_at(role, step)
        if role == "fake_score" and draw.shard in self._held and self._held[draw.shard][0] == at:
            return self._held[draw.shard][1], {}
        then = draw if at == step else Draw.at(draw.seed, role, at, draw.shard, draw.shards)
        roll_out = self._fresh_rollout if self.videos is None else self._next_stretch
        with torch.set_grad_enabled(role == "generator" and torch.is_grad_enabled()):
            rolled, prompts, captions = roll_out(role, at, then)
        weight, metrics = self.weight(role, rolled, captions, again=at != step)
        weighed = rolled, prompts, weight
        if role == "fake_score" and self.settings.critic_reuse > 1:
            self._held[draw.shard] = at, weighed
        return weighed, metrics if at == step else {}

    def rolled_at(self, role: str, step: int) -> int:
        """The step at which the rollout was made that the role learns from at `step`."""
        return step - step % self.settings.critic_reuse if role == "fake_score" else step

    def _fresh_rollout(self, role: str, step: int, draw: Draw) -> RolledOut:
        """A rollout of its own for the role's update."""
        seeds, scenes, wordings = self._samples_of(role, draw)
        course = draw_course(self.settings, draw.shared)
        items = list(zip(scenes, wordings, strict=True))
        captions = [self.source.prompts(items)] if course.switch is None else self.source.switched(items)
        prompts = PromptTimeline(*map(self.prompts, captions), switch=course.read_from)
        return self._rollout(prompts, seeds, course), prompts, captions

    def _next_stretch(self, role: str, step: int, draw: Draw) -> RolledOut:
        """What the role's update adds to the running videos, with the frames before it that a clip shows.

        A video's own draws are those of its beginning, whichever roles its updates are of.
        """
        long, videos, frames = self.settings.long, self.videos, self.settings.frames
        assert long is not None
        assert videos is not None
        at = long.stretch(frames, self._updates_before(role, step))
        begun = Draw.at(self.seed, "video", at.video, draw.shard, draw.shards)
        seeds, scenes, wordings = self._samples_of(max(self.networks(), key=self.group), begun)
        switch = long.draw_switch(frames, self.settings.switch_share, begun.shared)
        items = list(zip(scenes, wordings, strict=True))
        is_second = switch is not None and at.start >= switch
        captions = self.source.prompts(items) if switch is None else self.source.switched(items)[is_second]
        prompts = PromptTimeline(self.prompts(captions))
        course = course_at(self.settings, at.end, draw_exit(self.settings, draw.shared), rolls=False)
        rollout = self._new_rollout(prompts, seeds, course, long.switch)
        x = videos.advance(rollout, course.passes, draw.share(self.settings.batch), at, switched=at.start == switch)
        return self._scored(x, rollout.state.cache.sink_updates, long.overlap_frames), prompts, [captions]

    def _updates_before(self, role: str, step: int) -> int:
        """How many updates of either role come before the role's at `step`."""
        every = self.settings.generator_every
        generators = -(-step // every) + (role == "fake_score" and step % every == 0)
        return step + generators

    def weight(
        self, role: str, rolled: Rolled, captions: Sequence[Sequence[str]], again: bool = False
    ) -> tuple[Tensor | None, dict[str, Tensor | float]]:
        """The factor of each sample [B] in the role's loss, and metrics; None counts all alike.

        captions: the prompts [B], and where they are switched in the rollout, those they are switched to. again:
        whether a rollout is weighed that the run, before it was stopped, had weighed and counted already.
        """
        return None, {}

    def weight_at(self, weight: Tensor | None, sigma: Tensor) -> Tensor | None:
        """What is left of the weights [B] at the samples' noise levels [B]."""
        return weight

    def group(self, role: str) -> int:
        """How many consecutive samples of the role's batch share a prompt."""
        return 1

    def _samples_of(self, role: str, draw: Draw) -> tuple[list[int], list[int], list[int]]:
        """Noise seeds, scenes and wordings of this shard; a group has the scene and the wording of its first."""
        group, items = self.group(role), draw.share(self.settings.batch)
        firsts = [index - index % group for index in items]
        drawn = {}
        for index in sorted({*items, *firsts}):
            generator = draw.sample(index)
            seed = int(torch.randint(2**62, (), generator=generator))
            drawn[index] = seed, int(torch.randint(self.source.count, (), generator=generator))
        return (
            [drawn[index][0] for index in items],
            [drawn[index][1] for index in firsts],
            [drawn[index][0] % 2**31 for index in firsts],
        )

    def _rollout(self, prompts: PromptTimeline, seeds: Sequence[int], course: Course) -> Rolled:
        """What the generator streams on a course, as its exits predicted it; scored frames carry gradient."""
        rollout = self._new_rollout(prompts, seeds, course)
        pieces = []
        for chunk in rollout:
            pieces.append(chunk.at_exit)
            if prompts.second is not None and rollout.state.start == course.switch:
                rollout.text = self.generator.encode_text(prompts.second)
        state = rollout.state
        pieces += [chunk.at_exit for chunk in state.noisy if chunk.at_exit is not None]
        x = torch.cat(pieces, dim=1)[:, : course.frames]
        return self._scored(x, state.cache.sink_updates, self.settings.cache.chunk_frames)

    def _new_rollout(
        self, prompts: PromptTimeline, seeds: Sequence[int], course: Course, switch: SwitchPolicy | None = None
    ) -> Rollout:
        """The generator's rollout on a course, from an empty cache, with the first of the prompts."""
        return Rollout(
            Denoiser(self.generator),
            course.passes,
            KVCache.empty(self.settings.cache),
            SeededNoise(tuple(seeds)),
            self.generator.encode_text(prompts.first),
            self.shape,
            device=self.device,
            kv_grad=self.settings.kv_grad,
            switch=switch,
        )

    def _scored(self, x: Tensor, sink_updates: int, shown: int) -> Rolled:
        """The last frames of latents [B, F, C, h, w] as a clip of their own, which begins with a single pixel frame.

        shown: how many of its frames are only shown, where the clip does not begin the video.
        """
        scored = self.settings.frames
        first = x.shape[1] - scored
        if first <= 0:
            return Rolled(x, 0, None, sink_updates)
        last = self.pixels(x[:, max(0, first - LOOK_BACK) : first + 1], self.placement.compute)[:, -1:]
        with torch.autocast(x.device.type, enabled=False):
            image = self.vae.encode(last)[0].to(x)
        mask = torch.ones(x.shape[0], scored, dtype=torch.bool, device=x.device)
        mask[:, :shown] = False
        return Rolled(torch.cat([image, x[:, first + 1 :]], dim=1), first, mask, sink_updates)

    def _generator_loss(
        self, rolled: Rolled, sigma: Tensor, noise: Tensor, prompts: PromptTimeline, weight: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        x = rolled.clip
        with torch.no_grad():
            frames = rolled.numbers()
            levels = sigma[:, None].expand(x.shape[:2])
            noisy = add_noise(x, noise, sigma)
            real_text = prompts.text(self.real_score, frames)
            null = self.real_score.encode_text(self.prompts([self.settings.negative_prompt])).expand(len(x))
            real = guided_x0(Denoiser(self.real_score), noisy, levels, real_text, null, self._guidance(sigma))
            fake = Denoiser(self.fake_score)(noisy, levels, prompts.text(self.fake_score, frames)).x0
            gradient = dmd_gradient(x, real, fake)
            gradient[:, 0] *= self.settings.first_frame_weight
        motion = (x[:, 1:] - x[:, :-1]).detach().abs().mean()
        metrics = {"gradient": gradient.abs().mean(), "motion": motion, "sink_updates": float(rolled.sink_updates)}
        return dmd_loss(x, gradient, weight, rolled.mask), metrics

    def _guidance(self, sigma: Tensor) -> float | Tensor:
        """The teacher's guidance at noise levels sigma [B]."""
        low, high = self.settings.guidance_range
        if low <= 0 and high >= 1:
            return self.settings.guidance
        weight = torch.where(is_between(sigma, low, high), self.settings.guidance, 1.0)
        return weight[:, None, None, None, None]

    def _critic_loss(
        self, rolled: Rolled, sigma: Tensor, noise: Tensor, prompts: PromptTimeline, weight: Tensor | None
    ) -> Tensor:
        x = rolled.clip.detach()
        levels = sigma[:, None].expand(x.shape[:2])
        text = prompts.text(self.fake_score, rolled.numbers())
        velocity = Denoiser(self.fake_score)(add_noise(x, noise, sigma), levels, text).velocity
        return flow_loss(velocity, noise, x, weight, None if self.videos is None else rolled.mask)

    def tensors(self) -> dict[str, Tensor]:
        """The running videos."""
        return {} if self.videos is None else self.videos.tensors()

    def make_room(self, stored: Mapping[str, Tensor]) -> None:
        """Hold this process's running videos, to be loaded into."""
        if self.videos is not None:
            share = self.settings.batch // self.world_size
            self.videos.make_room(stored, range(self.rank * share, (self.rank + 1) * share))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the networks."""
        return {} if self.videos is None else {"videos": self.videos.counts()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict`."""
        if self.videos is not None:
            self.videos.set_counts(state["videos"])

    @cached_property
    def vae(self) -> StreamingVAE:
        """The frozen VAE, loaded when first needed."""
        return load_vae(self.settings.vae, self.device, self.placement.compiled)

    @torch.no_grad()
    def pixels(self, latents: Tensor, compute: torch.dtype = torch.float32) -> Tensor:
        """Frames [B, T, 3, H, W] in [0, 1], float32, of latents [B, F, C, h, w], decoded in `compute`."""
        with torch.autocast(latents.device.type, compute, enabled=compute is not torch.float32):
            return self.vae.decode(latents.detach().float())[0].float().clamp(0, 1)

    @torch.no_grad()
    def samples(self, step: int) -> dict[str, Tensor]:
        """Streamed clips of the source's examples with all steps, about ten frames of each."""
        prompts = PromptTimeline(self.prompts(list(self.source.examples)))
        seeds = range(1, 1 + len(self.source.examples))
        decoded = self.pixels(self._rollout(prompts, seeds, self.streamed).clip)
        return {"samples": decoded[:, :: max(1, decoded.shape[1] // 10)]}

    @torch.no_grad()
    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """Mean rewards of clips of validation prompts, always the same prompts and noise."""
        return mean_rewards(self.watch())

    def watch(self) -> dict[str, list[float]]:
        """Normalised scores of the rewards in `raters`, clip by clip; without those that cannot rate now.

        A rater may be a server that is away: what nothing optimises is no reason to stop, and is told.
        """
        scores: dict[str, list[float]] = {name: [] for name in self.raters}
        texts = self.source.validation(self.settings.watch_clips) if self.raters else []
        for first in range(0, len(texts), WATCH_BATCH):
            captions = texts[first : first + WATCH_BATCH]
            seeds = range(first, first + len(captions))
            prompts = PromptTimeline(self.prompts(captions))
            frames = self.pixels(self._rollout(prompts, seeds, self.streamed).clip)
            for name in list(scores):
                try:
                    scores[name] += rate(*self.raters[name], frames, captions, self.settings.fps).tolist()
                except Exception as error:  # a class from outside may raise anything
                    del scores[name]
                    logger.warning("the reward '%s' rates no samples this time: %s", name, error)
        return scores

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write `folder`/transformer, the generator, and `folder`/fake_score, for a run that goes on from here."""
        save_transformer(networks["generator"], folder / "transformer", self.settings.generator)
        save_transformer(networks["fake_score"], folder / "fake_score", self.critic_folder)


def mean_rewards(scores: Mapping[str, Sequence[float]]) -> dict[str, Tensor | float]:
    """The mean of each reward's scores, under the name that the log gives it."""
    return {f"reward/{name}": sum(values) / len(values) for name, values in scores.items()}
