"""Many-step sampling from a teacher: the flow ODE with classifier-free guidance. Used for samples and for ODE pairs.

A bidirectional teacher solves it for all frames together, a causal one chunk by chunk, by the rollout that streams.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reward_forcing.flow import euler_step, x0_to_velocity
from reward_forcing.models.attention import DenoiserProtocol, Past, Prediction, Text, TextContext, WantKV
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.rollout.kv_cache import CacheSettings, KVCache
from reward_forcing.rollout.rollout import Rollout
from reward_forcing.rollout.schedule import chunkwise


def guide(conditional: Tensor, unconditional: Tensor, guidance: float | Tensor) -> Tensor:
    """Clean latents, or a velocity, with guidance: u + g (c - u); g = 1 is the conditional alone.

    The usual convention; Self Forcing's and Reward Forcing's `guidance_scale` 3.0, added on top, is g = 4 here.
    """
    return unconditional + guidance * (conditional - unconditional)


def guided_x0(denoiser: Denoiser, x: Tensor, sigma: Tensor, text: Text, null: Text, guidance: float | Tensor) -> Tensor:
    """Clean latents [B, F, C, h, w] with guidance, of noisy latents x at noise level sigma [F] or [B, F].

    guidance: one number, or one for each sample [B, 1, 1, 1, 1].
    """
    conditional = denoiser(x, sigma, text).x0
    if isinstance(guidance, float) and guidance == 1.0:
        return conditional
    return guide(conditional, denoiser(x, sigma, null).x0, guidance)


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


@torch.no_grad()
def causal_trajectory(
    denoiser: DenoiserProtocol,
    noise: Tensor,
    text: TextContext,
    null: TextContext,
    sigmas: Tensor,
    guidance: float,
    cache: CacheSettings,
    keep: Sequence[int] = (-1,),
    context: Tensor | None = None,
) -> Tensor:
    """What `ode_trajectory` returns, of a causal teacher: each chunk's ODE is solved given the clean chunks before it.

    noise: [B, F, C, h, w] on the CPU, F a multiple of the chunk. cache: what of the clean chunks a chunk sees.
    context: [B, F, C, h, w], the clean chunks; None for the ends of the chunks' own ODEs. Data as the context is what
    Causal Forcing (arXiv 2602.02214) publishes; the teacher's own ends are what it streams.
    Raises ValueError for frames that are no whole chunks.
    """
    frames, chunk, device = noise.shape[1], cache.chunk_frames, text.keys.device
    if frames % chunk:
        raise ValueError(f"a causal teacher makes whole chunks of {chunk} frames, got {frames} frames")
    branches = 1
    if guidance != 1.0:
        branches, denoiser = 2, Guided(denoiser, guidance)
        text = TextContext(torch.cat([text.keys, null.keys], dim=1), torch.cat([text.values, null.values], dim=1))
    watched, starts = Watched(denoiser), noise.repeat(branches, 1, 1, 1, 1)

    def initial(chunk: int, draw: int, shape: Sequence[int]) -> Tensor:
        return starts[:, chunk * shape[0] : (chunk + 1) * shape[0]]

    def rollout() -> Rollout:
        schedule = chunkwise(sigmas[:-1].tolist(), fresh_noise=False)
        return Rollout(watched, schedule, KVCache.empty(cache), initial, text, noise.shape[2:], device=device)

    generated, given, pieces = rollout(), rollout(), []
    for start in range(0, frames, chunk):
        if context is not None and start:
            given.prime(context[:, start - chunk : start].repeat(branches, 1, 1, 1, 1))
            generated.cache = given.cache
        watched.inputs.clear()
        end = next(generated).latents
        points = [*watched.inputs, end]
        pieces.append(torch.stack([points[index][: len(noise)] for index in keep], dim=1))
    return torch.cat(pieces, dim=2)


class Guided:
    """A denoiser of batches [conditional | unconditional] whose halves are the same samples: both get the guided x0.

    A rollout over it streams with classifier-free guidance if its noise is alike in both halves and its text is the
    prompt in one and the negative prompt in the other. Each branch so has a past of its own, which matters: the text
    enters the clean pass, hence the keys and values of all layers but the first. A causal teacher whose prompts are
    dropped from clean and noisy frames alike has learned the unconditional branch with an unconditional past.
    """

    def __init__(self, denoiser: DenoiserProtocol, guidance: float) -> None:
        self._denoiser = denoiser
        self._guidance = guidance

    def __call__(
        self, x: Tensor, sigma: Tensor, text: Text, past: Past | None = None, want_kv: WantKV = False
    ) -> Prediction:
        """Prediction from x [2 B, F, C, h, w]; the keys and values are each branch's own."""
        seen = self._denoiser(x, sigma, text, past, want_kv)

        def guided(both: Tensor) -> Tensor:
            conditional, unconditional = both.chunk(2)
            return guide(conditional, unconditional, self._guidance).repeat(2, 1, 1, 1, 1)

        return Prediction(guided(seen.x0), guided(seen.velocity), seen.kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """As the denoiser does."""
        return self._denoiser.rotate(past, latent_size)


class Watched:
    """A denoiser that remembers its noisy inputs: the points of a trajectory that a rollout does not yield."""

    def __init__(self, denoiser: DenoiserProtocol) -> None:
        self._denoiser = denoiser
        self.inputs: list[Tensor] = []

    def __call__(
        self, x: Tensor, sigma: Tensor, text: Text, past: Past | None = None, want_kv: WantKV = False
    ) -> Prediction:
        """The denoiser's own prediction."""
        if not want_kv:
            self.inputs.append(x)
        return self._denoiser(x, sigma, text, past, want_kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """As the denoiser does."""
        return self._denoiser.rotate(past, latent_size)
