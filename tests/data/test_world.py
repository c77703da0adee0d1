"""The world is deterministic, complete and true to its captions."""

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from reward_forcing.data.captions import TRAITS, UNSAID, caption, vocabulary
from reward_forcing.data.dataset import clip, is_held_out, wording, world_scene
from reward_forcing.data.palette import BACKGROUND_COLOURS, OBJECT_COLOURS, distance
from reward_forcing.data.scenes import FPS, KINDS, PACES, SPEEDS, Scene, render, sprites, untold


@pytest.mark.parametrize("kind", KINDS)
def test_a_stretch_of_a_scene_equals_that_stretch_of_the_whole(kind: str) -> None:
    scene = world_scene(3, "train", kind)
    assert np.array_equal(render(scene, 40)[25:], render(scene, 15, start=25))


def test_the_first_frame_tells_which_way_an_object_turns() -> None:
    for number in range(40):
        orbit, spin = (world_scene(number, "train", kind) for kind in ("orbit", "spin"))
        at = sprites(orbit, np.array([0.0]))[0]
        assert (at.x[0] < 0.5) == (orbit.direction == "clockwise"), orbit
        assert at.y[0] < 0.5, orbit
        assert (sprites(spin, np.array([0.0]))[0].angle[0] < 0) == (spin.direction == "clockwise"), spin


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_moves_for_minutes(kind: str) -> None:
    scene = world_scene(5, "train", kind)
    for start in (0, 60 * FPS, 600 * FPS):
        frames = render(scene, 24, start=start).astype(int)
        assert np.abs(frames[8:] - frames[:-8]).mean() > 0.2, f"{scene} stands still after frame {start}"


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.has_object])
def test_objects_move_slowly_enough_for_the_vae(kind: str) -> None:
    t = np.arange(160, dtype=np.float32) / FPS
    for index in range(12):
        for sprite in sprites(world_scene(index, "train", kind), t):
            steps = np.hypot(np.diff(sprite.x), np.diff(sprite.y))
            assert steps[steps < 0.5].max() * 64 < 3.6, "pixels a frame at 64 x 64; larger jumps are returns"


@pytest.mark.parametrize("kind", ["bounce", "orbit", "swing", "pulse"])
def test_how_far_an_object_goes_is_open_and_within_its_range(kind: str) -> None:
    def extent(scene: Scene) -> float:
        one = sprites(scene, np.arange(0, 12, 0.05))[-1]
        return max(float(np.ptp(values)) for values in (one.x, one.y, one.radius))

    scenes = [replace(world_scene(index, "train", kind), size="small", speed="normal") for index in range(60)]
    shares = [extent(scene) / extent(replace(scene, reach=1.0)) for scene in scenes]
    least = KINDS[kind].least_reach
    assert least - 0.02 < min(shares) < least + 0.05
    assert 0.95 < max(shares) <= 1
    assert np.corrcoef(shares, [scene.reach for scene in scenes])[0, 1] > 0.99


def test_every_scene_has_a_pace_of_its_own() -> None:
    rates: dict[str, list[float]] = {name: [] for name in SPEEDS}
    for index in range(400):
        scene = world_scene(index)
        rates[scene.speed].append(scene.rate / SPEEDS[scene.speed])
    for name, paces in rates.items():
        assert PACES[name][0] <= min(paces) < PACES[name][0] + 0.03
        assert PACES[name][1] - 0.03 < max(paces) <= PACES[name][1]


def test_a_speed_that_is_named_is_reached_by_no_other() -> None:
    named = dict.fromkeys(SPEEDS, 0)
    for index in range(600):
        scene = world_scene(index)
        said = caption(scene, np.random.default_rng(index)).says["speed"]
        if said == UNSAID:
            continue
        named[said] += 1
        assert said == scene.speed == min(SPEEDS, key=lambda name: abs(np.log(SPEEDS[name] / scene.rate)))
    assert min(named.values()) > 8


