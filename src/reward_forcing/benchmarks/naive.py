"""The naive mode: the published samplers as they are published, kept for ever as an oracle and as a baseline.

B batch, F latent frames, C latent channels, h, w latent rows and columns, f latent frames of a chunk.
Eager, RoPE in complex128 on the whole window at every pass, keys and values joined by copies, index tensors that the
host waits for, torch's own attention, frames decoded after the last chunk. It runs on the weights of a `WanDiT` and
gives what `rollout.Rollout` gives; it shares with it the schedules and the noise, and none of its arithmetic. Text is
embedded once per prompt as there, so that a ratio of times counts nothing that only a small network would notice.
"""

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import Self

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from reward_forcing.benchmarks.naive_cache import NaiveLayerCache
from reward_forcing.benchmarks.naive_network import CrossCache, NaiveNetwork
from reward_forcing.flow import TIMESTEPS
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import (
    CacheSettings,
    Chunk,
    EmaSink,
    Keep,
    KVFlush,
    Noise,
    Pass,
    Recache,
    RollingSink,
    SwitchPolicy,
)


class NaiveRollout:
    """An iterator of chunks, each with its clean pass, if any, done: chunk by chunk, or rolling, as `schedule` says.

    text: embeddings [B, L, text_dim] of the text encoder. shape: (C, h, w) of a latent frame. Other arguments: see
    `rollout.Rollout`. Raises ValueError for sinks and switch policies that no preset method has.
    """

    def __init__(
        self,
        network: WanDiT,
        schedule: Iterable[Pass],
        settings: CacheSettings,
        noise: Noise,
        text: Tensor,
        shape: Sequence[int],
        *,
        context_noise: float = 0.0,
        clean_pass: bool = True,
        switch: SwitchPolicy | None = None,
    ) -> None:
        self.network = NaiveNetwork(network)
        self.settings = settings
        self.noise = noise
        self.shape = (settings.chunk_frames, *shape)
        self.context_noise = context_noise
        self.clean_pass = clean_pass
        self.switch = switch or Keep()
        _check_switch(self.switch, settings)
        _, rows, columns = self.network.patch
        tokens = (shape[1] // rows) * (shape[2] // columns)
        self.caches = [NaiveLayerCache(settings, tokens) for _ in range(self.network.layers)]
        self.index = self.start = self.primed = 0
        self.latents: list[Tensor] = []
        self._schedule = iter(schedule)
        self._noisy: dict[int, Tensor] = {}
        self._draws: dict[int, int] = {}
        self._text, self._cross = self.network.embed_text(text), CrossCache()

    def __iter__(self) -> Iterator[Chunk]:
        return self

    def __next__(self) -> Chunk:
        with torch.no_grad():
            for step in self._schedule:
                if step.chunks[0] < self.index - self.primed:
                    continue  # before the snapshot
                clean = self._pass(step)
                if step.finishes:
                    return self._finish(clean[:, : self.shape[0]].clone(), passes=self._draws.pop(self.index))
        raise StopIteration

    def prime(self, latents: Tensor) -> None:
        """Push given latents [B, F, C, h, w] through clean passes; F is a multiple of the chunk."""
        with torch.no_grad():
            for piece in latents.to(self.network.device).split(self.shape[0], dim=1):
                self._finish(piece, passes=0)
                self.primed += 1

    def snapshot(self, schedule: Iterable[Pass]) -> Self:
        """A rollout with copies of all that changes, on the same weights, that goes on from here with `schedule`."""
        twin = copy.copy(self)
        twin.caches, twin._cross = copy.deepcopy(self.caches), list(self._cross)
        twin.latents, twin._noisy, twin._draws = list(self.latents), dict(self._noisy), dict(self._draws)
        twin._schedule = iter(schedule)
        return twin

    def set_text(self, embeddings: Tensor) -> None:
        """From the next chunk on read this prompt; the cache is kept, flushed, or recomputed in one pass."""
        self._text, self._cross = self.network.embed_text(embeddings), CrossCache()
        if isinstance(self.switch, KVFlush):
            for cache in self.caches:
                cache.flush(self.switch.frames)
        if not isinstance(self.switch, Recache) or not self.start:
            return
        frames, window = self.start, self.settings.window_frames
        if window is not None and self.start > window:
            frames = window - self.settings.sink.frames
        recent = torch.cat(self.latents, dim=1)[:, -frames:]
        with torch.no_grad():
            self._forward(recent, [self.context_noise] * frames, self.start - frames, frames, with_sink=True)

    def _pass(self, step: Pass) -> Tensor:
        """One forward over the chunks of a pass; returns x0 and keeps what the next pass begins with."""
        frames, numbers = self.shape[0], [self.primed + chunk for chunk in step.chunks]
        for number in numbers:
            if number not in self._noisy:
                self._noisy[number] = self._draw(number, 0).to(self.network.dtype)
                self._draws[number] = 0
        x = torch.cat([self._noisy[number] for number in numbers], dim=1)
        sigmas = [sigma for sigma in step.sigma for _ in range(frames)]
        velocity = self._forward(x, sigmas, self.start, frames, with_sink=True)
        level = torch.tensor(sigmas, dtype=torch.float64, device=x.device).view(1, -1, 1, 1, 1)
        x0 = (x.to(torch.float64) - level * velocity.to(torch.float64)).float()
        for number, clean, sigma in zip(numbers, x0.split(frames, dim=1), step.sigma_next, strict=True):
            self._draws[number] += 1
            if sigma is None:
                del self._noisy[number]
            else:
                self._noisy[number] = self._renoise(clean, self._draw(number, self._draws[number]), sigma)
        return x0

    def _finish(self, clean: Tensor, passes: int) -> Chunk:
        """Run a finished chunk's clean pass, whose keys and values stay in the cache; without one, its last pass's."""
        x = clean.to(self.network.dtype)
        if self.context_noise:
            x = self._renoise(clean, self._draw(self.index, passes), self.context_noise)
        if self.clean_pass or not passes:
            with_sink = self.settings.clean_pass_sees_sink
            self._forward(x, [self.context_noise] * x.shape[1], self.start, x.shape[1], with_sink)
        chunk = Chunk(self.index, clean, self.start, at_exit=clean)
        self.latents.append(x)
        self.index, self.start = self.index + 1, self.start + x.shape[1]
        return chunk

    def _forward(self, x: Tensor, sigmas: list[float], start: int, own: int, with_sink: bool) -> Tensor:
        timestep = TIMESTEPS * torch.tensor(sigmas, dtype=torch.float32, device=self.network.device)
        timestep, text = timestep.expand(x.shape[0], -1), self._text.expand(x.shape[0], -1, -1)
        return self.network.forward(x, timestep, text, self._cross, self.caches, start, own, with_sink)

    def _draw(self, number: int, draw: int) -> Tensor:
        return self.noise(number, draw, self.shape).to(self.network.device)

    def _renoise(self, clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
        return ((1 - sigma) * clean.float() + sigma * noise).to(self.network.dtype)


def decode_at_end(vae: AutoencoderKLWan, latents: Tensor) -> Tensor:
    """Frames [B, T, 3, H, W] in [0, 1] of all normalised latents [B, F, C, h, w] of a video, by diffusers' decoder."""
    mean, std = (
        torch.tensor(vae.config[name], device=vae.device).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    raw = latents.to(vae.device).transpose(1, 2) * std + mean
    with torch.no_grad():
        sample = vae.decode(raw.to(vae.dtype), return_dict=False)[0]
    return (sample.float() * 0.5 + 0.5).clamp(0, 1).transpose(1, 2)


def _check_switch(switch: SwitchPolicy, settings: CacheSettings) -> None:
    """Raise ValueError for a policy whose arithmetic the naive mode does not repeat."""
    if isinstance(switch, Keep | KVFlush):
        return
    joint = isinstance(switch, Recache) and switch.global_sink and switch.order == "joint"
    if not joint or isinstance(settings.sink, EmaSink | RollingSink):
        raise ValueError(
            f"the naive mode knows the switch policies keep, flush and, with a sink that stays, recache as LongLive's "
            f"inference runs it; got '{switch.kind}' with a sink '{settings.sink.kind}'"
        )
