"""How much a clip moves, how smoothly, and how much it changes beyond its motion.

Flow is DIS (see `optical_flow`): these metrics need OpenCV, except `frame_difference` and `neighbour_mean_error`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from reward_forcing.evaluation.metrics.clips import Array, Measured, Pixels, averaged, check_clip
from reward_forcing.optical_flow import inside, optical_flow, warp

PAIRS_PER_SECOND = 8
FASTEST_SHARE = 0.05
LEAST_SPEED = PAIRS_PER_SECOND * 6 / 256
"""Shorter sides per second above which a pair counts as moving: VBench's 6 of 256 pixels per eighth of a second."""


def flow_dynamic_degree(frames: Pixels, fps: float = 16) -> Measured:
    """Speed of the fastest 5 % of the pixels, in shorter sides of the frame per second; 0 for a still.

    Frames are taken as VBench takes them for its dynamic degree, about 8 a second; the flow is another one, so that the
    numbers are not VBench's. values: one per pair of taken frames; score: their mean.
    Range: 0 up to about 2 (a quarter of the shorter side per pair), beyond which the flow loses the track. Tells speed,
    not whether the motion makes sense: a shaking camera is dynamic too. Pixels that leave the frame do not count, for
    nothing matches them. Objects on less than 5 % of the frame are averaged with what stands still. Pans of 1 to 8
    pixels a pair read right to a few per cent, of half a pixel up to a sixth too high.
    Raises ValueError for a clip that `check_clip` refuses or that is shorter than one taken pair.
    """
    step = _step(fps)
    check_clip(frames, least=step + 1)
    taken = frames[::step]
    speeds = [_fastest(optical_flow(a, b)) for a, b in pairwise(taken)]
    return averaged(np.array(speeds) / min(frames.shape[1:3]) * fps / step, first=step, step=step)


def flow_moves(frames: Pixels, fps: float = 16) -> Measured:
    """Whether the clip moves, by VBench's counting rule on our flow: score 1.0 or 0.0.

    values: 1.0 for each pair of taken frames that is faster than 6 / 256 of the shorter side per eighth of a second.
    The clip moves if n taken frames hold at least round(n / 4) of them. Says nothing about how much it moves.
    Raises ValueError like `flow_dynamic_degree`.
    """
    speeds = flow_dynamic_degree(frames, fps)
    moving = (speeds.values > LEAST_SPEED).astype(np.float64)
    least = round(4 * (len(moving) + 1) / 16)
    return replace(speeds, values=moving, score=float(moving.sum() >= least))


def _step(fps: float) -> int:
    return max(1, round(fps / PAIRS_PER_SECOND))


def _fastest(flow: Array) -> float:
    stays = inside(flow)
    lengths = np.hypot(flow[..., 0], flow[..., 1])[stays if stays.any() else ...].ravel()
    count = max(1, int(FASTEST_SHARE * lengths.size))
    return float(np.partition(lengths, -count)[-count:].mean())


def frame_difference(frames: Pixels) -> Measured:
    """Mean absolute difference of consecutive frames, in levels: 0 for a still, at most 255.

    VBench's temporal flickering is (255 - score) / 255 of this number. Motion counts as much as flicker does; see
    `flicker` for what is left without motion. Raises ValueError for fewer than 2 frames.
    """
    check_clip(frames, least=2)
    return averaged([_difference(b, a) for a, b in pairwise(frames)], first=1)


def flicker(frames: Pixels) -> Measured:
    """Mean absolute difference of consecutive frames once the first has been moved along the flow, in levels: 0..255.

    Only pixels that the flow finds inside the earlier frame count. Noise, flashes and popping texture raise it; a pan
    does not. What is uncovered behind an object counts a little, and so does a true, slow change of light.
    Raises ValueError for fewer than 2 frames.
    """
    check_clip(frames, least=2)
    return averaged([_unexplained(b, a, optical_flow(b, a)) for a, b in pairwise(frames)], first=1)


def midpoint_error(frames: Pixels) -> Measured:
    """Mean absolute difference, in levels, between every odd frame and its neighbours moved half way to it: 0..255.

    Both neighbours are warped by the flow at the middle, (F_10 - F_01) / 4 in either direction (Super SloMo, Eq. 4, at
    t = 1/2), and averaged; where one of them would lie outside the frame, the other counts alone. VBench asks the same
    of a learned interpolator. Jitter, stutter and flicker raise it; an even motion of any speed that the flow can
    follow does not. A single impact, as of a ball on the floor, raises one value if it falls on an odd frame.
    Raises ValueError for fewer than 3 frames.
    """
    check_clip(frames, least=3)
    return averaged([_midpoint(*frames[t - 1 : t + 2]) for t in range(1, len(frames) - 1, 2)], first=1, step=2)


def _midpoint(before: Pixels, true: Pixels, after: Pixels) -> float:
    half = (optical_flow(after, before) - optical_flow(before, after)) / 4
    weights = np.stack([inside(half), inside(-half)]).astype(np.float32)[..., None]
    weights += weights.sum(axis=0) == 0
    blend = (weights[0] * warp(before, half) + weights[1] * warp(after, -half)) / weights.sum(axis=0)
    return _difference(true, blend)


def neighbour_mean_error(frames: Pixels) -> Measured:
    """`midpoint_error` without flow: each odd frame against the plain mean of its neighbours, in levels: 0..255.

    For machines without OpenCV. Motion raises it about as much as jitter does, so that only clips of one content
    compare. Raises ValueError for fewer than 3 frames.
    """
    check_clip(frames, least=3)
    odd = range(1, len(frames) - 1, 2)
    means = [(frames[t - 1].astype(np.float32) + frames[t + 1]) / 2 for t in odd]
    return averaged([_difference(frames[t], mean) for t, mean in zip(odd, means, strict=True)], first=1, step=2)


def extrapolation_error(frames: Pixels) -> Measured:
    """Mean absolute difference, in levels, between each frame and the two before it continued evenly: 0..255.

    Frame t - 1 is moved on by the flow that brought t - 2 to it. Raised by whatever does not follow from the frames
    before: flashes, jumps, cuts, noise, and true changes of speed. Raises ValueError for fewer than 3 frames.
    """
    check_clip(frames, least=3)
    triples = zip(frames[:-2], frames[1:-1], frames[2:], strict=True)
    return averaged([_unexplained(c, b, optical_flow(b, a)) for a, b, c in triples], first=2)


def _difference(frame: Pixels, expected: Pixels | Array) -> float:
    return float(np.abs(frame.astype(np.float32) - expected).mean())


def _unexplained(frame: Pixels, earlier: Pixels, flow: Array) -> float:
    """Mean absolute difference of `frame` and `earlier` seen along `flow`, over the pixels that have a counterpart."""
    known = inside(flow)
    return float(np.abs(frame - warp(earlier, flow))[known if known.any() else ...].mean())
