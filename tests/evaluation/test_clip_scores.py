"""What is measured on a clip: all of a short one, the ends and the curves of a long one."""

import numpy as np
import pytest

from reward_forcing.data.scenes import Scene, render
from reward_forcing.evaluation.clip_scores import (
    ALIGNED,
    AT_ENDS,
    PER_FRAME,
    WHOLE,
    WORLD_METRICS,
    ClipScores,
    meaning,
    measure_clip,
)
from reward_forcing.evaluation.drift import video_drift
from reward_forcing.evaluation.metrics import METRICS, Rhythm, measure
from reward_forcing.evaluation.world_suite import Prompt, held_out_prompts, judge
from reward_forcing.evaluation.world_tracking import tracked_motion

FPS, FRAMES = 16, 240  # 15 seconds


@pytest.fixture(scope="module")
def prompt() -> Prompt:
    """A red ball that bounces over a blue floor."""
    return held_out_prompts(1)[0]


@pytest.fixture(scope="module")
def clip(prompt: Prompt) -> np.ndarray:
    """A red ball that turns green and fades after 8 seconds."""
    turned = Scene("bounce", colour="green", background="blue", setting="floor", phase=0.5)
    clip = np.concatenate([render(prompt.scene, 128), render(turned, FRAMES - 128, start=128)])
    clip[128:] = (0.7 * clip[128:] + 0.3 * 128).round().astype(np.uint8)
    return clip


@pytest.fixture(scope="module")
def long(clip: np.ndarray, prompt: Prompt) -> ClipScores:
    return measure_clip(clip, Rhythm(FPS), prompt)


def test_a_short_clip_gets_every_metric_and_the_verdict(clip: np.ndarray, prompt: Prompt) -> None:
    found = measure_clip(clip[:64], Rhythm(FPS), prompt)
    motion = float(tracked_motion(clip[:64], prompt).mean())
    of_metrics = {name: one.score for name, one in measure(clip[:64]).items()}
    assert found.scores == {**of_metrics, "tracked_motion": motion, "tracked_moves": 1.0}
    assert measure_clip(clip[:64], Rhythm(FPS)).scores == of_metrics, "without a truth there is nothing to track"
    verdict = judge(prompt, clip[:64])
    assert found.right == {**verdict.right, ALIGNED: True}
    assert found.seen["colours"] == ("red",)
    assert found.curves == {}


def test_one_wrong_attribute_is_not_aligned(clip: np.ndarray, prompt: Prompt) -> None:
    right = measure_clip(clip[-80:], Rhythm(FPS), prompt).right
    assert not right["colour"]
    assert not right[ALIGNED]
    assert right["shape"]


def test_a_metric_that_a_clip_is_too_short_for_is_left_out(clip: np.ndarray) -> None:
    found = measure_clip(clip[:16], Rhythm(FPS))
    assert METRICS.keys() - found.scores.keys() == {"first_chunk_copying"}
    assert measure_clip(clip[:1], Rhythm(FPS)).scores.keys() == set(PER_FRAME)
    assert found.right == found.seen == {}


def test_frames_of_another_kind_are_refused(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="frames must be uint8"):
        measure_clip(clip[:16] / 255, Rhythm(FPS))  # pyright: ignore[reportArgumentType]


def test_a_long_clip_is_judged_at_both_ends(long: ClipScores) -> None:
    assert long.right["colour@start"]
    assert long.right["aligned@start"]
    assert not long.right["colour@end"]
    assert not long.right["aligned@end"]
    assert long.right["background@end"]
    assert long.seen["start"]["colours"] == ("red",)
    assert long.seen["end"]["colours"] == ("green",)


def test_every_metric_has_its_place_in_a_long_clip(long: ClipScores) -> None:
    assert sorted(PER_FRAME + WHOLE + AT_ENDS) == sorted(METRICS)
    expected = {*PER_FRAME, *WHOLE} | {f"{name}@{part}" for name in AT_ENDS for part in ("start", "end")}
    expected |= {f"{name}@{part}" for name in PER_FRAME for part in ("drift", "slope")}
    parts = ("", "@end", "@drift", "@slope")
    expected |= {f"{name}{part}" for name in WORLD_METRICS for part in parts} | {"tracked_moves"}
    assert long.scores.keys() == expected
    assert long.curves.keys() == {*PER_FRAME, *WORLD_METRICS}
    assert {len(curve) for curve in long.curves.values()} == {8}, "15 seconds in segments of 2"


