"""A network seen as a denoiser: what does it think the clean latents are?"""

from torch import Tensor

from reward_forcing.flow import TIMESTEPS, velocity_to_x0, widen
from reward_forcing.models.attention import AttentionPattern, Past, Prediction, Text
from reward_forcing.models.wan_dit import WanDiT


class Denoiser:
    """Turns sigma into a timestep and the network's velocity into clean latents; holds no state of its own."""

    def __init__(self, network: WanDiT) -> None:
        self.network = network

    def __call__(
        self,
        x: Tensor,
        sigma: Tensor,
        text: Text,
        past: Past | None = None,
        want_kv: bool = False,
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
        velocity, kv = self.network(x, TIMESTEPS * sigma, text, past=past, pattern=pattern, want_kv=want_kv)
        velocity = widen(velocity)
        return Prediction(velocity_to_x0(widen(x), velocity, sigma), velocity, kv)

    def rotate(self, past: Past, latent_size: tuple[int, int]) -> Past:
        """`past` with RoPE applied to its keys once for all passes of a chunk; latent_size is (h, w)."""
        return self.network.rotate(past, latent_size)
