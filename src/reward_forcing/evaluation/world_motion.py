"""Names the kind of motion and the direction of the objects and landscapes of the procedural world."""

from __future__ import annotations

import cv2
import numpy as np

from reward_forcing.evaluation.world_regions import Array, Pixels, Region, radius_of


def motion_of(objects: list[list[Region]], count: int, shapes: tuple[str, ...]) -> tuple[str, str]:
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
    stays = max(wide, high) < 0.11
    areas = np.array([r.area for r in whole])
    swells = np.percentile(areas, 92) > 1.8 * max(np.percentile(areas, 8), 1e-6)
    if swells and (stays or _span([radius_of(r, shapes[0]) for r in whole]) > max(wide, high)):
        return "pulse", ""  # the outline moves more by swelling than by going somewhere
    if stays:
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
        dx, dy = _from_circle(x, y)  # of a part of a turn the middle is not the centre
        radius = np.hypot(dx, dy)
        if radius.std() > 0.02 or not 0.15 < radius.mean() < 0.4:
            return 0.0
    change = np.diff(np.unwrap(np.arctan2(dy, dx)))
    turned = abs(change.sum()) > 0.8 * np.pi
    return float(np.sign(change).mean()) if turned else 0.0


def _from_circle(x: Array, y: Array) -> tuple[Array, Array]:
    """Offsets from the centre of the circle of least squared error in x^2 + y^2."""
    (a, b, _), *_ = np.linalg.lstsq(np.stack([x, y, np.ones_like(x)], axis=1), x**2 + y**2, rcond=None)
    return x - a / 2, y - b / 2


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


def landscape_of(frames: Pixels) -> tuple[str, str] | None:
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
