"""How sure a number is: intervals of means and rates, paired comparison of two systems, rank correlation.

The prompt is the unit: clips of one prompt with several seeds resemble each other, so a prompt is drawn, or has its
sign turned, with all its seeds. Every function gives the same numbers for the same `seed`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Scores = Sequence[Sequence[float] | Array] | Array
"""Scores of every prompt, one for each of its seeds: [prompts][seeds]; prompts may differ in their number of seeds."""


@dataclass(frozen=True)
class Estimate:
    """A value with its interval [low, high]; `count` says of how many prompts or trials."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Comparison:
    """System a against system b on the same prompts and seeds, where a higher score is better.

    difference: mean of a - b with its interval. win_rate: mean over prompts of the share of seeds on which a wins, ties
    half. effect_size: Cohen's d_z, the mean over the sample standard deviation of the prompts' differences; infinite
    where all prompts agree on a difference, 0 where none differs. p_value: two-sided, of the sign-flip test.
    """

    difference: Estimate
    win_rate: float
    effect_size: float
    p_value: float


def bootstrap_mean(scores: Scores, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The mean over prompts of the mean over their seeds, with the percentile bootstrap interval over prompts.

    Deviations of the resampled means are widened by sqrt(n / (n - 1)), so that their variance is the unbiased s^2 / n
    and few prompts do not look surer than they are. For rates near 0 or 1 take `wilson_interval`.
    Raises ValueError for fewer than 2 prompts, a prompt without seeds, and scores that are not finite.
    """
    return _bootstrap(_means_of_prompts(scores), level, resamples, seed)


def compare(a: Scores, b: Scores, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Two systems whose scores are in the same order of prompts and seeds; for scores where lower is better, swap them.

    resamples: of the interval, and random sign patterns of the test unless all 2^prompts patterns are fewer.
    Raises ValueError where prompts or seeds do not match, and as `bootstrap_mean` does.
    """
    seeds = [[len(prompt) for prompt in scores] for scores in (a, b)]
    if seeds[0] != seeds[1]:
        sizes = " and ".join(f"{len(counts)} prompts with {sum(counts)} clips" for counts in seeds)
        raise ValueError(f"paired scores need the same prompts and seeds, got {sizes}")
    differences = [np.asarray(x, float) - np.asarray(y, float) for x, y in zip(a, b, strict=True)]
    of_prompts = _means_of_prompts(differences)
    mean, spread = float(of_prompts.mean()), float(of_prompts.std(ddof=1))
    all_agree = spread <= 1e-12 * abs(mean)
    return Comparison(
        difference=_bootstrap(of_prompts, level, resamples, seed),
        win_rate=float(np.mean([np.mean((d > 0) + 0.5 * (d == 0)) for d in differences])),
        effect_size=mean and (math.copysign(math.inf, mean) if all_agree else mean / spread),
        p_value=_sign_flip_p(of_prompts, resamples, seed),
    )


def jackknife(prompts: Sequence[Array], statistic: Callable[[Sequence[Array]], float], level: float = 0.95) -> Estimate:
    """`statistic` of all prompts' values, with the normal interval of the delete-one-prompt jackknife (Tukey, 1958).

    For statistics that are no mean. statistic: a smooth function of the prompts' values. Raises ValueError for fewer
    than 2 prompts.
    """
    n = len(prompts)
    if n < 2:
        raise ValueError(f"an interval needs at least 2 prompts, got {n}")
    value = statistic(prompts)
    without = np.array([statistic([*prompts[:index], *prompts[index + 1 :]]) for index in range(n)])
    error = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    margin = NormalDist().inv_cdf(0.5 + level / 2) * error
    return Estimate(float(value), float(value - margin), float(value + margin), n)


def crossed_mean(scores: Array, level: float = 0.95, resamples: int = 10_000, seed: int = 0) -> Estimate:
    """The mean of scores [runs, prompts] of several training runs on the same prompts, with its interval over both.

    The deviation over prompts is that of `bootstrap_mean`; the deviation over runs is drawn from Student's t with
    runs - 1 degrees of freedom, for a handful of runs resampled would look far surer than they are (of 3 runs, 4.3
    standard errors are needed for 95 %). Both are added, which counts what is left of chance in single clips twice: on
    the safe side. A single run has no deviation: then the interval is of its weights, not of the way they were trained.
    Raises ValueError for fewer than 2 prompts and for scores that are not finite or of another shape.
    """
    grid = _finite(scores)
    if grid.ndim != 2 or 0 in grid.shape:
        raise ValueError(f"expected scores [runs, prompts], got {list(grid.shape)}")
    of_prompts = _means_of_prompts(grid.T)
    rng = np.random.default_rng(seed)
    n, mean = len(of_prompts), of_prompts.mean()
    chosen = rng.integers(n, size=(resamples, n))
    deviations = (of_prompts[chosen].mean(axis=1) - mean) * math.sqrt(n / (n - 1))
    return _over_runs(float(mean), n, deviations, grid.mean(axis=1), level, rng)


def crossed_jackknife(
    prompts: Sequence[Array],
    statistic: Callable[[Sequence[Array]], Array],
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Estimate:
    """The mean over training runs of a statistic of all prompts' values, with its interval over both.

    For statistics that are no means. statistic: the values of some prompts -> [runs]. The deviation over prompts is
    normal with the error of `jackknife`, that over runs as in `crossed_mean`.
    Raises ValueError for fewer than 2 prompts.
    """
    of_prompts = jackknife(prompts, lambda kept: float(statistic(kept).mean()), level)
    rng = np.random.default_rng(seed)
    error = (of_prompts.high - of_prompts.value) / NormalDist().inv_cdf(0.5 + level / 2)
    deviations = error * rng.standard_normal(resamples)
    return _over_runs(of_prompts.value, of_prompts.count, deviations, statistic(prompts), level, rng)


def t_interval(
    values: Sequence[float] | Array, level: float = 0.95, resamples: int = 100_000, seed: int = 0
) -> Estimate:
    """The mean of at least 2 independent values with Student's interval, its quantile drawn."""
    of_runs = _finite(values)
    if len(of_runs) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(of_runs)}")
    rng = np.random.default_rng(seed)
    return _over_runs(float(of_runs.mean()), len(of_runs), np.zeros(resamples), of_runs, level, rng)


def _over_runs(
    value: float, count: int, deviations: Array, of_runs: Array, level: float, rng: np.random.Generator
) -> Estimate:
    """`value` with the interval of its drawn deviations and of those of the runs' values."""
    runs = len(of_runs)
    if runs > 1:
        error = of_runs.std(ddof=1) / math.sqrt(runs)
        deviations = deviations + error * rng.standard_t(runs - 1, len(deviations))
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, value + float(low), value + float(high), count)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> Estimate:
    """The rate of `successes` among independent trials, with Wilson's score interval (1927).

    Raises ValueError unless 0 <= successes <= trials and trials is at least 1.
    """
    if trials < 1 or not 0 <= successes <= trials:
        raise ValueError(f"expected 0 <= successes <= trials and a trial, got {successes} of {trials}")
    rate, z = successes / trials, NormalDist().inv_cdf(0.5 + level / 2)
    scale = 1 + z * z / trials
    centre = (rate + z * z / (2 * trials)) / scale
    margin = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials)) / scale
    low = 0.0 if successes == 0 else centre - margin
    return Estimate(rate, low, 1.0 if successes == trials else centre + margin, trials)


