"""The detector sees what the world shows, and says so when it does not."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from reward_forcing.data.captions import UNSAID
from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import KINDS, SIZES, SPEEDS, Scene, render
from reward_forcing.data.switches import switched_scene
from reward_forcing.evaluation.metrics.defects import add_jitter, blur, freeze
from reward_forcing.evaluation.world_suite import by_kind, held_out_prompts, judge, summarise
from reward_forcing.evaluation.world_vision import see


@pytest.mark.parametrize("kind", KINDS)
def test_attributes_of_rendered_scenes_are_read_rightly(kind: str) -> None:
    for index in range(6):
        scene = world_scene(index, "validation", kind)
        seen = see(render(scene, 81))
        assert seen.kind == kind, (scene, seen)
        assert seen.direction == scene.direction, (scene, seen)
        if KINDS[kind].has_object:
            wanted = [(scene.shape, scene.colour), *([scene.second] if scene.second else [])]
            assert sorted(seen.shapes) == sorted(shape for shape, _ in wanted), (scene, seen)
            assert sorted(seen.colours) == sorted(colour for _, colour in wanted), (scene, seen)
        if scene.setting != "land":
            assert (seen.background, seen.setting) == (scene.background, scene.setting), (scene, seen)


def test_slightly_blurred_clips_are_still_read() -> None:
    right = []
    for index in range(16):
        scene = world_scene(index, "validation", "slide")
        seen = see(np.stack([cv2.GaussianBlur(frame, (0, 0), 0.8) for frame in render(scene, 81)]))
        right.append(seen.colours == (scene.colour,) and seen.shapes == (scene.shape,))
    assert np.mean(right) > 0.85


@pytest.mark.parametrize(("swing", "kind"), [(5, "pulse"), (16, "bounce")])
def test_what_swells_more_than_it_travels_pulses(swing: int, kind: str) -> None:
    """A pulse of radius 9 to 21 pixels whose centre goes up and down as well, by 10 pixels or by 32."""
    scene = Scene("pulse", shape="square", background="blue", size="big", x=0.5, y=0.5)
    shifts = np.round(swing * np.sin(np.arange(81) / 5)).astype(int)
    frames = np.stack([np.roll(frame, by, axis=0) for frame, by in zip(render(scene, 81), shifts, strict=True)])
    assert see(frames).kind == kind


def test_a_frozen_clip_is_still() -> None:
    frames = np.repeat(render(Scene("bounce", setting="floor", background="blue"), 1), 40, axis=0)
    seen = see(frames)
    assert seen.still
    assert seen.kind == "still"
    assert seen.colours == ("red",)


def test_a_wrong_colour_or_a_second_object_is_counted_as_wrong() -> None:
    prompt = held_out_prompts(1)[0]
    good = judge(prompt, render(prompt.scene, 81)).right
    assert all(good.values()), good
    blue = judge(prompt, render(Scene("bounce", colour="green", background="blue", setting="floor"), 81)).right
    assert not blue["colour"]
    assert blue["shape"]
    two = Scene("two", second=("square", "yellow"), background="blue", setting="floor", size="small")
    assert not judge(prompt, render(two, 81)).right["count"]


def test_a_prompt_that_leaves_an_attribute_out_is_not_judged_by_it() -> None:
    prompts = [prompt for prompt in held_out_prompts(60) if prompt.scene.kind in ("snow", "day")]
    verdicts = [judge(prompt, render(prompt.scene, 81)) for prompt in prompts[:3]]
    assert all("shape" not in verdict.right and "colour" not in verdict.right for verdict in verdicts)


def test_the_summary_counts_rates_with_intervals() -> None:
    prompts = held_out_prompts(8)
    summary = summarise([judge(prompt, render(prompt.scene, 81)).right for prompt in prompts])
    for name, numbers in summary.items():
        assert 0 <= numbers["low"] <= numbers["rate"] <= numbers["high"] + 1e-9 <= 1 + 1e-9, name
    assert summary["motion"]["count"] == 8
    assert summary["motion"]["rate"] >= 7 / 8
    rights = [{"motion": True, "colour": False}, {"motion": True, "direction": False}, {"motion": True}, {}]
    counted = {name: (numbers["rate"], numbers["count"]) for name, numbers in summarise(rights).items()}
    assert counted == {
        "motion": (1, 3), "colour": (0, 1), "direction": (0, 1), "motion_and_direction": (2 / 3, 3),
        "aligned": (1 / 3, 3),
    }  # fmt: skip
    groups = by_kind(["snow", "bounce", "snow", "bounce"], rights)
    assert {kind: numbers["aligned"]["count"] for kind, numbers in groups.items()} == {"bounce": 1, "snow": 2}


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_speed_is_read_for_every_kind(kind: str, speed: str) -> None:
    scene = replace(world_scene(3, "validation", kind), speed=speed, pace=1.1)
    assert see(render(scene, 81)).speed == speed, scene


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["slide", "orbit", "pulse", "spin"])
def test_the_size_is_read_whatever_the_motion_and_the_shape(kind: str, size: str) -> None:
    for shape in KINDS[kind].shapes:
        scene = replace(world_scene(1, "validation", kind), size=size, shape=shape)
        assert see(render(scene, 81)).size == size, scene


def test_a_landscape_has_no_size_and_a_still_clip_no_speed() -> None:
    assert see(render(world_scene(0, "validation", "pan"), 81)).size == ""
    assert see(np.repeat(render(Scene("bounce"), 1), 40, axis=0)).speed == ""


@pytest.mark.parametrize("index", range(6))
def test_a_switch_is_found_where_it_is(index: int) -> None:
    frames = switched_scene(index, "validation", 45).clip(45, 90).permute(0, 2, 3, 1)
    changes = see((frames * 255).round().byte().numpy()).changes
    assert any(abs(at - 45) <= 2 for at in changes), changes


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_without_a_switch_has_no_change(kind: str) -> None:
    scene = world_scene(2, "validation", kind)
    assert see(render(scene, 81)).changes == (), scene


@pytest.mark.parametrize("kind", ["bounce", "slide", "climb", "orbit", "swing", "wander"])
def test_the_residual_grows_from_clean_to_jittered_to_shuffled(kind: str) -> None:
    clean = render(world_scene(4, "validation", kind), 81)
    shuffled = clean[np.random.default_rng(0).permutation(81)]
    residuals = [see(frames).residual for frames in (clean, add_jitter(clean, 0.04), shuffled)]
    assert residuals[0] < 0.01
    assert residuals[0] < residuals[1] < residuals[2], residuals


def test_the_residual_tells_a_clip_that_freezes_and_an_object_that_teleports() -> None:
    clean = render(Scene("slide", direction="right", x=0.4), 81)
    teleported = clean.copy()
    teleported[40:] = np.roll(clean[40:], 12, axis=1)
    residuals = [see(frames).residual for frames in (clean, freeze(clean, 0.5), teleported)]
    assert min(residuals[1:]) > 5 * residuals[0], residuals


def test_size_and_speed_are_judged_where_the_prompt_says_them() -> None:
    for prompt in held_out_prompts(12):
        right = judge(prompt, render(prompt.scene, 81)).right
        assert {name for name in ("size", "speed") if prompt.says[name] != UNSAID} == {"size", "speed"} & right.keys()
        assert all(right.values()), (prompt, right)


def test_an_unknown_residual_is_stored_as_none() -> None:
    prompt = next(prompt for prompt in held_out_prompts(60) if prompt.scene.kind == "pan")
    seen = judge(prompt, render(prompt.scene, 33)).as_json()["seen"]
    assert isinstance(seen, dict)
    assert seen["residual"] is None


def test_blur_leaves_the_colour_readable() -> None:
    scenes = [world_scene(index, "held_out") for index in range(30)]
    scenes = [scene for scene in scenes if KINDS[scene.kind].has_object and scene.second is None][:24]
    assert len(scenes) >= 20
    right = [see(blur(render(scene, 33), 1)).colours == (scene.colour,) for scene in scenes]
    assert np.mean(right) >= 0.95


def test_a_trembling_clip_of_any_length_is_read() -> None:
    still = render(Scene("pulse"), 1)[0]
    for frames in range(2, 33):
        trembling = np.stack([np.roll(still, 4 * (number % 2), axis=1) for number in range(frames)])
        assert see(trembling).shapes == ("ball",)
