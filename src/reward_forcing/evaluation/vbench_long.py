"""VBench-Long's arithmetic: how a long video is cut into clips, and how their scores become the video's.

Owns the cut, the averages over clips and the fusion of in-clip with clip-to-clip consistency. Scores of clips come from
`vbench`. The published scores were measured on clips encoded anew after the cut, ours are the frames themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from reward_forcing.config import unknown
from reward_forcing.evaluation.vbench import DIMENSIONS

TABLES = Path(__file__).parent / "data" / "vbench_long_tables.json"
LONG_CLIPS = ("human_action", "temporal_style", "overall_consistency")
"""The dimensions whose clips last 10 seconds with VBench-Long's own prompts; all others, and any on videos of the
user's own, take 2 seconds."""


def clip_seconds(dimension: str, own_videos: bool = True) -> int:
    """Length of a clip: 2 seconds, but 10 for `LONG_CLIPS` with VBench-Long's own prompts."""
    if dimension not in DIMENSIONS:
        raise ValueError(unknown("dimension", dimension, DIMENSIONS))
    return 10 if dimension in LONG_CLIPS and not own_videos else 2


def clip_frames(fps: float, seconds: float = 2) -> int:
    """Frames of a clip: the whole frames per second times the seconds."""
    return int(int(fps) * seconds)


def split_into_clips(frames: int, length: int) -> tuple[range, ...]:
    """The clips of a video: `length` frames each, one after the other, and the last `length` frames for a remainder.

    So the last clip overlaps the one before it where `length` does not divide `frames`, and a video shorter than
    `length` is one clip. Raises ValueError unless both are at least 1.
    """
    if frames < 1 or length < 1:
        raise ValueError(f"frames and length must be at least 1, got {frames} and {length}")
    if frames < length:
        return (range(frames),)
    starts = list(range(0, frames - length + 1, length))
    if frames % length:
        starts.append(frames - length)
    return tuple(range(start, start + length) for start in starts)


def video_of_clip(path: str) -> str:
    """The name of the video that a clip file of VBench-Long belongs to: its base name up to the first underscore.

    Names of videos that hold an underscore themselves therefore collide.
    """
    return PurePosixPath(path).stem.split("_")[0]


@dataclass(frozen=True)
class ClipAverage:
    """The mean score of several long videos, in two readings that agree where clip counts are equal.

    videos: mean over videos of the mean of their clips. official: mean over all clips, as VBench-Long's code ships it.
    per_video: mean of a video's clips, by name.
    """

    videos: float
    official: float
    per_video: dict[str, float]


def average_clips(scores: Mapping[str, Sequence[float]]) -> ClipAverage:
    """The averages of the scores of every video's clips. Raises ValueError without videos or for one without clips."""
    if not scores or not all(len(clips) for clips in scores.values()):
        raise ValueError("expected at least one video, and at least one clip of each")
    per_video = {name: float(np.mean(clips)) for name, clips in scores.items()}
    official = float(np.concatenate([np.asarray(clips, float) for clips in scores.values()]).mean())
    return ClipAverage(float(np.mean(list(per_video.values()))), official, per_video)


@dataclass(frozen=True)
class Fusion:
    """Weights of in-clip and clip-to-clip consistency in a video's score."""

    in_clip: float
    between: float


FUSIONS = {"default": Fusion(1.0, 0.0), "dev": Fusion(0.5, 0.5)}
"""VBench-Long's two settings; 'dev' is its flag `--dev_flag`, which its own scripts set. Papers seldom say which they
used, so report both under their names."""


def map_between(dimension: str, score: float) -> float:
    """A clip-to-clip score brought to the scale of in-clip scores by VBench-Long's table for the dimension.

    The table has steps of 0.01, linear in between and constant beyond its ends. The score is `vbench.consistency` of
    the first frames of all clips, with features of DINOv2 (subject) or DreamSim (background).
    Raises ValueError for a dimension other than these two.
    """
    tables = _tables()
    if dimension not in tables:
        raise ValueError(unknown("dimension with a clip-to-clip score", dimension, tables))
    keys, values = tables[dimension]
    return float(np.interp(score, keys, values))


def fuse(dimension: str, in_clip: float, between: float | None, fusion: Fusion = FUSIONS["default"]) -> float:
    """A video's subject or background consistency from its in-clip and its clip-to-clip score.

    Without a clip-to-clip score, and where the table maps it to exactly 0, the in-clip score stands alone.
    Raises ValueError as `map_between` does.
    """
    mapped = 0.0 if between is None else map_between(dimension, between)
    return in_clip if mapped == 0 else fusion.in_clip * in_clip + fusion.between * mapped


@cache
def _tables() -> dict[str, tuple[list[float], list[float]]]:
    tables = json.loads(TABLES.read_text(encoding="utf-8"))
    return {name: (table["keys"], table["values"]) for name, table in tables.items() if name != "source"}
