"""What the generator's rollouts cost in the DMD stages: chunk by chunk, with rolling windows, or in running videos.

Walks the passes that `rollouts.course_at` gives, over a cache without contents. Knows no stage beyond its rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from reward_forcing.rollout.switches import Recache
from reward_forcing.training.dmd import DmdSettings
from reward_forcing.training.plan_costs import (
    Attended,
    Shape,
    bidirectional,
    cache_bytes,
    forward_flops,
    forward_work,
    skipped_flops,
    walked,
)
from reward_forcing.training.rollouts import Course, course_at


@dataclass(frozen=True)
class Rollouts:
    """One kind of rollouts: mean operations over lengths and exits, and bytes of the longest.

    each: the passes, without gradient. scored: of these the ones that carry gradient in the generator's update. clean:
    clean passes; the last chunk's never runs. skipped, skipped_clean: of the backward of `scored` and of `clean`, see
    `skipped_flops`. graded: for every exit of the longest rollout, or every stretch of a video, the passes in its
    graph. work: bytes alive without gradients, the cache included. recached: of re-caches at a switch.
    """

    each: float
    scored: float
    clean: float
    skipped: float
    skipped_clean: float
    graded: tuple[tuple[Attended, ...], ...]
    work: int
    recached: float = 0.0


def chunk_by_chunk(settings: DmdSettings, shape: Shape, tokens: int, compute: int) -> Rollouts:
    """Rollouts chunk by chunk that take a single step; another step costs `each` again, and no graph."""
    return _rollouts(settings, shape, tokens, compute, [[course_at(settings, n, 0, False)] for n in settings.lengths])


def rolling_windows(settings: DmdSettings, shape: Shape, tokens: int, compute: int) -> Rollouts:
    """Whole rolling rollouts; nothing where none roll."""
    if not settings.rolling_share:
        return Rollouts(0.0, 0.0, 0.0, 0.0, 0.0, (), 0)
    exits = range(len(settings.denoising_steps))
    courses = [[course_at(settings, frames, number, True) for number in exits] for frames in settings.lengths]
    return _rollouts(settings, shape, tokens, compute, courses)


def running_videos(settings: DmdSettings, shape: Shape, tokens: int, compute: int) -> Rollouts:
    """The stretches of videos that run on, like `chunk_by_chunk`: means over the stretches of one.

    What a switch but a re-cache leaves of the cache is not looked at.
    """
    long, cache = settings.long, settings.cache
    assert long is not None
    stretches = [long.stretch(settings.frames, update) for update in range(len(long.starts(settings.frames)))]
    passes, clean = walked(cache, course_at(settings, stretches[-1].end, 0, False).passes)
    graded = []
    for at in stretches:
        first, end = at.start // cache.chunk_frames, at.end // cache.chunk_frames
        graded.append(passes[first:end] + (clean[first : end - 1] if settings.kv_grad == "clean" else ()))
    flops, updates = _flops(shape, passes, tokens), len(stretches)
    anew = long.switch.recall_frames(cache) if isinstance(long.switch, Recache) else None
    recached = forward_flops(shape, bidirectional(anew), tokens) if anew else 0
    return Rollouts(
        each=flops / updates,
        scored=flops / updates,
        clean=_flops(shape, clean, tokens) / updates,
        skipped=_skipped(shape, passes) / updates,
        skipped_clean=_skipped(shape, clean) / updates,
        graded=tuple(graded),
        work=max(forward_work(shape, seen, tokens, compute) for seen in passes)
        + cache_bytes(shape, cache, stretches[-1].end, compute),
        recached=settings.switch_share * recached / updates,
    )


def _rollouts(settings: DmdSettings, shape: Shape, tokens: int, compute: int, courses: list[list[Course]]) -> Rollouts:
    """The costs of courses: for each length, shortest first, one for each exit."""
    each, scored, cleaned, skipped, skipped_clean, graded, work = [], [], [], [], [], [], 0
    for same_length in courses:
        graded = []
        for course in same_length:
            passes, clean = walked(settings.cache, course.passes)
            supervised = [seen for seen, step in zip(passes, course.passes, strict=True) if step.grad]
            each.append(_flops(shape, passes, tokens))
            scored.append(_flops(shape, supervised, tokens))
            cleaned.append(_flops(shape, clean, tokens))
            skipped.append(_skipped(shape, supervised))
            skipped_clean.append(_skipped(shape, clean))
            graded.append((*supervised, *(clean if settings.kv_grad == "clean" else ())))
            work = max(work, *(forward_work(shape, seen, tokens, compute) for seen in passes))
    work += cache_bytes(shape, settings.cache, settings.lengths[-1], compute)
    return Rollouts(
        fmean(each), fmean(scored), fmean(cleaned), fmean(skipped), fmean(skipped_clean), tuple(graded), work
    )


def _flops(shape: Shape, passes: Iterable[Attended], tokens: int) -> int:
    return sum(forward_flops(shape, seen, tokens) for seen in passes)


def _skipped(shape: Shape, passes: Iterable[Attended]) -> int:
    return sum(skipped_flops(shape, seen) for seen in passes)
