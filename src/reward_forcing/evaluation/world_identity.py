"""How far a long clip of the procedural world goes away from its own first chunk: in background, colour and number.

A prompt that leaves out a colour lets it drift without being disobeyed, so the clip is held to itself. T frames; a
channel of a colour ranges from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from reward_forcing.evaluation.world_changes import backdrops
from reward_forcing.evaluation.world_regions import Array, Pixels, Region

IDENTITY_DOCS = {
    "background_shift": "Distance of the background's colours from those of the first chunk (1: a channel's range).",
    "colour_shift": "Distance of the largest object's colour from that in the first chunk (1: a channel's range).",
    "count_shift": "Difference of the number of objects from that in the first chunk.",
}
"""Every measure of identity by name."""


def identity_shifts(frames: Pixels, regions: Sequence[Sequence[Region]], first_chunk: int) -> dict[str, Array]:
    """For each of `IDENTITY_DOCS` the distance [T] of every frame [T, H, W, 3] uint8 from the first chunk.

    regions: the objects of each frame. first_chunk: its number of frames. Where no object is seen, the colour of the
    last one counts; `colour_shift` is left out where the first chunk shows none.
    """
    upper, lower = backdrops(frames)
    shifts = {
        "background_shift": _from_first(np.concatenate([upper, lower], axis=1), first_chunk),
        "count_shift": _from_first(np.array([[float(len(found))] for found in regions]), first_chunk),
    }
    colours = np.array([np.array(found[0].colour) / 255 if found else np.full(3, np.nan) for found in regions])
    seen = np.flatnonzero(np.isfinite(colours[:, 0]))
    if len(seen) and seen[0] < first_chunk:
        last_seen = seen[np.maximum(np.searchsorted(seen, np.arange(len(colours)), side="right") - 1, 0)]
        shifts["colour_shift"] = _from_first(colours[last_seen], first_chunk)
    return shifts


def _from_first(values: Array, first: int) -> Array:
    """Distances [T] of values [T, D] from the median of the first."""
    return np.linalg.norm(values - np.median(values[:first], axis=0), axis=1)
