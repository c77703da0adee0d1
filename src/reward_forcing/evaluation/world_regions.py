"""Finds the objects of a clip of the procedural world: connected regions that differ from the background.

Owns colour, shape and size of what stands in a frame; what moves how is in `world_motion`. Lengths in frame widths.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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

AREAS = {"ball": np.pi, "square": 4 * 0.86**2, "triangle": 3**1.5 * 0.7**2}
"""Area of each shape as the world draws it, in squared radii."""


@dataclass(frozen=True)
class Region:
    """One region of one frame: centre, area (in squared widths), median colour, whether it touches the frame's edge.

    frame: the number of its frame in the clip.
    corners: the outline's third and fourth harmonic, complex, relative to its mean radius: large for a triangle and for
    a square respectively, with the phase of their corners.
    """

    frame: int
    x: float
    y: float
    area: float
    colour: tuple[int, int, int]
    corners: tuple[complex, complex]
    touches_edge: bool


def background_of(frames: Pixels) -> tuple[str, str]:
    """Name of the background or floor colour, and whether the clip is 'floor' or 'plain'."""
    edge = max(1, frames.shape[1] // 24)
    top = np.median(frames[:, :edge].reshape(-1, 3), axis=0)
    bottom = np.median(frames[:, -edge:].reshape(-1, 3), axis=0)
    is_floor = np.linalg.norm(top - bottom) > 40 and np.linalg.norm(top - WALL) < 60
    rgb = bottom if is_floor else top
    name = min(BACKGROUND_COLOURS, key=lambda name: distance(BACKGROUND_COLOURS[name], tuple(rgb)))
    return name, "floor" if is_floor else "plain"


def regions_of(frame: Pixels, setting: str, number: int = 0) -> list[Region]:
    """Objects of frame `number`, [H, W, 3] uint8, largest first.

    They are opened connected regions that differ from the rows' own background.
    """
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
    found = [
        _region(contour, mask, frame, number) for contour in contours if cv2.contourArea(contour) > 0.004 * width**2
    ]
    return sorted(found, key=lambda region: -region.area)


def _region(contour: NDArray[np.int32], mask: Pixels, frame: Pixels, number: int) -> Region:
    height, width = mask.shape
    own = np.zeros_like(mask)
    cv2.drawContours(own, [contour], -1, 1, thickness=-1)
    area = float(own.sum())
    ys, xs = np.nonzero(own)
    core = cv2.erode(own, np.ones((3, 3), np.uint8))
    colour = np.median(frame[(core if core.any() else own) > 0], axis=0)
    return Region(
        frame=number,
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


def tracks_of(regions: Sequence[Sequence[Region]], count: int) -> list[list[Region]]:
    """The tracks of up to `count` objects; two objects are told apart by their side, as the world places them."""
    if count == 1:
        return [[found[0] for found in regions if found]]
    pairs = [sorted(found[:2], key=lambda region: region.x) for found in regions if len(found) >= 2]
    return [[pair[0] for pair in pairs], [pair[1] for pair in pairs]]


def _vote(names: list[str]) -> str:
    return Counter(names).most_common(1)[0][0] if names else ""


def colour_of(track: list[Region]) -> str:
    """Name of the object's colour by vote over its frames, '' for an empty track."""
    return _vote([_nearest(region.colour) for region in track])


def _nearest(rgb: tuple[int, int, int]) -> str:
    return min(OBJECT_COLOURS, key=lambda name: distance(OBJECT_COLOURS[name], rgb))


def shape_of(track: list[Region]) -> str:
    """'ball', 'square' or 'triangle', '' for an empty track; frames in which the edge cuts the object count last."""
    whole = [region for region in track if not region.touches_edge] or track
    if not whole:
        return ""
    third, fourth = (float(np.median([abs(region.corners[i]) for region in whole])) for i in (0, 1))
    if third > TRIANGLE_CORNERS and third > fourth:
        return "triangle"
    return "square" if fourth > SQUARE_CORNERS else "ball"


def radius_of(region: Region, shape: str) -> float:
    """Radius in widths of an object of `shape` with the region's area; the world's sizes are such radii."""
    return float(np.sqrt(region.area / AREAS.get(shape, np.pi)))
