"""A reward for motion that needs no weights: how fast a clip moves, less what is jitter, flicker and morphing.

Frames are taken about 16 a second, and every second one of them is looked at together with its two neighbours: the
flow from it to either side tells speed and jitter, what the flow leaves unexplained tells flicker, and following the
flow for half a second tells whether what moves stays what it is. Flow is DIS (see `optical_flow`), so OpenCV is needed.
T frames, H W pixels, N triples of frames. Lengths are in shorter sides of the frame, colours in levels, 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from reward_forcing.optical_flow import Array, Mask, Pixels, inside, opencv, optical_flow, warp
from reward_forcing.rewards.base import Rater, Reward

Places = NDArray[np.intp]

TAKEN_PER_SECOND = 16
TRACKED_SECONDS = 0.5
FASTEST_SHARE = 0.03
"""Share of the pixels that speed, jitter, softness and morphing are read from: those that move most."""
LEAST_CONTRAST = 40
"""Levels between the brightest and the darkest around a pixel of which motion is believed: on flat ground the flow
follows a decoder's noise, which then looks fast and jittery."""
MOST_CHANGE = 64.0
"""Levels at which the change of a tracked pixel is cut: an object that passes before it is no worse than a new one."""
EDGE_WINDOW = 5
LEAST_SIDE = 16
MOST_SIDE = 128
"""Frames with a longer shorter side are made smaller first, so that the cost of a clip is bounded."""


@dataclass(frozen=True)
class MotionTerms:
    """What the score is made of, each [N], one value for each triple of frames.

    speed: of the fastest pixels, in shorter sides per second. jitter: half of the change of their velocity from one
    taken frame to the next, in the same unit. softness: width of their edges in pixels, from 1 for a sharp step to 4
    for none. flicker: mean change, in levels, that is neither motion nor a steady change of light. morphing: mean
    change, in levels, of the fastest pixels followed for half a second. appearing: the same of all pixels.
    """

    speed: Array
    jitter: Array
    softness: Array
    flicker: Array
    morphing: Array
    appearing: Array


class MotionReward(Reward):
    """Steady speed, saturating, less a share for flicker, morphing and softness: 0 for a still, below 1 for any clip.

    The raw score is the mean over triples of (1 - exp(-steady / speed_scale)) / (1 + penalties), where
    steady = max(0, speed - jitter * (jitter term)) and each of the penalties is its weight times what its term exceeds
    its tolerance by. It divides rather than subtracts so that a bad clip does not gain by standing still. Weights are
    per level (softness: per pixel); tolerances are what renders of the procedural world show by occlusion and by errors
    of the flow. mean and std: of renders of validation scenes with an object or a pan, 81 frames of 64 x 64.
    """

    kind: Literal["motion"] = "motion"  # pyright: ignore[reportIncompatibleVariableOverride]
    mean: float = 0.308
    std: PositiveFloat = 0.140
    speed_scale: PositiveFloat = 0.4
    jitter: NonNegativeFloat = 1.0
    softness: NonNegativeFloat = 0.5
    flicker: NonNegativeFloat = 0.3
    morphing: NonNegativeFloat = 0.05
    appearing: NonNegativeFloat = 0.3
    tolerated_softness: float = Field(1.0, ge=1)
    tolerated_flicker: NonNegativeFloat = 0.5
    tolerated_morphing: NonNegativeFloat = 8.0
    tolerated_appearing: NonNegativeFloat = 0.75

    def load(self, device: torch.device) -> Rater:
        """The rater; it computes on the CPU whatever the device. Raises ImportError that names the extra for OpenCV."""
        opencv()
        return _MotionRater(self)

    def score(self, terms: MotionTerms) -> float:
        """The raw score of one clip, in [0, 1)."""
        steady = np.maximum(0, terms.speed - self.jitter * terms.jitter)
        penalties = self.softness * np.maximum(0, terms.softness - self.tolerated_softness)
        penalties += self.flicker * np.maximum(0, terms.flicker - self.tolerated_flicker)
        penalties += self.morphing * np.maximum(0, terms.morphing - self.tolerated_morphing)
        penalties += self.appearing * np.maximum(0, terms.appearing - self.tolerated_appearing)
        return float(np.mean(-np.expm1(-steady / self.speed_scale) / (1 + penalties)))


