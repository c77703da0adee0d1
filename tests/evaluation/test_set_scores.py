"""Scores of a set with intervals, on records whose answer is known."""

import numpy as np
import pytest
from evaluation.records import record

from reward_forcing.evaluation import set_scores
from reward_forcing.evaluation.drift import measure_drift, video_drift
from reward_forcing.evaluation.set_scores import score_set
from reward_forcing.evaluation.statistics import bootstrap_mean, wilson_interval

FPS = 16


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_scores, "RESAMPLES", 500)


def test_means_have_a_bootstrap_over_prompts_and_rates_wilsons_interval_over_clips() -> None:
    flicker = [[1.0, 2.0], [4.0, 6.0], [3.0, 3.0]]
    samples = [
        record(index, seed, {"flicker": value, "flow_moves": 1.0}, right={"colour": index > 0})
        for index, seeds in enumerate(flicker) for seed, value in enumerate(seeds)
    ]  # fmt: skip
    found = score_set("short", 5, samples)
    assert (found.prompts, found.seeds_per_prompt) == (3, 2)
    for name, expected in (
        ("flicker", bootstrap_mean(flicker, resamples=500)),
        ("colour", wilson_interval(4, 6)),
        ("flow_moves", wilson_interval(6, 6)),
    ):
        score = found.scores[name]
        assert (score.value, score.low, score.high, score.count) == (
            expected.value, expected.low, expected.high, expected.count,
        )  # fmt: skip
    assert [found.scores[name].kind for name in ("flicker", "colour", "flow_moves")] == ["mean", "rate", "rate"]
    assert (found.scores["flicker"].unit, found.scores["flicker"].better) == ("levels", "lower")


def test_what_only_one_prompt_has_is_left_out() -> None:
    samples = [record(0, scores={"flicker": 1.0, "contrast": 2.0}), record(1, scores={"contrast": 3.0})]
    assert score_set("short", 5, samples).scores.keys() == {"contrast"}


def test_drift_is_that_of_the_drift_module() -> None:
    rng = np.random.default_rng(0)
    values = [rng.normal(50, 3, 333).cumsum() / 50 for _ in range(4)]  # 20.8 s: the last segment overlaps
    samples = []
    for index, metric in enumerate(values):
        drift = video_drift(metric, FPS)
        scores = {"contrast": metric.mean(), "contrast@drift": drift.drift, "contrast@slope": drift.slope}
        length = {"frames": 333, "seconds": 333 / FPS}
        samples.append(record(index, scores=scores, curves={"contrast": drift.means}, **length))
    found = score_set("short", 333 / FPS, samples).drift["contrast"]
    expected = measure_drift(values, FPS, resamples=500)
    assert (found.drift, found.change) == pytest.approx((expected.drift, expected.change))
    slope = expected.slope
    assert (found.slope.value, found.slope.low, found.slope.high) == (slope.value, slope.low, slope.high)
    assert np.array(found.curve) == pytest.approx(np.array(expected.curve))
