"""TAEHV, a small autoencoder for the latents of a large one: many times less work, other frames.

After github.com/madebyollin/taehv (MIT), whose parameter names these are; `taew2_1.pth` is the one for Wan2.1. Owns the
two networks and what a stream of frames remembers between two chunks; where the weights come from is `checkpoints`'
business. Latents are those that a rollout makes, normalised: no statistics are applied.

B batch, F latent frames, C latent channels, h w latent size, T pixel frames, H W pixel size, c channels, t frames at
the current rate. Inside, x is [t B, c, height, width]: frame by frame, and of each frame all samples.
"""

import math
from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reward_forcing.models.vae import VAEState, check_latents

STATE_KIND = "tiny decoder"
COLOURS = 3


@dataclass(frozen=True)
class TinySizes:
    """Sizes of a tiny autoencoder; the defaults are those of `taew2_1.pth`.

    widths: channels of the decoder's three stages, each of which doubles the size, and of its last layer. growth:
    frames that each stage makes of one. patch: rows and columns of pixels that the last layer makes of a feature.
    encoder_width: channels of the encoder, None where only the decoder is there. pooling: frames of which each of its
    stages makes one.
    """

    latent_channels: int = 16
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)
    growth: tuple[int, int, int] = (1, 2, 2)
    patch: int = 1
    encoder_width: int | None = 64
    pooling: tuple[int, int, int] = (2, 2, 1)

    @property
    def temporal_factor(self) -> int:
        """Pixel frames of a latent frame."""
        return math.prod(self.growth)

    @property
    def spatial_factor(self) -> int:
        """Rows of pixels of a row of latents."""
        return 8 * self.patch


class TinyVAE(nn.Module):
    """The two networks, or the decoder alone; layers and parameters are numbered as in the published files."""

    def __init__(self, sizes: TinySizes = TinySizes()) -> None:
        super().__init__()
        self.sizes = sizes
        colours = COLOURS * sizes.patch**2
        if (width := sizes.encoder_width) is not None:
            stages = chain(*(_pooling_stage(width, frames) for frames in sizes.pooling))
            begin, end = _conv(colours, width), _conv(width, sizes.latent_channels)
            self.encoder = nn.Sequential(begin, nn.ReLU(inplace=True), *stages, end)
        first, *later = sizes.widths
        stages = chain(*map(_growing_stage, sizes.widths[:-1], later, sizes.growth))
        begin, end = _conv(sizes.latent_channels, first), _conv(later[-1], colours)
        self.decoder = nn.Sequential(Squash(), begin, nn.ReLU(inplace=True), *stages, nn.ReLU(inplace=True), end)

    @property
    def weight(self) -> Tensor:
        """One of the parameters: where and in which dtype the networks compute."""
        return next(self.decoder.parameters())

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Latents [B, F, C, h, w] of a whole clip of frames [B, T, 3, H, W] in [0, 1], in the weights' dtype.

        The last frame is repeated up to a multiple of the frames that a latent frame is made of: other than the Wan
        VAE's, the first latent frame stands for as many as the others. Raises ValueError without an encoder.
        """
        if self.sizes.encoder_width is None:
            raise ValueError("this tiny VAE has only a decoder; encode with the model's own VAE")
        x = F.pixel_unshuffle(frames.to(self.weight), self.sizes.patch)
        missing = -x.shape[1] % math.prod(self.sizes.pooling)
        return _walk(self.encoder, torch.cat([x, x[:, -1:].expand(-1, missing, -1, -1, -1)], dim=1), None)[0]


class TinyDecoder:
    """Frames of normalised latents, chunk by chunk, as `StreamingVAE.decode` makes them, by a tiny decoder.

    States are values; any split of a clip gives what one call gives. The first latent frame gives one frame: of the
    temporal_factor that the network makes of it, the others would come before the clip. name: of the weights, for those
    who are told what made the frames. pass_frames: latent frames in one walk, so that memory does not grow with a
    chunk.
    """

    def __init__(self, vae: TinyVAE, name: str = "TAEHV", pass_frames: int = 3) -> None:
        if pass_frames < 1:
            raise ValueError(f"pass_frames must be at least 1 latent frame, got {pass_frames}")
        self.vae = vae
        self.pass_frames = pass_frames
        self._name = name

    @property
    def name(self) -> str:
        """The network and its number format, in words."""
        return f"{self._name} {str(self.vae.weight.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Frames [B, T, 3, H, W] in [0, 1], float32, of the next latents, and the state after them.

        latents: [B, F, C, h, w]; T = 1 + r (F - 1) where the stream begins (`state` None), then T = r F, with r the
        temporal factor. Raises ValueError for no frames, another number of channels, or the state of another stream.
        """
        sizes = self.vae.sizes
        check_latents(latents, sizes.latent_channels, STATE_KIND, state)
        frames: list[Tensor] = []
        for part in latents.to(self.vae.weight).split(self.pass_frames, dim=1):
            before_the_clip = sizes.temporal_factor - 1 if state is None else 0
            x, kept = _walk(self.vae.decoder, part, state)
            frames.append(F.pixel_shuffle(x[:, before_the_clip:], sizes.patch).float().clamp(0.0, 1.0))
            state = VAEState(STATE_KIND, kept)
        assert state is not None, latents.shape
        return torch.cat(frames, dim=1), state


