"""What the generator's rollouts cost in the DMD stages: chunk by chunk, and with rolling windows.

Walks the passes that `rollouts.course_at` gives, over a cache without contents. Knows no stage beyond its rollouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from reward_forcing.training.dmd import DmdSettings
from reward_forcing.training.plan_costs import Attended, Shape, cache_bytes, forward_flops, forward_work, walked
from reward_forcing.training.rollouts import Course, course_at


@dataclass(frozen=True)
class Rollouts:
    """One kind of rollouts: mean operations over lengths and exits, and bytes of the longest.

    each: the passes, without gradient. scored: of these the ones that carry gradient in the generator's update. clean:
    clean passes; the last chunk's never runs. graded: for every exit of the longest rollout, the passes in its graph.
    work: bytes alive without gradients, the cache included.
    """

    each: float
    scored: float
    clean: float
    graded: tuple[tuple[Attended, ...], ...]
    work: int


def chunk_by_chunk(settings: DmdSettings, shape: Shape, tokens: int, compute: int) -> Rollouts:
    """Rollouts chunk by chunk that take a single step; another step costs `each` again, and no graph."""
    return _rollouts(settings, shape, tokens, compute, [[course_at(settings, n, 0, False)] for n in settings.lengths])


def rolling_windows(settings: DmdSettings, shape: Shape, tokens: int, compute: int) -> Rollouts:
    """Whole rolling rollouts; nothing where none roll."""
    if not settings.rolling_share:
        return Rollouts(0.0, 0.0, 0.0, (), 0)
    exits = range(len(settings.denoising_steps))
    courses = [[course_at(settings, frames, number, True) for number in exits] for frames in settings.lengths]
    return _rollouts(settings, shape, tokens, compute, courses)


def _rollouts(settings: DmdSettings, shape: Shape, tokens: int, compute: int, courses: list[list[Course]]) -> Rollouts:
    """The costs of courses: for each length, shortest first, one for each exit."""
    each, scored, cleaned, graded, work = [], [], [], [], 0
    for same_length in courses:
        graded = []
        for course in same_length:
            passes, clean = walked(settings.cache, course.passes)
            supervised = [seen for seen, step in zip(passes, course.passes, strict=True) if step.grad]
            each.append(sum(forward_flops(shape, seen, tokens) for seen in passes))
            scored.append(sum(forward_flops(shape, seen, tokens) for seen in supervised))
            cleaned.append(sum(forward_flops(shape, seen, tokens) for seen in clean))
            graded.append((*supervised, *(clean if settings.kv_grad == "clean" else ())))
            work = max(work, *(forward_work(shape, seen, tokens, compute) for seen in passes))
    work += cache_bytes(shape, settings.cache, settings.lengths[-1], compute)
    return Rollouts(fmean(each), fmean(scored), fmean(cleaned), tuple(graded), work)
