"""Metrics give the known answer on synthetic clips, rank graded defects in order, and ignore what they must ignore."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reward_forcing.data.scenes import Scene, render
from reward_forcing.evaluation.metrics import METRICS, Metric, Rhythm, measure
from reward_forcing.evaluation.metrics.borders import border_effect, border_jump, first_chunk_copying
from reward_forcing.evaluation.metrics.clips import Measured, Pixels
from reward_forcing.evaluation.metrics.consistency import background_constancy, moving_share, subject_constancy
from reward_forcing.evaluation.metrics.defects import DEFECTS, Defect, add_noise, blur, step_at_borders
from reward_forcing.evaluation.metrics.image import (
    clipped_share,
    colourfulness,
    contrast,
    noise_level,
    saturation,
    sharpness,
)
from reward_forcing.evaluation.metrics.motion import (
    flicker,
    flow_dynamic_degree,
    flow_moves,
    frame_difference,
    midpoint_error,
    neighbour_mean_error,
)
from reward_forcing.evaluation.statistics import spearman
from reward_forcing.geometry import Geometry
from reward_forcing.optical_flow import inside, optical_flow, warp

VBENCH = {
    "subject_consistency", "background_consistency", "temporal_flickering", "motion_smoothness", "dynamic_degree",
    "aesthetic_quality", "imaging_quality", "object_class", "multiple_objects", "human_action", "color",
    "spatial_relationship", "scene", "appearance_style", "temporal_style", "overall_consistency",
}  # fmt: skip
USE_FLOW = {
    "flow_dynamic_degree", "flow_moves", "flicker", "midpoint_error", "extrapolation_error", "border_jump",
    "border_effect",
}  # fmt: skip
SHORTEST = {
    "flow_dynamic_degree": 3, "flow_moves": 3, "frame_difference": 2, "flicker": 2, "midpoint_error": 3,
    "neighbour_mean_error": 3, "extrapolation_error": 3, "background_constancy": 2, "subject_constancy": 2,
    "moving_share": 2, "border_jump": 10, "border_effect": 10, "first_chunk_copying": 27,
}  # fmt: skip


def picture(x: np.ndarray, y: np.ndarray) -> Pixels:
    """A smooth coloured texture without clipped pixels at x [T, W], y [H], exact between pixels -> [T, H, W, 3]."""
    rng = np.random.default_rng(0)
    total = np.zeros((len(x), len(y), x.shape[1], 3))
    for _ in range(24):
        angle, wave, phase = rng.uniform(0, np.pi), rng.uniform(0.2, 0.9), rng.uniform(0, 2 * np.pi, 3)
        along_x, along_y = (np.exp(1j * wave * f(angle) * place) for f, place in ((np.cos, x), (np.sin, y)))
        total += (along_x[:, None, :, None] * along_y[None, :, None, None] * np.exp(1j * phase)).real
    return (128.5 + 30 * total / np.sqrt(12)).clip(10, 245).astype(np.uint8)


def pan(speed: float, frames: int = 48, size: int = 64, vertical: bool = False) -> Pixels:
    """A camera that moves over a texture by `speed` pixels a frame; the content moves to the left, or up."""
    moved = picture(np.arange(size) + speed * np.arange(frames)[:, None], np.arange(size))
    return moved.transpose(0, 2, 1, 3) if vertical else moved


def still(frames: int = 48, size: int = 64) -> Pixels:
    return np.repeat(pan(0, 1, size), frames, axis=0)


def flat(colour: tuple[int, int, int], frames: int = 3, size: int = 64) -> Pixels:
    return np.broadcast_to(np.array(colour, np.uint8), (frames, size, size, 3)).copy()


SLIDE = Scene("slide", colour="yellow", background="blue", setting="floor", direction="right")
CLIPS = {"pan": pan(1), "ball": render(SLIDE, 48)}
STILL_ANSWERS = {
    "flow_dynamic_degree": 0, "flow_moves": 0, "frame_difference": 0, "flicker": 0, "midpoint_error": 0,
    "neighbour_mean_error": 0, "extrapolation_error": 0, "background_constancy": 1, "subject_constancy": 1,
    "moving_share": 0, "clipped_share": 0, "border_jump": 1, "border_effect": 0, "first_chunk_copying": 0,
}  # fmt: skip


def test_no_metric_bears_a_name_of_vbench() -> None:
    assert not METRICS.keys() & VBENCH


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_every_metric_gives_a_finite_curve_and_score_and_says_what_it_is(metric: Metric) -> None:
    measured = metric.function(CLIPS["ball"], Rhythm())
    assert measured.values.shape == measured.at.shape
    assert np.isfinite(measured.values).all()
    assert np.isfinite(measured.score)
    assert measured.at.min() >= 0
    assert measured.at.max() < 48
    assert metric.per == "video" or measured.score == pytest.approx(measured.values.mean())
    assert metric.doc.endswith(".")


@pytest.mark.parametrize(("name", "answer"), STILL_ANSWERS.items())
def test_a_still_has_its_known_answer(name: str, answer: float) -> None:
    assert measure(still(), [name])[name].score == pytest.approx(answer, abs=1e-6)


@pytest.mark.parametrize("size", [64, 96, 128])
@pytest.mark.parametrize("speed", [0.5, 1, 2])
@pytest.mark.parametrize("vertical", [False, True])
def test_a_pan_has_its_own_speed(size: int, speed: float, vertical: bool) -> None:
    measured = flow_dynamic_degree(pan(speed, 9, size, vertical), fps=16)
    assert measured.score == pytest.approx(16 * speed / size, rel=0.05)
    assert list(measured.at) == [2, 4, 6, 8]


def test_speed_counts_in_seconds_and_frame_sides() -> None:
    slow, fast = (flow_dynamic_degree(pan(1, 17), fps).score for fps in (8, 24))
    assert fast == pytest.approx(3 * slow, rel=0.06)
    small, large = (flow_dynamic_degree(render(SLIDE, 17, size), 16).score for size in (64, 128))
    assert large == pytest.approx(small, rel=0.06)


@pytest.mark.parametrize(("speed", "moves"), [(0.5, 0.0), (0.65, 0.0), (0.85, 1.0), (2.0, 1.0)])
def test_a_pan_moves_from_the_least_speed_on(speed: float, moves: float) -> None:
    assert flow_moves(pan(speed, 17), fps=16).score == moves  # 3 / 4 of a pixel a frame are 6 / 256 sides per 1 / 8 s


def test_a_clip_that_moves_long_enough_counts_as_moving() -> None:
    moving = pan(2, 33)  # 17 taken frames: 4 moving pairs are enough
    for frames, moves in ((7, 0.0), (9, 1.0)):
        stopped = np.concatenate([moving[:frames], np.repeat(moving[frames - 1][None], 33 - frames, axis=0)])
        assert flow_moves(stopped, fps=16).score == moves


def test_flow_points_where_the_content_goes_and_warping_follows_it() -> None:
    first, second = pan(3, 2, 96)
    flow = optical_flow(second, first)
    assert np.median(flow, axis=(0, 1)) == pytest.approx([3, 0], abs=0.05)
    known = inside(flow)
    assert known.mean() == pytest.approx(93 / 96, abs=0.03)
    assert np.abs(warp(first, flow) - second)[known].mean() < 0.05 * np.abs(first.astype(float) - second).mean()


@pytest.mark.parametrize("speed", [0.5, 1, 2, 3])
def test_a_pan_is_neither_flicker_nor_uneven(speed: float) -> None:
    clip = pan(speed, 17)
    assert flicker(clip).score < 0.1 * frame_difference(clip).score
    assert midpoint_error(clip).score < 0.1 * frame_difference(clip).score


def test_flicker_is_the_mean_step_of_brightness() -> None:
    clip = still(24)
    clip[1::2] += 6
    assert flicker(clip).values == pytest.approx(np.full(23, 6), abs=0.05)
    assert frame_difference(clip).score == pytest.approx(6)


def test_one_late_frame_is_the_only_uneven_one() -> None:
    clip = pan(2, 21)
    clip[11] = clip[10]
    measured = midpoint_error(clip)
    late = measured.values[measured.at == 11]
    assert late > 10 * np.delete(measured.values, list(measured.at).index(11)).max()


def test_without_flow_the_middle_of_an_even_fade_is_known() -> None:
    clip = np.stack([np.full((32, 32, 3), 4 * number, np.uint8) for number in range(9)])
    assert neighbour_mean_error(clip).values == pytest.approx(np.zeros(4))
    clip[3] += 5
    assert neighbour_mean_error(clip).values == pytest.approx([0, 5, 0, 0])


CASES = [(defect, name, 1) for defect in DEFECTS.values() for name in defect.raises]
CASES += [(defect, name, -1) for defect in DEFECTS.values() for name in defect.lowers]


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize(("defect", "name", "sign"), CASES, ids=[f"{case[0].name}-{case[1]}" for case in CASES])
def test_graded_defects_are_ranked_in_order(clip: str, defect: Defect, name: str, sign: int) -> None:
    scores = [measure(defect.apply(CLIPS[clip], level), [name])[name].score for level in defect.levels]
    assert sign * spearman(defect.levels, scores) == pytest.approx(1), scores


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS)
def test_a_defect_of_no_strength_changes_nothing(defect: Defect) -> None:
    before = CLIPS["pan"].copy()
    assert np.array_equal(defect.apply(CLIPS["pan"], 0), before)
    assert not np.array_equal(defect.apply(CLIPS["pan"], defect.levels[-1]), before)
    assert np.array_equal(CLIPS["pan"], before)


def test_the_curves_follow_a_drift_of_colour_and_contrast() -> None:
    clip = still(33)
    grey, pale = DEFECTS["colour fade"].apply(clip, 0.5), DEFECTS["contrast fade"].apply(clip, 0.4)
    for measured, left in ((colourfulness(grey), 0.5), (contrast(pale), 0.6)):
        assert measured.values / measured.values[0] == pytest.approx(np.linspace(1, left, 33), rel=0.02)
    assert (np.diff(saturation(grey).values) < 0).all()


@pytest.mark.parametrize(
    ("function", "clip", "answer"),
    [
        (contrast, np.concatenate([flat((0, 0, 0)), flat((255, 255, 255))], axis=1), 127.5),
        (contrast, flat((90, 40, 7)), 0),
        (saturation, flat((200, 0, 0)), 1),
        (saturation, flat((70, 70, 70)), 0),
        (saturation, flat((0, 0, 0)), 0),
        (saturation, np.concatenate([flat((200, 100, 100)), flat((0, 0, 0))], axis=1), 0.5),
        (colourfulness, flat((70, 70, 70)), 0),
        (colourfulness, flat((200, 100, 0)), 0.3 * np.hypot(100, 150)),
        (clipped_share, np.concatenate([flat((255, 9, 9)), flat((7, 0, 7)), flat((9, 9, 9), size=64)], axis=1), 2 / 3),
        (sharpness, flat((70, 70, 70)), 0),
        (noise_level, flat((70, 70, 70)), 0),
    ],
)
def test_flat_pictures_have_their_known_answer(
    function: Callable[[Pixels], Measured], clip: Pixels, answer: float
) -> None:
    assert function(clip).values == pytest.approx(np.full(3, answer), rel=1e-5, abs=1e-5)


def test_brightness_and_contrast_are_not_sharpness_but_blur_is() -> None:
    clip = still(2, 96)
    sharp = sharpness(clip).score
    assert sharpness(clip + np.uint8(18)).score == pytest.approx(sharp, rel=1e-4)
    assert sharpness((128 + 0.5 * (clip - 128.0)).astype(np.uint8)).score == pytest.approx(sharp, rel=0.06)
    assert sharpness(blur(clip, 2.0)).score < 0.6 * sharp


@pytest.mark.parametrize("wave", [0.3, 0.6, 1.2])
def test_the_sharpness_of_a_sine_is_its_known_eigenvalue(wave: float) -> None:
    row = 128 + 100 * np.sin(wave * np.arange(128))
    clip = np.broadcast_to(row[None, None, :, None], (1, 64, 128, 3)).round().astype(np.uint8)
    assert sharpness(clip).score == pytest.approx((2 - 2 * np.cos(wave)) ** 2, rel=0.05)


def test_a_checkerboard_is_the_sharpest_picture() -> None:
    board = np.where(np.indices((64, 64)).sum(axis=0) % 2, 220, 20).astype(np.uint8)
    assert sharpness(np.repeat(board[None, :, :, None], 3, axis=3)).score == pytest.approx(64, rel=1e-3)


@pytest.mark.parametrize("sigma", [3, 6, 12])
def test_noise_on_flat_ground_is_read_in_levels(sigma: float) -> None:
    of_brightness = sigma * np.sqrt(0.299**2 + 0.587**2 + 0.114**2)
    assert noise_level(add_noise(flat((120, 120, 120)), sigma)).score == pytest.approx(of_brightness, rel=0.04)


def test_the_moving_share_is_the_area_of_the_ball() -> None:
    for size, radius in (("small", 0.14), ("big", 0.23)):
        ball = replace(SLIDE, setting="plain", size=size, speed="fast")
        whole = moving_share(render(ball, 80)).values.max()
        assert whole == pytest.approx(np.pi * radius**2, rel=0.12)


def recoloured(strength: float, **change: str) -> Pixels:
    """The sliding ball while one colour of the scene turns into another, the share `strength` of the way at the end."""
    ball = replace(SLIDE, setting="plain")
    weight = np.linspace(0, strength, 48)[:, None, None, None]
    return ((1 - weight) * render(ball, 48) + weight * render(replace(ball, **change), 48)).round().astype(np.uint8)


def test_the_colour_of_the_subject_and_of_the_background_are_told_apart() -> None:
    levels = (0, 0.1, 0.2, 0.4, 0.8)
    subject = [recoloured(level, colour="red") for level in levels]
    background = [recoloured(level, background="green") for level in levels]
    assert spearman(levels, [subject_constancy(clip).score for clip in subject]) == pytest.approx(-1)
    assert spearman(levels, [background_constancy(clip).score for clip in background]) == pytest.approx(-1)
    assert min(background_constancy(clip).score for clip in subject) > 0.999
    assert min(subject_constancy(clip).score for clip in background) > 0.98


def test_a_part_of_the_background_that_drifts_is_no_subject() -> None:
    floors = [SLIDE, replace(SLIDE, background="yellow")]
    before, after = (render(scene, 48).astype(np.float32) for scene in floors)
    scores = []
    for level in (0, 0.2, 0.4, 0.8):
        drift = level * np.linspace(0, 1, 48)[:, None, None, None] * (after - before)
        scores.append(background_constancy((before + drift).round().astype(np.uint8)).score)
    assert spearman(range(4), scores) == pytest.approx(-1), scores


def test_something_that_only_moves_keeps_subject_and_background() -> None:
    for clip in CLIPS.values():
        assert subject_constancy(clip).score > 0.97
    assert background_constancy(CLIPS["ball"]).score > 0.999


@pytest.mark.parametrize("step", [2, 5, 20])
def test_a_step_at_borders_of_a_still_has_its_known_size(step: int) -> None:
    clip = step_at_borders(still(), step)
    measured = border_jump(clip)
    assert list(measured.at[measured.values > step / 2]) == [9, 21, 33, 45]
    assert measured.score == pytest.approx((step + 0.5) / 0.5, rel=0.03)
    assert border_effect(clip).score == pytest.approx(step / 0.5, rel=0.03)


def test_jumps_at_every_latent_frame_are_the_decoders_rhythm_not_a_border() -> None:
    clip = still()
    for start in range(1, 48, 8):
        clip[start : start + 4] += 8
    assert border_jump(clip).score == pytest.approx(1, abs=0.05)
    assert abs(border_effect(clip).score) < 0.5


def test_a_break_of_the_motion_at_borders_is_a_jump_and_one_elsewhere_is_not() -> None:
    long = pan(1, 80)
    skips = np.arange(48)
    for shift, raised in ((0, True), (5, False)):
        chunk = sum((skips >= border + shift).astype(int) for border in (9, 21, 33, 45))
        score = border_jump(long[skips + 3 * chunk]).score
        assert (score > 2) is raised, score


def test_borders_follow_the_rhythm_that_is_given() -> None:
    clip = still(40)
    clip[17:29] += 10
    halves = Rhythm.of(Geometry(64, 64, chunk_frames=5))
    assert halves == Rhythm(16, 17, 20, 4)
    assert border_jump(clip, replace(halves, chunk_frames=12)).score > 10
    assert border_jump(clip).score < 1
    assert Rhythm().chunks(25) == [range(9), range(9, 21), range(21, 25)]


def test_a_copied_first_frame_stands_out_at_its_place() -> None:
    clip = pan(2)
    clean = first_chunk_copying(clip)
    assert clean.score < 0.05
    clip[25] = clip[3]
    copied = first_chunk_copying(clip)
    assert copied.at[copied.values.argmax()] == 25
    assert copied.values.max() > 0.5
    assert copied.score > clean.score + 0.1


def test_a_copy_of_another_frame_is_no_copy_of_the_first_chunk() -> None:
    clip = pan(2)
    clip[29] = clip[15]
    assert first_chunk_copying(clip).score < 0.05


def test_more_copies_copy_more() -> None:
    scores = []
    for places in ([], [12], [12, 25], [12, 25, 34], [12, 25, 34, 46]):
        clip = pan(2, 72)
        clip[places] = clip[0]
        scores.append(first_chunk_copying(clip).score)
    assert spearman(range(5), scores) == pytest.approx(1), scores


@pytest.mark.parametrize("kind", ["bounce", "swing", "orbit"])
def test_motion_that_repeats_is_no_copying(kind: str) -> None:
    clip = render(Scene(kind, direction="clockwise", speed="fast", background="white", phase=0.3), 81)
    assert first_chunk_copying(clip).score < 0.2


WRONG: list[tuple[NDArray[Any], str]] = [
    (np.zeros((48, 64, 64, 3), np.float32), "uint8"),
    (np.zeros((48, 3, 64, 64), np.uint8), "shape"),
    (np.zeros((48, 64, 64), np.uint8), "shape"),
    (np.zeros((48, 8, 64, 3), np.uint8), "at least 16 pixels"),
    (np.zeros((0, 64, 64, 3), np.uint8), "at least .* frames|chunk border"),
]


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_clips_of_the_wrong_kind_are_refused(metric: Metric) -> None:
    for clip, words in WRONG:
        with pytest.raises(ValueError, match=words):
            metric.function(clip, Rhythm())


@pytest.mark.parametrize(("name", "least"), SHORTEST.items())
def test_a_clip_one_frame_too_short_is_refused(name: str, least: int) -> None:
    with pytest.raises(ValueError, match="frames"):
        measure(still(least - 1), [name])
    assert np.isfinite(measure(still(least), [name])[name].score)


def test_an_unknown_metric_and_a_wrong_rhythm_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'flicker'"):
        measure(still(2), ["flickr"])
    with pytest.raises(ValueError, match="chunk_frames must be positive"):
        Rhythm(chunk_frames=0)


@pytest.mark.parametrize("name", METRICS)
def test_without_opencv_only_the_flow_is_missing_and_the_error_names_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    if name in USE_FLOW:
        with pytest.raises(ImportError, match=r"-e '.\[eval\]'"):
            measure(still(27), [name])
    else:
        assert np.isfinite(measure(still(27), [name])[name].score)