class _MotionRater:
    def __init__(self, reward: MotionReward) -> None:
        self.reward = reward

    def __call__(self, frames: Tensor, prompts: Sequence[str], fps: float) -> Tensor:
        """Raw scores [B] of clips [B, T, 3, H, W]; prompts are not looked at."""
        clips = (frames.float().clamp(0, 1) * 255).round().byte().permute(0, 1, 3, 4, 2).cpu().numpy()
        scores = [self.reward.score(motion_terms(clip, fps)) for clip in clips]
        return torch.tensor(scores, dtype=torch.float32, device=frames.device)


def motion_terms(frames: Pixels, fps: float) -> MotionTerms:
    """The terms of one clip, frames [T, H, W, 3] uint8.

    Every round(fps / 16)-th frame is taken, all of them below 24 a second, so that no frame of such a clip hides a
    defect, except the last where their number is even: N = (taken frames - 1) // 2. Where a clip is
    shorter than half a second, what moves is followed for as long as there is; one triple alone has morphing 0.
    Raises ValueError for fewer than 3 taken frames, for sides below 16 pixels and for fps that is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}")
    step = max(1, round(fps / TAKEN_PER_SECOND))
    if len(frames) < 2 * step + 1:
        least = 2 * step + 1
        raise ValueError(f"the motion reward needs at least {least} frames at {fps:g} fps, got {len(frames)}")
    if min(frames.shape[1:3]) < LEAST_SIDE:
        raise ValueError(f"frames must be at least {LEAST_SIDE} pixels high and wide, got {list(frames.shape[1:3])}")
    taken = _reduced(frames[::step])
    centres = range(1, len(taken) - 1, 2)
    flows = [(optical_flow(taken[c], taken[c - 1]), optical_flow(taken[c], taken[c + 1])) for c in centres]
    triples = zip((taken[c - 1 : c + 2] for c in centres), flows, strict=True)
    speed, jitter, softness, flicker = np.array([_triple(three, *flow) for three, flow in triples]).T
    morphing, appearing = _followed(taken[1:-1:2], flows, max(1, round(TRACKED_SECONDS * fps / step / 2)))
    unit = fps / step / min(taken.shape[1:3])
    return MotionTerms(unit * speed, unit * jitter, softness, flicker, morphing, appearing)


def _reduced(frames: Pixels) -> Pixels:
    height, width = frames.shape[1:3]
    scale = MOST_SIDE / min(height, width)
    if scale >= 1:
        return frames
    cv2 = opencv()
    size = (round(width * scale), round(height * scale))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def _triple(frames: Pixels, back: Array, ahead: Array) -> tuple[float, float, float, float]:
    """Speed and jitter in pixels per frame, softness and flicker of three frames, from the flows of the middle one."""
    before, middle, after = frames
    known = inside(back) & inside(ahead)
    speed, jitter = _length(ahead - back) / 2, _length(ahead + back) / 2
    fastest = _largest(speed + jitter, known & _has_contrast(middle))
    left = np.abs(warp(before, back) + warp(after, ahead) - 2 * middle.astype(np.float32)) / 2
    flicker = left[known if known.any() else ...].mean()
    return _mean(speed, fastest), _mean(jitter, fastest), _width(middle, fastest), flicker


def _length(flow: Array) -> Array:
    return np.hypot(flow[..., 0], flow[..., 1])


def _has_contrast(frame: Pixels) -> Mask:
    """Where motion can be seen, [H, W]."""
    cv2 = opencv()
    window = np.ones((EDGE_WINDOW, EDGE_WINDOW), np.uint8)
    return (cv2.dilate(frame, window) - cv2.erode(frame, window)).max(axis=2) > LEAST_CONTRAST


def _largest(values: Array, among: Mask) -> Places:
    """Flat places of the largest values among some pixels: FASTEST_SHARE of all pixels, or as many as there are."""
    places = np.flatnonzero(among)
    count = min(len(places), max(1, int(FASTEST_SHARE * values.size)))
    return places[np.argpartition(values.ravel()[places], -count)[-count:]] if count else places


def _mean(values: Array, at: Places) -> float:
    """Mean of values at flat places; 0 of none."""
    return float(values.ravel()[at].mean()) if len(at) else 0.0


def _width(frame: Pixels, at: Places) -> float:
    """Width in pixels of the edges near flat places: range of brightness around them over its steepest step."""
    cv2 = opencv()
    grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY).astype(np.float32)
    window = np.ones((EDGE_WINDOW, EDGE_WINDOW), np.uint8)
    steps = np.zeros_like(grey)
    steps[:, 1:] = np.abs(np.diff(grey, axis=1))
    steps[1:] = np.maximum(steps[1:], np.abs(np.diff(grey, axis=0)))
    span = cv2.dilate(grey, window) - cv2.erode(grey, window)
    steepest = cv2.dilate(steps, window)
    return float(np.clip((span.ravel()[at].sum() + 1e-6) / (steepest.ravel()[at].sum() + 1e-6), 1, EDGE_WINDOW - 1))


def _followed(centres: Pixels, flows: Sequence[tuple[Array, Array]], lag: int) -> tuple[Array, Array]:
    """Morphing and appearing [N] in levels: change of the fastest and of all pixels, followed over `lag` centres.

    Centre k meets centre k + 1 in the frame between them: p goes to p + A_k(p) - B_k+1(p + 2 A_k(p)), with A the flow
    ahead and B the flow back. Both ends of a stretch are followed to the other; a stretch counts for all its triples.
    """
    count = len(centres)
    lag = min(lag, count - 1)
    if not lag:
        return np.zeros(count), np.zeros(count)
    forth = [a - _at(b, 2 * a) for (_, a), (b, _) in pairwise(flows)]
    back = [b - _at(a, 2 * b) for (_, a), (b, _) in pairwise(flows)]
    total, times = np.zeros((2, count)), np.zeros(count)
    for start in sorted({*range(0, count - lag, max(1, lag // 2)), count - 1 - lag}):
        end = start + lag
        ways = ((forth[start:end], start, end), (back[start:end][::-1], end, start))
        changes = [_change(centres[at], centres[to], _joined(flow)) for flow, at, to in ways]
        total[:, start : end + 1] += np.mean(changes, axis=0)[:, None]
        times[start : end + 1] += 1
    morphing, appearing = total / times
    return morphing, appearing


def _joined(flows: Sequence[Array]) -> Array:
    """One flow after the other."""
    joined = flows[0].copy()
    for flow in flows[1:]:
        joined += _at(flow, joined)
    return joined


def _at(flow: Array, by: Array) -> Array:
    """`flow` at each pixel's place plus `by`, [H, W, 2]; edges are repeated beyond them."""
    cv2 = opencv()
    height, width = flow.shape[:2]
    columns, rows = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    x, y = columns + by[..., 0], rows + by[..., 1]
    return cv2.remap(flow, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _change(frame: Pixels, other: Pixels, flow: Array) -> tuple[float, float]:
    """Mean change in levels of the fastest and of all pixels on their way to `other`, in their most changed channel."""
    known = inside(flow)
    change = np.minimum(np.abs(warp(other, flow) - frame).max(axis=2), MOST_CHANGE)
    fastest = _largest(_length(flow), known & _has_contrast(frame))
    return _mean(change, fastest), float(change[known if known.any() else ...].mean())