def test_what_a_prompt_leaves_open_has_draws_of_its_own() -> None:
    drawn = [untold(np.random.default_rng(seed), "swing", "normal") for seed in range(300)]
    assert untold(np.random.default_rng(3), "swing", "normal") == drawn[3]
    assert abs(np.corrcoef([one["pace"] for one in drawn], [one["reach"] for one in drawn])[0, 1]) < 0.15
    swing, slide = world_scene(5, "train", "swing"), world_scene(5, "train", "slide")
    assert swing.usual == replace(swing, pace=1.0, reach=0.775)
    assert slide.usual == replace(slide, pace=1.0, reach=1.0)


def test_scenes_of_a_split_never_change_and_splits_do_not_share_them() -> None:
    assert [world_scene(i) for i in range(20)] == [world_scene(i) for i in range(20)]
    assert not {world_scene(i) for i in range(50)} & {world_scene(i, "validation") for i in range(50)}


def test_held_out_combinations_never_appear_in_training() -> None:
    assert not any(is_held_out(world_scene(i)) for i in range(500))
    held_out = [world_scene(i, "held_out") for i in range(200)]
    assert all(is_held_out(scene) for scene in held_out if KINDS[scene.kind].has_object)
    kinds = Counter(scene.kind for scene in held_out)
    assert set(kinds) == set(KINDS), "every kind can be judged"


def test_held_out_wordings_are_new_but_made_of_known_words() -> None:
    known = set(vocabulary())
    train = {wording(i, "train", seed) for i in range(400) for seed in range(3)}
    held_out = {wording(i, "held_out") for i in range(300)}
    assert not train & (held_out - {"a red ball bounces over a blue floor"})
    for text in train | held_out:
        assert set(text.replace(",", " ").split()) <= known, text


def test_the_first_held_out_prompt_is_the_one_people_type() -> None:
    scene = world_scene(0, "held_out")
    assert wording(0, "held_out") == "a red ball bounces over a blue floor"
    assert (scene.kind, scene.colour, scene.shape, scene.background, scene.setting) == (
        "bounce", "red", "ball", "blue", "floor",
    )  # fmt: skip


def test_a_caption_says_what_the_scene_is_or_nothing() -> None:
    silent = Counter()
    for index in range(600):
        scene = world_scene(index)
        worded = caption(scene, np.random.default_rng(index))
        truth = {"kind": scene.kind, "shape": scene.shape, "colour": scene.colour, "size": scene.size,
                 "speed": scene.speed, "direction": scene.direction, "background": scene.background,
                 "setting": scene.setting}  # fmt: skip
        if scene.second is not None:
            truth |= {"second_shape": scene.second[0], "second_colour": scene.second[1]}
        for trait, value in worded.says.items():
            assert value in TRAITS[trait]
            assert value in (UNSAID, truth.get(trait)), (scene, worded)
        if worded.says["colour"] not in (UNSAID,):
            assert worded.says["colour"] in worded.text
        silent.update(trait for trait, value in worded.says.items() if value == UNSAID)
    assert silent["background"] > 40, "some captions leave the background out"
    assert silent["colour"] > 10, "some captions leave the colour out"


def test_object_colours_lie_apart() -> None:
    for a, b in combinations(OBJECT_COLOURS, 2):
        assert distance(OBJECT_COLOURS[a], OBJECT_COLOURS[b]) >= 100, (a, b)
    assert {"red", "blue", "green", "gray", "black", "white", "brown"} <= set(BACKGROUND_COLOURS)


def test_objects_stand_out_from_their_background() -> None:
    for index in range(300):
        scene = world_scene(index)
        if KINDS[scene.kind].has_object and scene.setting == "plain":
            assert distance(OBJECT_COLOURS[scene.colour], BACKGROUND_COLOURS[scene.background]) >= 85, scene


def test_a_clip_is_frames_in_unit_range() -> None:
    frames = clip(world_scene(1), 5, size=32)
    assert frames.shape == (5, 3, 32, 32)
    assert 0 <= float(frames.min()) < float(frames.max()) <= 1


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'train'"):
        world_scene(0, "trian")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'bounce'"):
        world_scene(0, "train", "bonce")
