"""Reads a clip of the procedural world by simple vision: colour, shape, number, kind of motion, direction, background.

No learned weights: connected regions that differ from the background, followed over time. Works on rendered and on
generated clips alike, of any size. T frames, lengths in frame widths, times in frames.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from reward_forcing.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, WALL, distance
from reward_forcing.data.scenes import FLOOR_TOP

Array = NDArray[np.floating]
Pixels = NDArray[np.uint8]


TRIANGLE_CORNERS, SQUARE_CORNERS = 0.075, 0.038
"""Least third and fourth harmonic of a triangle's and a square's outline; a clean one has 0.15 and 0.07."""


@dataclass(frozen=True)
class Region:
    """One region of one frame: centre, area (in squared widths), median colour, whether it touches the frame's edge.

    corners: the outline's third and fourth harmonic, complex, relative to its mean radius: large for a triangle and for
    a square respectively, with the phase of their corners.
    """

    x: float
    y: float
    area: float
    colour: tuple[int, int, int]
    corners: tuple[complex, complex]
    touches_edge: bool


@dataclass(frozen=True)
class Seen:
    """What a clip shows. kind is a kind of scene or 'still' or 'unclear'; direction '' where there is none.

    colours, shapes: of the objects, largest first, by vote over frames. count: the usual number of objects.
    """

    kind: str
    direction: str
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    count: int
    background: str
    setting: str
    still: bool


def see(frames: Pixels) -> Seen:
    """What a clip of frames [T, H, W, 3] uint8 shows."""
    background, setting = _background(frames)
    regions = [_regions(frame, setting) for frame in frames]
    landscape = _landscape(frames, regions)
    still = bool(np.abs(frames[:-4].astype(np.int16) - frames[4:]).mean() < 0.35) if len(frames) > 4 else True
    if landscape is not None:
        kind, direction = landscape
        where = (background, "plain") if kind == "snow" else ("", "land")
        return Seen("still" if still else kind, direction, (), (), 0, *where, still)
    count = int(np.median([len(found) for found in regions]))
    objects = _objects(regions, max(1, min(count, 2)))
    colours = tuple(_vote([_colour(region.colour) for region in track]) for track in objects)
    shapes = tuple(_shape(track) for track in objects)
    kind, direction = _motion(objects, count, shapes)
    return Seen("still" if still else kind, direction, colours, shapes, count, background, setting, still)


def _background(frames: Pixels) -> tuple[str, str]:
    """Name of the background or floor colour, and whether the clip is 'floor' or 'plain'."""
    edge = max(1, frames.shape[1] // 24)
    top = np.median(frames[:, :edge].reshape(-1, 3), axis=0)
    bottom = np.median(frames[:, -edge:].reshape(-1, 3), axis=0)
    is_floor = np.linalg.norm(top - bottom) > 40 and np.linalg.norm(top - WALL) < 60
    rgb = bottom if is_floor else top
    name = min(BACKGROUND_COLOURS, key=lambda name: distance(BACKGROUND_COLOURS[name], tuple(rgb)))
    return name, "floor" if is_floor else "plain"


def _regions(frame: Pixels, setting: str) -> list[Region]:
    """Objects of one frame, largest first: opened connected regions that differ from the rows' own background."""
    height, width = frame.shape[:2]
    pixels = frame.astype(np.float32)
    edge = max(1, width // 24)
    sides = np.concatenate([pixels[:, :edge], pixels[:, -edge:]], axis=1)
    upper, lower = sides[: int(FLOOR_TOP * height) - 1], sides[int(FLOOR_TOP * height) + 1 :]
    expected = np.empty((height, 1, 3), np.float32)
    split = int(FLOOR_TOP * height) if setting == "floor" else height
    if setting == "floor":
        expected[:split], expected[split:] = np.median(upper, axis=(0, 1)), np.median(lower, axis=(0, 1))
    else:
        expected[:] = np.median(np.concatenate([sides.reshape(-1, 3), pixels[:edge].reshape(-1, 3)]), axis=0)
    mask = (np.linalg.norm(pixels - expected, axis=2) > 52).astype(np.uint8)
    if setting == "floor":
        mask[split - 1 : split + 1] &= np.roll(mask, 2, axis=0)[split - 1 : split + 1]  # the floor's blurred edge
    size = max(3, round(width * 0.075) | 1)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, kernel)  # a pendulum's rod is thinner than the kernel
    mask &= cv2.dilate(opened, np.ones((3, 3), np.uint8))  # corners that the opening cut come back
    contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    found = [_region(contour, mask, frame) for contour in contours if cv2.contourArea(contour) > 0.004 * width**2]
    return sorted(found, key=lambda region: -region.area)


