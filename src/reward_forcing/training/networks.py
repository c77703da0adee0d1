"""Networks that a stage starts from or looks through, read from diffusers folders with one-line errors."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from reward_forcing.models.vae import StreamingVAE
from reward_forcing.models.wan_dit import WanDiT


def load_transformer(folder: Path, device: torch.device) -> WanDiT:
    """The transformer of a diffusers folder, in float32. Raises FileNotFoundError if there is none."""
    _check(folder, "transformer")
    network = WanDiT.from_pretrained(folder, torch_dtype=torch.float32)
    return network.to(device)  # pyright: ignore[reportArgumentType] diffusers wraps `to` without its types


def load_vae(folder: Path) -> StreamingVAE:
    """The VAE of a diffusers folder, in float32 on the CPU, frozen. Raises FileNotFoundError if there is none."""
    _check(folder, "VAE")
    vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=torch.float32)
    return StreamingVAE(vae.eval().requires_grad_(False))


def _check(folder: Path, what: str) -> None:
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no {what} in '{folder}' (config.json is missing); train it first, or give its folder")
