"""What is measured on one clip of an evaluation, and what each number means.

A clip of up to 10 seconds is measured whole, with every metric. Of a longer one,
- what looks at single frames (`PER_FRAME`) is measured on all frames; besides the mean, its curve in segments of
  2 seconds, its drift (`sharpness@drift`) and its slope per minute (`sharpness@slope`);
- what looks at the whole (`WHOLE`) is measured on one frame for each latent frame;
- all else, the costly optical flow, on the first 5 seconds (`flicker@start`) and the last (`flicker@end`). The metrics'
  last 5 seconds begin with the first whole chunk in them, so that borders of chunks stay where they are;
- the prompt is judged, and features are taken, on the first 5 seconds (`colour@start`) and on the last (`colour@end`);
- the motion that the prompt means (`tracked_motion`) is followed throughout, and where it means an object, how far the
  clip goes away from its first chunk (`background_shift`): means, the last 5 seconds, curves, drifts and slopes.

A metric that a clip is too short for is left out. T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from reward_forcing.data.scenes import KINDS
from reward_forcing.evaluation.drift import video_drift
from reward_forcing.evaluation.metrics import METRICS, Rhythm
from reward_forcing.evaluation.metrics.clips import Array, Pixels, check_clip
from reward_forcing.evaluation.results import ALIGNED, Way
from reward_forcing.evaluation.suites import LONGEST_SHORT
from reward_forcing.evaluation.world_distance import features_of, window_frames
from reward_forcing.evaluation.world_identity import IDENTITY_DOCS, identity_shifts
from reward_forcing.evaluation.world_suite import Prompt, judge
from reward_forcing.evaluation.world_tracking import LEAST_MOTION, STEP, follow, tracked_motion


@dataclass(frozen=True)
class Meaning:
    """What a score is: its unit, which way is better, whether it is a rate of clips or a mean, its definition."""

    unit: str
    better: Way
    kind: Literal["rate", "mean"]
    doc: str


PER_FRAME = ("sharpness", "contrast", "saturation", "colourfulness", "clipped_share", "noise_level")
WHOLE = ("background_constancy", "subject_constancy", "moving_share", "first_chunk_copying")
AT_ENDS = tuple(name for name in METRICS if name not in PER_FRAME + WHOLE)
SEGMENT_SECONDS = 2.0
END_SECONDS = 5.0

TRACKED_MOTION, TRACKED_MOVES = "tracked_motion", "tracked_moves"

ATTRIBUTE_DOCS = {
    "colour": "Every object has the colour that the prompt names.",
    "shape": "Every object has the shape that the prompt names.",
    "count": "As many objects as the prompt names.",
    "motion": "The kind of motion is the one that the prompt names.",
    "direction": "The direction is the one that the prompt names.",
    "background": "The background has the colour that the prompt names.",
    "moves": "The clip is not still.",
    "size": "The object has the size that the prompt names.",
    "speed": "The motion has the speed that the prompt names.",
    TRACKED_MOVES: "The tracked motion is at least a quarter of what the prompt means.",
    ALIGNED: "Everything that the prompt names is right.",
}
WORLD_METRICS = {
    TRACKED_MOTION: Meaning("", "higher", "mean", "How much of the meant motion is seen, by tracking; 1 is all of it."),
    **{name: Meaning("", "lower", "mean", doc) for name, doc in IDENTITY_DOCS.items()},
}
"""What is measured besides `METRICS` where the prompt's scene is known."""
PART_DOCS = {
    "": "",
    "start": "On the first 5 seconds.",
    "end": "On the last 5 seconds.",
    "drift": "Standard deviation of the means of 2-second segments (Reward Forcing, Eq. 12).",
    "slope": "Least squares line through the means of 2-second segments.",
}


@dataclass(frozen=True)
class ClipScores:
    """Everything measured on a clip; the fields are those of `results.Sample`."""

    scores: dict[str, float]
    right: dict[str, bool] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)
    features: dict[str, tuple[float, ...]] = field(default_factory=dict)


def measure_clip(frames: Pixels, rhythm: Rhythm, truth: Prompt | None = None) -> ClipScores:
    """Everything measured on a clip uint8 [T, H, W, 3]. truth: what it should show, where that is known.

    Raises ValueError for frames of another kind or with sides below 16 pixels.
    """
    check_clip(frames)
    if len(frames) / rhythm.fps > LONGEST_SHORT:
        return _measure_long(frames, rhythm, truth)
    scores = _measured(frames, METRICS, rhythm)
    if truth is None:
        return ClipScores(scores)
    right, seen = _judged(frames, truth)
    if len(frames) > STEP:
        scores |= _motion_scores(tracked_motion(frames, truth))
    return ClipScores(scores, right, {}, seen, {"": features_of(frames[: window_frames(rhythm.fps)])})