def _region(contour: NDArray[np.int32], mask: Pixels, frame: Pixels) -> Region:
    height, width = mask.shape
    own = np.zeros_like(mask)
    cv2.drawContours(own, [contour], -1, 1, thickness=-1)
    area = float(own.sum())
    ys, xs = np.nonzero(own)
    core = cv2.erode(own, np.ones((3, 3), np.uint8))
    colour = np.median(frame[(core if core.any() else own) > 0], axis=0)
    return Region(
        x=float(xs.mean() + 0.5) / width,
        y=float(ys.mean() + 0.5) / width,
        area=area / width**2,
        colour=(int(colour[0]), int(colour[1]), int(colour[2])),
        corners=_harmonics(contour[:, 0].astype(np.float64) - (xs.mean(), ys.mean())),
        touches_edge=bool(xs.min() == 0 or ys.min() == 0 or xs.max() == width - 1 or ys.max() == height - 1),
    )


def _harmonics(outline: Array) -> tuple[complex, complex]:
    """Third and fourth Fourier coefficient of the radius as a function of the angle, over its mean."""
    angle, radius = np.arctan2(outline[:, 1], outline[:, 0]), np.hypot(outline[:, 0], outline[:, 1])
    order = np.argsort(angle)
    even = np.linspace(-np.pi, np.pi, 64, endpoint=False)
    radius = np.interp(even, angle[order], radius[order], period=2 * np.pi)
    third, fourth = (complex((radius * np.exp(1j * k * even)).mean() / radius.mean()) for k in (3, 4))
    return third, fourth


def _objects(regions: list[list[Region]], count: int) -> list[list[Region]]:
    """The tracks of up to `count` objects; two objects are told apart by their side, as the world places them."""
    if count == 1:
        return [[found[0] for found in regions if found]]
    pairs = [sorted(found[:2], key=lambda region: region.x) for found in regions if len(found) >= 2]
    return [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]


def _vote(names: list[str]) -> str:
    return Counter(names).most_common(1)[0][0] if names else ""


def _colour(rgb: tuple[int, int, int]) -> str:
    return min(OBJECT_COLOURS, key=lambda name: distance(OBJECT_COLOURS[name], rgb))


def _shape(track: list[Region]) -> str:
    whole = [region for region in track if not region.touches_edge] or track
    if not whole:
        return ""
    third, fourth = (float(np.median([abs(region.corners[i]) for region in whole])) for i in (0, 1))
    if third > TRIANGLE_CORNERS and third > fourth:
        return "triangle"
    return "square" if fourth > SQUARE_CORNERS else "ball"


def _motion(objects: list[list[Region]], count: int, shapes: tuple[str, ...]) -> tuple[str, str]:
    """Kind of motion and its direction, from the track of the largest object (or of two)."""
    if len(objects) == 2 and min(len(track) for track in objects) > 10:
        rise = [_span([region.y for region in track]) for track in objects]
        return ("two", "") if min(rise) > 0.08 else ("unclear", "")
    track = objects[0]
    if len(track) < 10:
        return "unclear", ""
    x, y = np.array([r.x for r in track]), np.array([r.y for r in track])
    whole = [r for r in track if not r.touches_edge]
    if len(whole) < 6:
        return "unclear", ""
    wide, high = _span([r.x for r in whole]), _span([r.y for r in whole])
    areas = np.array([r.area for r in whole])
    swelling = float(np.percentile(areas, 92) / max(np.percentile(areas, 8), 1e-6))
    if wide < 0.11 and high < 0.11:
        if swelling > 1.8:
            return "pulse", ""
        return _spin(whole, shapes[0])
    horizontal, vertical = _steadiness(x), _steadiness(y)
    if high < 0.09:
        if abs(horizontal) > 0.6:
            return "slide", "right" if horizontal > 0 else "left"
        return ("swing", "") if _hangs(x, y) else ("unclear", "")
    if wide < 0.09:
        if abs(vertical) > 0.6:
            return "climb", "down" if vertical > 0 else "up"
        return "bounce", ""
    turn = _turning(x, y)
    if abs(turn) > 0.75:
        return "orbit", "clockwise" if turn > 0 else "counterclockwise"
    if _hangs(x, y):
        return "swing", ""
    return "wander", ""


