"""Frames to latents and back: a whole clip at once for training, chunk by chunk with an explicit state for streams.

Both are the same walk (`vae_walk`). Here live the normalisation of latents, the checks of shapes and the choice of
number format; the network is diffusers' `AutoencoderKLWan`.

B batch, T pixel frames, H W pixel size, F latent frames, C latent channels, h w latent size, r temporal factor.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor, nn

from reward_forcing.models.vae_walk import Activation, Tape, VAEState, decode_walk, encode_walk

__all__ = [
    "FrameDecoder",
    "StreamingVAE",
    "VAEState",
    "channels_last",
    "check_latents",
    "decode_parallel",
    "encode_parallel",
    "fastest_dtype",
]

M = TypeVar("M", bound=nn.Module)


class FrameDecoder(Protocol):
    """What makes a stream's frames of its latents: `StreamingVAE` itself, or `tiny_vae.TinyDecoder` in its place."""

    @property
    def name(self) -> str:
        """The network and its number format, in words."""
        ...

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Frames in [0, 1] of the next latents, and the state after them; see `StreamingVAE.decode`."""
        ...


def encode_parallel(vae: AutoencoderKLWan, frames: Tensor, activate: Activation | None = None) -> tuple[Tensor, Tensor]:
    """Mean and log-variance [B, F, C, h, w] of the posterior, raw (not normalised), in one differentiable pass.

    Equals `vae.encode`, which feeds 1, r, r, ... frames through caches. frames: [B, T, 3, H, W] in [0, 1] with
    T = 1 + r (F - 1). The log-variance is clamped to [-30, 20] as in diffusers. activate: see `vae_walk.Tape`.
    Raises ValueError if the number or the size of the frames does not divide.
    """
    _check_frames(vae, frames, None)
    return encode_walk(vae, frames, Tape("encoder", None, keeps=False, activate=activate))


def decode_parallel(vae: AutoencoderKLWan, latents: Tensor, activate: Activation | None = None) -> Tensor:
    """Frames [B, T, 3, H, W] of raw (not normalised) latents [B, F, C, h, w], in one differentiable pass.

    Equals `vae.decode` before its clamp: values may leave [0, 1], so that a loss sees by how much. activate: see
    `vae_walk.Tape`.
    Raises ValueError if the latents have another number of channels than the VAE.
    """
    check_latents(latents, vae.config["z_dim"], "decoder", None)
    return decode_walk(vae, latents, Tape("decoder", None, keeps=False, activate=activate))


class StreamingVAE:
    """Normalised latents and frames in [0, 1], chunk by chunk; any split of a clip gives what one call gives.

    Latents are (z - mean) / std with the config's `latents_mean` and `latents_std`, in float32. States are values:
    the one passed in is never written to, so streams may be interleaved, branched and rewound. Nothing here records
    gradients; training uses `encode_parallel` and `decode_parallel`.

    pass_frames: latent frames in one walk. A longer chunk takes several, with the same result, so that memory does not
    grow with the length of a clip. compiled: whether frames are decoded by fused kernels, made anew for each shape,
    where they are not computed in float32, whose convolutions `vae_walk` asks for in a way that does not compile.
    """

    def __init__(self, vae: AutoencoderKLWan, pass_frames: int = 3, compiled: bool = False) -> None:
        if pass_frames < 1:
            raise ValueError(f"pass_frames must be at least 1 latent frame, got {pass_frames}")
        self.vae = vae
        self.pass_frames = pass_frames
        self._compiled_walk = torch.compile(decode_walk, dynamic=False) if compiled else None
        self.temporal_factor = _temporal_factor(vae)
        self.spatial_factor = _spatial_factor(vae)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Self:
        """The VAE in a diffusers `vae/` folder, frozen, in `dtype` or the fastest one; on a CPU `channels_last`."""
        vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=dtype or fastest_dtype(device))
        nn.Module.to(vae.eval().requires_grad_(False), device)
        return cls(channels_last(vae) if torch.device(device).type == "cpu" else vae)

    @property
    def name(self) -> str:
        """The network and its number format, in words."""
        return f"Wan VAE {str(self.vae.dtype).removeprefix('torch.')}"

    @torch.no_grad()
    def encode(self, frames: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Latents [B, F, C, h, w] (the posterior's mean) of the next frames, and the state after them.

        frames: [B, T, 3, H, W] in [0, 1]; T = 1 + r (F - 1) where the stream begins (`state` None), then T = r F.
        Raises ValueError for another T, a size that the VAE does not divide, or the state of another stream shape.
        """
        _check_frames(self.vae, frames, state)
        means: list[Tensor] = []
        step = self.pass_frames * self.temporal_factor
        first = step - self.temporal_factor + 1 if state is None else step
        for part in frames.split(_pass_lengths(frames.shape[1], step, first), dim=1):
            tape = Tape("encoder", state, keeps=True)
            mean, _ = encode_walk(self.vae, part.to(self.vae.device, self.vae.dtype), tape)
            means.append(mean.float())
            state = tape.state()
        assert state is not None, frames.shape
        return self.normalise(torch.cat(means, dim=1)), state

    def decode(self, latents: Tensor, state: VAEState | None = None) -> tuple[Tensor, VAEState]:
        """Frames [B, T, 3, H, W] in [0, 1], float32, of the next latents, and the state after them.

        latents: [B, F, C, h, w]; T = 1 + r (F - 1) where the stream begins (`state` None), then T = r F. A state that
        nobody else holds is given back layer by layer, so that there are never two of them in memory.
        Raises ValueError for no frames, another number of channels, or the state of another stream shape.
        """
        check_latents(latents, self.vae.config["z_dim"], "decoder", state)
        frames: list[Tensor] = []
        walk = self._decode_walk()
        with torch.no_grad():  # no decorator, which would hold on to the state
            for part in self.denormalise(latents.to(self.vae.device)).split(self.pass_frames, dim=1):
                tape, state = Tape("decoder", state, keeps=True), None
                frames.append(walk(self.vae, part.to(self.vae.dtype), tape).float().clamp(0.0, 1.0))
                state = tape.state()
        assert state is not None, latents.shape
        return torch.cat(frames, dim=1), state

    def normalise(self, raw: Tensor) -> Tensor:
        """(raw - mean) / std per channel of raw latents [B, F, C, h, w], in float32."""
        mean, std = self._statistics(raw.device)
        return (raw.float() - mean) / std

    def denormalise(self, latents: Tensor) -> Tensor:
        """latents * std + mean per channel, in float32: the inverse of `normalise`."""
        mean, std = self._statistics(latents.device)
        return latents.float() * std + mean

    def _decode_walk(self) -> Callable[[AutoencoderKLWan, Tensor, Tape], Tensor]:
        if self._compiled_walk is None:
            return decode_walk
        computes_float32 = self.vae.dtype == torch.float32 and not torch.is_autocast_enabled(self.vae.device.type)
        return decode_walk if computes_float32 else self._compiled_walk

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        # Read at each call, because training writes new statistics into the config.
        both = torch.tensor([self.vae.config["latents_mean"], self.vae.config["latents_std"]], device=device)
        mean, std = both[:, :, None, None]
        return mean, std


