"""The VAE stage: trains diffusers' `AutoencoderKLWan` on clips of the world or of a folder, short ones first.

The loss is foreground-weighted L1 + MSE + KL. A clip length of 1 teaches the image path, 5 and 9 the temporal one, and
17 or more the steady state behind the zero-padded start.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from pydantic import PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from reward_forcing.config import Settings
from reward_forcing.models.vae import decode_parallel, encode_parallel
from reward_forcing.training.clip_sources import ClipSource, FolderClips, WorldClips
from reward_forcing.training.networks import compiled_activation, load_vae
from reward_forcing.training.phases import Phase, phase_at
from reward_forcing.training.settings import StageSettings
from reward_forcing.training.stage import Draw, Stage


class VaeSettings(Settings):
    """Width and depth of the VAE; the names are those of diffusers' config."""

    base_dim: int = 16
    decoder_base_dim: int = 24
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4)
    num_res_blocks: int = 1
    temperal_downsample: tuple[bool, ...] = (True, True)
    patch_size: int | None = 2

    def build(self) -> AutoencoderKLWan:
        """A VAE with fresh weights; spatial factor 2^(levels - 1) times the patch size, temporal factor 4."""
        channels = 3 * (self.patch_size or 1) ** 2
        spatial = 2 ** (len(self.dim_mult) - 1) * (self.patch_size or 1)
        return AutoencoderKLWan(
            base_dim=self.base_dim,
            decoder_base_dim=self.decoder_base_dim,
            z_dim=self.z_dim,
            dim_mult=list(self.dim_mult),
            num_res_blocks=self.num_res_blocks,
            attn_scales=[],
            temperal_downsample=list(self.temperal_downsample),
            latents_mean=[0.0] * self.z_dim,
            latents_std=[1.0] * self.z_dim,
            in_channels=channels,
            out_channels=channels,
            patch_size=self.patch_size,
            scale_factor_temporal=2 ** sum(self.temperal_downsample),
            scale_factor_spatial=spatial,
        )


class VaeStageSettings(StageSettings):
    """Settings of the VAE stage.

    init: a VAE's folder to start from, in place of a fresh `model`. phases: clip lengths in frames and global batches.
    size: of the frames, in pixels; (height, width) where they are not square, which those of the world are. videos: a
    folder of videos and images to train on, at `fps`, in place of the world; its last `validation_clips` files are kept
    to validate with.
    """

    roles: ClassVar[tuple[str, ...]] = ("vae",)
    stage: Literal["vae"] = "vae"
    model: VaeSettings = VaeSettings()
    init: Path | None = None
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 64
    videos: Path | None = None
    fps: PositiveFloat = 16.0
    phases: tuple[Phase, ...]
    kl_weight: float = 1e-4
    mse_weight: float = 2.0
    foreground_weight: float = 5.0
    validation_clips: PositiveInt = 16
    validation_frames: PositiveInt = 33

    def batches(self) -> tuple[int, ...]:
        return tuple(phase.batch for phase in self.phases)

    @model_validator(mode="after")
    def _the_world_is_square(self) -> Self:
        if self.videos is None and not isinstance(self.size, int):
            raise ValueError(f"the world's frames are square: size must be one number, got {self.size}")
        return self

    def source(self) -> ClipSource:
        """Where clips come from. Raises as `FolderClips` does."""
        if self.videos is None:
            assert isinstance(self.size, int), self.size
            return WorldClips(self.size)
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        longest = max(phase.frames for phase in self.phases)
        # the statistics of latents are taken of training clips as long as those of validation
        longest = max(longest, self.validation_frames)
        return FolderClips(self.videos, self.fps, size, longest, self.validation_clips, self.validation_frames)


