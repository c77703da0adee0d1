"""VBench's arithmetic: from features, frames and flows to the score of a dimension, and from those to the totals.

Owns the table of dimensions and every rule that follows a network. Knows no network, no weights and no file: features,
flows and interpolated frames come from the caller. T frames, H rows, W columns, D feature width.
All rules are VBench's (Huang et al., CVPR 2024) as its code ships them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from reward_forcing.config import unknown

Array = NDArray[np.floating]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Dimension:
    """How a raw score enters its group: (raw - low) / (high - low), with this weight in the group's mean."""

    group: Literal["quality", "semantic"]
    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


DIMENSIONS = {
    "subject_consistency": Dimension("quality", low=0.1462),
    "background_consistency": Dimension("quality", low=0.2615),
    "temporal_flickering": Dimension("quality", low=0.6293),
    "motion_smoothness": Dimension("quality", low=0.706, high=0.9975),
    "dynamic_degree": Dimension("quality", weight=0.5),
    "aesthetic_quality": Dimension("quality"),
    "imaging_quality": Dimension("quality"),
    "object_class": Dimension("semantic"),
    "multiple_objects": Dimension("semantic"),
    "human_action": Dimension("semantic"),
    "color": Dimension("semantic"),
    "spatial_relationship": Dimension("semantic"),
    "scene": Dimension("semantic", high=0.8222),
    "appearance_style": Dimension("semantic", low=0.0009, high=0.2855),
    "temporal_style": Dimension("semantic", high=0.364),
    "overall_consistency": Dimension("semantic", high=0.364),
}
"""VBench's 16 dimensions under the names of its result files (Reward Forcing, Table 5)."""

QUALITY = tuple(name for name, dimension in DIMENSIONS.items() if dimension.group == "quality")
SEMANTIC = tuple(name for name, dimension in DIMENSIONS.items() if dimension.group == "semantic")
LONG = tuple(name for name in QUALITY if name != "temporal_flickering")
"""The six dimensions of Reward Forcing's long score (Table 2)."""


@dataclass(frozen=True)
class Scores:
    """VBench's three totals, as fractions (0.84, not 84)."""

    quality: float
    semantic: float
    total: float


def normalise(name: str, raw: float) -> float:
    """(raw - low) / (high - low) of the dimension `name`, not clipped: a smoothness above 0.9975 gives more than 1.

    raw: a fraction. Raises ValueError for an unknown dimension, and for a score that is not a number or above 1.
    """
    if name not in DIMENSIONS:
        raise ValueError(unknown("dimension", name, DIMENSIONS))
    if not raw <= 1:
        raise ValueError(f"{name} must be a fraction of at most 1, got {raw}; divide percentages by 100")
    dimension = DIMENSIONS[name]
    return (raw - dimension.low) / (dimension.high - dimension.low)


def total_score(quality: float, semantic: float) -> float:
    """VBench's Total: (4 quality + semantic) / 5."""
    return (4 * quality + semantic) / 5


def vbench_scores(raw: Mapping[str, float], fill_missing: bool = False) -> Scores:
    """Quality, Semantic and Total of raw scores by dimension (Reward Forcing, Tables 1, 6 and 7).

    Raises ValueError that names the missing dimensions, unless `fill_missing` counts each as a raw 0, as VBench's own
    script does; and as `normalise` does.
    """
    raw = _complete(raw, (*QUALITY, *SEMANTIC), fill_missing)
    quality, semantic = _weighted_mean(raw, QUALITY), _weighted_mean(raw, SEMANTIC)
    return Scores(quality, semantic, total_score(quality, semantic))


def long_score(raw: Mapping[str, float], fill_missing: bool = False) -> float:
    """The weighted mean of the six dimensions `LONG` (Reward Forcing, Table 2), as a fraction; others are left aside.

    Raises ValueError as `vbench_scores` does.
    """
    return _weighted_mean(_complete(raw, LONG, fill_missing), LONG)