def test_a_long_clip_is_held_to_its_own_first_chunk(long: ClipScores) -> None:
    """The ball turns green and all fades at 8 seconds; it goes on bouncing."""
    assert long.curves["colour_shift"][0] < 0.05
    assert long.scores["colour_shift@end"] > 0.5
    assert 0.1 < long.scores["background_shift@end"] < 0.8
    assert long.scores["tracked_motion@end"] > 0.8
    assert long.scores["count_shift@end"] < 0.1


def test_a_clip_without_an_object_has_no_identity_to_lose() -> None:
    snow = next(prompt for prompt in held_out_prompts(60) if prompt.scene.kind == "snow")
    found = measure_clip(render(snow.scene, FRAMES), Rhythm(FPS), snow)
    assert found.curves.keys() == {*PER_FRAME, "tracked_motion"}


def test_curves_drift_and_slope_are_those_of_every_frame(clip: np.ndarray, long: ClipScores) -> None:
    values = METRICS["contrast"].function(clip, Rhythm(FPS)).values
    drift = video_drift(values, FPS)
    assert long.scores["contrast"] == values.mean()
    assert long.curves["contrast"] == drift.means
    assert (long.scores["contrast@drift"], long.scores["contrast@slope"]) == (drift.drift, drift.slope)
    assert long.scores["contrast@slope"] < -5  # it fades


def test_the_ends_are_the_first_and_last_seconds_with_chunks_in_place(clip: np.ndarray, long: ClipScores) -> None:
    start = measure(clip[:80], AT_ENDS)
    assert {name: long.scores[f"{name}@start"] for name in AT_ENDS} == {name: one.score for name, one in start.items()}
    assert (FRAMES - 80, (165 - 9) % 12) == (160, 0)  # the first chunk that begins in the last 80 frames
    end = measure(clip[165:], AT_ENDS, Rhythm(FPS, 12, 12))
    assert {name: long.scores[f"{name}@end"] for name in AT_ENDS} == {name: one.score for name, one in end.items()}


def test_a_jump_at_a_chunk_border_near_the_end_is_seen_there(clip: np.ndarray, long: ClipScores) -> None:
    jumpy = clip.copy()
    for border in range(9, FRAMES, 12):
        jumpy[border : border + 12] = np.clip(jumpy[border : border + 12].astype(int) + 12 * (border // 12 % 2), 0, 255)
    found = measure_clip(jumpy, Rhythm(FPS)).scores
    for part in ("start", "end"):
        assert found[f"border_jump@{part}"] > 2 > long.scores[f"border_jump@{part}"]


def test_a_copy_of_the_first_chunk_is_found_on_one_frame_for_each_latent_frame() -> None:
    brightness = np.arange(FRAMES) // 2
    brightness[129:138] = brightness[:9]
    still = render(Scene("slide", shape="ball", colour="red", background="gray", direction="right"), 1, size=16)
    copied = np.clip(still.astype(int) + brightness[:, None, None, None], 0, 255).astype(np.uint8)
    found = measure_clip(copied, Rhythm(FPS)).scores["first_chunk_copying"]
    one_for_each = METRICS["first_chunk_copying"].function(copied[::4], Rhythm(FPS / 4, 3, 3, 1))
    assert found == one_for_each.score > 0.03
    assert one_for_each.at[one_for_each.values.argmax()] in range(33, 35)  # frames 132 and 136


@pytest.mark.parametrize("name", ["flow_moves", "flow_moves@end", "colour", "aligned@start"])
def test_rates_are_told_from_means(name: str) -> None:
    assert meaning(name).kind == "rate"


def test_the_meaning_of_a_part_says_which(long: ClipScores) -> None:
    assert meaning("flicker@end").doc.endswith("On the last 5 seconds.")
    assert (meaning("contrast@drift").unit, meaning("contrast@drift").better) == ("levels", "lower")
    assert meaning("contrast@slope").unit == "levels per minute"
    for name in (*long.scores, *long.right):
        assert meaning(name).doc
