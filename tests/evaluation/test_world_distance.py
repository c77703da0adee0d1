"""The distance to rendered clips tells good sets from bad ones, and ranks graded defects."""

import numpy as np
import pytest
from evaluation.records import record

from reward_forcing.data.dataset import world_scene
from reward_forcing.data.scenes import Scene, render
from reward_forcing.evaluation.clip_scores import measure_clip
from reward_forcing.evaluation.metrics import Rhythm
from reward_forcing.evaluation.metrics.defects import DEFECTS
from reward_forcing.evaluation.set_scores import score_set
from reward_forcing.evaluation.world_distance import (
    FRECHET,
    KERNEL,
    distances,
    features_of,
    reference_features,
    rendered_features,
    window_frames,
)
from reward_forcing.evaluation.world_suite import held_out_prompts

PROMPTS = held_out_prompts(56)
SCENES = [prompt.scene for prompt in PROMPTS]


def of_scenes(scenes: list[Scene], start: float = 0) -> list[list[list[float]]]:
    return [[row] for row in rendered_features(scenes, start).tolist()]


def test_the_window_is_what_the_network_was_trained_on() -> None:
    assert (window_frames(16), window_frames(8)) == (81, 41)


def test_a_clip_has_the_features_of_its_scene() -> None:
    clip = render(SCENES[1], 81)
    np.testing.assert_allclose(features_of(clip), rendered_features(SCENES[1:2])[0], atol=1e-5)
    later = render(SCENES[1], 81, start=160)
    np.testing.assert_allclose(features_of(later), rendered_features(SCENES[1:2], 10.0)[0], atol=1e-3)


def test_rendered_clips_are_near_and_wrong_ones_are_far() -> None:
    right = distances(of_scenes(SCENES))
    assert right.keys() == {FRECHET, KERNEL}
    assert right[KERNEL].low < 0 < right[KERNEL].high
    one_kind = distances(of_scenes([world_scene(i, "held_out", "bounce") for i in range(56)]))
    for name in (FRECHET, KERNEL):
        assert one_kind[name].low > right[name].high


@pytest.mark.parametrize("defect", ["freeze", "blur", "tint drift"])
def test_graded_defects_are_ranked(defect: str) -> None:
    clips = [render(prompt.scene, 81) for prompt in held_out_prompts(144)]
    levels = DEFECTS[defect].levels[0], DEFECTS[defect].levels[-2], DEFECTS[defect].levels[-1]
    found = [distances([[list(features_of(DEFECTS[defect].apply(clip, level)))] for clip in clips]) for level in levels]
    for name in (FRECHET, KERNEL):
        values = [one[name].value for one in found]
        assert values == sorted(values), (name, values)
        assert values[-1] > 1.2 * values[0], (name, values)


def test_a_few_clips_have_no_frechet_distance() -> None:
    assert distances(of_scenes(SCENES[:8])).keys() == {KERNEL}
    assert distances(of_scenes(SCENES[:2])) == {}
    assert len(reference_features()) == 256


def test_a_set_carries_its_distance_and_that_of_a_perfect_model() -> None:
    samples = [record(i, features={"": tuple(row)}) for i, row in enumerate(rendered_features(SCENES[:12]).tolist())]
    scores = score_set("short", 5, samples, SCENES).scores
    assert scores.keys() == {KERNEL, f"rendered_{KERNEL}"}
    found, perfect = scores[KERNEL], scores[f"rendered_{KERNEL}"]
    assert (found.value, found.low, found.high) == (perfect.value, perfect.low, perfect.high)
    assert (found.kind, found.better, perfect.better, found.count) == ("distance", "lower", "neither", 12)
    assert not score_set("short", 5, samples).scores


def test_only_clips_of_the_world_have_features() -> None:
    clip, rhythm = render(SCENES[0], 81), Rhythm(16)
    assert measure_clip(clip, rhythm, PROMPTS[0]).features[""] == features_of(clip)
    assert measure_clip(clip, rhythm).features == {}
    long = render(SCENES[0], 177)
    found = measure_clip(long, rhythm, PROMPTS[0]).features
    assert found == {"start": features_of(long[:81]), "end": features_of(long[-81:])}