def _complete(raw: Mapping[str, float], names: Sequence[str], fill_missing: bool) -> dict[str, float]:
    for name in raw:
        if name not in DIMENSIONS:
            raise ValueError(unknown("dimension", name, DIMENSIONS))
    missing = [name for name in names if name not in raw]
    if missing and not fill_missing:
        raise ValueError(f"no score for {', '.join(missing)}; measure it, or pass fill_missing=True to count 0")
    return {**dict.fromkeys(missing, 0.0), **raw}


def _weighted_mean(raw: Mapping[str, float], names: Sequence[str]) -> float:
    weights = {name: DIMENSIONS[name].weight for name in names}
    return sum(weight * normalise(name, raw[name]) for name, weight in weights.items()) / sum(weights.values())


@dataclass(frozen=True)
class Consistency:
    """A consistency score of several videos, in both readings of VBench's code; equal where lengths are.

    pooled: mean over all frames of all videos (one process). mean: mean over `per_video` (several processes).
    """

    pooled: float
    mean: float
    per_video: tuple[float, ...]


def consistency(videos: Iterable[Array]) -> Consistency:
    """Subject or background consistency of videos given as features [T, D] of their frames, T of at least 2 each.

    Frame t > 0 scores (max(0, cos(f_t, f_{t-1})) + max(0, cos(f_t, f_0))) / 2. Raises ValueError for a single frame.
    """
    frames = [_frame_consistency(features) for features in videos]
    if not frames:
        raise ValueError("consistency needs at least one video")
    per_video = tuple(float(scores.mean()) for scores in frames)
    return Consistency(float(np.concatenate(frames).mean()), float(np.mean(per_video)), per_video)


