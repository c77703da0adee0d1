"""Owns what a metric is given and gives back: a checked clip, its rhythm of chunks, and a curve with its score.

Clips are uint8 [T, H, W, 3]: T frames, RGB. Brightness and differences are in levels, 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward_forcing.geometry import Geometry
from reward_forcing.optical_flow import Array, Pixels

LEAST_SIDE = 16
JUST_VISIBLE = 0.5
"""Levels that count as no difference where a ratio needs a floor: half the step of an 8-bit pixel."""


@dataclass(frozen=True)
class Measured:
    """One metric of one clip: its curve and its score.

    values: [N], one for each measured frame or pair. at: [N] frame numbers, of a pair the later frame. score: the one
    number of the clip, by the metric's own rule.
    """

    values: Array
    at: NDArray[np.intp]
    score: float


@dataclass(frozen=True)
class Rhythm:
    """When frames were made: frames per second, and how many frames each chunk added.

    The defaults are those of chunks of 3 latent frames with 4 pixel frames each: the first chunk has 9 frames, every
    later one 12. latent_frames: pixel frames that one latent frame decodes to.
    """

    fps: float = 16
    first_chunk_frames: int = 9
    chunk_frames: int = 12
    latent_frames: int = 4

    def __post_init__(self) -> None:
        for name in ("fps", "first_chunk_frames", "chunk_frames", "latent_frames"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @classmethod
    def of(cls, geometry: Geometry) -> Rhythm:
        """The rhythm of a model that streams with this geometry."""
        first, later = geometry.chunk_frames_of(0), geometry.chunk_frames_of(1)
        return cls(geometry.fps, first, later, geometry.temporal_factor)

    def chunks(self, frames: int) -> list[range]:
        """Frame numbers of every chunk of a video of `frames` frames; the last chunk may be cut short."""
        starts = [0, *range(self.first_chunk_frames, frames, self.chunk_frames)]
        return [range(start, min(end, frames)) for start, end in zip(starts, [*starts[1:], frames], strict=True)]


WAN_RHYTHM = Rhythm()


def check_clip(frames: Pixels, least: int = 1) -> None:
    """Raise ValueError unless `frames` is uint8 [T, H, W, 3] with T >= `least` and sides of at least 16 pixels."""
    if frames.dtype != np.uint8:
        raise ValueError(f"frames must be uint8 in 0..255, got {frames.dtype}; scale and round them first")
    if frames.ndim != 4 or frames.shape[3] != 3:
        raise ValueError(f"frames must have the shape [T, H, W, 3], got {list(frames.shape)}")
    if min(frames.shape[1:3]) < LEAST_SIDE:
        raise ValueError(f"frames must be at least {LEAST_SIDE} pixels high and wide, got {list(frames.shape[1:3])}")
    if len(frames) < least:
        raise ValueError(f"this metric needs at least {least} frames, got {len(frames)}")


def averaged(values: Sequence[float] | Array, first: int = 0, step: int = 1) -> Measured:
    """A curve whose score is its mean; value n belongs to frame `first` + n `step`."""
    curve = np.asarray(values, np.float64)
    return Measured(curve, first + step * np.arange(len(curve)), float(curve.mean()))


def luminance(frame: Pixels) -> Array:
    """Brightness [H, W] float32 in levels of a frame [H, W, 3]: Rec. 601 weights."""
    return frame.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def thumbnails(frames: Pixels, side: int = 16) -> Array:
    """Frames [T, H, W, 3] averaged over a grid of `side` x `side` areas -> [T, side, side, 3] float32."""
    rows, columns = (np.linspace(0, size, side + 1).round().astype(int) for size in frames.shape[1:3])
    areas = np.diff(rows)[:, None, None] * np.diff(columns)[None, :, None]
    sums = (np.add.reduceat(np.add.reduceat(f, rows[:-1], 0, np.float32), columns[:-1], 1) for f in frames)
    return np.stack([total / areas for total in sums])
