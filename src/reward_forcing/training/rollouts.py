"""How a student is rolled out in training: the passes, the length and the prompt's switch, one draw for a whole batch.

Owns which schedule of `rollout.schedule` a batch takes and what is looked at of it. Knows no network and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from reward_forcing.flow import warp_denoising_steps
from reward_forcing.rollout.kv_cache import CacheSettings
from reward_forcing.rollout.schedule import Pass, chunkwise, rolling
from reward_forcing.training.settings import StageSettings


class RolloutSettings(StageSettings):
    """What a stage that learns from rollouts is told about them.

    frames: latent frames that are scored. longest_frames: rollouts last from `frames` up to so many, by whole chunks;
    of a longer one the last `frames` count (Self Forcing). cache: what the student sees of its past, as it will stream.
    denoising_steps count 1..1000 before the `shift` of the noise schedule. rolling_share: of the rollouts that denoise
    as many chunks jointly as there are steps, the others going chunk by chunk (Rolling Forcing: one half); samples are
    streamed jointly then. switch_share: of the rollouts whose prompt is switched between two chunks.
    Raises ValueError for steps that do not decrease, longest frames that are not whole chunks, and a window without
    room for the chunks of a rolling rollout.
    """

    frames: PositiveInt = 21
    longest_frames: PositiveInt | None = None
    cache: CacheSettings = CacheSettings()
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    shift: PositiveFloat = 5.0
    rolling_share: float = Field(0.0, ge=0, le=1)
    switch_share: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _rollouts_hold_what_is_scored(self) -> Self:
        chunk = self.cache.chunk_frames
        if self.longest_frames is not None and (self.longest_frames < self.frames or self.frames % chunk):
            raise ValueError(
                f"longest_frames={self.longest_frames} needs frames={self.frames} to be no more, and whole chunks of "
                f"{chunk}"
            )
        return self

    @model_validator(mode="after")
    def _rolling_windows_fit(self) -> Self:
        if self.rolling_share:
            try:
                self.cache.local_frames(len(self.denoising_steps) * self.cache.chunk_frames)
            except ValueError as error:
                raise ValueError(f"rolling_share={self.rolling_share:g}: {error}, or fewer denoising_steps") from None
        return self

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Noise levels of a chunk's passes, the final 0 left out."""
        return warp_denoising_steps(self.denoising_steps, self.shift)

    @property
    def lengths(self) -> range:
        """Latent frames of the rollouts, each as likely as the others."""
        return range(self.frames, (self.longest_frames or self.frames) + 1, self.cache.chunk_frames)


@dataclass(frozen=True)
class Course:
    """What all rollouts of a batch do alike. Of a chunk, the scores look at what its exit pass predicted.

    frames: latent frames. passes: until the last of them is predicted. switch: the latent frame before which the text
    is changed; the passes that follow read the new one, for the chunks in flight too. read_from: the first frame that
    was predicted so. Both None for a single text.
    """

    frames: int
    passes: tuple[Pass, ...]
    switch: int | None = None
    read_from: int | None = None


def course_at(settings: RolloutSettings, frames: int, exit_step: int, rolls: bool) -> Course:
    """The course of one length, exit step in 0 .. T - 1, and schedule; only exits with a scored frame carry gradient.

    Chunk by chunk, all chunks leave at that step of their T. In a rolling rollout the windows w with
    w mod T = exit_step are the exits, and their chunks leave at different steps.
    """
    chunk = settings.cache.chunk_frames
    chunks, grad_from = -(-frames // chunk), max(0, frames - settings.frames) // chunk
    if rolls:
        passes = rolling(settings.sigmas, exit_step, grad_from, chunks=chunks)
    else:
        passes = chunkwise(settings.sigmas[: exit_step + 1], grad_from, chunks=chunks)
    return Course(frames, tuple(passes))


def draw_course(settings: RolloutSettings, shared: torch.Generator) -> Course:
    """A course at random; with the generator that all processes share, the same for all of them."""
    rolls = settings.rolling_share > 0 and float(torch.rand((), generator=shared)) < settings.rolling_share
    exit_step = draw_exit(settings, shared)
    switched = _switched_chunk(settings, shared)
    frames = settings.lengths[int(torch.randint(len(settings.lengths), (), generator=shared))]
    return _switched(course_at(settings, frames, exit_step, rolls), switched, settings.cache.chunk_frames)


def draw_exit(settings: RolloutSettings, shared: torch.Generator) -> int:
    """The exit step of a whole batch, so that all processes do the same work (Self Forcing).

    The reference of Rolling Forcing draws it in each process, whose numbers of gradient passes then differ.
    """
    return int(torch.randint(len(settings.sigmas), (), generator=shared))


def streamed_course(settings: RolloutSettings) -> Course:
    """How samples are rolled out: as the student will stream, to the last step, and rolling windows full to the end."""
    chunks = -(-settings.frames // settings.cache.chunk_frames)
    passes: list[Pass] = []
    for step in (rolling if settings.rolling_share else chunkwise)(settings.sigmas):
        passes.append(step)
        if step.finishes and step.chunks[0] == chunks - 1:
            break
    return Course(settings.frames, tuple(passes))


def _switched_chunk(settings: RolloutSettings, shared: torch.Generator) -> int:
    """The chunk at which a batch's prompts are switched, all at the same; 0 for most batches, which have one."""
    chunk, frames = settings.cache.chunk_frames, settings.frames
    if float(torch.rand((), generator=shared)) >= settings.switch_share or frames <= chunk:
        return 0
    return int(torch.randint(1, -(-frames // chunk), (), generator=shared))


def _switched(course: Course, chunk: int, chunk_frames: int) -> Course:
    """The course with its text changed before `chunk`, or before the last chunk that an exit begins with after it."""
    starts = _exit_starts(course.passes)
    chunk = min(chunk, max(starts))
    if not chunk:
        return course
    read_from = min(start for start in starts if start >= chunk)
    return Course(course.frames, course.passes, chunk * chunk_frames, read_from * chunk_frames)


def _exit_starts(passes: Sequence[Pass]) -> list[int]:
    """The first chunks of what exit passes predict; of a schedule without them, all chunks."""
    return [step.chunks[0] for step in passes if step.is_exit] or [step.chunks[0] for step in passes]
