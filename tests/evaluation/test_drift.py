"""Drift of curves whose answer is known."""

import numpy as np
import pytest

from reward_forcing.evaluation.drift import measure_drift, segment_drift, video_drift

FPS = 16


def minute(slope: float = 0.0, start: float = 70.0, frames: int = 960) -> np.ndarray:
    """A metric that changes by `slope` per minute, sampled in the middle of each frame."""
    return start + slope * (np.arange(frames) + 0.5) / FPS / 60


def test_drift_is_the_sample_standard_deviation():
    """Deviations from 4: -2, 0, 0, 2; squares sum to 8; 8 / 3."""
    assert segment_drift([2, 4, 4, 6]) == pytest.approx(np.sqrt(8 / 3))


def test_a_constant_metric_does_not_drift():
    ours = measure_drift([minute(), minute(start=0.1)], FPS)
    assert (ours.drift, ours.change) == pytest.approx((0, 0), abs=1e-12)
    assert (ours.slope.value, ours.slope.low, ours.slope.high) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.parametrize("slope", [-12.0, 3.0])
def test_a_linear_metric_has_its_slope_and_the_deviation_of_equal_steps(slope):
    """M points in equal steps d have the sample variance d^2 M (M + 1) / 12."""
    ours = video_drift(minute(slope), FPS)
    step = abs(slope) / 30
    assert ours.slope == pytest.approx(slope)
    assert ours.drift == pytest.approx(step * np.sqrt(30 * 31 / 12))
    assert ours.change == pytest.approx(29 * step)
    assert ours.seconds == pytest.approx(np.arange(1, 60, 2))


@pytest.mark.parametrize("frames", [949, 957, 960])
def test_the_last_segment_is_the_last_two_seconds(frames):
    values = minute(frames=frames)
    values[-32:] += 30
    ours = video_drift(values, FPS)
    assert len(ours.means) == 30
    assert ours.means[-1] == pytest.approx(100)
    assert ours.seconds[-1] == pytest.approx(frames / FPS - 1)


def test_the_slope_of_a_line_does_not_depend_on_an_overlapping_last_segment():
    assert video_drift(minute(6.0, frames=949), FPS).slope == pytest.approx(6)


def test_drift_is_the_same_for_a_fall_and_a_fluctuation_but_the_slope_is_not():
    falling = np.repeat([3.0, 2, 1, 0], 32)
    shuffled = np.repeat([2.0, 0, 3, 1], 32)
    fall, fluctuation = video_drift(falling, FPS), video_drift(shuffled, FPS)
    assert fall.drift == pytest.approx(fluctuation.drift)
    assert fall.slope == pytest.approx(-30)
    assert fluctuation.slope == pytest.approx(0)


def test_several_videos_are_averaged_and_their_slope_has_an_interval():
    slopes = np.linspace(-9, 1, 21)
    ours = measure_drift([minute(slope) for slope in slopes], FPS)
    per_video = [video.drift for video in ours.videos]
    assert ours.drift == pytest.approx(np.mean(per_video))
    assert ours.slope.value == pytest.approx(-4)
    assert ours.slope.count == 21
    error = slopes.std(ddof=1) / np.sqrt(21)
    assert (ours.slope.low, ours.slope.high) == pytest.approx((-4 - 1.96 * error, -4 + 1.96 * error), abs=0.06)
    assert ours.curve[0] == pytest.approx((1, 70 - 4 / 60))
    assert len(ours.curve) == 30
    assert measure_drift([minute(slope) for slope in slopes], FPS) == ours


def test_the_curve_holds_the_segments_that_all_videos_have():
    ours = measure_drift([minute(frames=960), minute(frames=110)], FPS, seconds=1)
    assert [seconds for seconds, _ in ours.curve] == pytest.approx([0.5, 1.5, 2.5, 3.5, 4.5, 5.5])
    assert [len(video.means) for video in ours.videos] == [60, 7]


def test_too_short_videos_and_unmeasured_frames_are_refused():
    with pytest.raises(ValueError, match="at least 2 segments, got 1"):
        video_drift(minute(frames=32), FPS)
    with pytest.raises(ValueError, match="finite on every frame"):
        video_drift([1.0] * 63 + [float("nan")], FPS)
    with pytest.raises(ValueError, match="at least 2 prompts"):
        measure_drift([minute()], FPS)
