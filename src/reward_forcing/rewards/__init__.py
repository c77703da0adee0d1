"""Rewards: what a clip is worth, by motion, by a vision-language model, or by a class from outside."""

from reward_forcing.rewards.base import Rater, Reward, RewardSettings, rate
from reward_forcing.rewards.combine import CombinedReward, Part

REWARDS: dict[str, type[Reward]] = {"combine": CombinedReward}
"""Every reward of this package by the name that settings call it."""

__all__ = ["REWARDS", "CombinedReward", "Part", "Rater", "Reward", "RewardSettings", "rate"]