def _span(values: list[float]) -> float:
    return float(np.percentile(values, 96) - np.percentile(values, 4))


def _steadiness(values: Array) -> float:
    """Mean sign of the motion over four frames, in [-1, 1]; jumps of half a frame are returns to the other side."""
    change = values[4:] - values[:-4]
    change = change[(np.abs(change) < 0.5) & (np.abs(change) > 0.004)]
    return float(np.sign(change).mean()) if len(change) else 0.0


def _turning(x: Array, y: Array) -> float:
    """How steadily the centre turns around its mean, in [-1, 1], positive clockwise; 0 if it passes near the mean."""
    dx, dy = x - (x.min() + x.max()) / 2, y - (y.min() + y.max()) / 2
    radius = np.hypot(dx, dy)
    if np.percentile(radius, 10) < 0.72 * np.percentile(radius, 90):
        return 0.0
    change = np.diff(np.unwrap(np.arctan2(dy, dx)))
    turned = abs(change.sum()) > 0.8 * np.pi
    return float(np.sign(change).mean()) if turned else 0.0


def _hangs(x: Array, y: Array) -> bool:
    """Whether the centre stays on the lower arc of a circle around a point near the top middle."""
    radius = np.hypot(x - 0.5, y - 0.06)
    return bool(np.percentile(radius, 95) - np.percentile(radius, 5) < 0.1 and np.median(radius) > 0.35)


def _spin(track: list[Region], shape: str) -> tuple[str, str]:
    """Spin and its direction, or 'still', from how a contour's corners turn."""
    corners = 3 if shape == "triangle" else 4
    phases = [np.angle(region.corners[corners - 3]) / corners for region in track]
    period = 2 * np.pi / corners
    steps = (np.diff(np.array(phases)) + period / 2) % period - period / 2
    total = float(np.sum(steps))
    if abs(total) < 0.5:
        return "still", ""
    return "spin", "clockwise" if total > 0 else "counterclockwise"


def _landscape(frames: Pixels, regions: list[list[Region]]) -> tuple[str, str] | None:
    """Kind and direction of a scene without objects (snow, day, pan), or None."""
    height = frames.shape[1]
    pixels = frames.astype(np.float32)
    ground = np.median(pixels[:, int(0.94 * height) :].reshape(len(frames), -1, 3), axis=1)
    sky = np.median(pixels[:, : int(0.06 * height) + 1].reshape(len(frames), -1, 3), axis=1)
    greenish = np.mean((ground[:, 1] > ground[:, 0] + 4) & (ground[:, 1] > ground[:, 2] + 4)) > 0.7
    blue = sky[:, 2] - sky[:, 0]
    differs = np.median(np.linalg.norm(sky - ground, axis=1)) > 60
    if greenish and np.mean(blue > 15) > 0.8 and _span(list(sky.mean(axis=1))) > 30:
        return "day", ""
    if greenish and np.median(blue) > 60 and differs:
        land = (
            pixels[:, int(0.55 * height) :].std(axis=0).max(axis=2)
        )  # hills and trees pass there when the camera moves
        return ("pan", _pan_direction(pixels)) if np.mean(land > 15) > 0.3 else ("day", "")
    if np.median([_flakes(frame) for frame in frames]) >= 6:
        return "snow", ""
    return None


def _flakes(frame: Pixels) -> int:
    """Number of small white spots."""
    width = frame.shape[1]
    median = np.median(frame.reshape(-1, 3), axis=0)
    bright = (frame.min(axis=2).astype(np.float32) > 0.5 * (median.mean() + 250)).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(bright)
    areas = stats[1:count, cv2.CC_STAT_AREA] / width**2
    return int(((areas > 0.0008) & (areas < 0.03)).sum())


def _pan_direction(pixels: Array) -> str:
    """Direction of the camera, opposite to that of the middle rows, by phase correlation over four frames."""
    height = pixels.shape[1]
    band = pixels[:, int(0.3 * height) : int(0.95 * height)].mean(axis=3).astype(np.float32)
    window = cv2.createHanningWindow(band.shape[:0:-1], cv2.CV_32F)
    shifts = [cv2.phaseCorrelate(a, b, window)[0][0] for a, b in zip(band[:-4:4], band[4::4], strict=True)]
    return "right" if np.median(shifts) < 0 else "left"
