"""Finds the frames at which a clip of the procedural world changes for good: cuts, recolourings, another motion.

A change is a step of what should stay the same, if few frames take most of its height; a cut, if it stands out from
what moves around it; or the place from which on one object follows another law of motion.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from reward_forcing.data.scenes import FPS
from reward_forcing.evaluation.world_motion import landscape_of, motion_of
from reward_forcing.evaluation.world_physics import LEAST_FRAMES, Track, fit, law_of, track_of
from reward_forcing.evaluation.world_regions import (
    Array,
    Pixels,
    Region,
    background_of,
    regions_of,
    shape_of,
    tracks_of,
)

WINDOW = 10
"""Frames before and after a change in which its levels are measured."""
EDGE = 8
"""Frames that a step needs on either side: of fewer, dusk and dawn begin like a step."""
OUTLINE, MOSTLY_WHOLE = (3, 5), 0.7
"""Weights of the third and the fourth harmonic; share of its usual area from which on an outline counts at an edge."""
STEP = 0.12
"""Least step of a colour (1 is the range of a channel), an outline's weighted harmonics or the weighted number."""
SHARPNESS = 0.65
"""Share of a step's height that few frames take; of a steady drift they take a third."""
CUT_SHARE, CUT_CONTRAST = 0.025, 2.5
"""Least share of pixels that a cut changes, and how many times the greatest share in the frames around."""
ASTRAY, SPLIT_GAIN = 0.012, 0.4
"""Residual from which on one law does not fit; two fit if theirs is below it and below this share of the one's."""
JUMP = 0.09
"""Distance in widths that no object of the world goes in one frame."""


def changes_of(frames: Pixels) -> tuple[int, ...]:
    """Numbers of the frames [T, H, W, 3] uint8 that are the first after a change, in order.

    Backgrounds and cuts first; then, in each piece between those, objects: colour, outline, number, place, law of
    motion. A steadily moving, cut-off or leaving object is no change. A step within 8 frames of an end, and any change
    within 6 of an end or of a greater one, is not told.
    """
    scenes = _apart(_steps(backdrops(frames)) + _cuts(frames))
    found = list(scenes)
    for first, last in pairwise((0, *scenes, len(frames))):
        found += [first + at for at in _of_objects(frames[first:last])]
    return tuple(sorted(found))


def _of_objects(frames: Pixels) -> tuple[int, ...]:
    """Changes of the objects within one backdrop."""
    if len(frames) < 2 * WINDOW or landscape_of(frames) is not None:
        return ()
    _, setting = background_of(frames)
    regions = [regions_of(frame, setting, number) for number, frame in enumerate(frames)]
    looks, cut = _looks(regions)
    found = _apart(_steps(looks) + _steps(cut, gap=0) + _jumps(regions))
    return found or _new_law(regions)


def _apart(found: list[tuple[int, float]], distance: int = 6) -> tuple[int, ...]:
    """The strongest of what lies close together."""
    kept: list[int] = []
    for at, _ in sorted(found, key=lambda pair: -pair[1]):
        if all(abs(at - other) >= distance for other in kept):
            kept.append(at)
    return tuple(sorted(kept))


