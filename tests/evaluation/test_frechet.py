"""Distances between sets of features against closed forms."""

import numpy as np
import pytest

from reward_forcing.evaluation.frechet import frechet_distance, kernel_distance


def features(count: int, mean: float = 0.0, scale: float = 1.0, width: int = 6, seed: int = 0) -> np.ndarray:
    return mean + scale * np.random.default_rng(seed).standard_normal((count, width))


def test_a_set_is_at_no_distance_from_itself() -> None:
    x = features(40)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)


def test_a_shift_counts_with_its_square() -> None:
    x = features(50)
    assert frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25, rel=1e-9)


def test_a_scale_counts_by_the_trace_formula() -> None:
    x = features(60)
    x -= x.mean(0)
    assert frechet_distance(x, 3 * x) == pytest.approx(4 * np.trace(np.cov(x, rowvar=False)), rel=1e-6)


def test_covariances_that_do_not_commute() -> None:
    """In two dimensions tr (AB)^(1/2) = sqrt(tr AB + 2 sqrt(det AB))."""
    rng = np.random.default_rng(3)
    x, y = (rng.standard_normal((80, 2)) @ rng.standard_normal((2, 2)) for _ in range(2))
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    cross = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a) + np.trace(b) - 2 * cross
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)


def test_the_kernel_distance_is_unbiased_and_the_frechet_distance_is_not() -> None:
    pairs = [(features(12, seed=2 * i), features(12, seed=2 * i + 1)) for i in range(300)]
    kernel = [kernel_distance(x, y) for x, y in pairs]
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(len(kernel))
    assert np.mean([frechet_distance(x, y) for x, y in pairs]) > 1


def test_farther_sets_are_farther() -> None:
    x, others = features(100), [features(100, mean=shift, seed=1) for shift in (0, 0.3, 0.6, 1.2)]
    for distance in (frechet_distance, kernel_distance):
        values = [distance(x, y) for y in others]
        assert values == sorted(values), distance


def test_sets_that_cannot_be_compared_are_refused() -> None:
    for bad in (features(1), features(5, width=3), np.zeros(4)):
        with pytest.raises(ValueError, match="at least 2 videos"):
            frechet_distance(features(5), bad)
