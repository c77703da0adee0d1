"""How rewards weight samples in training: exp(r / beta), its estimate of Z(c), and how many samples still count."""

from __future__ import annotations

from torch import Tensor


def reward_weights(reward: Tensor, beta: float, group: int = 1, clip: float | None = None) -> Tensor:
    """Weights [B] of samples with normalised rewards [B]: exp(r / beta) / Z (Reward Forcing, Eqs. 9-11).

    group: so many consecutive samples are rollouts of one prompt, and Z(c) is estimated by the mean of exp(r / beta)
    over them, so that a prompt counts as much as any other and its better samples more; 1 leaves Z out, as the paper
    does in training. clip: the largest weight, applied last.
    Raises ValueError for beta <= 0 and groups that do not fill the batch.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}; towards 0 only the best sample counts")
    if group < 1 or len(reward) % group:
        raise ValueError(f"{len(reward)} samples do not divide into groups of {group}")
    log_weight = reward.float() / beta
    weight = group * log_weight.view(-1, group).softmax(dim=1).flatten() if group > 1 else log_weight.exp()
    return weight if clip is None else weight.clamp_max(clip)


def effective_share(mean: float, mean_square: float) -> float:
    """The share of samples that count, in (0, 1]: (mean w)^2 / mean w^2, Kish's effective sample size over its size."""
    return mean * mean / mean_square if mean_square > 0 else 1.0
