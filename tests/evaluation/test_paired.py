"""Two evaluations side by side, on records whose answer is known."""

from collections.abc import Callable

import pytest
from evaluation.records import evaluation, record

from reward_forcing.evaluation.paired import PairedMeasure, pair


def paired(a: Callable[[int], float], b: Callable[[int], float], name: str, count: int = 8) -> PairedMeasure:
    ours, theirs = (evaluation([record(i, scores={name: of(i)}) for i in range(count)]) for of in (a, b))
    (found,) = pair(ours, theirs)
    assert (found.set, found.measure, found.clips) == ("short", name, count)
    return found


def test_a_constant_difference_is_found_whatever_the_prompts() -> None:
    found = paired(lambda i: 0.1 * i + 0.5, lambda i: 0.1 * i, "subject_constancy")
    difference = found.difference
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.5, 0.5, 0.5))
    assert (found.win_rate, found.effect_size, found.verdict) == (1, float("inf"), "better")
    assert found.p_value == pytest.approx(2 / 2**8)


def test_where_lower_is_better_the_lower_one_wins_and_the_difference_stays_ours_minus_theirs() -> None:
    found = paired(lambda i: 2.0 + i % 2, lambda i: 4.0, "flicker")
    assert (found.better, found.win_rate, found.verdict) == ("lower", 1, "better")
    assert found.difference.value == pytest.approx(-1.5)
    assert found.difference.low <= -1.5 <= found.difference.high < 0
    assert found.effect_size < 0


def test_where_no_way_is_better_nobody_wins() -> None:
    found = paired(lambda i: 2.0 + i % 2, lambda i: 4.0, "contrast")
    assert (found.win_rate, found.verdict) == (None, "different")


def test_an_evaluation_against_itself_is_a_draw() -> None:
    found = paired(float, float, "flicker")
    assert (found.difference.value, found.win_rate, found.effect_size, found.p_value) == (0, 0.5, 0, 1)
    assert found.verdict == "no clear difference"


def test_rates_are_compared_prompt_by_prompt() -> None:
    ours, theirs = (evaluation([record(i, right={"colour": i < right}) for i in range(8)]) for right in (6, 2))
    (found,) = pair(ours, theirs)
    assert (found.is_rate, found.ours, found.theirs) == (True, 0.75, 0.25)
    assert found.difference.value == pytest.approx(0.5)
    assert found.win_rate == pytest.approx(0.75)  # 4 wins, 4 draws


def test_seeds_of_a_prompt_count_together() -> None:
    seeds = (0, 1, 2)
    ours, theirs = (
        evaluation([record(i, seed, {"flicker": level + seed}) for i in range(2) for seed in seeds]) for level in (1, 2)
    )
    (found,) = pair(ours, theirs)
    assert (found.clips, found.difference.count, found.verdict) == (6, 2, "too few to tell")


def test_only_prompts_that_both_measured_are_compared() -> None:
    ours = evaluation([record(i, scores={"flicker": 1.0} if i else {}) for i in range(4)])
    theirs = evaluation([record(i, scores={"flicker": 2.0, "contrast": 1.0}) for i in range(4)])
    (found,) = pair(ours, theirs)
    assert (found.measure, found.difference.count) == ("flicker", 3)


def test_clips_of_another_prompt_or_seed_are_no_pair() -> None:
    flicker = {"flicker": 1.0}
    ours = evaluation([record(i, scores=flicker) for i in range(5)])
    others = [record(0, scores=flicker, prompt="a red ball"), record(1, 9, flicker)]
    (found,) = pair(ours, evaluation([*others, *(record(i, scores=flicker) for i in (4, 3, 2))]))
    assert found.clips == 3
    with pytest.raises(ValueError, match="share fewer than two prompts"):
        pair(ours, evaluation(others))


def test_other_lengths_and_other_sets_are_refused() -> None:
    samples = [record(i, scores={"flicker": 1.0}) for i in range(2)]
    with pytest.raises(ValueError, match="last 5 s and 60 s"):
        pair(evaluation(samples), evaluation(samples, seconds=60))
    other = evaluation([sample.model_copy(update={"set": "60s"}) for sample in samples], "60s")
    with pytest.raises(ValueError, match="no set in common: short and 60s"):
        pair(evaluation(samples), other)
    with pytest.raises(ValueError, match="no set 'long' in these results"):
        pair(evaluation(samples), other, "long")
    assert [row.set for row in pair(other, other, "60s")] == ["60s"]
