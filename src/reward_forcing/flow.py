"""Equations of the straight (rectified) flow between clean latents and noise.

Owns every formula that relates sigma, noise, velocity and clean latents. Knows no network, schedule or geometry.

    x_sigma  = (1 - sigma) * x0 + sigma * noise          sigma in [0, 1]
    velocity = noise - x0                                 what the network predicts
    timestep = 1000 * sigma                               what the network is told

`sigma` is a float or a tensor over the leading axes of the latents: [B] (one per sample) or [B, F] (one per frame) for
latents [B, F, C, H, W]. Arithmetic and results are float32, or float64 where an argument is float64.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

TIMESTEPS = 1000
"""Timesteps per unit of sigma: Wan's time embedding is trained on [0, 1000]."""

Number = TypeVar("Number", float, Tensor)


def shift_sigma(u: Number, shift: float) -> Number:
    """Sigma at uniform time `u` in [0, 1]: sigma = k u / (1 + (k - 1) u), with k = `shift`.

    The resolution shift of Wan2.1 and of Reward Forcing's denoising steps; k = 1 is the identity, larger k spends more
    of the time at high noise.
    """
    return shift * u / (1 + (shift - 1) * u)


def sigma_table(shift: float, steps: int = TIMESTEPS) -> Tensor:
    """Decreasing sigmas [steps], float32, from 1 down to the last level above 0."""
    return shift_sigma(torch.linspace(1.0, 0.0, steps + 1)[:-1], shift)


def ode_sigmas(steps: int, shift: float) -> Tensor:
    """Sigmas [steps + 1], float32, of an ODE solver with `steps` Euler steps; the last entry is 0."""
    return torch.cat([sigma_table(shift, steps), torch.zeros(1)])


def warp_denoising_steps(steps: Sequence[int], shift: float) -> tuple[float, ...]:
    """Sigmas of a few-step sampler whose nominal steps count 1..1000 before the shift, such as (1000, 750, 500, 250).

    With shift 5 these four give timesteps 1000, 937.5, 833.33 and 625. Values are exact float32 table entries.
    Raises ValueError unless the steps are strictly decreasing integers in 1..1000; clean (0) is where sampling ends,
    not a step.
    """
    decreasing = all(a > b for a, b in pairwise(steps))
    if not steps or not decreasing or not all(1 <= step <= TIMESTEPS for step in steps):
        raise ValueError(
            f"denoising steps must decrease strictly within 1..{TIMESTEPS} (leave out a final 0), got {list(steps)}"
        )
    table = sigma_table(shift)
    return tuple(table[TIMESTEPS - step].item() for step in steps)


def add_noise(x0: Tensor, noise: Tensor, sigma: float | Tensor) -> Tensor:
    """Noisy latents x = (1 - sigma) x0 + sigma noise, shaped like `x0`."""
    sigma = _align(sigma, x0)
    return (1 - sigma) * x0 + sigma * noise


def velocity_to_x0(x: Tensor, velocity: Tensor, sigma: float | Tensor) -> Tensor:
    """Clean latents x0 = x - sigma velocity, shaped like `x`."""
    return x - _align(sigma, x) * velocity


def x0_to_velocity(x: Tensor, x0: Tensor, sigma: float | Tensor) -> Tensor:
    """Velocity (x - x0) / sigma, shaped like `x`; sigma must be above 0."""
    return (x.to(_working_dtype(x, x0)) - x0) / _align(sigma, x)


def euler_step(x: Tensor, velocity: Tensor, sigma: float | Tensor, sigma_next: float | Tensor) -> Tensor:
    """Latents at `sigma_next`: x + (sigma_next - sigma) velocity, one Euler step of dx / dsigma = velocity."""
    return x + (_align(sigma_next, x) - _align(sigma, x)) * velocity


def widen(x: Tensor) -> Tensor:
    """`x` in float32, or as it is in float64: what x0 and the sink are computed in, whatever a network computes in."""
    return x.to(_working_dtype(x))


def nearest_sigma(timestep: Tensor, table: Tensor) -> Tensor:
    """Sigma of the table entry whose timestep lies nearest, shaped like `timestep`; the noisier one on a tie.

    The Self Forcing and Reward Forcing reference code looks up every sigma so; ours is timestep / 1000 (the two differ
    by at most 3.1e-4 for shift 5). Needed to reproduce the reference and to read its training weights.
    """
    return table.to(timestep.device)[_nearest(timestep, table)]


def flow_matching_weight(timestep: Tensor, table: Tensor) -> Tensor:
    """Weight of a timestep's velocity loss, float32, shaped like `timestep`.

    y = exp(-2 ((t - N / 2) / N)^2) over the N entries of `table` (a `sigma_table`), shifted to minimum 0 and scaled to
    mean 1, read at the nearest entry. Wan-style pre-training and Self Forcing's diffusion loss; DMD, its critic and the
    ODE regression are unweighted.
    """
    steps = table.numel()
    density = torch.exp(-2 * ((TIMESTEPS * table - steps / 2) / steps) ** 2)
    density = density - density.min()
    weights = density * (steps / density.sum())
    return weights.to(timestep.device)[_nearest(timestep, table)]


def _nearest(timestep: Tensor, table: Tensor) -> Tensor:
    distance = (TIMESTEPS * table.to(timestep.device) - timestep.unsqueeze(-1)).abs()
    return distance.argmin(dim=-1)


def _working_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _align(sigma: float | Tensor, x: Tensor) -> Tensor:
    """`sigma` in float32 or better with trailing axes of length 1, so that it broadcasts over `x`."""
    sigma = torch.as_tensor(sigma, device=x.device)
    if sigma.shape != x.shape[: sigma.ndim]:
        raise ValueError(
            f"sigma {list(sigma.shape)} must match the leading axes of the latents {list(x.shape)}; "
            "expand a per-frame [F] to [B, F]"
        )
    return sigma.to(_working_dtype(x)).reshape(*sigma.shape, *[1] * (x.ndim - sigma.ndim))
