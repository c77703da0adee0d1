"""What is measured of one column: speed, motion, drift, and whether the world's truth is followed.

T frames, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from reward_forcing.config import Settings
from reward_forcing.data.scenes import FPS
from reward_forcing.evaluation.clip_scores import PER_FRAME, SEGMENT_SECONDS
from reward_forcing.evaluation.drift import video_drift
from reward_forcing.evaluation.metrics import METRICS, Rhythm
from reward_forcing.evaluation.metrics.clips import Pixels
from reward_forcing.evaluation.side_by_side.columns import Wanted
from reward_forcing.evaluation.world_rewards import prompt_of
from reward_forcing.evaluation.world_suite import Prompt, judge
from reward_forcing.evaluation.world_tracking import STEP, tracked_motion

MOTION = ("flow_dynamic_degree", "flicker")
JUDGED_SECONDS = 5.0


class Speed(Settings):
    """How fast a clip was made, video encoding included, loading not: see `recording.INCLUDED`.

    fps: frames made in a second of wall time. first_seconds: until the first frames. peak_memory: bytes of the GPU's
    memory; None on a CPU.
    """

    fps: float
    first_seconds: float
    wall_seconds: float
    peak_memory: int | None


class DriftOf(Settings):
    """A metric of single frames along the clip. drift: Reward Forcing's Eq. 12. slope: per minute."""

    drift: float
    slope: float


class Judged(Settings):
    """What is right under one prompt, judged on its last seconds. motion: how much of the meant motion is seen."""

    at: float
    prompt: str
    right: dict[str, bool]
    motion: float


class Measures(Settings):
    """Everything measured on a clip. scores: of `MOTION`. drift: of `PER_FRAME`, empty below two segments of 2 s."""

    scores: dict[str, float]
    drift: dict[str, DriftOf]
    judged: tuple[Judged, ...]


class ColumnRecord(Settings):
    """One column: what made it, where it is, how fast, and what was measured.

    frames, fps, height, width: of the clip as it was made. speed: None for videos made elsewhere. file: relative to
    the comparison's folder. notes: what one should know before trusting the clip.
    """

    name: str
    made_with: dict[str, Any]
    machine: str
    file: str
    frames: int
    fps: float
    height: int
    width: int
    speed: Speed | None
    measures: Measures
    notes: tuple[str, ...] = ()


def truths_of(wanted: Wanted) -> tuple[Prompt, ...] | str:
    """The truth of every prompt, or why it is not known: only scenes of the procedural world have one."""
    form = wanted.form
    if form.height != form.width or form.fps != FPS:
        return f"text alignment is judged on square clips at {FPS} frames per second alone, not at {form}"
    try:
        return tuple(prompt_of(prompt) for _, prompt in wanted.prompts)
    except ValueError as error:
        return f"text alignment is not judged: {error}"


def measure_column(clip: Pixels, rhythm: Rhythm, wanted: Wanted) -> Measures:
    """Everything measured on a clip uint8 [T, H, W, 3] in the common form."""
    drift = {}
    for name in PER_FRAME:
        with suppress(ValueError):  # the clip is too short for two segments
            along = video_drift(METRICS[name].function(clip, rhythm).values, rhythm.fps, SEGMENT_SECONDS)
            drift[name] = DriftOf(drift=along.drift, slope=along.slope)
    scores = {}
    for name in MOTION:
        with suppress(ValueError):  # the clip is too short for this one
            scores[name] = METRICS[name].function(clip, rhythm).score
    truths = truths_of(wanted)
    judged = () if isinstance(truths, str) else _judge(clip, rhythm.fps, wanted, truths)
    return Measures(scores=scores, drift=drift, judged=judged)


def _judge(clip: Pixels, fps: float, wanted: Wanted, truths: Sequence[Prompt]) -> tuple[Judged, ...]:
    """The verdicts under each prompt: on its last 5 seconds, of a later prompt on the second half of its time at most.

    A switch counts from the next chunk on, and chunks differ between methods; the first half leaves them time.
    """
    starts = [round(time * fps) for time, _ in wanted.prompts]
    found = []
    for number, (truth, begin) in enumerate(zip(truths, starts, strict=True)):
        end = min([*starts, wanted.frames][number + 1], len(clip))
        settled = begin if number == 0 else (begin + end) // 2
        part = clip[max(settled, end - round(JUDGED_SECONDS * fps)) : end]
        if len(part) > STEP:
            motion = float(tracked_motion(part, truth).mean())
            right = judge(truth, part).right
            found.append(Judged(at=wanted.prompts[number][0], prompt=truth.text, right=right, motion=motion))
    return tuple(found)
