"""The losses of distribution matching distillation, as functions of tensors alone.

x: generated latents [B, F, C, h, w]. real, fake: what the teacher and the critic think the clean latents are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reward_forcing.flow import TIMESTEPS, shift_sigma


def score_sigma(batch: int, shift: float, lowest: float, highest: float, generator: torch.Generator) -> Tensor:
    """Noise levels [B] at which the scores are compared: k uniform in 0 .. 999, shifted, clamped to [lowest, highest].

    DMD of Self Forcing and Reward Forcing, with shift 5 and the clamp [0.02, 0.98].
    """
    u = torch.randint(TIMESTEPS, (batch,), generator=generator).float() / TIMESTEPS
    return shift_sigma(u, shift).clamp(lowest, highest)


def dmd_gradient(x: Tensor, real: Tensor, fake: Tensor, floor: float = 1e-6) -> Tensor:
    """The direction in which the generator's latents move away: (fake - real) / mean |x - real|, shaped like `x`.

    Reward Forcing, Eq. 1, in the x0 form of DMD; the mean is over each sample. `floor` bounds the normaliser from
    below: without one (the reference code) a perfect sample turns into an infinite gradient.
    """
    normaliser = (x - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(floor)
    return (fake - real) / normaliser


def dmd_loss(x: Tensor, gradient: Tensor, weight: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
    """A scalar whose gradient in `x` is `gradient` / elements: 0.5 mean (x - stopgrad(x - gradient))^2.

    weight: factor of each sample [B] inside the mean (Re-DMD, Eq. 11), None for all ones (DMD). mask: [B, F], the
    frames that the mean is over; None for all.
    """
    target = (x - gradient).detach()
    squares = 0.5 * (x - target).square().mean(dim=(2, 3, 4))
    if weight is not None:
        squares = weight[:, None] * squares
    return squares.mean() if mask is None else squares[mask].mean()


def flow_loss(
    velocity: Tensor, noise: Tensor, x: Tensor, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """The critic's loss: mean (velocity - (noise - x))^2.

    weight: factor of each sample [B] inside the mean. mask: [B, F], the frames that the mean is over; None for all.
    """
    squares = (velocity - (noise - x)).square()
    if mask is not None:
        frames = squares.mean(dim=(2, 3, 4))
        return (frames if weight is None else weight[:, None] * frames)[mask].mean()
    squares = squares.mean(dim=(1, 2, 3, 4))
    return squares.mean() if weight is None else (weight * squares).mean()
