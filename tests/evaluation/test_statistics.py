"""Intervals, paired comparison and rank correlation against closed forms and by simulation."""

import math

import numpy as np
import pytest

from reward_forcing.evaluation.statistics import (
    bootstrap_mean,
    compare,
    crossed_jackknife,
    crossed_mean,
    jackknife,
    spearman,
    t_interval,
    wilson_interval,
)


def coverage(prompts: int, seeds: int, trials: int = 400) -> float:
    """How often the interval holds the true mean 0 where clips of one prompt share most of their deviation."""
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(trials):
        scores = rng.normal(size=(prompts, 1)) + 0.3 * rng.normal(size=(prompts, seeds))
        ours = bootstrap_mean(scores, resamples=400, seed=trial)
        hits += ours.low <= 0 <= ours.high
    return hits / trials


@pytest.mark.parametrize(("prompts", "seeds"), [(40, 1), (30, 5)])
def test_the_interval_holds_the_true_mean_as_often_as_it_says(prompts, seeds):
    """95 %, less what few prompts and 400 resamples cost; four standard errors of the simulation are 4.4 %."""
    assert 0.91 <= coverage(prompts, seeds) <= 0.985


def test_seeds_of_one_prompt_do_not_make_the_interval_narrower():
    means = np.random.default_rng(0).normal(size=(20, 1))
    assert bootstrap_mean(np.repeat(means, 8, axis=1)) == bootstrap_mean(means)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(1).normal(3, 2, size=200)
    ours = bootstrap_mean(values[:, None])
    margin = 1.96 * values.std(ddof=1) / math.sqrt(200)
    assert ours.value == pytest.approx(values.mean())
    assert ours.count == 200
    assert (ours.low, ours.high) == pytest.approx((ours.value - margin, ours.value + margin), abs=0.015)
    narrow = bootstrap_mean(values[:, None], level=0.5)
    assert narrow.high - narrow.low == pytest.approx((ours.high - ours.low) * 0.6745 / 1.96, rel=0.05)


def test_prompts_weigh_the_same_whatever_their_number_of_seeds():
    assert bootstrap_mean([[0.0] * 9, [1.0]]).value == 0.5


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(8).normal(size=(30, 1))
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) != bootstrap_mean(values, seed=4)


@pytest.mark.parametrize(
    ("scores", "message"),
    [([[1.0]], "at least 2 prompts"), ([[1.0], []], "no score"), ([[1.0], [math.nan]], "finite")],
)
def test_scores_that_give_no_interval_are_refused(scores, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_mean(scores)
    with pytest.raises(ValueError, match=message):
        compare(scores, scores)


def test_a_paired_comparison_finds_a_shift_that_prompts_would_hide():
    """Prompts differ by 10, systems by 0.5 with noise of 0.5: the two systems' own intervals overlap."""
    rng = np.random.default_rng(2)
    prompts = rng.normal(50, 10, size=(40, 1))
    a, b = (prompts + shift + 0.5 * rng.normal(size=(40, 2)) for shift in (0.5, 0.0))
    ours = compare(a, b)
    assert ours.difference.low > 0
    assert ours.p_value < 0.001
    assert ours.win_rate > 0.6
    of_a, of_b = bootstrap_mean(a), bootstrap_mean(b)
    assert of_a.low < of_b.value < of_a.value < of_b.high


def test_a_comparison_is_mirrored_when_systems_are_swapped():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(2, 12, 3))
    one, other = compare(a, b), compare(b, a)
    assert one.difference.value == pytest.approx(-other.difference.value)
    assert one.win_rate == pytest.approx(1 - other.win_rate)
    assert one.effect_size == pytest.approx(-other.effect_size)
    assert one.p_value == other.p_value


def test_a_small_comparison_is_known_by_hand():
    """Differences 1, 2, 3 and 0: mean 1.5, deviation sqrt(5/3); 4 of the 16 sign patterns reach |sum| = 6."""
    ours = compare([[2.0], [3.0], [4.0], [1.0]], [[1.0], [1.0], [1.0], [1.0]])
    assert ours.difference.value == 1.5
    assert ours.effect_size == pytest.approx(1.5 / math.sqrt(5 / 3))
    assert ours.win_rate == (3 + 0.5) / 4
    assert ours.p_value == 4 / 16


