"""Whether background and subject stay what they are, by VBench's consistency formula on hand-made features.

The subject is what differs from the clip's median picture where something passed over it, the background all else:
made for a still camera. A feature is a set of histograms under a square root, so that a cosine of two is the mean
Bhattacharyya coefficient: 1 for equal histograms, 0 for disjoint ones. Scores compare videos of similar content.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reward_forcing.evaluation.metrics.clips import Array, Measured, Pixels, averaged, check_clip, luminance
from reward_forcing.optical_flow import Mask

MEDIAN_FRAMES = 33
MOVED = 24.0
"""Levels by which a pixel must differ from the median picture, in any channel, to belong to the subject."""
PASSING_FRAMES = 4
"""Something passed over a pixel if it changed by MOVED within so many frames; a drifting background is slower."""
LEAST_SUBJECT = 0.002
"""Share of the frame below which a frame shows no subject."""
FAINT_EDGE = 8.0
"""Gradient, in levels per pixel, that counts half as an edge and half as flat."""
COLOUR_CELLS, EDGE_CELLS, DIRECTIONS, BINS = 2, 4, 8, 8


def background_constancy(frames: Pixels) -> Measured:
    """How alike the background stays: mean over frames of (c(t, t - 1) + c(t, 0)) / 2, in 0..1, 1 for a fixed one.

    c is max(0, cosine) of features of the frame with its subject painted over by the median picture: colour in 2 x 2
    cells, edges in 4 x 4. Drift of colour or contrast, blur and changing structure lower it; the subject hardly counts.
    Where the subject covers more than half of the clip, as when the camera moves, the whole frames are compared. A part
    of the background that changes at once, rather than by drift, counts as subject.
    values: one per frame from the second on. Raises ValueError for fewer than 2 frames.
    """
    check_clip(frames, least=2)
    ground = _ground(frames)
    if np.mean([_split(frame, ground)[0].mean() for frame in _spread(frames)]) > 0.5:
        return _consistency([_whole_feature(frame) for frame in frames], range(len(frames)))
    return _consistency([_whole_feature(_without_subject(frame, ground)) for frame in frames], range(len(frames)))


def subject_constancy(frames: Pixels) -> Measured:
    """How alike the subject stays, by the formula of `background_constancy`, in 0..1: 1 for a fixed look.

    Features are colours and edge directions of the moving pixels, wherever they are: a subject that changes colour
    lowers it, one that only moves does not; turning counts a little. Frames without a subject are left out. Where fewer
    than half of the frames show one, as in a still, the whole frames are compared instead. Something that never leaves
    its place belongs to the background. Raises ValueError for fewer than 2 frames.
    """
    check_clip(frames, least=2)
    ground = _ground(frames)
    features, shown = [], []
    for number, frame in enumerate(frames):
        moving, _ = _split(frame, ground)
        if moving.mean() >= LEAST_SUBJECT:
            features.append(_feature([_colours(frame[moving])], [_edges(_gradient(frame), moving)]))
            shown.append(number)
    if len(shown) < max(2, len(frames) / 2):
        return _consistency([_whole_feature(frame) for frame in frames], range(len(frames)))
    return _consistency(features, shown)


def moving_share(frames: Pixels) -> Measured:
    """Share of the frame that the subject covers, in 0..1: what `subject_constancy` looks at, per frame.

    Grows with the size and number of moving objects. Parts that hide a colour like theirs are missed, and a place where
    something stands most of the time counts when it is gone. Raises ValueError for fewer than 2 frames.
    """
    check_clip(frames, least=2)
    ground = _ground(frames)
    return averaged([float(_split(frame, ground)[0].mean()) for frame in frames])


def _consistency(features: Sequence[Array], at: Sequence[int]) -> Measured:
    f = np.stack(features)
    to_previous, to_first = (f[1:] * f[:-1]).sum(axis=1), f[1:] @ f[0]
    values = (to_previous.clip(min=0) + to_first.clip(min=0)) / 2
    return Measured(values, np.asarray(at)[1:], float(values.mean()))


def _spread(frames: Pixels) -> Pixels:
    """At most 33 frames, evenly apart."""
    return frames[np.linspace(0, len(frames) - 1, min(len(frames), MEDIAN_FRAMES)).round().astype(int)]


@dataclass(frozen=True)
class _Ground:
    """A clip's median picture [H, W, 3], and where something passed over it at any time [H, W]."""

    still: Array
    passed: Mask


def _ground(frames: Pixels) -> _Ground:
    lag = min(PASSING_FRAMES, len(frames) - 1)
    passed = np.zeros(frames.shape[1:3], np.bool_)
    for before, after in zip(frames[:-lag], frames[lag:], strict=True):
        change = after.astype(np.float32) - before
        passed |= _is_large(change - np.median(change, axis=(0, 1)))
    return _Ground(np.median(_spread(frames), axis=0).astype(np.float32), passed)