def backdrops(frames: Pixels) -> list[Array]:
    """Colours of the upper and of the lower corners, each [T, 3]; a triangle's base hides half of the rows between."""
    edge, side = max(1, frames.shape[1] // 24), max(1, frames.shape[2] // 7)
    corners = np.concatenate([frames[:, :, :side], frames[:, :, -side:]], axis=2)
    rows = (corners[:, :edge], corners[:, -edge:])
    return [np.median(part.reshape(len(frames), -1, 3), axis=1) / 255 for part in rows]


def _looks(regions: Sequence[Sequence[Region]]) -> tuple[list[Array], list[Array]]:
    """What should stay the same, [T, D]: number, colours and outlines of objects; and outlines where an edge cuts them.

    The latter change with what the edge leaves of an object, though never from one frame to the next.
    """
    count = max(1, min(2, int(np.median([len(found) for found in regions]))))
    looks, cut = [np.array([[0.3 * len(found) if found else np.nan] for found in regions])], []
    for track in tracks_of(regions, count):
        usual = np.median([r.area for r in track if not r.touches_edge] or [np.inf])
        colours, outlines, outlines_cut = (np.full((len(regions), n), np.nan) for n in (3, 2, 2))
        for region in track:
            colours[region.frame] = np.array(region.colour) / 255
            if not region.touches_edge:
                outlines[region.frame] = np.abs(region.corners) * OUTLINE
            if region.area > MOSTLY_WHOLE * usual:
                outlines_cut[region.frame] = np.abs(region.corners) * OUTLINE
        looks += [colours, outlines]
        cut.append(outlines_cut)
    return looks, cut


def _mean(values: Array) -> Array:
    """Mean [D] over the known rows of [n, D]; NaN if none is known."""
    known = values[~np.isnan(values).any(axis=1)]
    return known.mean(axis=0) if len(known) else np.full(values.shape[1], np.nan)


def _middle(values: Array) -> Array:
    known = values[~np.isnan(values).any(axis=1)]
    return np.median(known, axis=0) if len(known) else np.full(values.shape[1], np.nan)


def _steps(looks: list[Array], gap: int = 1) -> list[tuple[int, float]]:
    """Frames where a look steps from one level to another and stays there, and by how much.

    gap: frames to either side within which the step takes most of its height; a decoder spreads a cut over some.
    """
    found = []
    for look in looks:
        count = len(look)
        heights = np.zeros(count)
        for at in range(EDGE, count - EDGE + 1):
            before, after = look[max(0, at - WINDOW) : at], look[at : at + WINDOW]
            wide = np.linalg.norm(_middle(after) - _middle(before))
            near = np.linalg.norm(_middle(look[at + gap :][: 2 * gap + 1]) - _middle(look[: at - gap][-2 * gap - 1 :]))
            ends = np.linalg.norm(_middle(after[-3:]) - _middle(before[:3]))
            if wide > STEP and near > SHARPNESS * np.fmax(wide, ends):
                heights[at] = np.nan_to_num(np.linalg.norm(_mean(after) - _mean(before)))
        for at in np.flatnonzero(heights):
            if heights[at] == heights[max(0, at - 5) : at + 6].max():
                found.append((int(at), float(heights[at])))
    return found


def _cuts(frames: Pixels) -> list[tuple[int, float]]:
    """Frames in which far more pixels change than in those around, and the share that does."""
    values = frames.astype(np.int16)
    shares = np.array([0.0, *((np.abs(values[1:] - values[:-1]).max(axis=3) > 40).mean(axis=(1, 2)))])
    found = []
    for at in range(3, len(frames) - 2):
        around = np.concatenate([shares[max(1, at - 6) : at], shares[at + 1 : at + 7]])
        if shares[at] > CUT_SHARE and shares[at] > CUT_CONTRAST * np.max(around):
            found.append((at, float(shares[at])))
    return found


def _jumps(regions: Sequence[Sequence[Region]]) -> list[tuple[int, float]]:
    """Frames in which the largest object, whole before and after, is too far from where it was, and how far."""
    found = []
    for at in range(3, len(regions) - 2):
        if regions[at] and regions[at - 1] and len(regions[at]) == len(regions[at - 1]) == 1:
            one, other = regions[at][0], regions[at - 1][0]
            gap = float(np.hypot(one.x - other.x, one.y - other.y))
            if gap > JUMP and not (one.touches_edge or other.touches_edge):
                found.append((at, gap))
    return found


def _new_law(regions: Sequence[Sequence[Region]]) -> tuple[int, ...]:
    """The frame from which on one object goes by another law, if one law does not fit and two do."""
    count = int(np.median([len(found) for found in regions]))
    found = tracks_of(regions, max(1, min(count, 2)))[0]
    shape = shape_of(found)
    kind, _ = motion_of([found], 1, (shape,))
    law = law_of(kind, shape)
    law = law if law in ("spin", "pulse") else "unclear"
    track = track_of(found, shape)
    whole = fit(law, track)
    if whole is None or whole.residual < ASTRAY or len(track.t) <= 2 * LEAST_FRAMES + 4:
        return ()
    best = min(_kinks(track, law), key=lambda at: _split_residual(law, track, at))
    best = min(range(best - 2, best + 3), key=lambda at: _split_residual(law, track, at))
    if _split_residual(law, track, best) > min(ASTRAY, SPLIT_GAIN * whole.residual):
        return ()
    return (round(float(track.t[best]) * FPS),)


def _kinks(track: Track, law: str, count: int = 6) -> list[int]:
    """Indices of a track where its velocity changes most, apart from one another and from the ends."""
    places = {"spin": np.exp(1j * track.corners * track.angle) * 0.2, "pulse": track.radius}
    place = places.get(law, track.x + 1j * track.y)
    inner = np.arange(LEAST_FRAMES + 2, len(place) - LEAST_FRAMES - 2)
    bend = np.abs((place[inner + 2] - place[inner]) - (place[inner - 1] - place[inner - 3]))
    bend += np.abs(place[inner] - place[inner - 1])
    kept: list[int] = []
    for at in inner[np.argsort(-bend)]:
        if all(abs(at - other) > 3 for other in kept):
            kept.append(int(at))
    return kept[:count]


def _split_residual(law: str, track: Track, at: int) -> float:
    """Rms deviation where the track goes by the best law before index `at` and by another best one from then on."""
    before, after = fit(law, track.part(0, at)), fit(law, track.part(at, len(track.t)))
    if before is None or after is None:
        return float("inf")
    return float(np.sqrt((at * before.residual**2 + (len(track.t) - at) * after.residual**2) / len(track.t)))
