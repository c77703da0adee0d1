"""diffusers' `WanTransformer3DModel` run causally the plain way: every pass encodes the whole window again, no cache.

B batch, F latent frames, C latent channels, h, w latent rows and columns, T tokens.
diffusers has no cache and no causal mask for this network. Its own interfaces take a timestep per token and a mask in a
replaced attention processor; with both, the latest chunk comes out as from a cache as long as nothing was evicted, so
that is the chunk to compare. The network itself is diffusers' and shares our parameters.
"""

from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor, WanTransformer3DModel
from torch import Tensor

from reward_forcing.benchmarks.subjects import Subject
from reward_forcing.flow import TIMESTEPS
from reward_forcing.models.masks import block_causal
from reward_forcing.rollout import SeededNoise


class _Masked(WanAttnProcessor):
    """diffusers' attention with a mask where it attends to itself."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def __call__(
        self,
        attn: WanAttention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        mask = self.mask if encoder_hidden_states is None else attention_mask
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb)


class PlainDiffusers:
    """Chunks of a subject by diffusers' network, each after given latents that fit the window beside it.

    Raises ValueError for a joint schedule, and for a window that whole chunks do not fill.
    """

    def __init__(self, subject: Subject) -> None:
        method = subject.method
        window = method.window_frames or 21
        if method.chunks_at_once > 1 or window % method.chunk_frames:
            raise ValueError(
                "diffusers' network can be compared where chunks are denoised one after the other and fill the window "
                f"exactly; the schedule is '{method.schedule}', the window {window}, a chunk {method.chunk_frames}"
            )
        self.subject = subject
        self.given = subject.given(window // method.chunk_frames - 1)
        self.noise = SeededNoise(subject.seeds)
        self.network = _shared(subject)
        _, rows, columns = subject.network.patch
        self.tokens = (subject.latent_size[0] // rows) * (subject.latent_size[1] // columns)
        mask = block_causal(window, method.chunk_frames).dense(self.tokens).to(subject.device)
        for block in self.network.blocks:
            cast(Any, block).attn1.set_processor(_Masked(mask))

    @torch.no_grad()
    def chunk(self) -> Tensor:
        """Latents [B, f, C, h, w] of the chunk that fills the window, after all its passes."""
        subject, method = self.subject, self.subject.method
        number, shape = self.given.shape[1] // method.chunk_frames, (method.chunk_frames, *subject.shape)
        past = self.given.to(subject.dtype)
        x = self.noise(number, 0, shape).to(subject.device, subject.dtype)
        x0 = x.float()
        for step, sigma in enumerate(method.sigmas, start=1):
            x0 = x.float() - sigma * self._velocity(past, x, sigma)
            if step < len(method.sigmas):
                then, noise = method.sigmas[step], self.noise(number, step, shape).to(subject.device)
                x = ((1 - then) * x0 + then * noise).to(subject.dtype)
        return x0

    def _velocity(self, past: Tensor, x: Tensor, sigma: float) -> Tensor:
        window = torch.cat([past, x], dim=1)
        timestep = torch.full(window.shape[:2], TIMESTEPS * self.subject.method.context_noise, device=x.device)
        timestep[:, past.shape[1] :] = TIMESTEPS * sigma
        text = self.subject.text.expand(x.shape[0], -1, -1)
        per_token = cast(Any, timestep.repeat_interleave(self.tokens, dim=1))
        out = self.network(window.transpose(1, 2), per_token, text, return_dict=False)[0]
        return out.transpose(1, 2)[:, past.shape[1] :].float()


def _shared(subject: Subject) -> WanTransformer3DModel:
    """diffusers' network on the parameters of the subject's; its RoPE tables keep their own precision."""
    config = {key: value for key, value in subject.network.config.items() if not key.startswith("_")}
    with torch.device(subject.device):
        theirs = WanTransformer3DModel(**config)
    ours = dict(subject.network.named_parameters())
    for name, parameter in theirs.named_parameters():
        parameter.data = ours[name].data
    return theirs.eval().requires_grad_(False)