def meaning(name: str) -> Meaning:
    """What the score or attribute `name` of a clip means, such as `flicker@end`."""
    base, _, part = name.partition("@")
    if base in ATTRIBUTE_DOCS:
        return Meaning("", "higher", "rate", _sentences(ATTRIBUTE_DOCS[base], PART_DOCS[part]))
    if base in WORLD_METRICS:
        what = WORLD_METRICS[base]
    else:
        metric = METRICS[base]
        what = Meaning(metric.unit, metric.better, "rate" if metric.unit == "0 or 1" else "mean", metric.doc)
    doc = _sentences(what.doc, PART_DOCS[part])
    if part == "drift":
        return Meaning(what.unit, "lower", "mean", doc)
    if part == "slope":
        return Meaning(f"{what.unit} per minute".strip(), "neither", "mean", doc)
    return replace(what, doc=doc)


def _sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def _measured(frames: Pixels, names: Iterable[str], rhythm: Rhythm, part: str = "") -> dict[str, float]:
    scores = {}
    for name in names:
        with suppress(ValueError):  # the clip is too short for this one; `check_clip` has refused all else
            scores[name + part] = METRICS[name].function(frames, rhythm).score
    return scores


def _measure_long(frames: Pixels, rhythm: Rhythm, truth: Prompt | None) -> ClipScores:
    values = {name: METRICS[name].function(frames, rhythm).values for name in PER_FRAME}
    if truth is not None:
        values |= _world_values(frames, rhythm, truth)
    drifts = {name: video_drift(one, rhythm.fps, SEGMENT_SECONDS) for name, one in values.items()}
    end = round(END_SECONDS * rhythm.fps)
    chunks = rhythm.chunks(len(frames))
    last = next((chunk.start for chunk in chunks if chunk.start >= len(frames) - end), len(frames) - end)
    scores = {name: float(one.mean()) for name, one in values.items()}
    scores |= {f"{name}@end": float(one[-end:].mean()) for name, one in values.items() if name in WORLD_METRICS}
    if truth is not None:
        scores |= _motion_scores(values[TRACKED_MOTION])
    scores |= {f"{name}@drift": drift.drift for name, drift in drifts.items()}
    scores |= {f"{name}@slope": drift.slope for name, drift in drifts.items()}
    scores |= _measured(frames[:: rhythm.latent_frames], WHOLE, _of_latent_frames(rhythm))
    scores |= _measured(frames[:end], AT_ENDS, rhythm, "@start")
    scores |= _measured(frames[last:], AT_ENDS, _of_later_chunks(rhythm), "@end")
    right, seen, features = {}, {}, {}
    window = window_frames(rhythm.fps)
    for part, judged_frames, features_frames in (
        ("start", frames[:end], frames[:window]),
        ("end", frames[-end:], frames[-window:]),
    ):
        if truth is not None:
            judged, seen[part] = _judged(judged_frames, truth)
            right |= {f"{name}@{part}": is_right for name, is_right in judged.items()}
            features[part] = features_of(features_frames)
    return ClipScores(scores, right, {name: drift.means for name, drift in drifts.items()}, seen, features)


def _motion_scores(motion: Array) -> dict[str, float]:
    mean = float(motion.mean())
    return {TRACKED_MOTION: mean, TRACKED_MOVES: float(mean >= LEAST_MOTION)}


def _world_values(frames: Pixels, rhythm: Rhythm, truth: Prompt) -> dict[str, Array]:
    """The motion and, where there is an object, the shifts of each frame of a long clip; the last motion lasts."""
    if not KINDS[truth.scene.kind].has_object:
        return {TRACKED_MOTION: np.pad(tracked_motion(frames, truth), (0, STEP), mode="edge")}
    regions = follow(frames)
    shifts = identity_shifts(frames, regions, rhythm.first_chunk_frames)
    return {TRACKED_MOTION: np.pad(tracked_motion(frames, truth, regions), (0, STEP), mode="edge"), **shifts}


def _of_latent_frames(rhythm: Rhythm) -> Rhythm:
    """The rhythm of a clip of which one frame is kept for each latent frame, from the first on."""
    factor = rhythm.latent_frames
    first = 1 + (rhythm.first_chunk_frames - 1) // factor
    return Rhythm(rhythm.fps / factor, first, max(1, rhythm.chunk_frames // factor), 1)


def _of_later_chunks(rhythm: Rhythm) -> Rhythm:
    """The rhythm of a clip that begins with a later chunk than the first."""
    return Rhythm(rhythm.fps, rhythm.chunk_frames, rhythm.chunk_frames, rhythm.latent_frames)


def _judged(frames: Pixels, truth: Prompt) -> tuple[dict[str, bool], dict[str, Any]]:
    """What of the prompt is right, and what was seen."""
    verdict = judge(truth, frames)
    return {**verdict.right, ALIGNED: all(verdict.right.values())}, verdict.seen_as_json()
