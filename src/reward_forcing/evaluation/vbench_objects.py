"""VBench's rules for what a detector found in frames: objects, colours and where they are.

Owns the rules alone: classes, captions and boxes come from the caller, whose detector VBench fixes as GRiT on 16 middle
frames of a video. Boxes are (x0, y0, x1, y1) in pixels. All rules are VBench's as its code ships them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from itertools import combinations

import numpy as np

from reward_forcing.config import unknown

Box = Sequence[float]

COLOUR_WORDS = ("white", "black", "gray", "grey", "silver", "red",
                "pink", "orange", "yellow", "green", "blue", "purple")  # fmt: skip
"""The words by which a caption counts as naming a colour."""
RELATIONS = {"on the left of": 0, "on the right of": 0, "on the top of": 1, "on the bottom of": 1}
"""Spatial relation -> the axis it is about, 0 along x and 1 along y."""


def object_frames(frames: Iterable[Collection[str]], wanted: Collection[str]) -> int:
    """How many frames, given as the classes detected in each, show every `wanted` class.

    The score of object class (one class) and multiple objects (two) is that number over all frames of all videos.
    """
    return sum(set(wanted) <= set(classes) for classes in frames)


def colour_score(frames: Iterable[Iterable[tuple[str, str]]], wanted: str, colour: str) -> float | None:
    """Of the frames that show the object with any colour, the share that shows it in `colour`; None if none does.

    frames: (caption, class) of each detection. An object has a colour where its caption holds one of `COLOUR_WORDS`.
    The dimension `color` is the mean over videos, those with None left out.
    """
    captions = [[text for text, name in frame if name == wanted] for frame in frames]
    coloured = sum(any(word in text for text in texts for word in COLOUR_WORDS) for texts in captions)
    hits = sum(any(colour in text for text in texts) for texts in captions)
    return hits / coloured if coloured else None


def pair_relation(relation: str, a: Box, b: Box) -> float:
    """How well two boxes (x0, y0, x1, y1) fit a spatial relation, in [0, 1]; the sides are not told apart.

    0 unless the centres lie further apart along the relation's axis than along the other; then 1 up to an IoU of 0.1
    and 0.1 / IoU above. Raises ValueError for a relation that is not in `RELATIONS`.
    """
    if relation not in RELATIONS:
        raise ValueError(unknown("relation", relation, RELATIONS))
    apart = [abs(a[i] + a[i + 2] - b[i] - b[i + 2]) for i in (0, 1)]
    axis = RELATIONS[relation]
    if apart[axis] <= apart[1 - axis]:
        return 0.0
    overlap = float(np.prod([max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return 1.0 if overlap <= 0.1 * (areas - overlap) else 0.1 * (areas - overlap) / overlap


def frame_relation(relation: str, objects: tuple[str, str], detections: Iterable[tuple[str, Box]]) -> float:
    """The best `pair_relation` among the boxes of either class in a frame, 0 without a pair.

    As shipped, two boxes of one class may score. The dimension spatial relationship is the mean over all frames.
    """
    boxes = [box for name, box in detections if name in objects]
    return max((pair_relation(relation, a, b) for a, b in combinations(boxes, 2)), default=0.0)
