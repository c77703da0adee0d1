"""Fits the procedural world's laws of motion to a tracked object: how fast it goes, and how far it strays from the law.

Owns the laws: bounce parabola, constant velocity with return on the other side, circle, pendulum and pulse as sines,
constant turning, straight line reflected by the frame. Lengths in frame widths, times in seconds at the world's rate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward_forcing.data.scenes import (
    FPS,
    MOON,
    ORBIT_PERIOD,
    SIZE_SCALE,
    SIZES,
    SPEEDS,
    SPIN_PERIOD,
    SUN,
    SWING_PERIOD,
)
from reward_forcing.evaluation.world_regions import Array, Pixels, Region, radius_of

LEAST_FRAMES = 10
"""Frames that a law needs."""
STRAYS = 0.06
"""Residual from which on no speed is told."""
SPEEDS_SOUGHT = (0.3, 2.6)
"""Least and greatest speed that is looked for, in normal speeds."""
LOWERED = 0.16
"""How far below its place the world draws a triangle, in radii."""
PIVOT = (0.5, 0.06)
"""Where a pendulum hangs."""
Complex = NDArray[np.complexfloating]


@dataclass(frozen=True)
class Track:
    """An object over the frames in which it is whole: time [n], centre x and y [n], radius [n], corner angle [n].

    corners: 3 or 4, as many as the shape has; the angle is known up to 2 pi / corners. All in widths and radians.
    """

    t: Array
    x: Array
    y: Array
    radius: Array
    angle: Array
    corners: int

    @property
    def size(self) -> float:
        """Median radius."""
        return float(np.median(self.radius))

    def part(self, start: int, stop: int) -> Track:
        """The track from index `start` to before `stop`."""
        kept = slice(start, stop)
        return Track(self.t[kept], self.x[kept], self.y[kept], self.radius[kept], self.angle[kept], self.corners)


@dataclass(frozen=True)
class Fit:
    """How well a law fits: speed in the law's normal speeds, and the rms deviation in widths."""

    speed: float
    residual: float


def track_of(regions: Sequence[Region], shape: str) -> Track:
    """The track of an object of `shape`, without the frames in which the frame's edge cuts it."""
    whole = [region for region in regions if not region.touches_edge]
    corners = 3 if shape == "triangle" else 4
    turned = np.array([np.angle(region.corners[corners - 3]) for region in whole]) / corners
    t, x, y = (np.array([getattr(region, name) for region in whole], float) for name in ("frame", "x", "y"))
    radius = np.array([radius_of(region, shape) for region in whole])
    y -= LOWERED * radius if shape == "triangle" else 0
    return Track(t / FPS, x, y, radius, turned, corners)


def fit(kind: str, track: Track) -> Fit | None:
    """The law of a kind of motion fitted to a track; None for too short a track or a kind without a law.

    'unclear' takes the law that fits best. The residual of 'spin' is the arc at the object's radius.
    """
    if len(track.t) < LEAST_FRAMES:
        return None
    if kind == "unclear":
        return min((LAWS[name](track) for name in CENTRE_LAWS), key=lambda one: one.residual)
    return LAWS[kind](track) if kind in LAWS else None


def law_of(kind: str, shape: str) -> str:
    """The kind whose law is fitted: what keeps its place and has corners may turn too little to be called spinning."""
    return "spin" if kind == "still" and shape != "ball" else kind


def size_name(kind: str, radius: float) -> str:
    """The size nearest to a radius in widths, by ratio, of an object that moves as `kind` does."""
    radius /= SIZE_SCALE.get(kind, 1.0)
    return min(SIZES, key=lambda name: abs(np.log(SIZES[name] / radius)))


def speed_name(speed: float) -> str:
    """The speed nearest to one in normal speeds, by ratio."""
    return min(SPEEDS, key=lambda name: abs(np.log(SPEEDS[name] / max(speed, 1e-6))))


def _search(cost: Callable[[Array], Array], box: Sequence[tuple[float, float, int]], rounds: int = 5) -> Array:
    """The point [D] of least cost in a box of (low, high, steps): a grid, and ever finer ones around its best point.

    cost: points [G, D] -> [G].
    """
    axes = [np.linspace(low, high, steps) for low, high, steps in box]
    widths = [axis[1] - axis[0] for axis in axes]
    best = np.zeros(len(box))
    for _ in range(rounds):
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(box))
        best = points[np.argmin(cost(points))]
        axes = [np.linspace(centre - width, centre + width, 9) for centre, width in zip(best, widths, strict=True)]
        widths = [width / 4 for width in widths]
    return best