def test_sign_patterns_that_tie_but_for_rounding_count():
    """10 of the 16 patterns of 0.1, 0.2, -0.3, 0.6 reach the sum 0.6, two of them only up to rounding."""
    assert compare([[0.1], [0.2], [-0.3], [0.6]], np.zeros((4, 1))).p_value == 10 / 16


def test_random_sign_patterns_approach_all_of_them():
    rng = np.random.default_rng(4)
    a, b = rng.normal(0.4, 1, size=(13, 1)), np.zeros((13, 1))
    exact, sampled = compare(a, b, resamples=2**13), compare(a, b, resamples=2**13 - 1)
    assert exact.p_value != sampled.p_value
    assert sampled.p_value == pytest.approx(exact.p_value, abs=0.02)


def test_without_a_difference_the_test_rejects_as_often_as_it_may():
    rng = np.random.default_rng(6)
    p_values = [compare(rng.normal(size=(9, 1)), np.zeros((9, 1)), resamples=512).p_value for _ in range(400)]
    assert 0.02 <= np.mean(np.array(p_values) <= 0.05) <= 0.09


@pytest.mark.parametrize(("shift", "effect", "wins"), [(0.1, math.inf, 1.0), (-0.1, -math.inf, 0.0), (0.0, 0.0, 0.5)])
def test_a_constant_difference_has_an_infinite_effect_and_none_has_none(shift, effect, wins):
    scores = np.random.default_rng(7).normal(size=(8, 2))
    ours = compare(scores + shift, scores)
    assert ours.effect_size == effect
    assert ours.win_rate == wins
    assert ours.p_value == (2 / 2**8 if shift else 1)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match="3 prompts with 6 clips and 3 prompts with 3 clips"):
        compare(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="3 prompts with 3 clips and 2 prompts with 2 clips"):
        compare(np.zeros((3, 1)), np.zeros((2, 1)))


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_intervals_are_the_published_ones(successes, trials, low, high):
    """81 of 263 is Newcombe's example (Statistics in Medicine, 1998)."""
    ours = wilson_interval(successes, trials)
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=5e-5)
    assert ours.value == successes / trials


def test_wilson_bounds_solve_the_score_equation():
    ours = wilson_interval(7, 40, level=0.9)
    for bound in (ours.low, ours.high):
        assert abs(ours.value - bound) == pytest.approx(1.644854 * math.sqrt(bound * (1 - bound) / 40), rel=1e-6)


@pytest.mark.parametrize(("successes", "trials"), [(1, 0), (-1, 5), (6, 5)])
def test_rates_that_cannot_be_are_refused(successes, trials):
    with pytest.raises(ValueError, match="0 <= successes <= trials"):
        wilson_interval(successes, trials)


def test_rank_correlation_sees_order_alone():
    x = np.array([0.3, 1.0, 2.0, 5.0, 7.5])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)


def test_rank_correlation_without_ties_is_the_textbook_formula():
    """1 - 6 sum d^2 / (n (n^2 - 1)), here d = 1, -1, 2, 0, -2."""
    assert spearman([1, 2, 3, 4, 5], [2, 1, 5, 4, 3]) == pytest.approx(1 - 6 * 10 / (5 * 24))


def test_equal_values_share_their_mean_rank():
    """Ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4: Pearson's correlation 4.5 / sqrt(4.5 * 5)."""
    assert spearman([1, 1, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [([1, 2], [1, 2, 3], "as many values"), ([], [], "at least 2")],
)
def test_ranks_that_do_not_exist_are_refused(x, y, message):
    with pytest.raises(ValueError, match=message):
        spearman(x, y)


def test_ranks_of_equal_values_tell_nothing():
    assert math.isnan(spearman([5, 5, 5], [1, 2, 3]))


def test_the_jackknife_of_a_mean_is_the_textbook_interval() -> None:
    values = np.random.default_rng(1).normal(3, 2, 40)
    found = jackknife([np.array([value]) for value in values], lambda kept: float(np.concatenate(kept).mean()))
    margin = 1.959964 * values.std(ddof=1) / np.sqrt(40)
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - margin, values.mean() + margin), rel=1e-6
    )
    assert found.count == 40