def _is_large(change: Array) -> Mask:
    """Where a change [H, W, 3] exceeds MOVED, at the pixel itself and in the mean around it: not for noise alone."""
    return np.any((np.abs(change) > MOVED) & (np.abs(_smoothed(change)) > MOVED), axis=2)


def _split(frame: Pixels, ground: _Ground) -> tuple[Mask, Array]:
    """Pixels of the subject [H, W], and the background expected behind them [H, W, 3].

    The median picture is first fitted to the frame with a gain and an offset for each channel, so that drift of the
    whole picture does not turn the background into subject.
    """
    pixels, still = frame.astype(np.float32), ground.still
    shift = np.median(pixels - still, axis=(0, 1))
    quiet: Mask = np.all(np.abs(pixels - still - shift) <= MOVED, axis=2)
    quiet = quiet if quiet.mean() >= 0.25 else np.ones_like(quiet)
    x, y = still[quiet], pixels[quiet]
    dx, dy = x - x.mean(axis=0), y - y.mean(axis=0)
    steady = 25.0  # levels^2; keeps the gain at 1 where the picture is too flat to tell
    gain = ((dx * dy).mean(axis=0) + steady) / ((dx * dx).mean(axis=0) + steady)
    expected = y.mean(axis=0) + gain * (still - x.mean(axis=0))
    return ground.passed & _is_large(pixels - expected), expected


def _without_subject(frame: Pixels, ground: _Ground) -> Pixels:
    moving, expected = _split(frame, ground)
    near = _smoothed(moving[..., None].astype(np.float32))[..., 0] > 0
    return np.where(near[..., None], expected.clip(0, 255).round(), frame).astype(np.uint8)


def _smoothed(picture: Array) -> Array:
    """Mean over 3 x 3 pixels of [H, W, C]: single noisy pixels do not move."""
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    return (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9


def _soft_bins() -> Array:
    """[256, BINS + 2]: how a level spreads over three neighbouring bins, by the quadratic B-spline."""
    place = np.arange(256) / 255 * (BINS - 1)
    nearest = np.floor(place + 0.5).astype(int)
    offset = place - nearest
    table = np.zeros((256, BINS + 2))
    for shift, weight in ((0, (0.5 - offset) ** 2 / 2), (1, 0.75 - offset**2), (2, (0.5 + offset) ** 2 / 2)):
        table[np.arange(256), nearest + shift] = weight
    return table


SOFT_BINS = _soft_bins()


def _colours(pixels: Pixels) -> Array:
    """Histograms of the three channels of pixels [..., 3], each with sum 1: [3 (BINS + 2)]."""
    flat = pixels.reshape(-1, 3)
    return np.concatenate([np.bincount(flat[:, c], minlength=256) @ SOFT_BINS / len(flat) for c in range(3)])


def _gradient(frame: Pixels) -> tuple[Array, Array]:
    """Edge strength in levels per pixel, and direction in [0, DIRECTIONS), of a frame [H, W, 3]."""
    down, right = np.gradient(luminance(frame))
    return np.hypot(down, right), (np.arctan2(down, right) / np.pi * DIRECTIONS) % DIRECTIONS


def _edges(gradient: tuple[Array, Array], where: Mask | tuple[slice, slice]) -> Array:
    """Shares of edge directions, and of flat ground last, among the pixels `where`: [DIRECTIONS + 1] with sum 1."""
    s, d = (part[where].ravel() for part in gradient)
    edge = s / (s + FAINT_EDGE)
    low = np.floor(d).astype(int)
    part = d - low
    shares = np.bincount(low % DIRECTIONS, edge * (1 - part), DIRECTIONS)
    shares += np.bincount((low + 1) % DIRECTIONS, edge * part, DIRECTIONS)
    return np.append(shares, len(s) - edge.sum()) / len(s)


def _cells(frame: Pixels, count: int) -> Iterator[tuple[slice, slice]]:
    rows, columns = (np.linspace(0, size, count + 1).round().astype(int) for size in frame.shape[:2])
    for top, bottom in pairwise(rows):
        for left, right in pairwise(columns):
            yield slice(top, bottom), slice(left, right)


def _whole_feature(frame: Pixels) -> Array:
    gradient = _gradient(frame)
    colours = [_colours(frame[cell]) for cell in _cells(frame, COLOUR_CELLS)]
    return _feature(colours, [_edges(gradient, cell) for cell in _cells(frame, EDGE_CELLS)])


def _feature(colours: Sequence[Array], edges: Sequence[Array]) -> Array:
    """Square roots of all histograms at unit length; colours and edges weigh the same."""
    groups = [np.sqrt(np.concatenate(group)) for group in (colours, edges)]
    return np.concatenate([group / np.linalg.norm(group) for group in groups]) / np.sqrt(2)