def _frame_consistency(features: Array) -> Array:
    if len(features) < 2:
        raise ValueError(f"consistency needs at least 2 frames of a video, got {len(features)}")
    features = np.asarray(features, np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    to_previous = (unit[1:] * unit[:-1]).sum(axis=1)
    to_first = unit[1:] @ unit[0]
    return (to_previous.clip(0) + to_first.clip(0)) / 2


def temporal_flickering(frames: Pixels) -> float:
    """(255 - mean difference of neighbouring frames) / 255 of a video [T, H, W, 3] uint8; 1 is a still image.

    Raises ValueError for fewer than 2 frames and for pixels that are not uint8.
    """
    if len(frames) < 2:
        raise ValueError(f"flickering needs at least 2 frames, got {len(frames)}")
    return _closeness(frames[:-1], frames[1:])


def motion_smoothness(frames: Pixels, interpolated: Pixels) -> float:
    """(255 - mean difference) / 255 between the odd frames of a video and what an interpolator makes of the even ones.

    frames: [T, H, W, 3] uint8. interpolated: [(T - 1) // 2, H, W, 3] uint8, the midpoints of frames 0 and 2, 2 and 4,
    and so on. VBench's interpolator is AMT-S; the score depends on it. Raises ValueError for another number of
    midpoints, fewer than 3 frames, and pixels that are not uint8.
    """
    wanted = (len(frames) - 1) // 2
    if wanted < 1 or len(interpolated) != wanted:
        raise ValueError(f"{len(frames)} frames need {wanted} midpoints and at least 1, got {len(interpolated)}")
    return _closeness(frames[1::2][:wanted], interpolated)


def _closeness(frames: Pixels, others: Pixels) -> float:
    if frames.dtype != np.uint8 or others.dtype != np.uint8:
        raise ValueError(f"expected pixels as uint8 in 0..255, got {frames.dtype} and {others.dtype}")
    differences = [np.abs(a.astype(np.int16) - b).mean() for a, b in zip(frames, others, strict=True)]
    return float((255 - np.mean(differences)) / 255)


def dynamic_frames(frames: int, fps: float) -> range:
    """The frames between which dynamic degree looks for motion: every round(fps / 8)-th, at least every one."""
    return range(0, frames, max(1, round(fps / 8)))


def strongest_motion(flow: Array, share: float = 0.05) -> float:
    """Mean length of the longest `share` of the vectors of a flow field [2, h, w], in the flow's pixels.

    Dynamic degree takes 0.05, the static filter 0.02; padding stays in. Raises ValueError for a field too small for it.
    """
    lengths = np.hypot(*np.asarray(flow, np.float64)).ravel()
    top = int(lengths.size * share)
    if top < 1:
        raise ValueError(f"a flow of {lengths.size} vectors has none in the longest {share:.0%}; use a larger field")
    return float(np.partition(lengths, -top)[-top:].mean())


def motion_threshold(height: int, width: int) -> float:
    """What `strongest_motion` must exceed for a pair of frames of this size to count as moved: 6 min(h, w) / 256."""
    return 6 * (min(height, width) / 256)


def pairs_to_move(frames: int) -> int:
    """How many pairs of `frames` frames must have moved: frames / 4, a half rounded to the even neighbour."""
    return round(4 * (frames / 16))


def is_dynamic(motions: Sequence[float], height: int, width: int) -> bool:
    """Whether a video counts as moving; dynamic degree is the share of such videos.

    motions: `strongest_motion` of each neighbouring pair of `dynamic_frames`. height, width: of the frames, unpadded.
    Below 3 frames no pair need have moved, so that any pair makes a video dynamic.
    """
    moved = sum(motion > motion_threshold(height, width) for motion in motions)
    return len(motions) > 0 and moved >= pairs_to_move(len(motions) + 1)


def is_static(motions: Sequence[float], ends: tuple[float, float], height: int, width: int) -> bool:
    """Whether a video passes the static filter that chooses the videos for temporal flickering.

    motions: `strongest_motion(..., share=0.02)` of every neighbouring pair. ends: the same from the first to the last
    frame and back. Threshold 3 min(h, w) / 256; of n frames at most c = round(n / 8) pairs may exceed it, and neither
    end 2 c times of it.
    """
    threshold = 3 * (min(height, width) / 256)
    allowed = round(2 * ((len(motions) + 1) / 16))
    moved = sum(motion > threshold for motion in motions)
    return moved <= allowed and max(ends) <= threshold * allowed * 2


def aesthetic_quality(features: Array, weight: Array, bias: float) -> float:
    """Mean over frames of (weight . f / |f| + bias) / 10, for CLIP features [T, D] and LAION's linear head [D]."""
    features = np.asarray(features, np.float64)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
    return float((unit @ np.asarray(weight, np.float64).ravel() + bias).mean() / 10)


def imaging_size(
    height: int, width: int, mode: Literal["longer", "shorter", "shorter_centercrop"] = "longer", limit: int = 512
) -> tuple[int, int]:
    """Height and width at which imaging quality sees a frame; VBench's default keeps the longer side within `limit`.

    Frames whose named side is within the limit stay as they are. 'shorter_centercrop' then cuts the centre square.
    """
    side = max(height, width) if mode == "longer" else min(height, width)
    if side <= limit:
        return height, width
    if mode == "shorter_centercrop":
        return limit, limit
    return int(limit / side * height), int(limit / side * width)


def middle_frames(frames: int, count: int) -> tuple[int, ...]:
    """The middle frame of each of `count` equal parts of a video; too short a video repeats its last frame.

    VBench takes 16 for detectors, actions and scenes, and 8 for ViCLIP. Raises ValueError for a video without frames.
    """
    if frames < 1:
        raise ValueError(f"a video needs at least 1 frame, got {frames}")
    edges = np.linspace(0, frames, min(frames, count) + 1).astype(int).tolist()
    middles = [(start + end - 1) // 2 for start, end in pairwise(edges)]
    return (*middles, *middles[-1:] * (count - len(middles)))