def test_the_jackknife_draws_a_prompt_with_all_its_seeds() -> None:
    prompts = [np.array([1.0, 1.0, 1.0]), np.array([4.0]), np.array([4.0])]
    found = jackknife(prompts, lambda kept: float(np.concatenate(kept).mean()))
    without = np.array([4.0, 7 / 4, 7 / 4])
    error = np.sqrt(2 / 3 * np.square(without - without.mean()).sum())
    assert found.high - found.value == pytest.approx(1.959964 * error, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2 prompts, got 1"):
        jackknife(prompts[:1], lambda kept: 0.0)


def test_an_interval_over_runs_alone_is_students() -> None:
    """Three runs that differ and prompts that do not: t with 2 degrees of freedom, whose 97.5 % quantile is 4.303."""
    values = np.array([0.2, 0.5, 0.65])
    error = values.std(ddof=1) / 3**0.5
    found = crossed_mean(np.repeat(values[:, None], 40, axis=1), resamples=100_000)
    assert found.value == pytest.approx(0.45)
    assert (found.low, found.high) == pytest.approx((0.45 - 4.303 * error, 0.45 + 4.303 * error), abs=0.02)
    assert found.count == 40
    alone = t_interval(values)
    assert (alone.low, alone.high) == pytest.approx((found.low, found.high), abs=0.02)


@pytest.mark.parametrize("runs", [1, 3])
def test_an_interval_over_prompts_alone_is_the_one_of_a_single_system(runs: int) -> None:
    scores = np.random.default_rng(1).normal(size=64)
    found = crossed_mean(np.repeat(scores[None], runs, axis=0), resamples=30_000)
    error = scores.std(ddof=1) / 8
    ends = (scores.mean() - 1.96 * error, scores.mean() + 1.96 * error)
    assert (found.low, found.high) == pytest.approx(ends, abs=0.01)
    one = bootstrap_mean(scores[:, None])
    assert (found.value, found.low, found.high) == pytest.approx((one.value, one.low, one.high), abs=0.01)


def test_intervals_over_runs_and_prompts_cover_what_they_say() -> None:
    """Of 300 experiments with 3 runs on 20 prompts at least nine in ten cover the truth, 0; without runs far fewer."""
    rng = np.random.default_rng(2)
    covered = covered_by_prompts_alone = 0
    for _ in range(300):
        grid = rng.normal(size=(3, 1)) + rng.normal(size=(1, 20)) + rng.normal(size=(3, 20))
        found = crossed_mean(grid, resamples=500)
        covered += found.low <= 0 <= found.high
        alone = bootstrap_mean(grid.T, resamples=500)
        covered_by_prompts_alone += alone.low <= 0 <= alone.high
    assert covered > 0.9 * 300
    assert covered_by_prompts_alone < 0.75 * 300


def test_a_jackknife_over_runs_and_prompts_is_the_closed_form_for_a_mean() -> None:
    grid = np.random.default_rng(3).normal(size=(4, 50))
    found = crossed_jackknife(list(grid.T), lambda kept: np.mean(kept, axis=0), resamples=30_000)
    mean = crossed_mean(grid, resamples=30_000)
    assert found.value == pytest.approx(mean.value)
    assert (found.low, found.high) == pytest.approx((mean.low, mean.high), abs=0.02)


def test_scores_over_runs_that_make_no_grid_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected scores \[runs, prompts\], got \[3\]"):
        crossed_mean(np.zeros(3))
    with pytest.raises(ValueError, match="at least 2 prompts"):
        crossed_mean(np.zeros((3, 1)))
    with pytest.raises(ValueError, match="at least 2 values"):
        t_interval([1.0])
