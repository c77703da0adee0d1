"""Many-step sampling from a teacher: the flow ODE with classifier-free guidance. Used for samples and for ODE pairs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_forcing.flow import euler_step, x0_to_velocity
from reward_forcing.models.attention import Text
from reward_forcing.models.denoiser import Denoiser


def guided_x0(denoiser: Denoiser, x: Tensor, sigma: Tensor, text: Text, null: Text, guidance: float) -> Tensor:
    """Clean latents [B, F, C, h, w] with guidance: x0 = u + g (c - u); g = 1 is the conditional alone.

    The usual convention; Self Forcing's and Reward Forcing's `guidance_scale` 3.0, added on top, is g = 4 here.
    x: noisy latents at noise level sigma [F] or [B, F].
    """
    conditional = denoiser(x, sigma, text).x0
    if guidance == 1.0:
        return conditional
    unconditional = denoiser(x, sigma, null).x0
    return unconditional + guidance * (conditional - unconditional)


@torch.no_grad()
def ode_trajectory(
    denoiser: Denoiser,
    noise: Tensor,
    text: Text,
    null: Text,
    sigmas: Tensor,
    guidance: float,
    keep: Sequence[int] = (-1,),
) -> Tensor:
    """Latents [B, K, F, C, h, w] at the kept indices of the Euler trajectory from noise to clean.

    noise: [B, F, C, h, w]. sigmas: [steps + 1], decreasing, last 0 (`flow.ode_sigmas`). keep: indices into the
    trajectory's steps + 1 points, 0 being the noise and -1 the clean end (CausVid, Self Forcing: ODE initialisation).
    """
    kept = {index % len(sigmas): position for position, index in enumerate(keep)}
    out: list[Tensor] = [noise] * len(keep)
    x = noise
    for step in range(len(sigmas) - 1):
        if step in kept:
            out[kept[step]] = x
        sigma = sigmas[step].expand(x.shape[1]).to(x.device)
        x0 = guided_x0(denoiser, x, sigma, text, null, guidance)
        x = euler_step(x, x0_to_velocity(x, x0, sigmas[step]), sigmas[step], sigmas[step + 1])
    if len(sigmas) - 1 in kept:
        out[kept[len(sigmas) - 1]] = x
    return torch.stack(out, dim=1)