def _speeds(steps: int) -> tuple[float, float, int]:
    return (*SPEEDS_SOUGHT, steps)


def _affine_error(waves: Array | Complex, values: Array | Complex) -> Array:
    """Mean squared error [G] of the best a + b w for each of the waves w [G, n] to values [n]."""
    waves = waves - waves.mean(axis=1, keepdims=True)
    values = values - values.mean()
    power = np.maximum(np.square(np.abs(waves)).mean(axis=1), 1e-9)
    explained = np.square(np.abs((np.conj(waves) * values).mean(axis=1))) / power
    return np.maximum(np.square(np.abs(values)).mean() - explained, 0)


def _wave_fit(values: Array, t: Array, wave: Callable[[Array], Array], rate: Callable[[Array], Array]) -> Fit:
    """A repeated wave a + b w(rate(speed) t + phase) fitted to values [n]; w has period 1."""

    def cost(points: Array) -> Array:
        speed, phase = points[:, :1], points[:, 1:]
        return _affine_error(wave(rate(speed) * t + phase), values)

    best = _search(cost, (_speeds(48), (0, 1, 24)))
    return Fit(float(best[0]), float(np.sqrt(cost(best[None])[0])))


def _sine(cycles: Array) -> Array:
    return np.sin(2 * np.pi * cycles)


def _hop(cycles: Array) -> Array:
    u = cycles % 1.0
    return 4 * u * (1 - u)


def _bounce(track: Track) -> Fit:
    along = _wave_fit(track.y, track.t, _hop, lambda speed: speed**0.7 / 2.4)
    return Fit(along.speed, float(np.hypot(along.residual, track.x.std())))


def _swing(track: Track) -> Fit:
    dx, dy = track.x - PIVOT[0], track.y - PIVOT[1]
    found = _wave_fit(np.arctan2(dx, dy), track.t, _sine, lambda speed: speed**0.8 / SWING_PERIOD)
    length = np.hypot(dx, dy)
    return Fit(found.speed, float(np.hypot(found.residual * length.mean(), length.std())))


def _pulse(track: Track) -> Fit:
    return _wave_fit(track.radius, track.t, _sine, lambda speed: speed / 2.6)


def _crossing(values: Array, track: Track) -> Fit:
    """Constant velocity along one axis; the object returns after the frame's length and its own."""
    span = 1 + 2 * track.size

    def deviations(points: Array) -> Array:
        velocity, length = 0.23 * points[:, :1], points[:, 1:]
        turns = np.exp(2j * np.pi * (values - velocity * track.t) / length)
        return np.angle(turns * np.conj(turns.mean(axis=1, keepdims=True))) * length / (2 * np.pi)

    def cost(points: Array) -> Array:
        return np.square(deviations(points)).mean(axis=1)

    best = _search(cost, ((-SPEEDS_SOUGHT[1], SPEEDS_SOUGHT[1], 120), (span - 0.06, span + 0.06, 7)))
    return Fit(abs(float(best[0])), float(np.sqrt(cost(best[None])[0])))


def _slide(track: Track) -> Fit:
    along = _crossing(track.x, track)
    return Fit(along.speed, float(np.hypot(along.residual, track.y.std())))


def _climb(track: Track) -> Fit:
    along = _crossing(track.y, track)
    return Fit(along.speed, float(np.hypot(along.residual, track.x.std())))


def _orbit(track: Track) -> Fit:
    centre = track.x + 1j * track.y

    def cost(points: Array) -> Array:
        return _affine_error(np.exp(2j * np.pi * points * track.t / ORBIT_PERIOD), centre)

    best = _search(cost, ((-SPEEDS_SOUGHT[1], SPEEDS_SOUGHT[1], 120),))
    return Fit(abs(float(best[0])), float(np.sqrt(cost(best[None])[0])))


def _spin(track: Track) -> Fit:
    turn = 2j * np.pi * track.corners

    def deviations(points: Array) -> Array:
        turned = np.exp(1j * track.corners * track.angle - turn * points * track.t / SPIN_PERIOD)
        return np.angle(turned * np.conj(turned.mean(axis=1, keepdims=True))) / track.corners

    def cost(points: Array) -> Array:
        return np.square(deviations(points)).mean(axis=1)

    best = _search(cost, ((-SPEEDS_SOUGHT[1], SPEEDS_SOUGHT[1], 120),))
    return Fit(abs(float(best[0])), float(np.sqrt(cost(best[None])[0])) * track.size)


