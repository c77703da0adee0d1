"""The detector sees what the world shows, and says so when it does not."""

import cv2
import numpy as np
import pytest

from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import KINDS, Scene, render
from reward_forcing.evaluation.world_suite import held_out_prompts, judge, summarise
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
    summary = summarise([judge(prompt, render(prompt.scene, 81)) for prompt in prompts])
    for name, numbers in summary.items():
        assert 0 <= numbers["low"] <= numbers["rate"] <= numbers["high"] + 1e-9 <= 1 + 1e-9, name
    assert summary["motion"]["count"] == 8
    assert summary["motion"]["rate"] >= 7 / 8
