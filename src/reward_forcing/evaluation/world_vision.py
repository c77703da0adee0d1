"""Reads a clip of the procedural world by simple vision: what stands in it, how it moves, when the scene changes.

No learned weights: connected regions that differ from the background (`world_regions`), followed over time, their kind
of motion (`world_motion`), the law that they follow (`world_physics`) and cuts (`world_changes`). Works on rendered and
on generated clips alike, of any size. T frames, lengths in frame widths, times in frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reward_forcing.evaluation.world_changes import changes_of
from reward_forcing.evaluation.world_motion import landscape_of, motion_of
from reward_forcing.evaluation.world_physics import (
    STRAYS,
    Fit,
    fit,
    landscape_speed,
    law_of,
    size_name,
    speed_name,
    track_of,
)
from reward_forcing.evaluation.world_regions import (
    Pixels,
    Region,
    background_of,
    colour_of,
    radius_of,
    regions_of,
    shape_of,
    tracks_of,
)


@dataclass(frozen=True)
class Seen:
    """What a clip shows. kind is a kind of scene or 'still' or 'unclear'; direction '' where there is none.

    colours, shapes: of the objects, largest first, by vote over frames. count: the usual number of objects.
    size: a key of SIZES, '' where there is no object. speed: a key of SPEEDS, '' where it cannot be told.
    changes: frames at which the scene changes for good. residual: rms deviation in widths from the best motion by the
    law of the seen kind ('unclear': the law that fits best), NaN where there is none.
    """

    kind: str
    direction: str
    colours: tuple[str, ...]
    shapes: tuple[str, ...]
    count: int
    background: str
    setting: str
    still: bool
    size: str = ""
    speed: str = ""
    changes: tuple[int, ...] = ()
    residual: float = float("nan")


def see(frames: Pixels) -> Seen:
    """What a clip of frames [T, H, W, 3] uint8 shows."""
    background, setting = background_of(frames)
    regions = [regions_of(frame, setting, number) for number, frame in enumerate(frames)]
    landscape = landscape_of(frames)
    still = bool(np.abs(frames[:-4].astype(np.int16) - frames[4:]).mean() < 0.35) if len(frames) > 4 else True
    if landscape is not None:
        kind, direction = landscape
        where = (background, "plain") if kind == "snow" else ("", "land")
        pace = float("nan") if still else landscape_speed(kind, frames)
        speed, changes = "" if np.isnan(pace) else speed_name(pace), changes_of(frames)
        return Seen("still" if still else kind, direction, (), (), 0, *where, still, "", speed, changes)
    count = int(np.median([len(found) for found in regions]))
    objects = tracks_of(regions, max(1, min(count, 2)))
    colours, shapes = tuple(map(colour_of, objects)), tuple(map(shape_of, objects))
    kind, direction = motion_of(objects, count, shapes)
    law = None if still else _law(kind, objects, shapes)
    return Seen(
        kind="still" if still else kind,
        direction=direction,
        colours=colours,
        shapes=shapes,
        count=count,
        background=background,
        setting=setting,
        still=still,
        size=_size(kind, objects, shapes),
        speed="" if law is None or kind in ("unclear", "still") or law.residual > STRAYS else speed_name(law.speed),
        changes=changes_of(frames),
        residual=float("nan") if law is None else law.residual,
    )


def _size(kind: str, objects: list[list[Region]], shapes: tuple[str, ...]) -> str:
    """Size of the objects from the mean over them of their radius, mean over time for a pulse, else the median."""
    radii = []
    for track, shape in zip(objects, shapes, strict=True):
        whole = [region for region in track if not region.touches_edge] or track
        if whole:
            sizes = [radius_of(region, shape) for region in whole]
            radii.append(np.mean(sizes) if kind == "pulse" else np.median(sizes))
    return size_name(kind, float(np.mean(radii))) if radii else ""


def _law(kind: str, objects: list[list[Region]], shapes: tuple[str, ...]) -> Fit | None:
    """The fit of the kind's law, over both objects where there are two; None for none."""
    fits = [fit(law_of(kind, shapes[0]), track_of(track, shape)) for track, shape in zip(objects, shapes, strict=True)]
    found = [one for one in fits if one is not None]
    if not found:
        return None
    return Fit(
        float(np.mean([one.speed for one in found])), float(np.sqrt(np.mean([one.residual**2 for one in found])))
    )