class Squash(nn.Module):
    """Latents drawn into (-3, 3): 3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape."""
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Three convolutions of a frame and the one before it, added to the frame."""

    def __init__(self, width: int) -> None:
        super().__init__()
        convs = _conv(2 * width, width), _conv(width, width), _conv(width, width)
        self.conv = nn.Sequential(convs[0], nn.ReLU(inplace=True), convs[1], nn.ReLU(inplace=True), convs[2])

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        """x, before: [t B, c, height, width]; of a clip's first frame, zeros stand before it."""
        return F.relu(self.conv(torch.cat([x, before], dim=1)) + x)


class Grow(nn.Module):
    """Several frames of each, twice the size."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width, width * frames, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[frames t B, c, 2 height, 2 width] of x [t B, c, height, width].

        The reference doubles the size first; a product of single pixels gives the same before it, for a quarter.
        """
        x = self.conv(x).unflatten(1, (self.frames, -1)).unflatten(0, (-1, batch))  # [t, B, frames, c, ...]
        return F.interpolate(x.transpose(1, 2).flatten(0, 2), scale_factor=2.0)


class Pool(nn.Module):
    """One frame of several."""

    def __init__(self, width: int, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.conv = nn.Conv2d(width * frames, width, 1, bias=False)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        """[t B, c, height, width] of x [frames t B, c, height, width]."""
        x = x.unflatten(0, (-1, self.frames, batch)).transpose(1, 2)  # [t, B, frames, c, ...]
        return self.conv(x.flatten(2, 3).flatten(0, 1))


def _walk(layers: nn.Sequential, frames: Tensor, state: VAEState | None) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What the layers make of frames [B, t, c, ...], and the last input frame of each memory block, [B, c, 1, ...]."""
    batch, kept = frames.shape[0], []
    past = iter(() if state is None else state.features)
    x = frames.transpose(0, 1).flatten(0, 1)
    for layer in layers:
        if isinstance(layer, MemoryBlock):
            first = torch.zeros_like(x[:batch]) if state is None else next(past).squeeze(2)
            kept.append(x[-batch:].clone().unsqueeze(2))  # a view would keep the whole chunk alive
            x = layer(x, torch.cat([first, x[:-batch]]))
        elif isinstance(layer, Grow | Pool):
            x = layer(x, batch)
        else:
            x = layer(x)
    return x.unflatten(0, (-1, batch)).transpose(0, 1), tuple(kept)


def _growing_stage(width: int, to: int, frames: int) -> list[nn.Module]:
    # `Grow` does what the reference has the layer before it for, whose number it leaves free
    return [*(MemoryBlock(width) for _ in range(3)), nn.Identity(), Grow(width, frames), _conv(width, to, bias=False)]


def _pooling_stage(width: int, frames: int) -> list[nn.Module]:
    halve = _conv(width, width, stride=2, bias=False)
    return [Pool(width, frames), halve, *(MemoryBlock(width) for _ in range(3))]


def _conv(width: int, to: int, stride: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(width, to, 3, stride=stride, padding=1, bias=bias)
