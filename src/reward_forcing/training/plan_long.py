"""What the generator sees in the updates of running videos (`long_tuning`), for a plan of their costs."""

from __future__ import annotations

from reward_forcing.rollout.kv_cache import CacheSettings
from reward_forcing.rollout.switches import Recache
from reward_forcing.training.long_tuning import LongTuning
from reward_forcing.training.plan_costs import Attended, bidirectional, rolled_out


def stretches_seen(long: LongTuning, frames: int, cache: CacheSettings) -> list[tuple[Attended, ...]]:
    """For each stretch of a video, in clips of `frames`, one pass over every chunk of it."""
    chunk = cache.chunk_frames
    plan = [long.stretch(frames, update) for update in range(len(long.starts(frames)))]
    passes = rolled_out(cache, plan[-1].start + plan[-1].frames)
    return [passes[at.start // chunk : (at.start + at.frames) // chunk] for at in plan]


def recached(long: LongTuning, cache: CacheSettings) -> Attended | None:
    """The pass that computes a cache anew at a switch, in the published order; None where nothing is."""
    frames = long.switch.recall_frames(cache)
    return bidirectional(frames) if isinstance(long.switch, Recache) and frames else None
