"""Scores of a set with intervals, and two evaluations side by side, on records whose answer is known."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from reward_forcing.evaluation import set_scores
from reward_forcing.evaluation.drift import measure_drift, video_drift
from reward_forcing.evaluation.results import EvalResults, Provenance, Sample
from reward_forcing.evaluation.set_scores import common_sets, compare_sets, score_set
from reward_forcing.evaluation.statistics import bootstrap_mean, wilson_interval

FPS = 16


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_scores, "RESAMPLES", 500)


def record(index: int, seed: int = 0, scores: dict[str, float] | None = None, **values: object) -> Sample:
    known = {"set": "short", "prompt_index": index, "prompt": f"prompt {index}", "seed": seed, "seconds": 5.0}
    return Sample.model_validate({**known, "frames": 80, "file": "x.mp4", "scores": scores or {}, **values})


def evaluation(samples: Sequence[Sample], name: str = "short", seconds: float = 5) -> EvalResults:
    origin = Provenance(
        command="", created="", model="", weights=None, streaming={}, prompts="", seed=0, commit="", versions={},
        machine="",
    )  # fmt: skip
    sets = (score_set(name, seconds, samples),)
    return EvalResults(suite="file", provenance=origin, sets=sets, samples=tuple(samples))


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


def pair(a: Callable[[int], float], b: Callable[[int], float], name: str, count: int = 8) -> set_scores.Paired:
    ours, theirs = (evaluation([record(i, scores={name: of(i)}) for i in range(count)]) for of in (a, b))
    return compare_sets(ours, theirs, "short")[name]


def test_a_constant_difference_is_found_whatever_the_prompts() -> None:
    found = pair(lambda i: 0.1 * i + 0.5, lambda i: 0.1 * i, "subject_constancy").comparison
    difference = found.difference
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.win_rate, found.effect_size) == (1, float("inf"))
    assert found.p_value == pytest.approx(2 / 2**8)


def test_where_lower_is_better_the_lower_one_wins_and_the_difference_stays_a_minus_b() -> None:
    found = pair(lambda i: 2.0 + i % 2, lambda i: 4.0, "flicker")
    assert found.better == "lower"
    assert found.comparison.difference.value == pytest.approx(-1.5)
    assert found.comparison.difference.low <= -1.5 <= found.comparison.difference.high < 0
    assert found.comparison.win_rate == 1
    assert found.comparison.effect_size > 0


def test_an_evaluation_against_itself_is_a_draw() -> None:
    found = pair(lambda i: float(i), lambda i: float(i), "flicker").comparison
    assert (found.difference.value, found.win_rate, found.effect_size, found.p_value) == (0, 0.5, 0, 1)


def test_rates_are_compared_prompt_by_prompt() -> None:
    ours, theirs = (
        evaluation([record(i, right={"colour": i < right}) for i in range(8)]) for right in (6, 2)
    )  # fmt: skip
    found = compare_sets(ours, theirs, "short")["colour"].comparison
    assert found.difference.value == pytest.approx(0.5)
    assert found.win_rate == pytest.approx(0.75)  # 4 wins, 4 draws


def test_only_prompts_that_both_measured_are_compared() -> None:
    ours = evaluation([record(i, scores={"flicker": 1.0} if i else {}) for i in range(4)])
    theirs = evaluation([record(i, scores={"flicker": 2.0, "contrast": 1.0}) for i in range(4)])
    found = compare_sets(ours, theirs, "short")
    assert found.keys() == {"flicker"}
    assert found["flicker"].comparison.difference.count == 3


MISMATCHES = [
    ([record(0), record(1), record(2)], "3 prompts in one evaluation and 2 in the other"),
    ([record(0), record(1, prompt="a red ball")], "prompt 1 of set 'short' is 'a red ball' in one .* 'prompt 1'"),
    ([record(0), record(1, seed=4)], r"'prompt 1' has the seeds \[4\] in one evaluation and \[0\] in the other"),
    ([record(0), record(1), record(1, seed=4)], r"has the seeds \[0, 4\] .* and \[0\]"),
]


@pytest.mark.parametrize(("samples", "message"), MISMATCHES)
def test_other_prompts_or_seeds_are_refused(samples: list[Sample], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare_sets(evaluation(samples), evaluation([record(0), record(1)]), "short")


def test_other_lengths_and_other_sets_are_refused() -> None:
    samples = [record(0), record(1)]
    with pytest.raises(ValueError, match="last 5 s and 60 s"):
        compare_sets(evaluation(samples), evaluation(samples, seconds=60), "short")
    other = evaluation([record(i, set="60s") for i in range(2)], "60s")
    with pytest.raises(ValueError, match="no set in common: short and 60s"):
        common_sets(evaluation(samples), other)
    with pytest.raises(ValueError, match="no set 'long' in these results"):
        common_sets(evaluation(samples), other, "long")
    assert common_sets(other, other) == ["60s"]
