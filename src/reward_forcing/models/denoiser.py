"""A network seen as a denoiser: what does it think the clean latents are?"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reward_forcing.flow import TIMESTEPS, velocity_to_x0, widen
from reward_forcing.models.attention import KV, AttentionPattern, Past, Prediction, Text, WantKV
from reward_forcing.models.cuda_graphs import GraphedForward
from reward_forcing.models.layers import TimeContext
from reward_forcing.models.wan_dit import WanDiT

REMEMBERED = 16
"""Most noise levels that a denoiser keeps embedded; a few-step stream has fewer."""

Forward = Callable[..., tuple[Tensor, KV | None]]
"""What computes a pass: a `WanDiT`, or anything that is called as one."""


class Denoiser:
    """Turns sigma into a timestep and the network's velocity into clean latents.

    Where gradients are off and the weights that embed timesteps are frozen, noise levels given on the CPU are embedded
    once and remembered, the last few of them; nothing else is kept between calls. forward: computes the passes in place
    of the network, such as `GraphedForward(network)`; raises ValueError for that of another network.
    """

    def __init__(self, network: WanDiT, forward: Forward | None = None) -> None:
        if isinstance(forward, GraphedForward) and forward.network is not network:
            raise ValueError("these graphs are of another network; make a GraphedForward of the one that is used")
        self.network = network
        self._forward: Forward = forward or network
        self._times: dict[tuple[object, ...], TimeContext] = {}
        self._weights: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        text: Text,
        past: Past | None = None,
        want_kv: WantKV = False,
        pattern: AttentionPattern | None = None,
    ) -> Prediction:
        """Prediction from noisy latents x [B, F, C, h, w] at noise level `sigma` [F] or [B, F] in [0, 1].

        x0 = x - sigma velocity in float32, whatever the network computes in (float64 stays). `past`, `pattern`,
        `want_kv`: as in `WanDiT.forward`.
        """
        batch, frames = x.shape[:2]
        if sigma.shape not in ((frames,), (batch, frames)):
            raise ValueError(f"sigma must be [{frames}] or [{batch}, {frames}], got {list(sigma.shape)}")
        sigma = sigma.float().expand(batch, frames)
        time = self._time(sigma, x.device)
        velocity, kv = self._forward(x, time, text, past=past, pattern=pattern, want_kv=want_kv)
        if want_kv == "only":
            return Prediction(velocity, velocity, kv)
        velocity, sigma = widen(velocity), sigma.to(x.device, non_blocking=True)
        return Prediction(velocity_to_x0(widen(x), velocity, sigma), velocity, kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """`past` with RoPE applied to its keys once for all passes of a chunk; latent_size is (h, w)."""
        return self.network.rotate(past, latent_size)

    def _time(self, sigma: Tensor, device: torch.device) -> Tensor | TimeContext:
        """Timesteps [B, F] on the device, or what the network reads of them where that may be remembered."""
        weights = _frozen_time_weights(self.network)
        readable = type(sigma) is Tensor and sigma.device.type == "cpu"
        if not readable or not weights or torch.is_grad_enabled():
            return TIMESTEPS * sigma.to(device, non_blocking=True)
        versions = [(weight.data_ptr(), weight._version) for weight in weights]
        if versions != self._versions:  # held below, so that no others come to lie at their addresses
            self._times, self._weights, self._versions = {}, [weight.detach() for weight in weights], versions
        key = (device, *map(tuple, sigma.tolist()))
        time = self._times.pop(key, None)
        if time is None:
            time = self.network.encode_time(TIMESTEPS * sigma.to(device, non_blocking=True))
        self._times[key] = time  # the newest last
        if len(self._times) > REMEMBERED:
            del self._times[next(iter(self._times))]
        return time


def _frozen_time_weights(network: WanDiT) -> Sequence[Tensor]:
    """The parameters that embed timesteps; none if they may change unseen: learned, sharded or made for inference."""
    if not isinstance(network, WanDiT):
        return ()
    embedder = network.condition_embedder
    weights = [*embedder.time_embedder.parameters(), *embedder.time_proj.parameters()]
    plain = all(type(weight) is nn.Parameter and not weight.is_inference() for weight in weights)
    return weights if plain and not any(weight.requires_grad for weight in weights) else ()
