"""Where clips of the world's prompts come from: a streaming model, a teacher, the VAE alone, or the renderer.

Every source gives a batch of clips piece by piece, so that a long clip need never be held whole; `ends_of` keeps what
is judged. What comes of a prompt depends on it and its seed, up to the last bits of what is computed beside it.
B batch, T frames, H W pixels; pieces are uint8 [B, T, H, W, 3].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reward_forcing.config import Settings
from reward_forcing.data.scenes import FPS, render
from reward_forcing.evaluation.suites import LONGEST_SHORT
from reward_forcing.evaluation.world_distance import window_frames
from reward_forcing.evaluation.world_suite import Prompt
from reward_forcing.flow import ode_sigmas
from reward_forcing.geometry import Geometry
from reward_forcing.models.denoiser import Denoiser
from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT
from reward_forcing.rollout import SeededNoise
from reward_forcing.streaming.pipeline import StreamingVideoPipeline
from reward_forcing.streaming.video_io import to_uint8
from reward_forcing.training.prompts import PromptEncoder
from reward_forcing.training.sampling import ode_trajectory

Pieces = Iterator[NDArray[np.uint8]]
PIECE_FRAMES = 80


class ClipMaker(Protocol):
    """Makes clips of prompts, at FPS frames a second."""

    def pieces(self, prompts: Sequence[Prompt], frames: int) -> Pieces:
        """The clips of the prompts, `frames` long, from their beginning on."""
        ...


def ends_of(pieces: Pieces, frames: int) -> dict[str, NDArray[np.uint8]]:
    """What is judged of clips [B, T, H, W, 3] of `frames` frames: 'whole', or of those beyond 10 seconds both ends.

    'start' and 'end' are 5 seconds long, both ends included, as the features' network sees them. Of a long clip no more
    is held than that.
    """
    if frames <= LONGEST_SHORT * FPS:
        return {"whole": np.concatenate(list(pieces), axis=1)}
    window = window_frames(FPS)
    start = end = next(pieces)
    for piece in pieces:
        if start.shape[1] < window:
            start = np.concatenate([start, piece], axis=1)[:, :window]
        end = np.concatenate([end, piece], axis=1)[:, -window:]
    return {"start": start[:, :window], "end": end[:, -window:]}


@dataclass(frozen=True)
class StreamedClips:
    """Clips that a model streams, each with the seed `seed` + its prompt's number."""

    pipeline: StreamingVideoPipeline
    seed: int

    def pieces(self, prompts: Sequence[Prompt], frames: int) -> Pieces:
        """A piece for each chunk."""
        texts = [prompt.text for prompt in prompts]
        stream = self.pipeline.stream(texts, seeds=[self.seed + prompt.index for prompt in prompts])
        for chunk in stream.until(frames / FPS):
            yield _pixels(chunk.frames)


class TeacherSampling(Settings):
    """How a bidirectional teacher is sampled: Euler steps of the flow ODE, timestep shift and CFG weight."""

    steps: int = 20
    shift: float = 5.0
    guidance: float = 4.0


@dataclass(frozen=True)
class TeacherClips:
    """Clips that a bidirectional network makes as a whole, by the flow ODE; seeds are those of `StreamedClips`."""

    network: WanDiT
    vae: StreamingVAE
    prompts: PromptEncoder
    size: int
    sampling: TeacherSampling
    seed: int

    @torch.inference_mode()
    def pieces(self, prompts: Sequence[Prompt], frames: int) -> Pieces:
        """One piece."""
        how = self.sampling
        geometry = Geometry(
            self.size, self.size, spatial_factor=self.vae.spatial_factor, temporal_factor=self.vae.temporal_factor
        )
        latent_frames = geometry.latent_frames_of(_whole_latents(frames, geometry.temporal_factor))
        shape = (latent_frames, self.network.config["in_channels"], geometry.latent_height, geometry.latent_width)
        noise = SeededNoise(tuple(self.seed + prompt.index for prompt in prompts))(0, 0, shape)
        text = self.network.encode_text(self.prompts([prompt.text for prompt in prompts]))
        null = self.network.encode_text(self.prompts([""])).expand(len(prompts))
        sigmas = ode_sigmas(how.steps, how.shift)
        latents = ode_trajectory(
            Denoiser(self.network), noise.to(self.prompts.device), text, null, sigmas, how.guidance
        )
        yield _pixels(self.vae.decode(latents[:, 0])[0][:, :frames])


@dataclass(frozen=True)
class RenderedClips:
    """The clips that a perfect model would make: the prompts' scenes, rendered."""

    size: int

    def pieces(self, prompts: Sequence[Prompt], frames: int) -> Pieces:
        """Pieces of up to 5 seconds."""
        for first in range(0, frames, PIECE_FRAMES):
            count = min(PIECE_FRAMES, frames - first)
            yield np.stack([render(prompt.scene, count, self.size, first) for prompt in prompts])


@dataclass(frozen=True)
class DecodedClips:
    """Rendered clips after the VAE: what a perfect transformer would show."""

    rendered: RenderedClips
    vae: StreamingVAE

    def pieces(self, prompts: Sequence[Prompt], frames: int) -> Pieces:
        """Pieces of up to 5 seconds, encoded and decoded as one stream."""
        encoder, decoder, left = None, None, frames
        held = np.empty((len(prompts), 0, self.rendered.size, self.rendered.size, 3), np.uint8)
        for piece in self.rendered.pieces(prompts, _whole_latents(frames, self.vae.temporal_factor)):
            held = np.concatenate([held, piece], axis=1)
            fits = held.shape[1] - (held.shape[1] - (encoder is None)) % self.vae.temporal_factor
            pixels = torch.from_numpy(held[:, :fits]).permute(0, 1, 4, 2, 3).float() / 255
            latents, encoder = self.vae.encode(pixels, encoder)
            decoded, decoder = self.vae.decode(latents, decoder)
            held = held[:, fits:]
            yield _pixels(decoded[:, :left])
            left -= decoded.shape[1]


def _whole_latents(frames: int, temporal_factor: int) -> int:
    """The fewest frames, at least `frames`, that fill latent frames."""
    return 1 + -(-(frames - 1) // temporal_factor) * temporal_factor


def _pixels(frames: Tensor) -> NDArray[np.uint8]:
    """Frames [B, T, 3, H, W] in [0, 1] as uint8 [B, T, H, W, 3]."""
    return to_uint8(frames).permute(0, 1, 3, 4, 2).contiguous().numpy()
