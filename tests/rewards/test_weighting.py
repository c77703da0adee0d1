"""Weights of samples, how many count, and the alarm, on numbers worked out by hand."""

import math

import pytest
import torch

from reward_forcing.rewards.alarm import alarm, change
from reward_forcing.rewards.weighting import effective_share, reward_weights


def test_a_weight_is_the_exponential_of_reward_over_beta() -> None:
    weights = reward_weights(torch.tensor([0.0, 1.0, -0.5]), beta=0.5)
    torch.testing.assert_close(weights, torch.tensor([1.0, math.e**2, math.e**-1]))


def test_groups_are_normalised_each_by_itself() -> None:
    rewards = torch.tensor([0.0, math.log(3.0), 5.0, 5.0])
    weights = reward_weights(rewards, beta=1.0, group=2)
    torch.testing.assert_close(weights, torch.tensor([0.5, 1.5, 1.0, 1.0]))
    shifted = reward_weights(rewards + torch.tensor([7.0, 7.0, -90.0, -90.0]), beta=1.0, group=2)
    torch.testing.assert_close(shifted, weights, msg="a prompt that moves anyway does not count more")


def test_a_large_reward_stays_finite_within_its_group_and_is_clipped() -> None:
    weights = reward_weights(torch.tensor([300.0, 0.0]), beta=0.5, group=2)
    torch.testing.assert_close(weights, torch.tensor([2.0, 0.0]))
    assert reward_weights(torch.tensor([300.0, 0.0]), beta=0.5, clip=4.0).tolist() == [4.0, 1.0]


def test_a_small_beta_leaves_the_best_and_a_large_one_all() -> None:
    rewards = torch.tensor([0.1, 0.3, 0.2, 0.0])
    assert reward_weights(rewards, beta=1e-3, group=4).tolist() == pytest.approx([0, 4, 0, 0], abs=1e-6)
    torch.testing.assert_close(reward_weights(rewards, beta=1e6, group=4), torch.ones(4))


@pytest.mark.parametrize(
    ("beta", "group", "message"),
    [(0.0, 1, "beta must be positive"), (-1.0, 1, "beta must be positive"), (1.0, 3, "4 samples do not divide")],
)
def test_what_makes_no_weight_is_refused(beta: float, group: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_weights(torch.zeros(4), beta, group)


def test_the_share_of_samples_that_count() -> None:
    for weights, share in (
        (torch.ones(8), 1.0),
        (torch.tensor([8.0] + 7 * [0.0]), 1 / 8),
        (torch.tensor([1.0, 3]), 0.8),
    ):
        found = effective_share(float(weights.mean()), float(weights.square().mean()))
        assert found == pytest.approx(share)


def test_a_change_is_measured_in_its_standard_errors() -> None:
    assert change([0, 0, 0, 0], [1, 2, 1, 2]) == pytest.approx(1.5 / (math.sqrt(1 / 3) / 2))
    assert change([1, 2], [1, 2]) == 0
    assert change([1, 2], [3, 4]) == math.inf
    with pytest.raises(ValueError, match="at least 2, got 1 and 1"):
        change([1], [1])


def test_the_alarm_needs_the_trained_reward_up_and_another_down() -> None:
    flat, up, down = [0.0, 0.1, -0.1, 0.0], [1.0, 1.2, 0.9, 1.1], [-1.0, -1.2, -0.9, -1.1]
    before = {"trained": flat, "text": flat, "quality": flat}
    assert alarm(before, {"trained": up, "text": down, "quality": up}, "trained") == ["text"]
    assert alarm(before, {"trained": up, "text": flat, "quality": up}, "trained") == []
    assert alarm(before, {"trained": flat, "text": down, "quality": down}, "trained") == []
    assert alarm(before, {"trained": down, "text": down, "quality": flat}, "trained") == []