class VaeStage(Stage[VaeStageSettings]):
    """Trains role `vae`; exports a diffusers `vae/` folder with the latents' mean and deviation in its config."""

    settings_class = VaeStageSettings

    def __init__(self, settings: VaeStageSettings, seed: int, rank: int, world_size: int, device: torch.device) -> None:
        super().__init__(settings, seed, rank, world_size, device)
        self.source = settings.source()
        torch.manual_seed(seed)
        vae = settings.model.build() if settings.init is None else load_vae(settings.init).vae.train()
        self.vae = vae.requires_grad_(True).to(device)  # pyright: ignore[reportArgumentType] diffusers wraps `to` without its types
        self.activate = compiled_activation() if self.placement.compiled else None
        for module in self.vae.modules():
            if isinstance(module, nn.Conv3d):
                # 1.6 times as fast on a CPU in bf16
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)

    def networks(self) -> dict[str, nn.Module]:
        return {"vae": self.vae}

    def edges(self, role: str) -> tuple[str, ...]:
        return (
            "encoder.conv_in",
            "encoder.conv_out",
            "decoder.conv_in",
            "decoder.conv_out",
            "quant_conv",
            "post_quant_conv",
        )

    def loss(self, role: str, step: int, draw: Draw) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Foreground-weighted L1 + MSE, plus the KL divergence from a unit normal (means over elements)."""
        phase = phase_at(self.settings.phases, step, self.settings.train.steps)
        with self.clock("data"):
            frames = self._clips((draw.sample(index) for index in draw.share(phase.batch)), phase.frames)
        mean, logvar = encode_parallel(self.vae, frames, self.activate)
        latents = mean + torch.exp(0.5 * logvar) * torch.randn(mean.shape, generator=draw.local).to(mean)
        error = decode_parallel(self.vae, latents, self.activate).float() - frames
        weight = self._weights(frames)
        l1 = (weight * error.abs()).sum() / weight.sum() / 3
        mse = (weight * error.square()).sum() / weight.sum() / 3
        mean, logvar = mean.float(), logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        loss = l1 + self.settings.mse_weight * mse + self.settings.kl_weight * kl
        psnr = -10 * torch.log10(error.detach().square().mean())
        return loss, {"l1": l1.detach(), "kl": kl.detach(), "psnr": psnr, "frames": float(phase.frames)}

    def _clips(self, generators: Iterable[torch.Generator], frames: int) -> Tensor:
        """A random training clip [B, T, 3, H, W] for each generator."""
        return torch.stack([self.source.training(generator, frames) for generator in generators]).to(self.device)

    def _weights(self, frames: Tensor) -> Tensor:
        """Weight [B, T, 1, H, W]: foreground pixels, those far from the median of their row, count more."""
        median = frames.median(dim=-1, keepdim=True).values
        foreground = (frames - median).abs().amax(dim=2, keepdim=True) > 0.15
        return 1 + (self.settings.foreground_weight - 1) * foreground.to(frames)

    def _validation(self, count: int) -> Tensor:
        frames = self.settings.validation_frames
        return torch.stack([self.source.validation(number, frames) for number in range(count)]).to(self.device)

    @torch.no_grad()
    def _reconstruct(self, frames: Tensor) -> Tensor:
        pieces = [decode_parallel(self.vae, encode_parallel(self.vae, piece)[0]) for piece in frames.split(4)]
        return torch.cat(pieces).float().clamp(0, 1)

    def metrics(self, step: int) -> dict[str, Tensor | float]:
        """Mean over clips of the PSNR in dB, on validation clips."""
        frames = self._validation(self.settings.validation_clips)
        error = (self._reconstruct(frames) - frames).square().mean(dim=(1, 2, 3, 4))
        return {"validation_psnr": (-10 * torch.log10(error)).mean()}

    def samples(self, step: int) -> dict[str, Tensor]:
        """Six validation clips and their reconstructions, eight frames of each."""
        frames = self._validation(6)
        stride = max(1, frames.shape[1] // 8)
        return {"truth": frames[:, ::stride], "reconstruction": self._reconstruct(frames)[:, ::stride]}

    @torch.no_grad()
    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """Write `folder`/vae, with the per-channel statistics of 256 training clips in its config."""
        generators = (torch.Generator().manual_seed(index) for index in range(256))
        clips = self._clips(generators, self.settings.validation_frames)
        means = torch.cat([encode_parallel(self.vae, piece)[0].float() for piece in clips.split(8)])
        channels = means.transpose(0, 2).flatten(1)
        self.vae.register_to_config(latents_mean=channels.mean(1).tolist(), latents_std=channels.std(1).tolist())
        self.vae.save_pretrained(folder / "vae")
