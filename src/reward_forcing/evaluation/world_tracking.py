"""How much of the motion that a prompt means a clip shows, by following its objects; nothing else counts as motion.

Differences between frames also grow with flicker, with objects that come and go, and with copies of them. Here an
object must be found in every frame of a step and must not jump; what is lost or still moves by 0. A clip's motion is
given in that of a rendered clip of the same scene: 1 is what the prompt means. T frames, lengths in frame widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from reward_forcing.data.captions import UNSAID
from reward_forcing.data.scenes import FPS, KINDS, SPEEDS, Scene, render
from reward_forcing.evaluation.world_changes import JUMP
from reward_forcing.evaluation.world_motion import landscape_of
from reward_forcing.evaluation.world_physics import landscape_speed, track_of
from reward_forcing.evaluation.world_regions import (
    Array,
    Pixels,
    Region,
    background_of,
    radius_of,
    regions_of,
    shape_of,
    tracks_of,
)
from reward_forcing.evaluation.world_suite import Prompt

STEP = 4
"""Frames over which motion is measured: the trembling of a still object's outline hardly counts over so many."""
MOST = 2.0
"""What a clip's motion is cut at, so that one wild track does not rule a mean."""
LEAST_MOTION = 0.25
"""Share of the meant motion from which on a clip counts as moving."""
RENDERED_FRAMES = 5 * FPS + 1


def tracked_motion(frames: Pixels, prompt: Prompt, regions: Sequence[Sequence[Region]] | None = None) -> Array:
    """The motion [T - 4] from each frame of a clip [T, H, W, 3] uint8 to the fourth after it; its mean is the clip's.

    In the motion that the prompt means, of the kind that it means: how far objects travel, how much they swell, how far
    they turn on balance, how fast a landscape passes. 0 where an object is lost, jumps, or is of another kind. Where
    the prompt names no speed, a normal one is meant, and the usual pace and reach, which no prompt names. regions:
    `follow` of the frames, where it is known.
    Raises ValueError for fewer than 5 frames.
    """
    if len(frames) <= STEP:
        raise ValueError(f"motion needs at least {STEP + 1} frames, got {len(frames)}")
    scene = prompt.scene if prompt.says["speed"] != UNSAID else replace(prompt.scene, speed="normal")
    scene = scene.usual
    if not KINDS[scene.kind].has_object:
        return np.full(len(frames) - STEP, _landscape_motion(scene, frames))
    motion = _motion(scene, follow(frames) if regions is None else regions, len(frames)) / _meant(scene)
    return motion * MOST / max(MOST, float(motion.mean()))


def follow(frames: Pixels) -> list[list[Region]]:
    """The objects of every frame of a clip [T, H, W, 3] uint8, largest first."""
    _, setting = background_of(frames)
    return [regions_of(frame, setting, number) for number, frame in enumerate(frames)]


@lru_cache(maxsize=1024)
def _meant(scene: Scene) -> float:
    """The motion of a rendered clip of the scene, in its kind's own unit."""
    frames = render(scene, RENDERED_FRAMES)
    return float(_motion(scene, follow(frames), len(frames)).mean())


def _motion(scene: Scene, regions: Sequence[Sequence[Region]], frames: int) -> Array:
    """The motion over each step [T - 4], mean over the objects that the scene has; one that is not found moves by 0."""
    wanted = 2 if scene.second else 1
    count = int(np.median([len(found) for found in regions]))
    tracks = tracks_of(regions, max(1, min(count, wanted)))
    return np.sum([_moved(scene.kind, track, frames) for track in tracks], axis=0) / wanted


def _moved(kind: str, track: Sequence[Region], frames: int) -> Array:
    """How far one object moves over each step [T - 4], where it is in all five frames and jumps between none."""
    centre, size, angle = (np.full((frames, n), np.nan) for n in (2, 1, 1))
    shape = shape_of(list(track))
    for region in track:
        centre[region.frame] = region.x, region.y
        size[region.frame] = radius_of(region, shape)
    jumps = ~(np.linalg.norm(np.diff(centre, axis=0), axis=1) < JUMP)
    followed = ~np.lib.stride_tricks.sliding_window_view(jumps, STEP).any(axis=1)
    if kind == "spin":
        whole = track_of(list(track), shape)
        angle[(whole.t * FPS).round().astype(int), 0] = whole.angle
        period = 2 * np.pi / whole.corners
        turns = (angle[STEP:, 0] - angle[:-STEP, 0] + period / 2) % period - period / 2
        turns = np.where(followed & np.isfinite(turns), turns, 0.0)
        return turns * np.sign(turns.sum())
    values = size if kind == "pulse" else centre
    return np.where(followed, np.linalg.norm(values[STEP:] - values[:-STEP], axis=1), 0.0)


def _landscape_motion(scene: Scene, frames: Pixels) -> float:
    """The speed of a landscape of the scene's kind in the scene's own; 0 for another kind and where none is seen."""
    found = landscape_of(frames)
    if found is None or found[0] != scene.kind:
        return 0.0
    speed = landscape_speed(scene.kind, frames)
    return float(np.clip(speed / SPEEDS[scene.speed], 0, MOST)) if np.isfinite(speed) else 0.0
