"""Motion by tracking: all of it on renders of what is meant, none in defects that other measures take for motion."""

from dataclasses import replace

import numpy as np
import pytest

from reward_forcing.data.scenes import KINDS, render
from reward_forcing.evaluation.metrics.defects import DEFECTS
from reward_forcing.evaluation.world_suite import Prompt, held_out_prompts
from reward_forcing.evaluation.world_tracking import MOST, tracked_motion

PROMPTS = {prompt.scene.kind: prompt for prompt in held_out_prompts(60)}
OF_OBJECTS = sorted(kind for kind in PROMPTS if KINDS[kind].has_object)


def rendered(prompt: Prompt, frames: int = 81, **changes: object) -> np.ndarray:
    """A clip of what the prompt means: of the usual motion, where it names no speed at a normal one."""
    speed = prompt.scene.speed if prompt.says["speed"] != "unsaid" else "normal"
    return render(replace(prompt.scene.usual, **{"speed": speed, **changes}), frames)


def motion(clip: np.ndarray, prompt: Prompt) -> float:
    return float(tracked_motion(clip, prompt).mean())


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_render_of_what_is_meant_has_all_of_its_motion_and_a_frozen_one_none(kind: str) -> None:
    prompt = PROMPTS[kind]
    clip = rendered(prompt)
    assert motion(clip, prompt) == pytest.approx(1, abs=0.06)
    assert motion(np.repeat(clip[:1], 81, axis=0), prompt) < 0.01


@pytest.mark.parametrize("kind", OF_OBJECTS)
def test_a_clip_that_stops_half_way_has_about_half_of_the_motion(kind: str) -> None:
    clip = rendered(PROMPTS[kind])
    half = np.concatenate([clip[:41], np.repeat(clip[40:41], 40, axis=0)])
    assert 0.3 < motion(half, PROMPTS[kind]) < 0.7


@pytest.mark.parametrize("defect", ["flicker", "noise"])
@pytest.mark.parametrize("kind", ["bounce", "pulse", "spin"])
def test_flicker_and_noise_are_no_motion(kind: str, defect: str) -> None:
    still = np.repeat(rendered(PROMPTS[kind])[:1], 81, axis=0)
    broken = DEFECTS[defect].apply(still, DEFECTS[defect].levels[-1])
    assert np.abs(np.diff(broken.astype(int), axis=0)).mean() > 5, "a difference of frames would see motion"
    assert motion(broken, PROMPTS[kind]) < 0.1


def test_an_object_that_jumps_between_two_places_does_not_move() -> None:
    prompt = PROMPTS["orbit"]
    clip = rendered(prompt)
    jumping = np.where(np.arange(81)[:, None, None, None] % 2, clip[:1], clip[36:37])
    assert motion(jumping, prompt) == 0


def test_another_kind_of_motion_is_not_the_one_that_is_meant() -> None:
    slide, pulse = PROMPTS["slide"], PROMPTS["pulse"]
    bounced = rendered(replace(slide, scene=replace(slide.scene, kind="bounce", direction="", setting="plain")))
    assert motion(bounced, pulse) < 0.5
    assert motion(rendered(PROMPTS["pan"]), PROMPTS["snow"]) == 0


def test_an_object_that_is_lost_half_way_and_a_second_one_that_is_missing_count_half() -> None:
    prompt, two = PROMPTS["orbit"], PROMPTS["two"]
    clip = rendered(prompt)
    clip[41:] = np.median(clip[0].reshape(-1, 3), axis=0)
    assert motion(clip, prompt) == pytest.approx(0.5, abs=0.1)
    one = rendered(two)
    one[:, :, 32:] = one[:, :, :1]
    assert motion(one, two) == pytest.approx(0.5, abs=0.15)


def test_a_speed_counts_against_the_one_that_is_named_or_a_normal_one() -> None:
    prompt = PROMPTS["orbit"]
    named = replace(prompt, scene=replace(prompt.scene, speed="fast"), says=prompt.says | {"speed": "fast"})
    unnamed = replace(named, says=prompt.says | {"speed": "unsaid"})
    clip = render(named.scene.usual, 81)
    assert motion(clip, named) == pytest.approx(1, abs=0.02)
    assert motion(clip, unnamed) == pytest.approx(1.5, abs=0.1)
    assert motion(np.ascontiguousarray(clip[::2]), unnamed) == pytest.approx(MOST), "a wild clip is cut"


def test_what_no_prompt_tells_counts_against_the_usual() -> None:
    prompt = PROMPTS["bounce"]
    least = KINDS["bounce"].least_reach
    narrow, wide = (motion(rendered(prompt, reach=reach), prompt) for reach in (least, 1.0))
    assert narrow / wide == pytest.approx(least, abs=0.03)
    assert narrow < 0.8
    assert wide > 1.2


def test_the_motion_is_told_from_frame_to_frame_and_needs_five() -> None:
    prompt = PROMPTS["orbit"]
    assert tracked_motion(rendered(prompt, 40), prompt).shape == (36,)
    with pytest.raises(ValueError, match="needs at least 5 frames, got 4"):
        tracked_motion(rendered(prompt, 4), prompt)