def channels_last(vae: M) -> M:
    """The same `vae`, the weights of its convolutions laid out channels last: on a CPU about twice as fast in bfloat16.

    Activations follow the layout of the weights. Names, shapes and values of the parameters stay as they are.
    """
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return vae


def fastest_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies in it (CUDA; CPUs with AVX512-BF16), float32 elsewhere."""
    kind = torch.device(device).type
    if kind == "cuda" or (kind == "cpu" and torch.cpu._is_avx512_bf16_supported()):
        return torch.bfloat16
    return torch.float32


def _temporal_factor(vae: AutoencoderKLWan) -> int:
    return 2 ** sum(vae.config["temperal_downsample"])


def _spatial_factor(vae: AutoencoderKLWan) -> int:
    return 2 ** (len(vae.config["dim_mult"]) - 1) * (vae.config["patch_size"] or 1)


def _pass_lengths(frames: int, later: int, first: int) -> list[int]:
    """`frames` as a first pass of at most `first`, passes of `later` and the rest."""
    lengths = [min(frames, first)]
    while (rest := frames - sum(lengths)) > 0:
        lengths.append(min(rest, later))
    return lengths


def _check_frames(vae: AutoencoderKLWan, frames: Tensor, state: VAEState | None) -> None:
    if frames.ndim != 5 or frames.shape[2] != 3:
        raise ValueError(f"expected frames [B, T, 3, H, W], got {list(frames.shape)}")
    factor, size = _temporal_factor(vae), _spatial_factor(vae)
    batch, count, _, height, width = frames.shape
    if count < 1 or (count - (state is None)) % factor:
        rule = f"1 + {factor} n frames at the start of a clip" if state is None else f"{factor} n frames further on"
        raise ValueError(f"expected {rule}, got {count}; cut or repeat the last frames")
    if height % size or width % size:
        raise ValueError(f"expected a height and width divisible by {size}, got {height} x {width}; crop or resize")
    patch = vae.config["patch_size"] or 1
    _check_state(state, "encoder", (batch, height // patch, width // patch))


def check_latents(latents: Tensor, channels: int, kind: str, state: VAEState | None) -> None:
    """Raise ValueError unless these are latents [B, F >= 1, channels, h, w], and the state one of theirs.

    kind: of the decoder, as its states say it.
    """
    if latents.ndim != 5 or latents.shape[1] < 1 or latents.shape[2] != channels:
        raise ValueError(f"expected latents [B, F >= 1, {channels}, h, w], got {list(latents.shape)}")
    _check_state(state, kind, (latents.shape[0], latents.shape[3], latents.shape[4]))


def _check_state(state: VAEState | None, kind: str, expected: tuple[int, int, int]) -> None:
    """Raises ValueError unless the state is of the same half of the VAE, the same batch and the same size."""
    if state is None:
        return
    if state.kind != kind:
        raise ValueError(f"expected a state that this {kind} returned, got the state of the {state.kind}")
    batch, _, _, height, width = state.features[0].shape
    if (batch, height, width) != expected:
        raise ValueError(
            f"the state belongs to a stream of batch, height, width {(batch, height, width)} at the {kind}'s first "
            f"layer, got {expected}; pass state=None to begin another stream"
        )
