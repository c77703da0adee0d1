"""Weight-free measures of a clip, none of them VBench's own: what can be said of frames without a trained network.

Each has a function with its definition, unit, range and limits. Scores compare videos of one size and of like content;
only the tests' synthetic videos have a known answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from reward_forcing.config import unknown
from reward_forcing.evaluation.metrics import borders, consistency, image, motion
from reward_forcing.evaluation.metrics.clips import WAN_RHYTHM, Measured, Pixels, Rhythm
from reward_forcing.evaluation.results import Way

__all__ = ["METRICS", "Measured", "Metric", "Rhythm", "measure"]


Unit = Literal["frame", "pair", "video"]


@dataclass(frozen=True)
class Metric:
    """A measure of a clip under its name.

    function(frames uint8 [T, H, W, 3], rhythm) -> Measured. better: which way is better, all else being equal.
    per: 'frame' or 'pair' where the score is the mean of a curve of such values; 'video' where only the score compares
    and the curve is what it was made from. doc: the definition in a line; the function's docstring has the limits.
    """

    name: str
    function: Callable[[Pixels, Rhythm], Measured]
    unit: str
    better: Way
    per: Unit
    doc: str


def _of_frames(function: Callable[[Pixels], Measured], unit: str, better: Way, per: Unit = "frame") -> Metric:
    return Metric(_name(function), lambda frames, rhythm: function(frames), unit, better, per, _doc(function))


def _of_rate(function: Callable[[Pixels, float], Measured], unit: str, better: Way, per: Unit) -> Metric:
    return Metric(
        _name(function), lambda frames, rhythm: function(frames, rhythm.fps), unit, better, per, _doc(function)
    )


def _of_chunks(function: Callable[[Pixels, Rhythm], Measured], unit: str, better: Way) -> Metric:
    return Metric(_name(function), function, unit, better, "video", _doc(function))


def _name(function: Callable[..., Measured]) -> str:
    return function.__name__


def _doc(function: Callable[..., Measured]) -> str:
    return (function.__doc__ or "").partition("\n")[0]


_ALL = (
    _of_rate(motion.flow_dynamic_degree, "shorter sides per second", "neither", "pair"),
    _of_rate(motion.flow_moves, "0 or 1", "higher", "video"),
    _of_frames(motion.frame_difference, "levels", "neither", "pair"),
    _of_frames(motion.flicker, "levels", "lower", "pair"),
    _of_frames(motion.midpoint_error, "levels", "lower"),
    _of_frames(motion.neighbour_mean_error, "levels", "lower"),
    _of_frames(motion.extrapolation_error, "levels", "lower"),
    _of_frames(consistency.background_constancy, "cosine", "higher"),
    _of_frames(consistency.subject_constancy, "cosine", "higher"),
    _of_frames(consistency.moving_share, "share of the frame", "neither"),
    _of_frames(image.sharpness, "ratio of variances", "neither"),
    _of_frames(image.contrast, "levels", "neither"),
    _of_frames(image.saturation, "share", "neither"),
    _of_frames(image.colourfulness, "levels", "neither"),
    _of_frames(image.clipped_share, "share of the frame", "lower"),
    _of_frames(image.noise_level, "levels", "lower"),
    _of_chunks(borders.border_jump, "ratio", "lower"),
    _of_chunks(borders.border_effect, "standard deviations", "lower"),
    _of_chunks(borders.first_chunk_copying, "share of the usual distance", "lower"),
)
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name."""


def measure(frames: Pixels, names: Iterable[str] = tuple(METRICS), rhythm: Rhythm = WAN_RHYTHM) -> dict[str, Measured]:
    """The named metrics (all by default) of a clip uint8 [T, H, W, 3], by name.

    Raises ValueError for an unknown name, and for a clip that one of the metrics refuses.
    """
    names = list(names)
    for name in names:
        if name not in METRICS:
            raise ValueError(unknown("metric", name, METRICS))
    return {name: METRICS[name].function(frames, rhythm) for name in names}
