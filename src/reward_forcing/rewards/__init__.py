"""Rewards: what a clip is worth, by motion, by a vision-language model, or by a class from outside."""

from reward_forcing.rewards.base import Rater, Reward, RewardSettings, rate
from reward_forcing.rewards.combine import CombinedReward, Part
from reward_forcing.rewards.motion import MotionReward
from reward_forcing.rewards.videoalign import VideoAlignReward
from reward_forcing.rewards.vlm import VlmReward

REWARDS: dict[str, type[Reward]] = {
    "combine": CombinedReward,
    "motion": MotionReward,
    "videoalign": VideoAlignReward,
    "vlm": VlmReward,
}
"""Every reward of this package by the name that settings call it."""

__all__ = [
    "REWARDS",
    "CombinedReward",
    "MotionReward",
    "Part",
    "Rater",
    "Reward",
    "RewardSettings",
    "VideoAlignReward",
    "VlmReward",
    "rate",
]