def spearman(x: Sequence[float] | Array, y: Sequence[float] | Array) -> float:
    """Spearman's rank correlation in [-1, 1]: Pearson's of the ranks, where equal values share their mean rank.

    NaN where all values of one are equal. Raises ValueError unless both hold the same number of finite values, at
    least 2.
    """
    if len(x) != len(y) or len(x) < 2:
        raise ValueError(f"expected as many values of both, at least 2, got {len(x)} and {len(y)}")
    of_x, of_y = (ranks - ranks.mean() for ranks in (_ranks(_finite(x)), _ranks(_finite(y))))
    spread = math.sqrt((of_x @ of_x) * (of_y @ of_y))
    return float(of_x @ of_y) / spread if spread else float("nan")


def _ranks(values: Array) -> Array:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(sizes) - (sizes - 1) / 2)[group]


def _finite(values: Sequence[float] | Array) -> Array:
    array = np.asarray(values, np.float64)
    if not np.isfinite(array).all():
        raise ValueError("scores must be finite numbers; leave out what could not be measured")
    return array


def _means_of_prompts(scores: Scores) -> Array:
    if len(scores) < 2:
        raise ValueError(f"an interval needs at least 2 prompts, got {len(scores)}")
    if not all(len(seeds) for seeds in scores):
        raise ValueError("a prompt has no score; leave the prompt out")
    return np.array([_finite(seeds).mean() for seeds in scores])


def _bootstrap(values: Array, level: float, resamples: int, seed: int) -> Estimate:
    n, mean = len(values), values.mean()
    rng = np.random.default_rng(seed)
    means = np.array([values[rng.integers(n, size=n)].mean() for _ in range(resamples)])
    low, high = np.quantile(mean + (means - mean) * math.sqrt(n / (n - 1)), [(1 - level) / 2, (1 + level) / 2])
    return Estimate(float(mean), float(low), float(high), n)


def _sign_flip_p(differences: Array, resamples: int, seed: int) -> float:
    """How often random signs make the mean at least as large; over all sign patterns where they are few enough."""
    n = len(differences)
    bound = abs(differences.sum()) * (1 - 1e-12)
    if 2**n <= resamples:
        return float(np.mean(np.abs(np.array(list(product((-1, 1), repeat=n))) @ differences) >= bound))
    rng = np.random.default_rng(seed)
    draws = [abs((2 * rng.integers(2, size=n) - 1) @ differences) >= bound for _ in range(resamples)]
    return (1 + sum(draws)) / (1 + resamples)
