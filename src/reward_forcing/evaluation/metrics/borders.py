"""What chunk-wise generation may leave behind: jumps where one chunk meets the next, and returns of the first chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from reward_forcing.evaluation.metrics.clips import (
    JUST_VISIBLE,
    WAN_RHYTHM,
    Array,
    Measured,
    Pixels,
    Rhythm,
    check_clip,
    thumbnails,
)
from reward_forcing.evaluation.metrics.motion import extrapolation_error

RARE = 0.1
"""Share of the equally distant pairs that may come as close as a copy would without taking the surprise away."""


def border_jump(frames: Pixels, rhythm: Rhythm = WAN_RHYTHM) -> Measured:
    """How much larger the jump into a new chunk is than jumps inside chunks: a ratio, 1 for none, 0 upwards.

    A jump is `extrapolation_error`: what a frame shows that does not follow from the two before it. The mean over the
    first frames of chunks is divided by the mean over the first frames of the other latent frames, so that a decoder's
    own rhythm does not count; both get half a level added, so that a still has the ratio 1. values: the jump of every
    frame from the third on, in levels. Sees steps of colour and brightness, popping texture and breaks in the motion.
    Sees no slow drift across borders, and a scene's own impacts make it less sure: see `border_effect`.
    Raises ValueError for a clip without a border and another latent frame to compare it with.
    """
    jumps, borders, inside = _jumps(frames, rhythm)
    return replace(jumps, score=float((borders.mean() + JUST_VISIBLE) / (inside.mean() + JUST_VISIBLE)))


def border_effect(frames: Pixels, rhythm: Rhythm = WAN_RHYTHM) -> Measured:
    """How far the jumps at borders stand out from those inside, in standard deviations of the latter: 0 for not at all.

    Glass's effect size of the jumps of `border_jump`, the deviation being at least half a level. Below about 1 the
    borders cannot be told from chance in one clip. Raises ValueError like `border_jump`.
    """
    jumps, borders, inside = _jumps(frames, rhythm)
    deviation = inside.std(ddof=1) if len(inside) > 1 else 0.0
    return replace(jumps, score=float((borders.mean() - inside.mean()) / max(deviation, JUST_VISIBLE)))


def _jumps(frames: Pixels, rhythm: Rhythm) -> tuple[Measured, Array, Array]:
    """All jumps, those at borders, and those at the other latent frames; right after a border none is compared."""
    check_clip(frames)
    borders = {chunk.start for chunk in rhythm.chunks(len(frames))[1:] if chunk.start >= 2}
    steps = range(rhythm.first_chunk_frames % rhythm.latent_frames, len(frames), rhythm.latent_frames)
    inside = {t for t in steps if t >= 2 and t not in borders and t - 1 not in borders}
    if not borders or not inside:
        raise ValueError(
            f"{len(frames)} frames hold no chunk border to compare: chunks of {rhythm.first_chunk_frames}, then "
            f"{rhythm.chunk_frames} frames with {rhythm.latent_frames} per latent frame need a longer clip"
        )
    jumps = extrapolation_error(frames)
    return jumps, jumps.values[np.isin(jumps.at, sorted(borders))], jumps.values[np.isin(jumps.at, sorted(inside))]


def first_chunk_copying(frames: Pixels, rhythm: Rhythm = WAN_RHYTHM) -> Measured:
    """How much closer later frames come to the first chunk than frames equally far apart come elsewhere: 0 .. about 1.

    Frames are compared as 16 x 16 thumbnails by mean absolute difference. `near` is the distance of frame t to the
    nearest frame of the first chunk. For a shift n that leaves the first chunk behind, take the distance of frame t + n
    to the nearest of frames n .. n + first_chunk_frames - 1: the same gaps, at another time. `usual` is the least
    distance that all but a tenth of the shifts keep. Motion that repeats comes back wherever one looks, so it cancels.

        value = (usual - near) / (typical + half a level)

    typical: the median distance of frames at least a first chunk apart. 0: as close as elsewhere; 1: an exact copy
    where the video's usual distance was due; negative: farther than elsewhere. values: each later frame that has at
    least a first chunk's worth of shifts; the last frames have no pairs as far apart, so nothing is said of them.
    score: the mean over chunks of a chunk's largest value, negative ones counted as 0.

    Cannot tell: a copy of what the video shows again and again anyway; copies at equal distances, which are periodic; a
    video held near its first chunk all the time (then all frames are alike; see `flow_dynamic_degree`). A single return
    to the beginning, as of a cycle that the clip is too short to repeat, looks like copying.
    Raises ValueError for a clip that has no frame to judge.
    """
    first = rhythm.first_chunk_frames
    check_clip(frames, least=3 * first)
    small = thumbnails(frames).reshape(len(frames), -1)
    distances = np.stack([np.abs(small - one).mean(axis=1) for one in small])
    typical = np.median(distances[np.triu_indices(len(distances), first)])
    at = range(first, len(frames) - 2 * first + 1)
    excess = np.array([_excess(distances, t, first) for t in at]) / (typical + JUST_VISIBLE)
    chunks = [excess[[t - first for t in chunk if t in at]] for chunk in rhythm.chunks(len(frames))]
    largest = [chunk.max() for chunk in chunks if len(chunk)]
    return Measured(excess, np.asarray(at), float(np.maximum(largest, 0).mean()))


def _excess(distances: Array, t: int, first: int) -> float:
    near = distances[t, :first].min()
    shifts = range(first, len(distances) - t)
    usual = np.quantile([distances[t + n, n : n + first].min() for n in shifts], RARE)
    return float(usual - near)