def _reflected(values: Array, t: Array, radius: float) -> Fit:
    """Constant velocity between two walls that the object touches with its radius; speed in widths per second."""
    span = 1 - 2 * radius

    def cost(points: Array) -> Array:
        cycles = points[:, :1] * t / (2 * span) + points[:, 1:]
        place = radius + span * np.abs(2 * ((cycles + 0.5) % 1.0) - 1)
        return np.square(place - values).mean(axis=1)

    best = _search(cost, ((0.04, 0.7, 48), (0, 1, 48)))
    return Fit(float(best[0]), float(np.sqrt(cost(best[None])[0])))


def _wander(track: Track) -> Fit:
    across, along = (_reflected(values, track.t, track.size) for values in (track.x, track.y))
    speed = float(np.hypot(across.speed, along.speed)) / 0.30
    return Fit(speed, float(np.hypot(across.residual, along.residual)))


LAWS: dict[str, Callable[[Track], Fit]] = {
    "bounce": _bounce,
    "two": _bounce,
    "slide": _slide,
    "climb": _climb,
    "orbit": _orbit,
    "swing": _swing,
    "pulse": _pulse,
    "spin": _spin,
    "wander": _wander,
}
CENTRE_LAWS = ("bounce", "slide", "climb", "orbit", "swing", "wander")


def landscape_speed(kind: str, frames: Pixels) -> float:
    """Speed of snow, pan or day in normal speeds from frames [T, H, W, 3] uint8; NaN where it cannot be told."""
    if kind == "day":
        return _day_speed(frames.astype(np.float32))
    lag = 8
    if len(frames) < lag + LEAST_FRAMES:
        return float("nan")
    grey = frames.mean(axis=3, dtype=np.float32)
    if kind == "snow":  # flakes fall at 0.22 widths a second times 0.8 to 0.94, by size
        return _shift(grey, lag) * FPS / (lag * 0.22 * 0.87)
    height = frames.shape[1]
    near = grey[:, int(0.62 * height) : int(0.84 * height)].transpose(0, 2, 1)
    return abs(_shift(near, lag)) * FPS / (lag * 0.2)


def _shift(pictures: Array, lag: int) -> float:
    """Shift along axis 1 in its lengths between pictures [T, N, M] that are `lag` apart, of least difference."""
    length = pictures.shape[1]
    reach = int(0.4 * length)
    first, later = pictures[:-lag], pictures[lag:]
    shifts = np.arange(-reach, reach + 1)
    errors = np.array(
        [
            np.abs(later[:, max(0, s) : length + min(0, s)] - first[:, max(0, -s) : length - max(0, s)]).mean()
            for s in shifts
        ]
    )
    best = int(np.argmin(errors))
    if 0 < best < len(errors) - 1:
        left, middle, right = errors[best - 1 : best + 2]
        return float(shifts[best] + 0.5 * (left - right) / max(left - 2 * middle + right, 1e-9)) / length
    return float(shifts[best]) / length


def _day_speed(frames: Array) -> float:
    """From the angle along their arc of the sun and the moon, whichever stands well above the ground."""
    width = frames.shape[2]
    rows, columns = (np.arange(n) + 0.5 for n in frames.shape[1:3])
    slopes = []
    for colour in (SUN, MOON):
        disc = np.linalg.norm(frames - np.asarray(colour, np.float32), axis=3) < 70
        disc[:, int(0.58 * frames.shape[1]) :] = False
        area = disc.sum(axis=(1, 2))
        seen = np.flatnonzero(area > 0.6 * np.pi * 0.12**2 * width**2)
        if len(seen) >= LEAST_FRAMES:
            x = (disc[seen].sum(axis=1) * columns).sum(axis=1) / area[seen] / width
            y = (disc[seen].sum(axis=2) * rows).sum(axis=1) / area[seen] / width
            arc = np.arctan2((0.72 - y) / 0.5, (0.5 - x) / 0.34)
            run = np.diff(seen) == 1
            slopes += list(np.diff(arc)[run] * FPS / (2 * np.pi) * 8.0)
    return float(np.mean(slopes)) if len(slopes) >= LEAST_FRAMES else float("nan")
