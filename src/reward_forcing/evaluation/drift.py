"""How a metric changes along a video: the paper's drift, the slope over time, and the curve behind both.

Works on any metric that gives a number for each frame; the paper takes MUSIQ's imaging quality, 0 to 100.
A standard deviation does not tell a fall from a fluctuation, hence the slope beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reward_forcing.evaluation.statistics import Estimate, bootstrap_mean
from reward_forcing.evaluation.vbench_long import clip_frames, split_into_clips

Array = NDArray[np.floating]


@dataclass(frozen=True)
class VideoDrift:
    """A metric along one video, segment by segment.

    seconds: the middle of each segment. means: the metric's mean in it. drift: `segment_drift`. slope: of the least
    squares line through the means, per minute. change: |last mean - first mean|.
    """

    seconds: tuple[float, ...]
    means: tuple[float, ...]
    drift: float
    slope: float
    change: float


@dataclass(frozen=True)
class Drift:
    """A metric along several videos. drift: mean of their drifts (Eq. 13). slope: mean per minute, with its interval.

    change: mean of |last - first|. curve: (seconds, mean over videos) of each segment that all videos have.
    """

    drift: float
    slope: Estimate
    change: float
    curve: tuple[tuple[float, float], ...]
    videos: tuple[VideoDrift, ...]


def segment_drift(means: Sequence[float] | Array) -> float:
    """The drift of a video whose segments have these means: sqrt(sum_j (s_j - mean)^2 / (M - 1)).

    Reward Forcing, Eq. 12. The paper prints the deviations without the square, and their sum is 0; its text says
    standard deviation. Raises ValueError for fewer than 2 segments.
    """
    if len(means) < 2:
        raise ValueError(f"drift needs at least 2 segments, got {len(means)}; take shorter segments or longer videos")
    return float(np.std(means, ddof=1, dtype=np.float64))


def video_drift(values: Sequence[float] | Array, fps: float, seconds: float = 2) -> VideoDrift:
    """The drift of one video from its metric [T], one value per frame, in segments of `seconds`.

    Frames that do not fill a segment make one of the last frames, as VBench-Long cuts: 957 frames at 16 fps are 30
    segments, like 960. Raises ValueError for fewer than 2 segments and for values that are not finite.
    """
    metric = np.asarray(values, np.float64)
    if not np.isfinite(metric).all():
        raise ValueError("the metric must be finite on every frame")
    spans = split_into_clips(len(metric), clip_frames(fps, seconds))
    means = np.array([metric[span.start : span.stop].mean() for span in spans])
    drift = segment_drift(means)
    middles = np.array([(span.start + span.stop) / 2 / fps for span in spans])
    away = middles - middles.mean()
    slope = 60 * float(away @ means / (away @ away))
    return VideoDrift(tuple(middles.tolist()), tuple(means.tolist()), drift, slope, float(abs(means[-1] - means[0])))


def measure_drift(
    videos: Sequence[Sequence[float] | Array],
    fps: float,
    seconds: float = 2,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Drift:
    """The drift of at least 2 videos (Reward Forcing, Eq. 13), their slope with a bootstrap interval over videos.

    videos: the metric [T] of each. The paper: 60 seconds in 30 segments of 2. Raises ValueError as `video_drift` does.
    """
    each = tuple(video_drift(values, fps, seconds) for values in videos)
    slope = bootstrap_mean([[video.slope] for video in each], level, resamples, seed)
    columns = zip(*[zip(video.seconds, video.means, strict=True) for video in each], strict=False)
    curve = [(column[0][0], float(np.mean([mean for _, mean in column]))) for column in columns if _same_time(column)]
    return Drift(
        drift=float(np.mean([video.drift for video in each])),
        slope=slope,
        change=float(np.mean([video.change for video in each])),
        curve=tuple(curve),
        videos=each,
    )


def _same_time(column: Sequence[tuple[float, float]]) -> bool:
    return len({seconds for seconds, _ in column}) == 1
